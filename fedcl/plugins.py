"""Finds plug-ins by module name and builds them from config tables; errors name place and remedy.

`fot` among the methods is the class in `fedcl/methods/fot.py`; `package.module:Class` is anybody's.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from fedcl.core.data.plan import StreamPlan
from fedcl.core.data.scenario import Order, Partition
from fedcl.core.errors import ConfigError
from fedcl.core.local import Trainer
from fedcl.core.method import Method
from fedcl.core.training.schedule import SCHEDULES, Schedule
from fedcl.streams._order import ORDERS
from fedcl.streams._partition import PARTITIONS

# What a class must derive from, or the names that it must have, to be a plug-in of its kind.
KINDS: Mapping[str, type | tuple[str, ...]] = {
    "datasets": ("load",),
    "streams": StreamPlan,
    "models": ("build",),
    "methods": Method,
    "trainers": ("__call__", "block", "check", "private", "scaled"),
    "engines": ("open", "run", "close"),
    "aggregations": ("weights", "needs_replies", "least", "combine"),
    "channels": ("init", "upload", "receive", "hides_replies"),
    "audits": ("open",),
}
_RULES: dict[Any, Mapping[str, type]] = {
    Partition: PARTITIONS,
    Order: ORDERS,
    Schedule: SCHEDULES,
}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
# What pydantic's errors ask for, in words for people who write TOML.
_WANTED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "missing": "a longer list",
    "string_type": "text in quotes",
    "too_long": "a shorter list",
    "tuple_type": "a list",
}


def available(kind: str) -> list[str]:
    """Returns the names of the plug-ins of a kind, such as `methods`, ascending."""
    folders = tuple(importlib.import_module(f"fedcl.{kind}").__path__)
    return list(_modules(folders, tuple(os.stat(folder).st_mtime_ns for folder in folders)))


@cache
def _modules(folders: tuple[str, ...], changed: tuple[int, ...]) -> tuple[str, ...]:
    # Every config asks for several kinds; a file that is added changes the time of its folder.
    found = (module.name for module in pkgutil.iter_modules(folders))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def find(kind: str, name: Any, place: str = "") -> type:
    """Returns the class of a plug-in: `fot` in `methods`, or `package.module:Class` anywhere.

    Raises:
        ConfigError: There is no such plug-in (the nearest name is offered), or it lacks what its
            kind needs.
    """
    if not isinstance(name, str):
        raise ConfigError(f"[{place}] name must be a word in quotes, not {name!r}")
    module_name, colon, class_name = name.partition(":")
    if not colon:
        if name not in available(kind):
            near = _nearest(name, available(kind))
            raise ConfigError(f"[{place}] unknown name {name!r}{near} ({choices(kind)})")
        module_name = f"fedcl.{kind}.{name}"
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, class_name if colon else module.__all__[0])
    except Exception as error:  # other people's modules may fail in any way
        raise ConfigError(
            f"[{place}] name = {name!r} cannot be imported: {type(error).__name__}: {error}; "
            "install what is missing, or add the folder that holds it to PYTHONPATH"
        ) from error
    _check(kind, name, found, place)
    return found  # type: ignore[no-any-return]


def _check(kind: str, name: str, found: Any, place: str) -> None:
    if not isinstance(found, type) or not is_dataclass(found):
        raise ConfigError(
            f"[{place}] {name!r} is no dataclass of options, so it cannot be a plug-in: name a "
            "class and put @dataclass(frozen=True) above it"
        )
    needs = KINDS[kind]
    if isinstance(needs, type):
        if not issubclass(found, needs):
            raise ConfigError(
                f"[{place}] {name!r} cannot be one of the {kind}: derive it from "
                f"{needs.__module__}.{needs.__name__}"
            )
        missing = sorted(getattr(found, "__abstractmethods__", ()))
    else:
        missing = [part for part in needs if not _has(found, part)]
    if missing:
        raise ConfigError(
            f"[{place}] {name!r} cannot be one of the {kind}: define {', '.join(missing)} in it"
        )


def _has(cls: Any, name: str) -> bool:
    # Not getattr: a field without a default is no attribute, and every class can be called.
    own = {f.name for f in fields(cls)}
    return name in own or any(name in vars(base) for base in cls.mro())


def choices(kind: str) -> str:
    """Returns the words of an error that say what could be named."""
    return f'known: {", ".join(available(kind))}; or "package.module:Class"'


def plugin(kind: str, table: Any, place: str) -> tuple[Any, dict[str, Any]]:
    """Builds the plug-in of a table with a `name`; returns it and its options, see `build`."""
    if not isinstance(table, dict):
        raise ConfigError(f"{place} is a table: write [{place}] with name = ..., not {table!r}")
    if "name" not in table:
        raise ConfigError(f"[{place}] name is missing: add name = ... ({choices(kind)})")
    cls = find(kind, table["name"], place)
    built, resolved = build(cls, {k: v for k, v in table.items() if k != "name"}, place)
    return built, {"name": table["name"], **resolved}


def build(cls: type, table: Any, place: str) -> tuple[Any, dict[str, Any]]:
    """Builds a dataclass from a config table and returns it with its options, defaults filled in.

    Raises:
        ConfigError: A key is unknown or missing, a value has the wrong type, or the class refuses.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{place} is a table: write [{place}], not {place} = {_shown(table)}")
    options = [f for f in fields(cls) if f.init and not f.name.startswith("_")]
    known_keys(table, [f.name for f in options], place)
    try:
        hints = _hints(cls)
    except NameError as error:
        raise ConfigError(
            f"[{place}] the types of the options of {cls.__name__} cannot be read: {error}; import "
            "them where the class is defined"
        ) from error
    values: dict[str, Any] = {}
    resolved: dict[str, Any] = {}
    for option in options:
        key, hint = option.name, hints[option.name]
        inner = f"{place}.{key}"
        if hint is Trainer:
            values[key], resolved[key] = plugin("trainers", table.get(key, {"name": "sgd"}), inner)
        elif hint in _RULES:
            first = {"name": next(iter(_RULES[hint]))}
            values[key], resolved[key] = _rule(_RULES[hint], table.get(key, first), inner)
        elif key in table:
            values[key] = checked(table[key], hint, inner)
            resolved[key] = _plain(values[key])
        elif option.default is not MISSING:
            resolved[key] = _plain(option.default)
        elif option.default_factory is not MISSING:
            resolved[key] = _plain(option.default_factory())
        else:
            raise ConfigError(f"[{place}] {key} is missing: add {key} = ...")
    try:
        # TOML has no word for None: what is not set stays unwritten.
        return cls(**values), {k: v for k, v in resolved.items() if v is not None}
    except ValueError as error:
        raise ConfigError(f"[{place}] {error}") from error


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _rule(rules: Mapping[str, type], table: Any, place: str) -> tuple[Any, dict[str, Any]]:
    names = f"known: {', '.join(sorted(rules))}"
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ConfigError(
            f'{place} is a table with a name, such as {{ name = "{next(iter(rules))}" }}, not '
            f"{_shown(table)} ({names})"
        )
    name = table["name"]
    if name not in rules:
        raise ConfigError(f"[{place}] unknown name {name!r}{_nearest(name, list(rules))} ({names})")
    built, resolved = build(rules[name], {k: v for k, v in table.items() if k != "name"}, place)
    return built, {"name": name, **resolved}


def checked(given: Any, hint: Any, place: str) -> Any:
    """Returns a value checked against a type: no text for a number, no fraction for a whole one.

    Raises:
        ConfigError: The value does not fit the type.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=_STRICT)
    except PydanticUserError as error:
        raise ConfigError(
            f"{place} has the type {hint}, which no config can hold: use numbers, text and tuples"
        ) from error
    try:
        return adapter.validate_json(json.dumps(given, default=_as_json), strict=True)
    except ValidationError as error:
        found = [
            ("".join(f"[{n}]" for n in fault["loc"] if isinstance(n, int)), fault)
            for fault in error.errors()
        ]
        # Of a type with alternatives, the faults that lie deepest are those of the one meant.
        where, first = max(found, key=lambda pair: pair[0].count("["))
        faults = [fault for path, fault in found if path == where]
        wanted = " or ".join(
            dict.fromkeys(
                _WANTED.get(fault["type"]) or fault["msg"].removeprefix("Input should be ")
                for fault in faults
            )
        )
        if first["type"] == "missing":  # its place is behind the end of the list
            where = where.rpartition("[")[0]
        raise ConfigError(
            f"{place}{where} must be {wanted}, not {_shown(first['input'])}"
        ) from error


def _as_json(given: Any) -> Any:
    """Stands in for what JSON lacks: paths and NumPy's numbers are welcome, dates are not."""
    if isinstance(given, os.PathLike):
        return os.fspath(given)
    if isinstance(given, Integral):
        return int(given)
    return float(given) if isinstance(given, Real) else {"": str(given)}


def _plain(given: Any) -> Any:
    return [_plain(part) for part in given] if isinstance(given, tuple | list) else given


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."


def known_keys(table: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    """Raises ConfigError for a key that is not known; the nearest one is offered."""
    for key in table:
        if key not in known:
            where = f"[{place}] unknown key" if place else "unknown table or key"
            listed = ", ".join(known) or "none"
            raise ConfigError(f"{where} {key!r}{_nearest(key, known)} (known: {listed})")


def _nearest(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
