"""What happens at a node: the unchanged client app answers a message with its own Context."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedcl.core.seeds import seed_of
from fedcl.flower.grid.letters import FIRST_NODE, Kept, Letter, failure, seal


@dataclass(frozen=True)
class Facts:
    """What every node knows of the run.

    Attributes:
        run: Flower's id of the run.
        clients: Number of nodes.
        config: The app's run config.
        seed: What the nodes' random generators are seeded from.
    """

    run: int
    clients: int
    config: UserConfig
    seed: int


def answer(
    app: ClientApp,
    facts: Facts,
    shared: Sequence[bytes],
    letters: Sequence[Letter],
    kept: Mapping[int, Kept],
) -> tuple[list[bytes], dict[int, Kept]]:
    """Lets nodes answer their letters, one after the other.

    Args:
        app: The client app.
        facts: What every node knows.
        shared: Records that letters share.
        letters: The letters; several to one node are answered in their order.
        kept: What is kept of each node.

    Returns:
        The packed replies in the order of letters, and what is to be kept of each node now.
    """
    torch.set_num_threads(1)  # one and two threads give different bits
    replies, now = [], dict(kept)
    for letter in letters:
        reply, now[letter.node] = _answer(app, facts, letter.open(shared), now[letter.node])
        replies.append(reply)
    return replies, now


def _answer(app: ClientApp, facts: Facts, message: Message, kept: Kept) -> tuple[bytes, Kept]:
    node = message.metadata.dst_node_id
    context = Context(
        run_id=facts.run,
        node_id=node,
        node_config={PARTITION_ID_KEY: node - FIRST_NODE, NUM_PARTITIONS_KEY: facts.clients},
        state=read_state(kept.state),
        run_config=dict(facts.config),
    )
    # An app that draws without a seed of its own, such as a DataLoader that shuffles, draws the
    # same whatever the worker.
    plant(seed_of(facts.seed, node - FIRST_NODE, kept.answered))
    try:
        reply = app(message, context)
        _check(reply, message, context, facts)
        return seal(reply), Kept(kept.answered + 1, write_state(context.state))
    except (Exception, SystemExit) as error:
        # Told to the server, as Flower does it; the node's state stays as it was.
        reason = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        told = failure(message.metadata, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
        return told, Kept(kept.answered + 1, kept.state)


def _check(reply: object, message: Message, context: Context, facts: Facts) -> None:
    if not isinstance(reply, Message):
        raise TypeError(f"the client app returned {type(reply).__name__}, not a Message")
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise ValueError("the client app returned no reply: make it with Message(..., reply_to=)")
    if context.run_config != facts.config:
        raise ValueError("the client app changed context.run_config, which belongs to the run")


def write_state(state: RecordDict) -> bytes:
    """Returns a `context.state` in Flower's own wire format, which holds nothing that can run."""
    return recorddict_to_proto(state).SerializeToString() if state else b""


def read_state(data: bytes) -> RecordDict:
    """Returns what `write_state` has written."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data)) if data else RecordDict()


def plant(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators, which apps draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - it is the app that uses the global generator
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def untouched() -> Iterator[None]:
    """Leaves the global generators and the number of threads of this process as they were."""
    threads = torch.get_num_threads()
    python, array, tensor = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002
        torch.set_rng_state(tensor)
        torch.set_num_threads(threads)
