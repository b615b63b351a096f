"""Looks at what somebody else has sent before any of it is used: sizes, arrays, values of a reply.

What must not happen is that a message costs more room than it has bytes, or that a value of an
unexpected type comes so far that it ends the run.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, RecordDict
from torch import Tensor

from fedcl.core.client import Reply, Spent

_NAME = re.compile(r"[\w./:+\- ]{1,200}")
_LARGEST = 2**53  # whole numbers above it are no counts


def inspect(content: RecordDict, limit: int, named: str = "engine.limit") -> None:
    """Raises ValueError for a message that is too large or whose arrays are not what they say.

    Nothing is unpacked: an array's header alone tells its size.

    Args:
        content: What came.
        limit: Most bytes that it may have.
        named: Where that is decided, for the error.
    """
    size = sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )
    for plain in content.config_records.values():
        size += sum(_size(value) for value in plain.values())
    if size > limit:
        raise ValueError(f"it has {size} bytes, of which {limit} are allowed ({named})")
    for record in content.array_records.values():
        for name, array in record.items():
            _check(name, array)


def _size(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 8


def _check(name: str, array: Array) -> None:
    if array.stype != "numpy.ndarray":
        raise ValueError(f"array {name!r} is no NumPy array but {array.stype!r}")
    file = io.BytesIO(array.data)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.kind not in "fiub":
        raise ValueError(f"array {name!r} holds {dtype}, no numbers")
    if math.prod(shape) * dtype.itemsize != len(array.data) - file.tell():
        raise ValueError(f"array {name!r} has another size than its shape {shape}")


def check_reply(reply: Reply) -> None:
    """Raises ValueError for a reply whose parts are of other types than a client's program makes.

    Whether tensors have the right names, shapes and finite values is judged where all replies of an
    exchange are seen (`fedcl.core.guard`).
    """
    if not isinstance(reply.tensors, Mapping) or not isinstance(reply.metrics, Mapping):
        raise ValueError("its tensors or metrics are no mapping")
    for name, tensor in reply.tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"its tensor {name!r:.50} is none")
    for name in (*reply.tensors, *reply.metrics):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r:.50} is no name of a tensor or metric")
    for name, value in (("weight", reply.weight), *reply.metrics.items()):
        if not _is_number(value):
            raise ValueError(f"its {name} is no number but {value!r:.50}")
    for name, count in (("steps", reply.steps), ("examples", reply.examples)):
        if not _is_count(count):
            raise ValueError(f"its number of {name} is {count!r:.50}")
    if reply.spent is not None:
        _check_spent(reply.spent)


def _check_spent(spent: object) -> None:
    if not isinstance(spent, Spent) or not isinstance(spent.earlier, bool):
        raise ValueError("what it spent is told in another form")
    if not _is_count(spent.steps):
        raise ValueError(f"it spent {spent.steps!r:.50} steps")
    for value, largest in ((spent.noise_multiplier, _LARGEST), (spent.rate, 1)):
        if not isinstance(value, float) or not 0 <= value <= largest:
            raise ValueError(f"what it spent is {value!r:.50}")


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= _LARGEST)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST
