"""What a hostile client may answer, made of an honest answer."""

from __future__ import annotations

import json

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict


def lie(what: str, reply: RecordDict) -> RecordDict:
    """Returns an answer that a hostile client makes of an honest one."""
    answer = reply.config_records["answer"]
    arrays = dict(reply.array_records["reply"])
    name, first = next(iter(arrays.items()))
    value = first.numpy()
    if what == "nan":
        arrays[name] = Array.from_numpy_ndarray(np.full_like(value, np.nan))
    elif what == "shape":
        arrays[name] = Array.from_numpy_ndarray(value[:-1])
    elif what == "type":
        arrays[name] = Array.from_numpy_ndarray(value.astype(np.float64))
    elif what == "stale":
        answer["position"] = [0, 0, 0, 7]
    elif what == "oversized":
        arrays["more"] = Array.from_numpy_ndarray(np.zeros(100_000, np.float64))
    elif what == "bomb":  # a header that promises more than there is
        small = Array.from_numpy_ndarray(np.zeros(4, np.float32)).data
        large = small.replace(b"(4,), }" + b" " * 9, b"(4000000000,), }")
        assert len(large) == len(small) and large != small
        arrays[name] = Array("float32", (4_000_000_000,), "numpy.ndarray", large)
    elif what == "pickle":
        arrays[name] = Array("object", (1,), "numpy.ndarray", b"cos\nsystem\n(S'true'\ntR.")
    elif what == "objects":
        arrays[name] = Array.from_numpy_ndarray(np.array(["a", "b"]))
    elif what == "text":
        answer["structure"] = "[" * 30_000
    elif what == "name":
        answer["structure"] = str(answer["structure"]).replace("client:Reply", "os:system")
    elif what == "weight":
        structure = json.loads(str(answer["structure"]))
        structure["fields"]["weight"] = "heavy"
        answer["structure"] = json.dumps(structure)
    elif what == "nothing":
        return RecordDict()
    elif what == "parts":
        return RecordDict({"answer": ConfigRecord({"structure": "1"})})
    return RecordDict({"reply": ArrayRecord(arrays), "answer": answer})


LIES = {
    "nan": "NaN",
    "shape": "has shape",
    "type": "has type",
    "stale": "stale",
    "oversized": "bytes, of which 60000 are allowed",
    "bomb": "another size than its shape",
    "pickle": "cannot be read",
    "objects": "no numbers",
    "text": "does not describe a value",
    "name": "not known here",
    "weight": "weight is no number",
    "nothing": "it has no 'answer'",
    "parts": "it has no 'position'",
}
