"""Configs that cannot work: what is wrong with the tiny experiment, and what must be said of it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

SYNTHETIC = {"dataset.features": 16}
STRANGE = "tests.strange_plugins"


class Bad(NamedTuple):
    """One bad config: its name, the changes by dotted key, and fragments of place and remedy."""

    name: str
    changes: Mapping[str, Any]
    place: str
    remedy: str
    words: tuple[str, ...] = ()


def partition(name: str, **options: Any) -> dict[str, Any]:
    """Returns the change of who holds what."""
    return {"stream.partition": {"name": name, **options}}


UNKNOWN_KEYS = [
    Bad("table", {"trainning.rounds": 2}, "'trainning'", "did you mean 'training'"),
    Bad("seed", {"sed": 2}, "'sed'", "did you mean 'seed'"),
    Bad("training", {"training.round": 2}, "[training] unknown key 'round'", "mean 'rounds'"),
    Bad("evaluation", {"evaluation.evry": 2}, "[evaluation] unknown key 'evry'", "mean 'every'"),
    Bad("checkpoint", {"checkpoint.second": 2}, "[checkpoint] unknown key", "mean 'seconds'"),
    Bad("aggregation", {"aggregation.weight": 2}, "[aggregation] unknown key", "mean 'weights'"),
    Bad("dataset", {"dataset.clases": 2}, "[dataset] unknown key 'clases'", "mean 'classes'"),
    Bad("stream", {"stream.client": 2}, "[stream] unknown key 'client'", "mean 'clients'"),
    Bad("model", {"model.hiden": [2]}, "[model] unknown key 'hiden'", "mean 'hidden'"),
    Bad("method", {"method.Masked": True}, "[method] unknown key 'Masked'", "mean 'masked'"),
    Bad("engine", {"engine.blok": 2}, "[engine] unknown key 'blok'", "(known: none)"),
    Bad("partition", partition("dirichlet", alfa=1.0), "[stream.partition] unknown", "'alpha'"),
    Bad("order", {"stream.order": {"name": "staggered", "delays": 1}}, "[stream.order]", "'delay'"),
    Bad("local", {"training.local.learning_rate": 1.0}, "[training.local]", "lr, momentum"),
    Bad(
        "another method's option",
        {"method.name": "fedavg", "method.energy": 0.9},
        "[method] unknown key 'energy'",
        "known: masked, server",
    ),
]
UNKNOWN_NAMES = [
    Bad("dataset", {"dataset.name": "syntetic"}, "[dataset] unknown name", "mean 'synthetic'"),
    Bad("stream", {"stream.name": "class-incremental"}, "[stream]", "mean 'class_incremental'"),
    Bad("model", {"model.name": "MLP"}, "[model] unknown name 'MLP'", "mean 'mlp'"),
    Bad("method", {"method.name": "fedavgg"}, "[method] unknown name 'fedavgg'", "mean 'fedavg'"),
    Bad("method, far off", {"method.name": "magic"}, "unknown name 'magic'", "known: "),
    Bad("trainer", {"training.local": {"name": "sdg"}}, "[training.local] unknown", "mean 'sgd'"),
    Bad("engine", {"engine.name": "vectorised"}, "[engine] unknown name", "mean 'vectorized'"),
    Bad("channel", {"channel": [{"name": "secure"}]}, "[channel[0]] unknown", "secure_aggregation"),
    Bad("partition", partition("dirichelet"), "[stream.partition] unknown", "mean 'dirichlet'"),
    Bad("order", {"stream.order": {"name": "shuffle"}}, "[stream.order]", "mean 'shuffled'"),
    Bad("rule", {"aggregation.name": "medain"}, "[aggregation] unknown name", "mean 'median'"),
    Bad("no package", {"method.name": "nowhere.here:It"}, "'nowhere.here:It'", "PYTHONPATH"),
    Bad("no class", {"method.name": f"{STRANGE}:Nobody"}, "no attribute 'Nobody'", "install"),
    Bad("no module", {"method.name": ":It"}, "[method] name = ':It'", "install"),
]
WRONG_TYPES = [
    Bad("text for int", {"training.rounds": "ten"}, "training.rounds", "a whole number, not 'ten'"),
    Bad("float for int", {"training.rounds": 2.5}, "training.rounds", "a whole number, not 2.5"),
    Bad("bool for int", {"training.cohort": True}, "training.cohort", "a whole number, not True"),
    Bad("list for int", {"training.rounds": [2]}, "training.rounds", "a whole number, not [2]"),
    Bad("date for int", {"seed": datetime.date(2026, 1, 2)}, "seed", "must be a whole number"),
    Bad("int for bool", {"method.masked": 1}, "method.masked", "true or false, not 1"),
    Bad("text for float", {"training.local.lr": "0.1"}, "training.local.lr", "number, not '0.1'"),
    Bad("NaN", {"training.local.lr": float("nan")}, "training.local.lr", "a finite number"),
    Bad("infinity", {"training.local.lr": float("inf")}, "training.local.lr", "a finite number"),
    Bad("int for text", {"evaluation.reference": 3}, "evaluation.reference", "text in quotes"),
    Bad("date for text", {"evaluation.reference": datetime.date(2026, 1, 2)}, "reference", "text"),
    Bad("int for list", {"model.hidden": 12}, "model.hidden", "must be a list, not 12"),
    Bad("text in list", {"model.hidden": [12, "a"]}, "model.hidden[1]", "a whole number, not 'a'"),
    Bad("neither", {"dataset.features": "a"}, "dataset.features", "a whole number or a list"),
    Bad("in neither", {"dataset.features": [4, 0.5]}, "dataset.features[1]", "a whole number"),
    Bad("short list", {"model": {"name": "alexnet", "dropout": [0.2]}}, "model.dropout", "longer"),
    Bad(
        "choice", {"training.sampling": "random"}, "training.sampling", "'poisson' or 'round_robin'"
    ),
    Bad("colour", {"dataset": {"name": "folder", "colour": "BGR"}}, "colour", "'RGB' or 'L'"),
    Bad("sides", {"dataset": {"name": "hub", "size": [3]}}, "dataset.size", "a longer list"),
    Bad("stem", {"model": {"name": "resnet18_gn", "stem": "7x7"}}, "model.stem", "'imagenet'"),
    Bad("split", {"evaluation.splits": ["train"]}, "splits[0]", "'test' or 'validation'"),
    Bad("number for table", {"training": 5}, "training is a table", "write [training]"),
    Bad("text for table", {"method": "fedavg"}, "method is a table", "[method] with name"),
    Bad("text for local", {"training.local": "sgd"}, "training.local is a table", "with name"),
    Bad("text for partition", {"stream.partition": "iid"}, "stream.partition", '{ name = "iid" }'),
    Bad("number for name", {"method.name": 3}, "[method] name", "a word in quotes, not 3"),
    Bad("channel, a table", {"channel": {"name": "x"}}, "channel is a list", "write [[channel]]"),
    Bad("channel of text", {"channel": ["x"]}, "channel[0] is a table", "with name"),
]
OUT_OF_RANGE = [
    Bad("seed", {"seed": -1}, "seed", "at least 0, not -1"),
    Bad("rounds", {"training.rounds": 0}, "[training] rounds", "at least 1, not 0"),
    Bad("cohort", {"training.cohort": -3}, "[training] cohort", "at least 0, not -3"),
    Bad("fold", {"training.fold": 0}, "[training] fold", "at least 1, not 0"),
    Bad("availability", {"training.availability": 2.0}, "[training] availability", "(0, 1], not"),
    Bad("lr", {"training.local.lr": 0.0}, "[training.local] lr", "above 0, not 0.0"),
    Bad("batch", {"training.local.batch_size": 0}, "[training.local] batch_size", "at least 1"),
    Bad("block", {"engine": {"name": "vectorized", "block": -1}}, "[engine] block", "at least 0"),
    Bad("every", {"evaluation.every": -1}, "[evaluation] every", "at least 0, not -1"),
    Bad("no split", {"evaluation.splits": []}, "[evaluation] splits", "at least one"),
    Bad("seconds", {"checkpoint.seconds": -1.0}, "[checkpoint] seconds", "at least 0"),
    Bad("clients", {"stream.clients": -1}, "[stream] clients", "at least 1, not -1"),
    Bad("alpha", partition("dirichlet", alpha=0.0), "[stream.partition] alpha", "above 0"),
    Bad(
        "late",
        {"stream.order": {"name": "staggered", "late": 2.0}},
        "[stream.order] late",
        "[0, 1]",
    ),
    Bad("classes", {"dataset.classes": 0}, "[dataset] classes", "at least 1, not 0"),
    Bad("size", {"dataset": {"name": "folder", "size": -1}}, "[dataset] size", "0 or positive"),
    Bad("hub", {"dataset": {"name": "hub", "memory": -1.0}}, "[dataset] memory", "not negative"),
    Bad("width", {"model": {"name": "resnet18_gn", "width": 5}}, "[model] groups = 2", "divide"),
    Bad("hidden", {"model.hidden": [0]}, "[model] hidden", "at least 1, not [0]"),
    Bad("dropout", {"model.dropout": [1.0]}, "[model] a dropout rate", "[0, 1), not 1.0"),
    Bad("groups", {"model": {"name": "cnn", "channels": [6]}}, "[model] groups = 8", "divide"),
    Bad(
        "share",
        {"aggregation": {"name": "trimmed_mean", "share": 0.5}},
        "[aggregation]",
        "[0, 0.5)",
    ),
    Bad("server", {"method.server_lr": -1.0}, "[method] ", "server_lr"),
]
COMBINATIONS = [
    Bad("tasks", {"stream.name": "class_incremental", "stream.tasks": 5}, "has 4", "stream.tasks"),
    Bad(
        "clients", {"stream.clients": 200}, "[stream.partition] 200 clients", "lower stream.clients"
    ),
    Bad("shards", partition("shards", per_client=40), "at least 200 examples", "lower"),
    Bad("no such column", partition("natural"), "[stream.partition] column 'subject'", "columns:"),
    Bad(
        "other clients than people",
        {"dataset.domains": 4, **partition("natural", column="domain")},
        "column 'domain' names 4 clients, but clients = 5",
        "set it to 4 or 0",
    ),
    Bad("no tasks", {"stream.tasks": 0}, "[stream]", "needs tasks, at least 1"),
    Bad("rotate", {**SYNTHETIC, "stream.transform": "rotate"}, "shape (16,)", 'use "permute"'),
    Bad("no domains", {"stream.transform": "column"}, "[stream] column 'domain'", "columns: none"),
    Bad(
        "absent domain",
        {"dataset.domains": 2, "stream.transform": "column", "stream.domains": [0, 7]},
        "[stream] domains [7]",
        "it has [0, 1]",
    ),
    Bad("no time", {"stream": {"name": "temporal"}}, "column 'position'", "npz adds `position`"),
    Bad("cnn, flat", {**SYNTHETIC, "model": {"name": "cnn"}}, "[model] cnn needs", "try mlp"),
    Bad("cnn, small", {"model": {"name": "cnn", "channels": [8, 8, 8]}}, "4x4", "too small"),
    Bad("alexnet, flat", {**SYNTHETIC, "model": {"name": "alexnet"}}, "(16,)", "try mlp"),
    Bad("alexnet, small", {"model": {"name": "alexnet"}}, "[model] images of 4x4", "19x19"),
    Bad("resnet, flat", {**SYNTHETIC, "model": {"name": "resnet18_gn"}}, "(16,)", "try mlp"),
    Bad("resnet, small", {"model": {"name": "resnet18_gn"}}, "[model] images of 4x4", "8x8"),
    Bad(
        "replies hidden",
        {
            "method": {"name": f"{STRANGE}:AsksForReplies"},
            "channel": [{"name": "secure_aggregation"}],
        },
        "the channel hides them",
        "take another method or remove",
    ),
    Bad(
        "no public", {"method": {"name": f"{STRANGE}:NeedsPublic"}}, "public data", "stream.public"
    ),
    Bad(
        "no validation", {"evaluation.splits": ["validation"]}, "[evaluation]", "stream.validation"
    ),
    Bad(
        "all held out", {"stream.validation": 0.6, "stream.public": 0.4}, "[stream]", "to train on"
    ),
    Bad("no borders", {"method.name": "joint", "stream.borders": False}, "'joint'", "= true"),
    Bad(
        "rule without replies",
        {"aggregation.name": "median", "channel": [{"name": "secure_aggregation"}]},
        "[aggregation] 'median' compares single replies",
        "remove that step",
    ),
    Bad("minimum", {"training.minimum": 4}, "[training] minimum = 4", "cohort = 3"),
    Bad("few clients", {"training.cohort": 9, "training.minimum": 6}, "the 5 clients", "lower it"),
    Bad("no reference", {"evaluation.reference": "/nowhere"}, "[evaluation] reference", "name the"),
    Bad(
        "own orders",
        {"stream.order": {"name": "shuffled"}, "evaluation.reference": "/nowhere"},
        "[evaluation] reference",
        "leave it out",
    ),
]
OUTSIDERS = [
    Bad("BatchNorm", {"model": {"name": f"{STRANGE}:WithBatchNorm"}}, "layer '2'", "GroupNorm"),
    Bad("dropout", {"model": {"name": f"{STRANGE}:WithTorchDropout"}}, "[model]", "model.Dropout"),
    Bad("head", {"model": {"name": f"{STRANGE}:WithWrongHead"}}, "shape (2, 5)", "all 4 classes"),
    Bad("widths", {"model": {"name": f"{STRANGE}:WithWrongWidths"}}, "[model]", "mat1 and mat2"),
    Bad("no dataclass", {"model": {"name": f"{STRANGE}:NoDataclass"}}, "[model]", "@dataclass"),
    Bad("function", {"model": {"name": f"{STRANGE}:no_class"}}, "[model]", "@dataclass"),
    Bad("no model", {"model": {"name": f"{STRANGE}:NoModel"}}, "of the models", "define build"),
    Bad("odd type", {"model": {"name": f"{STRANGE}:OddOption", "inner": 1}}, "model.inner", "numb"),
    Bad("no method", {"method": {"name": f"{STRANGE}:NoModel"}}, "of the methods", "derive it"),
    Bad(
        "no round", {"method": {"name": f"{STRANGE}:Unfinished"}}, "of the methods", "define round"
    ),
    Bad("no stream", {"stream": {"name": f"{STRANGE}:NoModel"}}, "of the streams", "derive it"),
    Bad("no trainer", {"training.local": {"name": f"{STRANGE}:NoModel"}}, "trainers", "__call__"),
    Bad("no engine", {"engine": {"name": f"{STRANGE}:NoModel"}}, "engines", "define open, run"),
    Bad(
        "no channel", {"channel": [{"name": f"{STRANGE}:NoModel"}]}, "[channel[0]]", "hides_replies"
    ),
]
SETTINGS = [
    Bad("no =", {}, "--set 'training.rounds'", "KEY=VALUE", ("training.rounds",)),
    Bad("no key", {}, "--set '=3'", "KEY=VALUE", ("=3",)),
    Bad("half a key", {}, "--set 'training.=3'", "KEY=VALUE", ("training.=3",)),
    Bad("in a number", {}, "'rounds' is not a table", "set rounds", ("training.rounds.x=3",)),
    Bad(
        "in a list", {"channel": []}, "'channel' is not a table", "set channel", ("channel.name=x",)
    ),
    Bad("text", {}, "training.rounds", "a whole number, not 'ten'", ("training.rounds=ten",)),
    Bad("broken TOML is text", {}, "model.hidden", "a list, not '[1,'", ("model.hidden=[1,",)),
    Bad("key", {}, "[training] unknown key 'x'", "known: local", ("training.x=1",)),
    Bad(
        "later wrong", {}, "training.rounds", "not 'b'", ("training.rounds=2", "training.rounds=b")
    ),
]
TABLES = {
    "unknown key": UNKNOWN_KEYS,
    "unknown name": UNKNOWN_NAMES,
    "wrong type": WRONG_TYPES,
    "out of range": OUT_OF_RANGE,
    "combination": COMBINATIONS,
    "outsider": OUTSIDERS,
    "set": SETTINGS,
}
