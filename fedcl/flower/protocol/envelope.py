"""What every question says beside what it asks: of which experiment, with which config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, ConfigRecordValues, RecordDict

from fedcl.core.client import Kept


@dataclass(frozen=True)
class Envelope:
    """Goes around what is asked.

    Attributes:
        experiment: Name under which the client finds its own copy of the config.
        config: Fingerprints of the asker's config.
        base: The memory that the client is to start from; None where it needs none.
    """

    experiment: str
    config: Mapping[str, str]
    base: Kept | None = None

    def write(
        self, plain: Mapping[str, ConfigRecordValues], arrays: ArrayRecord | None = None
    ) -> RecordDict:
        """Returns the content of a Flower message.

        Args:
            plain: What is asked, as plain values.
            arrays: The array that it takes, if any (`fedcl.flower.protocol.messages.Coded`).
        """
        base = {} if self.base is None else {"base": list(self.base.moment)}
        question = ConfigRecord({"experiment": self.experiment, **plain, **base})
        config = ConfigRecord(dict(self.config))
        message = {} if arrays is None else {"message": arrays}
        return RecordDict({**message, "question": question, "config": config})

    @classmethod
    def read(cls, content: RecordDict) -> tuple[Envelope, Mapping[str, Any]]:
        """Returns the envelope of the question in a Flower message, and the plain values in it.

        Raises:
            KeyError: A part is missing.
            TypeError: A part has another type.
            ValueError: It names no experiment, or a base that is none.
        """
        plain: Mapping[str, Any] = content.config_records["question"]
        config = {name: str(value) for name, value in content.config_records["config"].items()}
        experiment, base = plain["experiment"], None
        if not isinstance(experiment, str):
            raise TypeError(f"experiment is no str but {experiment!r:.50}")
        if not experiment:
            raise ValueError("it names no experiment")
        if "base" in plain:
            a, b, c, d = whole(plain["base"], 0, -1, 0, 0)
            base = Kept((a, b, c, d))
        return cls(experiment, config, base), plain


def whole(values: Any, *least: int) -> tuple[int, ...]:
    """Returns whole numbers; raises ValueError when one of them is none, or too small."""
    if len(values) != len(least) or any(
        type(value) is not int or value < bound for value, bound in zip(values, least, strict=True)
    ):
        raise ValueError(f"{values!r:.80} are not {len(least)} whole numbers of at least {least}")
    return tuple(values)
