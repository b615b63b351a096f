"""How server and node meet: who is asking, with what config; which client answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, ConfigRecordValues, RecordDict

from fedcl import __version__
from fedcl.core.errors import ConfigError
from fedcl.flower.protocol.agreement import differences, shared

_RECORD = "introduction"


@dataclass(frozen=True)
class Introduction:
    """What a server says of itself.

    Attributes:
        experiment: Id of its experiment; nothing when there is none yet.
        config: Its config as JSON, without its own affairs.
        version: Its version of fedcl.
    """

    experiment: str = ""
    config: str = "{}"
    version: str = __version__

    @classmethod
    def of(cls, experiment: str, resolved: Mapping[str, Any]) -> Introduction:
        """Returns the introduction of an experiment with this resolved config."""
        return cls(experiment, json.dumps(shared(resolved), sort_keys=True))

    def write(self) -> RecordDict:
        """Returns the content of a Flower message."""
        plain: dict[str, ConfigRecordValues] = {
            "experiment": self.experiment,
            "config": self.config,
            "version": self.version,
        }
        return RecordDict({_RECORD: ConfigRecord(plain)})

    @classmethod
    def read(cls, content: RecordDict) -> Introduction:
        """Returns the introduction in a Flower message.

        Raises:
            KeyError: A part is missing.
            TypeError: A part is no text.
        """
        plain = content.config_records[_RECORD]
        if not plain:  # the other side only asks which client this is
            return cls()
        return cls(**{name: _text(plain[name]) for name in ("experiment", "config", "version")})

    def check(self, resolved: Mapping[str, Any]) -> None:
        """Raises ConfigError that names version, or keys and both values, where the sides differ.

        Args:
            resolved: The node's own config with every default filled in.
        """
        if self.version != __version__:
            raise ConfigError(
                f"client and server have different versions of fedcl ({__version__} here, "
                f"{self.version} asked for); install the same"
            )
        try:
            asked = json.loads(self.config)
        except ValueError as error:
            raise ConfigError(f"the server's config is no JSON: {error}; ask anew") from error
        if not isinstance(asked, dict):
            raise ConfigError(f"the server's config is no table but {asked!r}; ask anew")
        found = differences(resolved, asked)
        if found:
            raise ConfigError(
                f"client and server have different configs ({found}); give both the same"
            )


@dataclass(frozen=True)
class Introduced:
    """What a node says of itself.

    Attributes:
        client: Which client it is.
        token: Binds that to its state folder, the same in every answer within an experiment; in a
            simulation nothing.
        arrived: Arrivals that are complete in its directory; 0 where data do not arrive.
    """

    client: int
    token: str = ""
    arrived: int = 0

    def write(self) -> RecordDict:
        """Returns the content of a Flower message."""
        plain: dict[str, ConfigRecordValues] = {
            "client": self.client,
            "token": self.token,
            "arrived": self.arrived,
        }
        return RecordDict({_RECORD: ConfigRecord(plain)})

    @classmethod
    def read(cls, content: RecordDict) -> Introduced:
        """Returns a node's answer.

        Raises:
            KeyError: A part is missing.
            TypeError: A part has another type.
            ValueError: A number is negative.
        """
        plain = content.config_records[_RECORD]
        client, arrived = plain["client"], plain["arrived"]
        if not isinstance(client, int) or not isinstance(arrived, int):
            raise TypeError(f"client {client!r} and arrived {arrived!r} are no whole numbers")
        if client < 0 or arrived < 0:
            raise ValueError(f"client {client} and arrived {arrived} must be at least 0")
        return cls(client, _text(plain["token"]), arrived)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
