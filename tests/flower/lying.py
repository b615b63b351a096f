"""What a hostile client may answer, made of an honest answer."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedcl.flower.protocol.messages import VALUE

Change = Callable[[dict[str, Tensor], str], tuple[dict[str, Tensor], str]]


def array(value: bytes) -> Array:
    """Returns the array of a message that holds a value."""
    return Array.from_numpy_ndarray(np.frombuffer(value, np.uint8))


def repacked(record: ArrayRecord, change: Change) -> ArrayRecord:
    """Returns what a record would be with other tensors or another structure in its value."""
    value = record[VALUE].numpy().tobytes()
    header = json.loads(value[8 : 8 + int.from_bytes(value[:8], "little")])
    tensors, text = change(safetensors.torch.load(value), header["__metadata__"]["structure"])
    return ArrayRecord({VALUE: array(safetensors.torch.save(tensors, {"structure": text}))})


def structured(structure: str) -> Change:
    """Returns the change to another structure."""
    return lambda tensors, text: (tensors, structure)


def _first(change: Callable[[Tensor], Tensor]) -> Change:
    def other(tensors: dict[str, Tensor], text: str) -> tuple[dict[str, Tensor], str]:
        return {**tensors, "t0": change(tensors["t0"])}, text

    return other


def _heavy(tensors: dict[str, Tensor], text: str) -> tuple[dict[str, Tensor], str]:
    structure = json.loads(text)
    structure["fields"]["weight"] = "heavy"
    return tensors, json.dumps(structure)


# What is wrong with the value alone.
_VALUES: dict[str, Change] = {
    "nan": _first(lambda value: torch.full_like(value, torch.nan)),
    "shape": _first(lambda value: value[:-1].clone()),
    "type": _first(lambda value: value.double()),
    "text": structured("[" * 30_000),
    "name": lambda tensors, text: (tensors, text.replace("client:Reply", "os:system")),
    "weight": _heavy,
}


def _arrays(what: str, honest: ArrayRecord) -> dict[str, Array]:
    """Returns arrays that are none, or not those of a message."""
    if what == "oversized":
        return {**honest, "more": Array.from_numpy_ndarray(np.zeros(100_000, np.float64))}
    if what == "more":
        return {**honest, "more": Array.from_numpy_ndarray(np.zeros(1))}
    if what == "bomb":  # a header that promises more than there is
        small = Array.from_numpy_ndarray(np.zeros(4, np.float32)).data
        large = small.replace(b"(4,), }" + b" " * 9, b"(4000000000,), }")
        assert len(large) == len(small) and large != small
        return {VALUE: Array("float32", (4_000_000_000,), "numpy.ndarray", large)}
    if what == "inner bomb":  # the same within the value
        value = honest[VALUE].numpy().tobytes()
        large = value.replace(b'"data_offsets":[0,', b'"data_offsets":[0,9', 1)
        assert large != value
        return {VALUE: array(large)}
    if what == "pickle":
        return {VALUE: Array("object", (1,), "numpy.ndarray", b"cos\nsystem\n(S'true'\ntR.")}
    if what == "inner pickle":
        return {VALUE: array(b"cos\nsystem\n(S'true'\ntR.")}
    if what == "objects":
        return {VALUE: Array.from_numpy_ndarray(np.array(["a", "b"]))}
    if what == "numbers":
        return {VALUE: Array.from_numpy_ndarray(np.zeros((2, 3), np.float32))}
    return dict(honest)


def lie(what: str, reply: RecordDict) -> RecordDict:
    """Returns an answer that a hostile client makes of an honest one."""
    answer, honest = reply.config_records["answer"], reply.array_records["reply"]
    if what == "nothing":
        return RecordDict()
    if what == "parts":
        return RecordDict({"answer": ConfigRecord({"remembered": False})})
    if what == "stale":
        answer["position"] = [0, 0, 0, 7]
    if what in _VALUES:
        return RecordDict({"reply": repacked(honest, _VALUES[what]), "answer": answer})
    return RecordDict({"reply": ArrayRecord(_arrays(what, honest)), "answer": answer})


LIES = {
    "nan": "NaN",
    "shape": "has shape",
    "type": "has type",
    "stale": "stale",
    "more": "not 'value' alone",
    "oversized": "bytes, of which 60000 are allowed",
    "bomb": "another size than its shape",
    "inner bomb": "not a value of fedcl",
    "pickle": "cannot be read",
    "inner pickle": "not a value of fedcl",
    "objects": "no numbers",
    "numbers": "are no bytes but float32 of shape (2, 3)",
    "text": "does not describe a value",
    "name": "not known here",
    "weight": "weight is no number",
    "nothing": "it has no 'answer'",
    "parts": "it has no 'position'",
}
