"""The codec: whatever may travel comes back to the bit, and nothing else is written or read."""

import functools
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedcl.core.client import Client, Model, Reply, Unchanged
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy, Local, Proximal, own_data
from fedcl.core.method import Method
from fedcl.core.optimizer import Moments
from fedcl.core.params import Params
from fedcl.core.task import Examples
from fedcl.core.vocabulary import vocabulary
from fedcl.core.wire import Vocabulary, check, decode, dumps, encode, loads


@dataclass(frozen=True)
class State:
    """A method's own state, which its module makes known."""

    params: Params
    note: Any = None


@dataclass(frozen=True)
class Toy(Method[State]):
    """A method with one function that clients run, and one that they do not."""

    rate: float = 0.5

    client_half: ClassVar[tuple[str, ...]] = ("answer",)

    def init(self, params: Params) -> State:
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        return state

    def answer(self, client: Client, message: Model) -> Reply:
        return Reply({})

    def private(self, client: Client, message: Model) -> Reply:
        return Reply({})


WORDS = vocabulary(Toy())
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
]


def same(a: Any, b: Any) -> bool:
    """Whether two values agree in type and to the bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(
                a.detach().contiguous().flatten().view(torch.uint8),
                b.detach().contiguous().flatten().view(torch.uint8),
            )
        )
    if isinstance(a, float):
        return a.hex() == b.hex() and math.copysign(1, a) == math.copysign(1, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping):
        return same(list(a), list(b)) and all(same(a[key], b[key]) for key in a)
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(a == b)


def back(value: Any) -> Any:
    return loads(dumps(value, WORDS), WORDS)


@st.composite
def some_tensor(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randn(shape, generator=generator, dtype=torch.float64) * 50
    value = bits.to(dtype) if dtype.is_signed else bits.abs().to(dtype)
    if dtype.is_floating_point and value.numel():
        value.view(-1)[0] = draw(st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1.0]))
    if draw(st.booleans()) and value.dim() >= 2:
        value = value.transpose(0, 1)
    return value


FLOATS = st.floats().map(lambda value: math.nan if math.isnan(value) else value)
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | st.text()
KEYS = st.text() | st.integers() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS | some_tensor(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.builds(State, st.dictionaries(st.text(), some_tensor(), max_size=2), inner)
        | st.builds(Reply, st.just({}), FLOATS, st.just({}), inner, st.integers(), st.integers())
    ),
    max_leaves=12,
)


@given(VALUES)
def test_whatever_may_travel_comes_back_to_the_bit(value: Any) -> None:
    assert same(back(value), value)
    assert dumps(value, WORDS) == dumps(value, WORDS)
    check(value, WORDS)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint16, torch.uint32, torch.complex64], ids=str)
def test_bits_of_tensors_of_any_type(dtype: torch.dtype) -> None:
    width = torch.empty(0, dtype=dtype).element_size()
    step = 1 if dtype == torch.bool else 37
    raw = torch.arange(6 * width, dtype=torch.int64).mul(step)
    raw = raw.remainder(2 if dtype == torch.bool else 251).to(torch.uint8)
    value = raw.view(dtype).reshape(2, 3)
    assert same(back({"v": value})["v"], value)
    assert same(back(value[0, 0]), value[0, 0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e308, 0.1, 1 / 3])
def test_floats_are_exact_and_may_be_no_numbers(value: float) -> None:
    assert same(back({"v": value})["v"], value)


def test_values_without_tensors_travel() -> None:
    for value in ({}, (), None, "text", {"a": [1, (2.5, None)]}, True, 10**40):
        assert same(back(value), value)


def test_mappings_keep_their_order_and_the_type_of_their_keys() -> None:
    value = {3: "c", "3": "d", (1, "x"): "e", None: "f", 2.5: "g"}
    assert list(back(value).items()) == list(value.items())
    assert back(OrderedDict(b=1, a=2)) == {"b": 1, "a": 2}


def test_programs_travel_by_name() -> None:
    method = Toy()
    keep: Any = method.answer
    local = Local(CrossEntropy(True), Proximal(0.25), own_data, keep, name="x")
    again = back(local)
    assert (again.loss, again.penalty, again.name) == (CrossEntropy(True), Proximal(0.25), "x")
    assert again.data is own_data
    for answer in (again.keep, back(method.answer)):
        assert answer.__func__ is Toy.answer
        assert answer.__self__ == method
    assert isinstance(back(Unchanged()), Unchanged)
    assert back(Moments()) == Moments()


# Tensors that share memory.


def test_a_tensor_that_occurs_twice_is_written_once() -> None:
    value = torch.arange(1000.0)
    tensors, _ = encode({"a": value, "b": (value, value)}, WORDS)
    assert len(tensors) == 1
    assert len(dumps({"a": value, "b": value}, WORDS)) < 4600
    again = back(State({"w": value}, {"w": value}))
    assert torch.equal(again.params["w"], value)
    assert torch.equal(again.note["w"], value)


def test_views_of_one_memory_travel() -> None:
    base = torch.arange(24.0).reshape(4, 6)
    value = {
        "base": base,
        "alias": base.view(24),
        "detached": base.detach(),
        "rows": base[1:3],
        "columns": base[:, ::2],
        "turned": base.T,
        "wide": torch.ones(1).expand(5),
        "parameter": base[0].clone().requires_grad_(),
    }
    again = back(value)
    assert all(torch.equal(again[key], value[key]) for key in value)
    assert all(tensor.is_contiguous() for tensor in again.values())


def test_mappings_that_make_tensors_when_asked_are_written_right() -> None:
    class Lazy(Mapping[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            return torch.full((3,), float(key))

        def __iter__(self) -> Any:
            return iter([str(k) for k in range(50)])

        def __len__(self) -> int:
            return 50

    # Each is gone before the next is made, so that they may have one place in memory.
    again = back(Lazy())
    assert all(again[str(k)].tolist() == [float(k)] * 3 for k in range(50))


# What cannot travel.


def other_class() -> Any:
    @dataclass(frozen=True)
    class Local:
        value: int = 0

    return Local()


def free_function(client: Client, message: object) -> Examples:
    return client.data


def closure() -> Callable[[], int]:
    value = 3
    return lambda: value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda client, message: client.data, "function .*lambda.* cannot travel"),
        (closure(), "function .*lambda.* cannot travel"),
        (functools.partial(own_data, message=None), "partial cannot travel"),
        (free_function, "function 'free_function' cannot travel"),
        (Toy().private, "'private' is not listed in client_half"),
        (Toy(rate=0.75).answer, "method 'Toy.answer' cannot travel"),
        (other_class(), "Local cannot travel"),
        (Path("x"), "Path|Posix.* cannot travel"),
        (np.ones(2), "ndarray cannot travel"),
        (np.int64(3), "int64 cannot travel"),
        ({1, 2}, "set cannot travel"),
        (b"bytes", "bytes cannot travel"),
        (1j, "complex cannot travel"),
        (Examples, "type 'Examples' cannot travel"),
        (torch.float32, "dtype cannot travel"),
        (print, "builtin_function_or_method 'print' cannot travel"),
        (object(), "object cannot travel"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_has_no_name_is_refused_by_name(value: Any, words: str) -> None:
    for place in (value, {"a": [value]}, State({}, value)):
        for write in (encode, dumps, check):
            with pytest.raises(TypeError, match=words):
                write(place, WORDS)


def test_a_borrowed_name_is_refused() -> None:
    @dataclass(frozen=True)
    class Other:
        params: int = 0

    def other(client: Client, message: object) -> Examples:
        return client.data

    Other.__module__, Other.__qualname__ = Model.__module__, Model.__qualname__
    other.__module__, other.__qualname__ = own_data.__module__, own_data.__qualname__
    for value in (Other(), other):
        with pytest.raises(TypeError, match="cannot travel"):
            encode(value, WORDS)


def test_a_program_with_a_part_that_has_no_name_is_refused() -> None:
    with pytest.raises(TypeError, match="lambda"):
        encode(Local(lambda *a: a[0]), WORDS)


def test_without_the_method_its_names_are_unknown() -> None:
    core = vocabulary()
    with pytest.raises(TypeError, match="State"):
        encode(State({}), core)
    with pytest.raises(TypeError, match=r"Toy\.answer"):
        encode(Toy().answer, core)
    with pytest.raises(ValueError, match="State' is not known here"):
        loads(dumps(State({}), WORDS), core)


# Hostile texts.


def read(structure: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    return decode(tensors or {}, json.dumps(structure), WORDS)


@pytest.mark.parametrize(
    "structure",
    [
        {"function": "os:system"},
        {"function": "builtins:eval"},
        {"function": "fedcl.core.local:Callable"},
        {"function": "fedcl.core.local:_hidden"},
        {"class": "builtins:type", "fields": {}},
        {"class": "subprocess:Popen", "fields": {"args": "ls"}},
        {"class": "fedcl.core.wire:Vocabulary", "fields": {}},
        {"method": "private"},
        {"method": "__class__"},
        {"method": "__reduce__"},
        {"method": "rate"},
        {"module": "os"},
        {"tuple": [{"map": [["a", {"function": "os:system"}]]}]},
    ],
    ids=str,
)
def test_names_outside_the_vocabulary_are_refused(structure: Any) -> None:
    with pytest.raises(ValueError, match="is not known here"):
        read(structure)


@pytest.mark.parametrize(
    "structure",
    [
        {},
        {"tensor": "t9"},
        {"tensor": ["t0"]},
        {"float": "one"},
        {"float": 3},
        {"tuple": 5},
        {"list": None},
        {"map": [["a"]]},
        {"map": [[{"list": []}, 1]]},
        {"map": 5},
        {"class": ["x"], "fields": {}},
        {"class": "fedcl.core.client:Model"},
        {"class": "fedcl.core.client:Model", "fields": {"nonsense": 1}},
        {"class": "fedcl.core.client:Model", "fields": [1]},
        {"method": ["answer"]},
        {"function": {"a": 1}},
    ],
    ids=str,
)
def test_malformed_structures_raise_value_errors(structure: Any) -> None:
    with pytest.raises(ValueError, match=r"not (known|describe)|hexadecimal|unpack"):
        read(structure)
    with pytest.raises(ValueError, match=r"not (known|describe)|hexadecimal|unpack"):
        read({"tuple": [1, structure]})


def test_deep_nesting_is_an_error_and_no_crash() -> None:
    deep = '{"list": [' * 100_000 + "1" + "]}" * 100_000
    with pytest.raises(ValueError, match="does not describe"):
        decode({}, deep, WORDS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        b"not a value",
        b"\xff" * 40,
        dumps({"a": torch.ones(4)}, WORDS)[:-3],
        dumps({"a": torch.ones(4)}, WORDS)[:20],
    ],
)
def test_damaged_bytes_raise_value_errors(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a value of fedcl"):
        loads(data, WORDS)


@given(st.binary(max_size=200))
def test_random_bytes_raise_value_errors(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a value of fedcl"):
        loads(data, WORDS)


@given(st.data())
def test_flipped_bytes_never_do_more_than_raise_value_errors(data: st.DataObject) -> None:
    whole = bytearray(dumps(Reply({"a": torch.ones(3)}, 2.0, {"loss": 1.5}), WORDS))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        loads(bytes(whole), WORDS)


def test_a_vocabulary_holds_what_core_offers_and_no_private_names() -> None:
    assert isinstance(WORDS, Vocabulary)
    assert "fedcl.core.local:own_data" in WORDS.functions
    assert "fedcl.core.client:Reply" in WORDS.classes
    names = [name.split(":")[1] for name in WORDS.functions]
    assert not [name for name in names if name.startswith("_")]
    assert all(is_dataclass(kind) for kind in WORDS.classes.values())
