"""A live federation in this process: Flower's own link state and Grid, nodes played in turn.

Nodes answer when the server looks for answers, in its own thread: what happens is a matter of
order, and of no clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.common.constant import RUN_ID_NUM_BYTES, SUPERLINK_NODE_ID, TASK_ID_NUM_BYTES
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.server.superlink.linkstate.utils import generate_rand_int_from_bytes
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

import fedcl
from fedcl.config import Experiment
from fedcl.core.memories import Memories
from fedcl.core.survey import Examination
from fedcl.flower import device
from fedcl.flower.node import client_app
from fedcl.flower.protocol.arrivals import ARRIVALS
from fedcl.flower.protocol.evaluation import EVALUATION
from fedcl.flower.protocol.messages import EXCHANGE, INTRODUCTION
from fedcl.flower.server import deployment, live
from fedcl.flower.server.handed import Handed, hand
from fedcl.flower.server.status import Status
from fedcl.flower.simulation.runtime import _OwnGrid
from fedcl.progress import Progress
from fedcl.record import Record
from tests.tiny import Watching

Answers = Callable[[Message], RecordDict | None]
FOREVER = 1e9
LATER = RecordDict()  # what a node says that has no answer yet


@dataclass
class Onlooker(Watching):
    """A live engine that remembers what the door asked, and what came back.

    Attributes:
        late: Answers that came too late.
    """

    inner: Any
    late: int = 0

    @property
    def live(self) -> bool:
        """Whether clients are devices."""
        return bool(self.inner.live)

    @property
    def presence(self) -> Any:
        """Who is there."""
        return self.inner.presence

    def present(self, clients: Sequence[int]) -> Any:
        """Returns who is there now."""
        return self.inner.present(clients)

    def evaluate(self, examination: Examination, ids: Sequence[int], memories: Memories) -> Any:
        """Lets clients evaluate."""
        return self.inner.evaluate(examination, ids, memories)

    def ready(self, stage: int) -> Any:
        """Returns who has new data."""
        return self.inner.ready(stage)

    def waits(self, why: str) -> None:
        """Tells why nothing happens."""
        self.inner.waits(why)

    def close(self) -> None:
        """Closes the inner engine."""
        if self.inner._link is not None:
            self.late = self.inner._link.post.late
        super().close()


class _Grid(_OwnGrid):
    """Flower's grid, whose nodes answer when somebody looks for answers."""

    house: House

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Lets nodes answer, and returns answers."""
        self.house.act()
        return super().pull_messages(message_ids)


@dataclass
class House:
    """A SuperLink's state, its Grid, and the nodes that are connected.

    Attributes:
        folder: For what clients keep.
        asked: What nodes were asked, as (node, kind of message).
        engine: Of the last run.
    """

    folder: Path
    asked: list[tuple[int, str]] = field(default_factory=list)
    engine: Onlooker = field(init=False)

    def __post_init__(self) -> None:
        run = Run.create_empty(generate_rand_int_from_bytes(RUN_ID_NUM_BYTES))
        run.primary_task_id = generate_rand_int_from_bytes(TASK_ID_NUM_BYTES)
        run.federation_id = NOOP_FEDERATION_ID
        TaskIdentity.task_id, TaskIdentity.run_id = 1, run.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        states = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
        self.state = cast(InMemoryLinkState, states.state())
        self.state.run_ids[run.run_id] = RunRecord(run=run)
        task = Task(task_id=run.primary_task_id, run_id=run.run_id)
        self.state.task_store[run.primary_task_id] = task
        self.grid = _Grid(state_factory=states)
        self.grid.set_run(run)
        self.grid.house = self
        self._nodes: dict[int, Answers] = {}
        self._waiting: dict[int, list[Message]] = {}

    def join(self, answers: Answers, key: bytes = b"") -> int:
        """Lets a node in that answers so; returns its number.

        Args:
            answers: Returns what it answers; None for nothing ever, `LATER` to be asked again.
            key: Its public key.
        """
        own = key or generate_rand_int_from_bytes(8).to_bytes(8, "big")
        node = self.state.create_node("", "", own, FOREVER)
        self.state.activate_node(node, FOREVER)
        self._nodes[node] = answers
        return node

    def leave(self, node: int) -> None:
        """Takes a node away; messages that it has stay unanswered."""
        del self._nodes[node]
        self.state.deactivate_node(node)

    def come_back(self, node: int, answers: Answers) -> None:
        """Lets a node in that has left, as Flower does where nodes have keys."""
        self.state.activate_node(node, FOREVER)
        self._nodes[node] = answers

    def act(self) -> None:
        """Lets every node answer what it is asked."""
        for node in list(self._nodes):
            messages = self._waiting.pop(node, [])
            messages += self.state.get_message_ins(node, limit=None)
            for message in messages:
                if node in self._nodes:
                    self._answer(node, message)

    def _answer(self, node: int, message: Message) -> None:
        self.asked.append((node, message.metadata.message_type))
        content = self._nodes[node](message)
        if content is LATER:
            self._waiting.setdefault(node, []).append(message)
        elif content is not None:
            reply = Message(content, reply_to=message)
            reply.metadata.__dict__["_message_id"] = f"answer-{message.metadata.message_id}"
            assert self.state.store_message_res(reply), "Flower refuses this answer"

    def device(self, client: int, experiment: Experiment, state: str = "") -> Answers:
        """Returns how a device answers that is a client.

        Args:
            client: Its id.
            experiment: Its own config.
            state: Name of its state folder; each client has one of its own when empty.
        """
        place = self.folder / (state or f"device-{client}")
        place.mkdir(exist_ok=True)
        config = place / "config.toml"
        config.write_text(experiment.toml, encoding="utf-8")
        words: UserConfig = {
            "client": client,
            "config": str(config),
            "state": str(place / "state"),
        }
        context = Context(run_id=1, node_id=1, node_config=words, state=RecordDict(), run_config={})
        find = partial(device.at_home, context)

        def answers(message: Message) -> RecordDict:
            kind = message.metadata.message_type
            act = {
                INTRODUCTION: client_app.introduce,
                EXCHANGE: client_app.respond,
                EVALUATION: client_app.evaluate,
                ARRIVALS: client_app.tell_arrivals,
            }[kind]
            return act(message.content, find)

        return answers

    def run(
        self,
        experiment: Experiment,
        out: Path | None = None,
        *,
        resume: bool = False,
        then: Callable[[Progress], None] = lambda now: None,
    ) -> Record:
        """Runs an experiment on the nodes that are there.

        Args:
            experiment: With the engine `flower`.
            out: The run's folder.
            resume: Go on from its checkpoint.
            then: Called after each round.
        """
        self.engine, status = Onlooker(experiment.engine), Status(out)

        def watch(now: Progress) -> None:
            status.watch(now)
            then(now)

        with hand(Handed(self.grid, True, status)):
            seen = replace(experiment, engine=self.engine)
            return fedcl.run(seen, out, resume=resume, watch=watch)

    def await_clients(self, *clients: int) -> None:
        """Lets the server look until exactly these clients are connected."""
        end = time.monotonic() + 20
        while sorted(self.engine.presence._seats) != sorted(clients):
            assert time.monotonic() < end, self.engine.presence._seats
            self.engine.presence.refresh()
            time.sleep(0.002)

    def await_asked(self, *nodes: int) -> None:
        """Lets the server look until it has heard from these nodes who they are."""
        end = time.monotonic() + 20
        while not {seat.node for seat in self.engine.presence._known}.issuperset(nodes):
            assert time.monotonic() < end, self.engine.presence._known
            self.engine.presence.refresh()
            time.sleep(0.002)

    def answered(self) -> list[tuple[int, ...]]:
        """Returns who answered in each fold block of the last run, where anybody did."""
        return [result.ids for result in self.engine.results if result.ids]


@contextmanager
def opened_house(folder: Path) -> Iterator[House]:
    """Opens a house whose server looks often."""
    house = House(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployment, "_INTERVAL", 0.001)
        patch.setattr(live, "_LOOK", 0.002)
        # A device has a process of its own.
        patch.setattr(device, "_own", lru_cache(maxsize=None)(device._own.__wrapped__))
        yield house
