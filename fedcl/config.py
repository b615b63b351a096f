"""TOML to a validated experiment: plug-ins are found by module name, and errors name the place and the remedy."""

from __future__ import annotations

import difflib
import importlib
import json
import pkgutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedcl.core.channel import Channel, hides_replies
from fedcl.core.dataset import DatasetFactory
from fedcl.core.engine import Engine
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.local import Trainer
from fedcl.core.method import Method
from fedcl.core.model import Architecture
from fedcl.core.stream import Order, Partition
from fedcl.streams._order import ORDERS
from fedcl.streams._partition import PARTITIONS
from fedcl.streams._scenario import Scenario

KINDS = ("datasets", "streams", "models", "methods", "trainers", "engines", "channels")
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Training:
    """The table `[training]`.

    Attributes:
        rounds: Rounds of each stage.
        cohort: Clients sampled for a round; 0 means all members.
        local: How one client trains.
        sampling: How a cohort is drawn: `fixed` size, `poisson` or `round_robin`.
        fold: Clients in a fold block: sums are made block by block, whatever the engine.
        dtype: Type of parameters and inputs.
        device: `auto` takes a GPU when there is one.
        minimum: Replies that an exchange needs.
        shortfall: What happens to a round with fewer: `skip` or `repeat`.
        availability: Chance that a client that is asked answers.
    """

    local: Trainer
    rounds: int = 10
    cohort: int = 0
    sampling: Literal["fixed", "poisson", "round_robin"] = "fixed"
    fold: int = 16
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    minimum: int = 1
    shortfall: Literal["skip", "repeat"] = "skip"
    availability: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("cohort", 0), ("fold", 1), ("minimum", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 < self.availability <= 1:
            raise ValueError(f"availability must lie in (0, 1], not {self.availability}")
        if self.cohort and self.minimum > self.cohort:
            raise ValueError(
                f"minimum = {self.minimum} replies cannot come from cohort = {self.cohort}"
            )


@dataclass(frozen=True)
class Evaluation:
    """The table `[evaluation]`.

    Attributes:
        every: Rounds between evaluations inside a stage; 0 means at stage ends only.
        splits: Held-out data to evaluate on; `validation` alone leaves the test set untouched while tuning.
        clients: Clients that get rows of their own at stage ends, evenly spaced among all.
        batch_size: Examples of one forward pass.
        reference: Folder of a finished `joint` run, whose accuracies are the a*_j of intransigence.
    """

    every: int = 5
    splits: tuple[Literal["test", "validation"], ...] = ("test",)
    clients: int = 100
    batch_size: int = 1024
    reference: str = ""

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("clients", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(
                f"splits must name each split once and at least one, not {self.splits}"
            )


@dataclass(frozen=True)
class Checkpoint:
    """The table `[checkpoint]`.

    Attributes:
        seconds: Time between commits inside a stage; 0 commits every round. Stage ends always commit.
    """

    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise ValueError(f"seconds must be at least 0, not {self.seconds}")


@dataclass(frozen=True)
class Aggregation:
    """The table `[aggregation]`.

    Attributes:
        name: Rule; `mean` is the weighted mean.
        weights: `examples` weighs a reply by its client's number of own examples, `equal` (FOT's protocol) by 1.
    """

    name: Literal["mean"] = "mean"
    weights: Literal["examples", "equal"] = "examples"


@dataclass(frozen=True)
class Experiment:
    """A validated experiment; `fedcl.run` runs it.

    Attributes:
        seed: Seed of everything.
        names: Name of each plug-in by kind, for records.
        resolved: The whole config with every default filled in, as plain tables.
    """

    seed: int
    dataset: DatasetFactory
    stream: Scenario
    model: Architecture
    method: Method[Any]
    training: Training
    engine: Engine
    channel: Channel
    evaluation: Evaluation
    checkpoint: Checkpoint
    aggregation: Aggregation
    names: Mapping[str, str] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def toml(self) -> str:
        """The resolved config as TOML: enough to repeat the run."""
        return tomli_w.dumps(dict(self.resolved))


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Reads a config file.

    Args:
        path: A TOML file.
        overrides: Values by dotted key, such as `{"method.name": "fot", "seed": 1}`. A new `name` in a table that
            had another one drops the other keys of that table, which belonged to the old plug-in.

    Raises:
        ConfigError: The file or a value in it cannot work; the message names the place and the remedy.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"config {path}: {error.strerror or error}; give the path of a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not valid TOML: {error}") from error
    try:
        return parse(override(table, overrides or {}))
    except ConfigError as error:
        raise ConfigError(f"config {path}: {error}") from error.__cause__


def override(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a config table with values replaced by dotted keys; names come first."""
    result: dict[str, Any] = json.loads(json.dumps(table, default=str))
    for key, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".name")):
        *path, last = key.split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {key}: {part!r} is not a table")
        if last == "name" and place.get("name", value) != value:
            place.clear()
        place[last] = value
    return result


def parse(table: Mapping[str, Any]) -> Experiment:
    """Builds an experiment of a config table; see `load_config`."""
    known = [f.name for f in fields(Experiment) if f.name not in ("names", "resolved")]
    _known_keys(table, known, "")
    for name in ("dataset", "method"):
        if name not in table:
            raise ConfigError(
                f"the table [{name}] is missing: add it with name = ... ({_choices(name + 's')})"
            )
    resolved: dict[str, Any] = {"seed": _value(table.get("seed", 0), int, "seed")}
    if resolved["seed"] < 0:
        raise ConfigError(f"seed must be at least 0, not {resolved['seed']}")
    names: dict[str, str] = {}
    parts: dict[str, Any] = {"seed": resolved["seed"]}
    defaults = {"stream": "class_incremental", "model": "mlp", "engine": "auto"}
    for key in ("dataset", "stream", "model", "method", "engine"):
        default = {"name": defaults[key]} if key in defaults else {}
        parts[key], resolved[key] = _plugin(key + "s", table.get(key, default), key)
        names[key] = resolved[key]["name"]
    for key, cls in (
        ("training", Training),
        ("evaluation", Evaluation),
        ("checkpoint", Checkpoint),
        ("aggregation", Aggregation),
    ):
        parts[key], resolved[key] = build(cls, table.get(key, {}), key)
    steps = table.get("channel", [])
    if not isinstance(steps, list):
        raise ConfigError("channel is a list of tables: write [[channel]] with name = ...")
    built = [_plugin("channels", step, f"channel[{index}]") for index, step in enumerate(steps)]
    parts["channel"], resolved["channel"] = (
        tuple(step for step, _ in built),
        [part for _, part in built],
    )
    experiment = Experiment(**parts, names=names, resolved=resolved)
    _check(experiment)
    return experiment


def _check(experiment: Experiment) -> None:
    """Refuses combinations that can be known to fail."""
    method, name = experiment.method, experiment.names["method"]
    if method.exposure == "replies" and hides_replies(experiment.channel):
        raise ExposureError(
            f"method {name!r} asks for single replies, but the channel hides them: take another method or remove the "
            "step that hides replies from [[channel]]"
        )
    if method.needs_public and not experiment.stream.public:
        raise ConfigError(f"method {name!r} needs public data: set stream.public, e.g. to 0.05")
    if "validation" in experiment.evaluation.splits and not experiment.stream.validation:
        raise ConfigError(
            '[evaluation] splits names "validation", but nothing is held out: set stream.validation'
        )


def find(kind: str, name: Any, place: str = "") -> type:
    """Returns the class of a plug-in: `fot` in `methods`, or `package.module:Class` anywhere.

    Raises:
        ConfigError: There is no such plug-in; the nearest name is offered.
    """
    if not isinstance(name, str):
        raise ConfigError(f"[{place}] name must be a word in quotes, not {name!r}")
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            found: type = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"[{place}] name = {name!r} cannot be imported: {error}") from error
        return found
    if name not in available(kind):
        raise ConfigError(
            f"[{place}] unknown name {name!r}{_nearest(name, available(kind))} ({_choices(kind)})"
        )
    module = importlib.import_module(f"fedcl.{kind}.{name}")
    return getattr(module, module.__all__[0])  # type: ignore[no-any-return]


def available(kind: str) -> list[str]:
    """Returns the names of the plug-ins of a kind, such as `methods`, ascending."""
    package = importlib.import_module(f"fedcl.{kind}")
    return sorted(
        m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")
    )


def _choices(kind: str) -> str:
    return f"known: {', '.join(available(kind))}"


def _plugin(kind: str, table: Any, place: str) -> tuple[Any, dict[str, Any]]:
    if not isinstance(table, dict):
        raise ConfigError(f"{place} is a table: write [{place}] with name = ..., not {table!r}")
    if "name" not in table:
        raise ConfigError(f"[{place}] name is missing ({_choices(kind)})")
    built, resolved = build(
        find(kind, table["name"], place), {k: v for k, v in table.items() if k != "name"}, place
    )
    return built, {"name": table["name"], **resolved}


_RULES: dict[Any, Mapping[str, type]] = {Partition: PARTITIONS, Order: ORDERS}


def build(cls: type, table: Any, place: str) -> tuple[Any, dict[str, Any]]:
    """Builds a dataclass of a config table and returns it with its options, defaults filled in.

    Raises:
        ConfigError: A key is unknown or missing, a value has the wrong type, or the class refuses it.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{place} is a table: write [{place}], not {table!r}")
    if not is_dataclass(cls):
        raise ConfigError(
            f"[{place}] {cls.__name__} is no dataclass of options, so it cannot be a plug-in"
        )
    options = [f for f in fields(cls) if f.init and not f.name.startswith("_")]
    _known_keys(table, [f.name for f in options], place)
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    resolved: dict[str, Any] = {}
    for option in options:
        key, hint = option.name, hints[option.name]
        inner = f"{place}.{key}"
        if hint is Trainer:
            values[key], resolved[key] = _plugin("trainers", table.get(key, {"name": "sgd"}), inner)
        elif hint in _RULES:
            default = "iid" if hint is Partition else "shared"
            values[key], resolved[key] = _rule(
                _RULES[hint], table.get(key, {"name": default}), inner
            )
        elif key in table:
            values[key] = _value(table[key], hint, inner)
            resolved[key] = _plain(values[key])
        elif option.default is not MISSING:
            resolved[key] = _plain(option.default)
        elif option.default_factory is not MISSING:
            resolved[key] = _plain(option.default_factory())
        else:
            raise ConfigError(f"[{place}] {key} is missing")
    try:
        return cls(**values), resolved
    except ValueError as error:
        raise ConfigError(f"[{place}] {error}") from error


def _rule(rules: Mapping[str, type], table: Any, place: str) -> tuple[Any, dict[str, Any]]:
    names = f"known: {', '.join(sorted(rules))}"
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ConfigError(
            f'{place} is a table with a name, such as {{ name = "{next(iter(rules))}" }} ({names})'
        )
    name = table["name"]
    if name not in rules:
        raise ConfigError(f"[{place}] unknown name {name!r}{_nearest(name, list(rules))} ({names})")
    built, resolved = build(rules[name], {k: v for k, v in table.items() if k != "name"}, place)
    return built, {"name": name, **resolved}


def _value(value: Any, hint: Any, place: str) -> Any:
    """Returns a value checked against a type: no text for a number, no fraction for a whole one."""
    try:
        return TypeAdapter(hint, config=_STRICT).validate_json(
            json.dumps(value, default=str), strict=True
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        raise ConfigError(f"{place}{where} = {value!r}: {first['msg'].lower()}") from error


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value


def _known_keys(table: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in table:
        if key not in known:
            where = f"[{place}] unknown key" if place else "unknown table or key"
            listed = ", ".join(known) or "none"
            raise ConfigError(f"{where} {key!r}{_nearest(key, known)} (known: {listed})")


def _nearest(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
