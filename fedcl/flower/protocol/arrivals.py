"""Whether clients have new data for a stage, as Flower carries it: a question, and yes or no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import ConfigRecord, RecordDict

from fedcl.core.errors import ConfigError
from fedcl.core.site import Site
from fedcl.flower.protocol.envelope import Envelope

ARRIVALS = "query.arrivals"
_SECONDS = 60.0  # in which a client says it, or counts as one that has none


class Link(Protocol):
    """What is needed of `fedcl.flower.server.link.Link`."""

    experiment: str
    config: Mapping[str, str]

    def ask(
        self, kind: str, contents: Mapping[int, RecordDict], timeout: float | None = None
    ) -> tuple[Mapping[int, RecordDict], Mapping[int, str], Mapping[int, str]]:
        """Returns answers by client, why others have none, and what is wrong with others'."""
        ...


@dataclass(frozen=True)
class Question:
    """Asks one client whether it has new data.

    Attributes:
        experiment: Name under which the client finds its own copy of the config.
        config: Fingerprints of the asker's config.
        stage: The stage that is to begin.
    """

    experiment: str
    config: Mapping[str, str]
    stage: int

    def write(self) -> RecordDict:
        """Returns the content of a Flower message."""
        return Envelope(self.experiment, self.config).write({"stage": self.stage})

    @classmethod
    def read(cls, content: RecordDict) -> Question:
        """Returns the question in a Flower message.

        Raises:
            KeyError: A part is missing.
            TypeError: A part has another type.
            ValueError: A part is no part of a question.
        """
        about, plain = Envelope.read(content)
        stage = plain["stage"]
        if type(stage) is not int:
            raise ValueError(f"stage {stage!r:.80} is none")
        return cls(about.experiment, about.config, stage)


def answer(question: Question, site: Site, client: int) -> RecordDict:
    """Returns what a client answers: whether it has new data for the stage, or has begun with it.

    Raises:
        ConfigError: Its data do not arrive.
    """
    ready = getattr(site.population, "ready", None)
    if ready is None:
        raise ConfigError(
            "new data are asked for, but the client's do not arrive: give it a config with the "
            'data set "arrivals"'
        )
    told = ConfigRecord({"stage": question.stage, "ready": bool(ready(client, question.stage))})
    return RecordDict({"arrivals": told})


def ask(link: Link, clients: Sequence[int], stage: int) -> list[int]:
    """Returns which clients say that they have new data for a stage; the others have none.

    Args:
        link: Asks the nodes.
        clients: Who is asked.
        stage: The stage that is to begin.
    """
    content = Question(link.experiment, link.config, stage).write()
    answers, _, _ = link.ask(ARRIVALS, dict.fromkeys(clients, content), _SECONDS)
    return [id for id, told in answers.items() if _is_ready(told, stage)]


def _is_ready(content: RecordDict, stage: int) -> bool:
    told: Mapping[str, Any] = content.config_records.get("arrivals") or {}
    return told.get("stage") == stage and told.get("ready") is True
