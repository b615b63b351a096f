"""Configs: what they mean, what may replace what, and that all that is shipped is right."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tomli_w

import fedcl
from fedcl.config import load_config, override, parse
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.plugins import KINDS, available, build, find
from fedcl.settings import Checkpoint, Evaluation, Training
from fedcl.streams._order import ORDERS
from fedcl.streams._partition import PARTITIONS
from tests.commands import ROOT, write_config
from tests.tiny import TABLE, tiny

CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
PLUGINS = [(kind, name) for kind in KINDS for name in available(kind)]
CLASSES: list[type] = [Training, Evaluation, Checkpoint]
CLASSES += [find(*plugin) for plugin in PLUGINS]
CLASSES += [*PARTITIONS.values(), *ORDERS.values()]


# --- What is shipped. ---


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_parses_and_says_what_it_is(path: Path) -> None:
    experiment = load_config(path)
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert parse(tomllib.loads(experiment.toml)).resolved == experiment.resolved


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_option_is_documented(cls: Any) -> None:
    told = "\n".join(base.__doc__ or "" for base in cls.mro())
    for option in fields(cls):
        if option.init and not option.name.startswith("_"):
            assert re.search(rf"^ +{option.name}: \S", told, re.M), option.name


@pytest.mark.parametrize("plugin", PLUGINS, ids="/".join)
def test_a_plug_in_works_by_its_name_alone(plugin: tuple[str, str]) -> None:
    cls: Any = find(*plugin)
    built, resolved = build(cls, {}, "place")
    assert isinstance(built, cls)
    again, same = build(cls, json.loads(json.dumps(resolved)), "place")
    assert same == resolved and type(again) is cls
    for option in fields(cls):
        if option.init:
            assert option.default is not MISSING or option.default_factory is not MISSING


def test_public_names_resolve() -> None:
    for name in fedcl.__all__:
        assert getattr(fedcl, name) is not None
    assert dir(fedcl) == fedcl.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedcl.nothing  # noqa: B018


# --- A config as a library uses it. ---


def test_a_library_loads_overrides_and_runs(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    experiment = load_config(config, {"method.name": "replay", "seed": 4, "training.rounds": 1})
    record = fedcl.run(experiment)
    assert record.folder is None
    assert record.summary["method"] == "replay" and record.summary["seed"] == 4
    assert record.summary["rounds"] == 2
    assert list(tmp_path.iterdir()) == [config]


def test_overrides_may_be_numpy_numbers_tuples_and_paths(tmp_path: Path) -> None:
    changes = {
        "seed": np.int64(3),
        "training.local.lr": np.float32(0.5),
        "model.hidden": (np.int32(7),),
        "evaluation.reference": tmp_path,
    }
    experiment = load_config(write_config(tmp_path), changes)
    assert experiment.resolved["seed"] == 3
    assert experiment.resolved["training"]["local"]["lr"] == 0.5
    assert experiment.resolved["model"]["hidden"] == [7]
    assert experiment.evaluation.reference == str(tmp_path)
    assert tomllib.loads(experiment.toml) == experiment.resolved


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    plain = load_config(config).resolved
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert load_config(config).resolved == plain


def test_errors_name_the_file_and_keep_their_kind(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with pytest.raises(ConfigError, match=rf"^config {re.escape(str(config))}: \[method\] unknown"):
        load_config(config, {"method.name": "magic"})
    hidden = {
        "method": {"name": "tests.strange_plugins:AsksForReplies"},
        "channel": [{"name": "secure_aggregation"}],
    }
    with pytest.raises(ExposureError, match=r"^config .*the channel hides them"):
        load_config(config, hidden)


# --- Overrides. ---


def test_a_new_name_drops_the_options_of_the_old_plug_in() -> None:
    table = {"method": {"name": "fot", "energy": 0.9}, "seed": 1}
    assert override(table, {"method.name": "fedavg"})["method"] == {"name": "fedavg"}
    assert override(table, {"method.name": "fot"})["method"] == {"name": "fot", "energy": 0.9}
    assert table == {"method": {"name": "fot", "energy": 0.9}, "seed": 1}


def test_names_come_first_whatever_the_order() -> None:
    table = {"method": {"name": "fot", "energy": 0.9}}
    changed = override(table, {"method.masked": True, "method.name": "fedavg"})
    assert changed == {"method": {"name": "fedavg", "masked": True}}


def test_a_later_override_leaves_the_caller_s_table_as_it_was() -> None:
    own = {"name": "fot"}
    table = override({}, {"method": own, "method.energy": 0.5})
    assert table == {"method": {"name": "fot", "energy": 0.5}} and own == {"name": "fot"}


def test_an_override_makes_the_tables_on_its_way() -> None:
    assert override({}, {"training.local.lr": 0.1}) == {"training": {"local": {"lr": 0.1}}}


# --- What a config means. ---


def test_the_smallest_config_has_defaults() -> None:
    experiment = parse({"dataset": {"name": "digits"}, "method": {"name": "fedavg"}})
    assert experiment.names == {
        "dataset": "digits",
        "stream": "class_incremental",
        "model": "mlp",
        "method": "fedavg",
        "engine": "auto",
        "aggregation": "mean",
    }
    assert experiment.resolved["model"]["hidden"] == [200, 200]
    assert experiment.resolved["training"]["local"]["name"] == "sgd"
    assert experiment.resolved["training"]["fold"] == 16
    assert experiment.resolved["checkpoint"] == {"seconds": 10.0}
    assert experiment.resolved["channel"] == [] and experiment.seed == 0


def test_resolved_options_are_those_of_the_built_parts() -> None:
    experiment = tiny({"stream.order": {"name": "staggered", "delay": 2}})
    resolved = experiment.resolved
    for key in ("dataset", "stream", "model", "method", "training", "evaluation"):
        part = getattr(experiment, key)
        for name, value in resolved[key].items():
            if name != "name" and not isinstance(value, dict):
                own = getattr(part, name)
                assert (list(own) if isinstance(own, tuple) else own) == value
    assert resolved["stream"]["order"] == {"name": "staggered", "delay": 2, "late": 0.5}
    assert resolved["stream"]["partition"] == {"name": "quantity", "exponent": 0.7}


def test_a_run_writes_the_config_that_repeats_it(tmp_path: Path) -> None:
    experiment = tiny({"channel": [{"name": "secure_aggregation"}], "training.rounds": 1})
    fedcl.run(experiment, tmp_path / "out")
    assert load_config(tmp_path / "out" / "config.toml").resolved == experiment.resolved


def test_a_cohort_larger_than_the_federation_is_all_of_it() -> None:
    quick = {"training.rounds": 1, "evaluation.every": 0}
    all_, more = (fedcl.run(tiny({**quick, "training.cohort": size})) for size in (0, 99))
    assert all_.params.keys() == more.params.keys()
    assert all(bool((more.params[name] == value).all()) for name, value in all_.params.items())
    assert [dict(row) for row in all_.evaluations] == [dict(row) for row in more.evaluations]


# --- Types of options. ---


@dataclass(frozen=True)
class Options:
    """Every type that an option may have.

    Attributes:
        count: A whole number.
    """

    count: int = 1
    rate: float = 1.0
    name: str = ""
    on: bool = False
    sizes: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    kind: Literal["a", "b"] = "a"
    shape: int | tuple[int, ...] = 1
    limit: float | None = None
    _hidden: int = 0


def test_options_take_what_fits_their_type() -> None:
    given: dict[str, Any] = {
        "count": 3,
        "rate": 2,
        "name": "x",
        "on": True,
        "sizes": [4, 5],
        "pair": [1, 2.5],
        "kind": "b",
        "shape": [6],
        "limit": 0.5,
    }
    built, resolved = build(Options, given, "place")
    assert built == Options(3, 2.0, "x", True, (4, 5), (1.0, 2.5), "b", (6,), 0.5)
    assert isinstance(built.rate, float)
    assert resolved == {**given, "pair": [1.0, 2.5], "rate": 2.0}
    assert tomllib.loads(tomli_w.dumps(resolved)) == resolved


def test_what_is_none_stays_unwritten_and_private_fields_are_no_options() -> None:
    _, resolved = build(Options, {}, "place")
    assert "limit" not in resolved and "_hidden" not in resolved
    with pytest.raises(ConfigError, match="unknown key '_hidden'"):
        build(Options, {"_hidden": 1}, "place")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 1.5}, "place.count must be a whole number, not 1.5"),
        ({"pair": [1.0]}, "place.pair must be a longer list, not [1.0]"),
        ({"pair": [1.0, 2.0, 3.0]}, "place.pair must be a shorter list, not [1.0, 2.0, 3.0]"),
        ({"kind": "c"}, "place.kind must be 'a' or 'b', not 'c'"),
        ({"shape": "x"}, "place.shape must be a whole number or a list, not 'x'"),
        ({"shape": [1, "x"]}, "place.shape[1] must be a whole number, not 'x'"),
        ({"limit": "x"}, "place.limit must be a number, not 'x'"),
        ({"sizes": [*range(99), 0.5]}, "place.sizes[99] must be a whole number, not 0.5"),
        ({"on": "yes" * 99}, f"place.on must be true or false, not '{'yes' * 25}y..."),
    ],
)
def test_options_refuse_what_does_not_fit_in_plain_words(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build(Options, given, "place")


def test_the_tiny_experiment_of_the_tests_is_one_of_a_file(tmp_path: Path) -> None:
    assert load_config(write_config(tmp_path)).resolved == parse(TABLE).resolved
