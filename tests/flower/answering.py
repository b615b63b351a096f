"""A device that answers, in processes that may be killed: one question file a line, one answer.

Whenever one is dead, the next begins, a copy of a process that has loaded everything already.

python -m tests.flower.answering CONFIG STATE
"""

from __future__ import annotations

import sys
from pathlib import Path

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Packed

from fedcl.flower.node.client_app import respond
from tests.flower.memory_writer import one_after_the_other
from tests.flower.nodes import device


def pack(content: RecordDict, path: Path) -> None:
    """Writes a message into a file as Flower carries it."""
    path.write_bytes(recorddict_to_proto(content).SerializeToString())


def unpack(path: Path) -> RecordDict:
    """Returns the message in a file."""
    return recorddict_from_proto(Packed.FromString(path.read_bytes()))


def answer(word: str) -> None:
    """Answers the question in a file, and writes the answer beside it."""
    path = Path(word)
    found = respond(unpack(path), device(Path(sys.argv[1]), Path(sys.argv[2])))
    pack(found, path.with_suffix(".answer"))


if __name__ == "__main__":
    one_after_the_other(answer)
