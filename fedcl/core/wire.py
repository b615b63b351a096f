"""One codec for wire, store and checkpoint: a value becomes named tensors and a text.

Only tensors, numbers, strings, None, tuples, lists, mappings, `Examples` and other frozen
dataclasses of a known vocabulary can be written, and reading looks names up in that vocabulary:
nothing that is read can name code to run. Programs are written by the name of their parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import FunctionType, MethodType
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """The names that may stand in a message: those of core, and one method's own.

    Attributes:
        classes: Frozen dataclasses by name.
        functions: Public functions of core by name.
        method: The method whose `client_half` functions may be named, or None.
    """

    classes: Mapping[str, type]
    functions: Mapping[str, FunctionType]
    method: Any = None


def name_of(value: Any) -> str:
    """Returns the name by which a class or a function is written: its module's and its own."""
    return f"{value.__module__}:{value.__qualname__}"


def encode(value: Any, words: Vocabulary) -> tuple[dict[str, Tensor], str]:
    """Returns `(tensors, text)`; raises TypeError that names what cannot be written.

    Args:
        value: Message, reply, memory, state or program.
        words: What may be named.
    """
    tensors: dict[str, Tensor] = {}
    # A tensor that occurs twice is written once. It is kept, so that its id stays its own.
    written: dict[int, tuple[Tensor, str]] = {}
    storages: set[int] = set()

    def put(item: Tensor) -> str:
        if id(item) not in written:
            written[id(item)] = item, f"t{len(written)}"
            whole = item.detach().cpu().contiguous()
            place = whole.untyped_storage().data_ptr()
            # safetensors refuses two views of one memory.
            tensors[written[id(item)][1]] = whole.clone() if place in storages else whole
            storages.add(place)
        return written[id(item)][1]

    return tensors, json.dumps(_structure(value, words, put))


def check(value: Any, words: Vocabulary) -> None:
    """Raises TypeError that names what `encode` cannot write, without touching a tensor."""
    _structure(value, words, lambda item: "")


def _structure(value: Any, words: Vocabulary, put: Callable[[Tensor], str]) -> Any:
    """Returns a value as JSON allows it, with the names that `put` gives to its tensors."""

    def walk(item: Any) -> Any:
        if item is None or isinstance(item, bool | int | str):
            return item
        if isinstance(item, float):
            return {"float": item.hex()}  # exact, and infinities have a spelling
        if isinstance(item, Tensor):
            return {"tensor": put(item)}
        if isinstance(item, tuple | list):
            return {"tuple" if isinstance(item, tuple) else "list": [walk(part) for part in item]}
        if isinstance(item, Mapping):
            # Pairs, since keys may be numbers and their order is part of the value.
            return {"map": [[walk(key), walk(part)] for key, part in item.items()]}
        if (
            isinstance(item, MethodType)
            and words.method is not None
            and item.__self__ == words.method
        ):
            if item.__name__ in type(words.method).client_half:
                return {"method": item.__name__}
            raise TypeError(f"method function {item.__name__!r} is not listed in client_half")
        if isinstance(item, FunctionType) and words.functions.get(name_of(item)) is item:
            return {"function": name_of(item)}
        if (
            is_dataclass(item)
            and not isinstance(item, type)
            and words.classes.get(name_of(type(item))) is type(item)
        ):
            return {
                "class": name_of(type(item)),
                "fields": {f.name: walk(getattr(item, f.name)) for f in fields(item)},
            }
        name = getattr(item, "__qualname__", "")
        raise TypeError(
            f"{type(item).__name__}{name and f' {name!r}'} cannot travel: use "
            "tensors, numbers, strings, tuples, mappings, frozen dataclasses of fedcl.core or of "
            "the method's file, and functions of fedcl.core.local or of the method's client_half "
            "(no lambdas, closures or partials)"
        )

    return walk(value)


def decode(tensors: Mapping[str, Tensor], text: str, words: Vocabulary) -> Any:
    """Returns the value that `encode` wrote.

    Raises:
        ValueError: A name is outside the vocabulary, or the text is none of `encode`'s.
    """

    def build(item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        kind: str
        body: Any
        kind, body = next(iter(item.items()), ("nothing", None))
        if kind == "float":
            return float.fromhex(body)
        if kind == "tensor":
            return tensors[body]
        if kind == "tuple":
            return tuple(build(part) for part in body)
        if kind == "list":
            return [build(part) for part in body]
        if kind == "map":
            return {build(key): build(part) for key, part in body}
        if kind == "method" and words.method is not None and body in type(words.method).client_half:
            return getattr(words.method, body)
        if kind == "function" and body in words.functions:
            return words.functions[body]
        if kind == "class" and body in words.classes:
            return words.classes[body](
                **{name: build(part) for name, part in item["fields"].items()}
            )
        raise ValueError(
            f"{kind} {body!r} is not known here: method, config or version differ between the two "
            "sides"
        )

    try:
        return build(json.loads(text))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the text does not describe a value: {error!r}") from error


def dumps(value: Any, words: Vocabulary) -> bytes:
    """Returns a value as the bytes of one safetensors file."""
    tensors, text = encode(value, words)
    return safetensors.torch.save(tensors or {"none": torch.zeros(0)}, metadata={"structure": text})


def loads(data: bytes, words: Vocabulary) -> Any:
    """Returns the value that `dumps` wrote; raises ValueError for anything else."""
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = header["__metadata__"]["structure"]
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"these bytes are not a value of fedcl: {error!r}") from error
    return decode(tensors, text, words)
