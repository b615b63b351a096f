"""What stands between an engine and the Grid that a ServerApp handed over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcl.core.errors import ConfigError
from fedcl.core.site import Site
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.protocol.agreement import fingerprints
from fedcl.flower.protocol.introductions import Introduction
from fedcl.flower.server.guestbook import open_guestbook
from fedcl.flower.server.handed import Handed
from fedcl.flower.server.link import Link
from fedcl.flower.server.live import LIMIT, Attendance
from fedcl.flower.server.seats import Fixed, Seats, introduce
from fedcl.flower.transport.post import Post

_INTERVAL = 0.25  # seconds between two looks for answers: a node looks for questions every 3
_WINDOW = 256  # messages in flight: devices do not wait for each other
_INVITED = 64  # introductions in flight
_HOUR = 3600.0


def connect(
    own: Handed,
    site: Site,
    launch: Mapping[str, Any],
    *,
    timeout: float,
    grace: float,
    patience: float,
    limit: int,
) -> tuple[Link, Attendance | None]:
    """Returns what asks the nodes of a grid, and who is there in a live federation.

    Args:
        own: What was handed over.
        site: Checks, books and folds what comes back.
        launch: What engines are told of a run.
        timeout: Seconds after which an answer counts as missing; 0 for an hour with devices, for
            ever in a simulation.
        grace: See `Attendance`.
        patience: See `Attendance`.
        limit: Most bytes of an answer.

    Raises:
        ConfigError: Flower's simulation has fewer nodes than the stream has clients, or its nodes
            have another config.
    """
    folder = None if launch["folder"] is None else Path(launch["folder"])
    book = open_guestbook(folder)
    introduction = Introduction.of(book.experiment, launch["resolved"])
    attendance: Attendance | None = None
    seats: Seats
    if own.live:
        post = Post(own.grid, _nothing, _INTERVAL, _WINDOW, apart=True, limit=limit)
        invitations = Post(own.grid, _nothing, _INTERVAL, _INVITED, apart=True, limit=LIMIT)
        seats = attendance = Attendance(
            invitations, launch["clients"], introduction, book, own.status, grace, patience
        )
    else:
        post = Post(own.grid, _nothing)
        nodes = introduce(post, introduction)
        missing = sorted(set(range(launch["clients"])) - nodes.keys())
        if missing:
            raise ConfigError(
                f"Flower's simulation has no node for {len(missing)} of {launch['clients']} "
                f"clients, such as {missing[0]}: raise options.num-supernodes"
            )
        seats = Fixed(nodes)
    link = Link(
        post=post,
        seats=seats,
        site=site,
        words=vocabulary(launch["method_object"]),
        experiment=book.experiment,
        config=fingerprints(launch["resolved"]),
        timeout=timeout or (_HOUR if own.live else 0.0),
        limit=limit,
        live=own.live,
        status=own.status,
    )
    return link, attendance


def _nothing() -> None:
    """Flower itself ends a ServerApp whose run has ended."""
