"""Evaluation on clients' own held-out data as Flower carries it: a view goes down, numbers come up.

A client looks at a model with what it has anyway: its data, its memory, its own config. What comes
back is plain lists, and is judged where all engines' findings are (`fedcl.survey`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

from flwr.app import ConfigRecord, ConfigRecordValues, RecordDict

from fedcl.core import wire
from fedcl.core.client import Kept
from fedcl.core.errors import FedclError
from fedcl.core.memories import Memories
from fedcl.core.site import Site
from fedcl.core.survey import Examination, Finding, Kind, findings, models_of
from fedcl.flower.protocol.envelope import Envelope
from fedcl.flower.protocol.messages import Coded

EVALUATION = "query.evaluation"
_SPLITS = ("test", "validation")
_PARTS: Mapping[str, type] = {
    "models": str,
    "splits": str,
    "tasks": int,
    "accuracies": float,
    "losses": float,
    "n": int,
}


class Link(Protocol):
    """What is needed of `fedcl.flower.server.link.Link`."""

    words: wire.Vocabulary
    experiment: str
    config: Mapping[str, str]
    live: bool

    def ask(
        self, kind: str, contents: Mapping[int, RecordDict]
    ) -> tuple[Mapping[int, RecordDict], Mapping[int, str], Mapping[int, str]]:
        """Returns answers by client, why others have none, and what is wrong with others'."""
        ...


@dataclass(frozen=True)
class Question:
    """One evaluation as one client is asked for it.

    Attributes:
        experiment: Name under which the client finds its own copy of the config.
        config: Fingerprints of the asker's config.
        coded: What prediction needs of the method's state.
        place: Stage, and its finished round.
        splits: Held-out data to evaluate on.
        batch: Examples of one forward pass.
        base: The memory that the client has then, for a model of its own; else None.
    """

    experiment: str
    config: Mapping[str, str]
    coded: Coded
    place: tuple[int, int]
    splits: tuple[str, ...]
    batch: int
    base: Kept | None = None

    def write(self) -> RecordDict:
        """Returns the content of a Flower message."""
        plain: dict[str, ConfigRecordValues] = {
            "place": list(self.place),
            "splits": list(self.splits),
            "batch": self.batch,
        }
        about = Envelope(self.experiment, self.config, self.base)
        return about.write(plain, self.coded.arrays)

    @classmethod
    def read(cls, content: RecordDict) -> Question:
        """Returns the question in a Flower message.

        Raises:
            KeyError: A part is missing.
            TypeError: A part has another type.
            ValueError: A part is no part of a question.
        """
        about, plain = Envelope.read(content)
        stage, round = plain["place"]
        splits, batch = tuple(plain["splits"]), plain["batch"]
        if not splits or set(splits) - set(_SPLITS) or len(set(splits)) < len(splits):
            raise ValueError(f"splits {splits} are no held-out data (known: {', '.join(_SPLITS)})")
        if not (isinstance(batch, int) and batch > 0):
            raise ValueError(f"a forward pass of {batch!r} examples is none")
        return cls(
            experiment=about.experiment,
            config=about.config,
            coded=Coded.found(content, "message"),
            place=(stage, round),
            splits=splits,
            batch=batch,
            base=about.base,
        )


def answer(
    question: Question,
    site: Site,
    words: wire.Vocabulary,
    client: int,
    recall: Callable[[Kept | None], Any],
) -> RecordDict:
    """Returns what a client answers: numbers alone. Its memory stays as it is.

    Args:
        question: What it is asked; experiment and config are checked already.
        site: Where it computes, with its data.
        words: What may be named; of the client's own method.
        client: Its id.
        recall: Returns the memory that it has kept; asked only for a model of its own.

    Raises:
        ClientError: The evaluation failed.
        ExposureError: What the client sends is protected, which these numbers would not be.
    """
    (stage, round), method = question.place, words.method
    view = question.coded.read(words)
    asked = Examination(stage, round, question.splits, question.batch, view)
    memory = recall(question.base) if "personal" in models_of(method) else None
    return write_findings(question.place, findings(method, site, asked, client, memory))


def write_findings(place: tuple[int, int], found: Sequence[Finding]) -> RecordDict:
    """Returns what a client found as plain lists, with the place in the run that it is about."""
    columns = zip(
        *((one.model, one.split, one.task, one.accuracy, one.loss, one.n) for one in found),
        strict=True,
    )
    lists = dict(zip(_PARTS, map(list, columns), strict=False)) or {name: [] for name in _PARTS}
    return RecordDict({"findings": ConfigRecord({"place": list(place), **lists})})


def read_findings(content: RecordDict, place: tuple[int, int]) -> tuple[Finding, ...]:
    """Returns what a client found; raises ValueError for an answer that says no such thing.

    Args:
        content: Its answer.
        place: Stage, and its finished round, that it was asked about.
    """
    plain: Mapping[str, Any] | None = content.config_records.get("findings")
    if plain is None or plain.keys() != {"place", *_PARTS}:
        raise ValueError("its answer does not tell what it found")
    if plain["place"] != list(place):
        raise ValueError(
            f"its answer is stale: it is about (stage, round) = {plain['place']!r:.50}, not "
            f"{list(place)}"
        )
    for name, kind in _PARTS.items():
        if not isinstance(plain[name], list) or any(type(v) is not kind for v in plain[name]):
            raise ValueError(f"its {name} are no list of {kind.__name__}")
    if len({len(plain[name]) for name in _PARTS}) > 1:
        raise ValueError("its lists have different lengths")
    if unknown := set(plain["models"]) - set(get_args(Kind)):
        raise ValueError(f"it tells of models that there are not: {sorted(unknown)!r:.50}")
    return tuple(Finding(*values) for values in zip(*(plain[name] for name in _PARTS), strict=True))


def ask(
    link: Link, examination: Examination, ids: Sequence[int], memories: Memories
) -> tuple[dict[int, tuple[Finding, ...]], dict[int, str]]:
    """Asks clients, and returns what each found, and what is wrong with the answers of others.

    Args:
        link: Asks the nodes.
        examination: What they are asked.
        ids: Who is asked.
        memories: Say which memory a client has.

    Raises:
        FedclError: An evaluation failed in a simulation, which ends it as any failure there does.
    """
    coded = Coded.of(examination.view, link.words)
    place = examination.stage, examination.round
    bases: Mapping[int, Any] = {}
    if "personal" in models_of(link.words.method):
        bases = memories.load(ids)
    found, wrong = {}, {}
    questions = {
        id: Question(
            link.experiment,
            link.config,
            coded,
            place,
            examination.splits,
            examination.batch,
            bases.get(id),
        ).write()
        for id in ids
    }
    answers, _, bad = link.ask(EVALUATION, questions)
    if bad and not link.live:
        raise FedclError(f"evaluation failed: {next(iter(bad.values()))}")
    for id, content in answers.items():
        try:
            found[id] = read_findings(content, place)
        except ValueError as error:
            wrong[id] = str(error)
    return found, {**wrong, **bad}
