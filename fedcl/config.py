"""TOML to a validated experiment; errors name the place and the remedy."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from fedcl.core.aggregation import Aggregation
from fedcl.core.attacks.adversary import Adversary
from fedcl.core.audit import Audit
from fedcl.core.channel import Channel, hides_replies, least_of, mechanism
from fedcl.core.data.dataset import DatasetFactory
from fedcl.core.data.plan import StreamPlan
from fedcl.core.engine import Engine
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.method import Method
from fedcl.core.model import Architecture
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.core.recordrules import check_records
from fedcl.plugins import KINDS as KINDS
from fedcl.plugins import available as available
from fedcl.plugins import build, checked, choices, known_keys, plugin
from fedcl.plugins import find as find
from fedcl.settings import Checkpoint, Evaluation, Memory, Replies, Training


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
    stream: StreamPlan
    model: Architecture
    method: Method[Any]
    training: Training
    engine: Engine
    channel: Channel
    evaluation: Evaluation
    checkpoint: Checkpoint
    memory: Memory
    aggregation: Aggregation
    audit: Sequence[Audit] = ()
    replies: Replies = field(default_factory=Replies)
    adversary: Adversary = field(default_factory=Adversary)
    names: Mapping[str, str] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def promise(self) -> ExampleMechanism | None:
        """What the trainer promises to single records, or None."""
        return getattr(self.training.local, "protection", None)

    @property
    def toml(self) -> str:
        """The resolved config as TOML: enough to repeat the run."""
        return tomli_w.dumps(dict(self.resolved))


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Reads a config file.

    Args:
        path: A TOML file.
        overrides: Values by dotted key, such as `{"method.name": "fot", "seed": 1}`. A new `name`
            in a table that had another one drops the other keys of that table, which belonged to
            the old plug-in.

    Raises:
        ConfigError: The file or a value in it cannot work; the message names place and remedy.
        ExposureError: The method asks for what the channel hides.
    """
    path = Path(path)
    try:
        # Some editors begin a file with a byte order mark, which is no part of its text.
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"config {path}: {error.strerror or error}; give the path of a TOML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {path} is no text: {error}; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"config {path} is not valid TOML: {error}; correct it there (text needs quotes, a "
            "table is [name])"
        ) from error
    try:
        return parse(override(table, overrides or {}))
    except (ConfigError, ExposureError) as error:
        raise type(error)(f"config {path}: {error}") from error.__cause__


def override(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a config table with values replaced by dotted keys; names come first."""
    result: dict[str, Any] = copy.deepcopy(dict(table))
    for key, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".name")):
        *path, last = key.split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {key}: {part!r} is not a table; set {part} as a whole")
        if last == "name" and place.get("name", value) != value:
            place.clear()
        place[last] = copy.deepcopy(value)  # a later key may change a table that came with this one
    return result


def parse(table: Mapping[str, Any]) -> Experiment:
    """Builds an experiment of a config table; see `load_config`."""
    known = [f.name for f in fields(Experiment) if f.name not in ("names", "resolved")]
    known_keys(table, known, "")
    for name in ("dataset", "method"):
        if name not in table:
            raise ConfigError(
                f"the table [{name}] is missing: add it with name = ... ({choices(name + 's')})"
            )
    resolved: dict[str, Any] = {"seed": checked(table.get("seed", 0), int, "seed")}
    if resolved["seed"] < 0:
        raise ConfigError(f"seed must be at least 0, not {resolved['seed']}")
    names: dict[str, str] = {}
    parts: dict[str, Any] = {"seed": resolved["seed"]}
    defaults = {
        "stream": "class_incremental",
        "model": "mlp",
        "engine": "auto",
        "aggregation": "mean",
    }
    for key in ("dataset", "stream", "model", "method", "engine", "aggregation"):
        given = table.get(key, {"name": defaults[key]} if key in defaults else {})
        if key == "aggregation" and isinstance(given, dict):
            given = {"name": defaults[key], **given}
        parts[key], resolved[key] = plugin(key + "s", given, key)
        names[key] = resolved[key]["name"]
    for key, cls in (
        ("training", Training),
        ("evaluation", Evaluation),
        ("checkpoint", Checkpoint),
        ("memory", Memory),
        ("replies", Replies),
        ("adversary", Adversary),
    ):
        parts[key], resolved[key] = build(cls, table.get(key, {}), key)
    for key in ("channel", "audit"):
        steps = table.get(key, [])
        if not isinstance(steps, list):
            raise ConfigError(
                f"{key} is a list of tables: write [[{key}]] with name = ..., not {steps!r}"
            )
        built = [plugin(key + "s", step, f"{key}[{index}]") for index, step in enumerate(steps)]
        parts[key], resolved[key] = tuple(step for step, _ in built), [part for _, part in built]
    experiment = Experiment(**parts, names=names, resolved=resolved)
    _check(experiment)
    return experiment


def _check(experiment: Experiment) -> None:
    """Refuses combinations that can be known to fail."""
    method, name = experiment.method, experiment.names["method"]
    if method.exposure == "replies" and hides_replies(experiment.channel):
        raise ExposureError(
            f"method {name!r} asks for single replies, but the channel hides them: take another "
            "method or remove the step that hides replies from [[channel]]"
        )
    _check_evaluation(experiment)
    _check_rule(experiment)
    channel = experiment.channel
    protecting = [k for k, step in enumerate(channel) if hasattr(step, "mechanism")]
    if len(protecting) > 1 or any(
        not getattr(step, "leaves_tensors", False) for k in protecting for step in channel[k + 1 :]
    ):
        raise ConfigError(
            f"[channel[{protecting[0]}]] bounds what a client sends, but a later step changes that "
            "again: let it be the last step that changes replies"
        )
    _check_shares(experiment)
    cohort = experiment.training.cohort
    if cohort and cohort < least_of(channel):
        raise ConfigError(
            f"[training] cohort = {cohort} is smaller than the {least_of(channel)} clients whose "
            "sum [[channel]] hands out: raise it"
        )
    protected = experiment.promise is not None or mechanism(channel) is not None
    if experiment.training.oversample and protected:
        raise ConfigError(
            f"[training] oversample = {experiment.training.oversample} lets the fastest clients "
            "decide who takes part, which no proof of privacy covers: set it to 0 where a channel "
            "or trainer protects clients or records"
        )
    if experiment.promise is not None:
        check_records(method, name, channel, experiment.promise)
    if method.needs_borders and not experiment.stream.borders:
        raise ConfigError(
            f"method {name!r} must be told where a task ends: set stream.borders = true, or take a "
            "method that needs no borders"
        )
    if method.needs_public and not experiment.stream.public:
        raise ConfigError(f"method {name!r} needs public data: set stream.public, e.g. to 0.05")
    if "validation" in experiment.evaluation.splits and not experiment.stream.validation:
        raise ConfigError(
            '[evaluation] splits names "validation", but nothing is held out: set '
            "stream.validation, e.g. to 0.1"
        )


def _check_evaluation(experiment: Experiment) -> None:
    """Refuses metrics of private data that would go up past what protects everything else."""
    if experiment.evaluation.where == "server":
        return
    hiding = [
        table["name"]
        for step, table in zip(experiment.channel, experiment.resolved["channel"], strict=True)
        if hides_replies([step]) or hasattr(step, "mechanism")
    ]
    protects = f"[[channel]] {hiding[0]!r}" if hiding else ""
    if experiment.promise is not None:
        protects = f"[training.local] {experiment.resolved['training']['local']['name']!r}"
    if protects:
        raise ExposureError(
            '[evaluation] where = "clients" sends up what each client\'s model gets right on its '
            f"own data, past {protects}, which protects that: evaluate on data of the server's own "
            '(where = "server"), or do without the protection'
        )


def _check_rule(experiment: Experiment) -> None:
    """Refuses a rule that looks at single replies where a step of the channel forbids that."""
    rule, channel = experiment.names["aggregation"], experiment.channel
    if not experiment.aggregation.needs_replies:
        return
    for step, table in zip(channel, experiment.resolved["channel"], strict=True):
        if hides_replies([step]):
            bounds = ", and what it proves is about their sum" if hasattr(step, "mechanism") else ""
            raise ExposureError(
                f"[aggregation] {rule!r} compares single replies, but [[channel]] "
                f'{table["name"]!r} hides them{bounds}: take "mean" or remove that step'
            )
    if channel:
        raise ConfigError(
            f"[aggregation] {rule!r} takes replies as they are, but [[channel]] "
            f'{experiment.resolved["channel"][0]["name"]!r} changes their sum: take "mean" or '
            "remove the channel"
        )


def _check_shares(experiment: Experiment) -> None:
    """Refuses what no proof covers where clients add noise in shares."""
    protection = mechanism(experiment.channel)
    if protection is None or protection.shares is None:
        return
    if experiment.training.sampling == "poisson":
        raise ConfigError(
            '[training] sampling = "poisson" is credited nothing where clients add the noise '
            "themselves, and the number of their shares would be left to chance: take "
            '"fixed" or "round_robin"'
        )
    if experiment.adversary.lies:
        raise ConfigError(
            "[adversary] attackers add no noise of their own, so that nothing could be claimed "
            'where [[channel]] leaves the noise to clients: take "central_dp"'
        )
    if experiment.replies.norm:
        raise ConfigError(
            "[replies] norm cannot be judged where [[channel]] sends replies modulo a power of "
            "two: leave it out, clients clip"
        )
