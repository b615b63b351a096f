"""What a live federation must remember of itself and its clients, beside the run's checkpoint.

A device keeps its memory by the experiment's id, and shows that it is the same client by the token
that it brought at its first introduction. Both are written before anybody is asked anything, so
that they outlive whatever ends the server. Flower's node numbers and public keys are no use: nodes
without registered keys have new ones each time that they are started.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from fedcl.core import durable
from fedcl.core.errors import ResumeError

FILE = "federation.json"


@dataclass
class Guestbook:
    """The experiment's id, and who its clients are.

    Attributes:
        path: Its file; None for a run without files.
        experiment: Id, 32 hexadecimal digits.
        clients: Their tokens, by id.
    """

    path: Path | None
    experiment: str
    clients: dict[int, str] = field(default_factory=dict)

    def bind(self, client: int, token: str) -> bool:
        """Returns whether a client is who it was; a new one is whoever comes first."""
        if client not in self.clients:
            self.clients[client] = token
            self.write()
        return self.clients[client] == token

    def write(self) -> None:
        """Writes everything, so that it outlives a power cut."""
        if self.path is None:
            return
        table = {str(id): token for id, token in sorted(self.clients.items())}
        told = json.dumps({"experiment": self.experiment, "clients": table})
        # A token is what a client shows for itself: nobody else may read it.
        durable.write(self.path, told.encode(), mode=0o600)


def open_guestbook(folder: Path | None) -> Guestbook:
    """Returns the guestbook of a run, a new one at its first sitting.

    Args:
        folder: The run's folder; None for a run without files.

    Raises:
        ResumeError: The file is damaged.
    """
    if folder is None:
        return Guestbook(None, uuid4().hex)
    path = folder / "checkpoint" / FILE
    if not path.exists():
        book = Guestbook(path, uuid4().hex)
        book.write()
        return book
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        clients = {int(id): str(token) for id, token in found["clients"].items()}
        return Guestbook(path, str(found["experiment"]), clients)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResumeError(
            f"{path} cannot be read: {error!r}; put it back, or name another folder to start anew"
        ) from error
