"""Workers on Ray: the same answers as in one process, whatever happens to a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedcl.core.errors import FedclError
from fedcl.flower.grid.app import run_app
from fedcl.flower.grid.blocks import BlockGrid
from fedcl.flower.grid.letters import FIRST_NODE
from fedcl.flower.grid.workers import Workers
from tests.flower.grid_apps import arrays, ask, asking, message, odd, told, values
from tests.ray_house import RayHouse

pytestmark = pytest.mark.ray

NODES = [FIRST_NODE + client for client in range(12)]


@pytest.fixture(autouse=True)
def session(ray_house: RayHouse) -> Iterator[None]:
    """Workers join the suite's Ray session and leave it as it is."""
    ray_house.start()
    yield
    assert ray.is_initialized()


def run(body: Callable[[BlockGrid], Any], workers: int, **options: Any) -> Any:
    """Runs a server app over twelve odd clients and returns what `body` returns."""
    found = []

    def main(grid: Grid, context: Context) -> None:
        assert isinstance(grid, BlockGrid)
        found.append(body(grid))

    run_app(asking(main), odd, **{"clients": len(NODES), "workers": workers, **options})
    return found[0]


def test_answers_are_those_of_one_process() -> None:
    def body(grid: Grid) -> list[Any]:
        order = [*NODES[::-1], NODES[3], NODES[3]]
        asked = [ask(grid, action, order) for action in ("count", "draw", "fail", "who", "draw")]
        content = RecordDict({"arrays": arrays()})
        spoilt = grid.send_and_receive([Message(content, n, "query.spoil") for n in NODES])
        return [*asked, [told(reply) for reply in spoilt]]

    alone = run(body, 0, run_config={"lr": 0.1})
    assert alone[0][-2:] == [{"count": 2}, {"count": 3}]
    for workers in (1, 2):
        assert run(body, workers, run_config={"lr": 0.1}) == alone


def test_shared_records_are_put_once_a_send(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[int] = []
    share = Workers.share

    def counted(self: Workers, records: tuple[bytes, ...]) -> Any:
        put.append(len(records))
        return share(self, records)

    monkeypatch.setattr(Workers, "share", counted)

    def body(grid: Grid) -> None:
        content = RecordDict({"arrays": arrays()})
        for _ in range(2):
            replies = grid.send_and_receive([Message(content, n, "query.spoil") for n in NODES])
            assert len(list(replies)) == len(NODES)

    run(body, 1)
    assert put == [1, 1]


def test_pushed_messages_are_pulled_as_they_come() -> None:
    def body(grid: Grid) -> None:
        slow = list(grid.push_messages([message(NODES[0], "sleep", seconds=0.3)]))
        again = list(grid.push_messages([message(NODES[0], "count")]))  # waits for the node
        fast = list(grid.push_messages([message(node, "count") for node in NODES[1:]]))
        found: dict[str, dict[str, Any]] = {}
        while len(found) < len(NODES) + 1:
            for reply in grid.pull_messages([*slow, *again, *fast]):
                found[reply.metadata.reply_to_message_id] = told(reply)
            time.sleep(0.01)
        assert found[slow[0]] == {"count": 1} and found[again[0]] == {"count": 2}
        assert [found[id] for id in fast] == [{"count": 1}] * 11

    run(body, 2)


def test_a_timeout_withdraws_what_no_worker_has() -> None:
    def body(grid: Grid) -> None:
        messages = [message(node, "sleep", seconds=0.2) for node in NODES]
        # A worker has two blocks, of six and of three; it can hardly have done them by then.
        assert len(list(grid.send_and_receive(messages, timeout=0.5))) < len(NODES)
        # Each has answered once or, withdrawn, not at all.
        assert set(values(ask(grid, "count"), "count")) == {1, 2}

    run(body, 1)


def test_a_dead_worker_is_replaced_and_its_letters_are_answered(tmp_path: Path) -> None:
    def body(grid: Grid) -> list[Any]:
        asked: dict[str, Any] = {"client": 5, "mark": str(tmp_path / "mark"), "always": False}
        first = [ask(grid, "draw"), ask(grid, "die", **asked), ask(grid, "draw")]
        return [*first, ask(grid, "count")]

    died = run(body, 2)
    assert (tmp_path / "mark").exists()
    assert died[1] == [{"count": 1}] * 12
    assert run(body, 0) == died, "with the mark there, nobody dies: the bits are the same"


def test_a_letter_that_kills_every_worker_is_an_error(tmp_path: Path) -> None:
    def body(grid: BlockGrid) -> None:
        asked = {"client": 5, "mark": str(tmp_path / "mark"), "always": True}
        replies = list(grid.send_and_receive([message(n, "die", **asked) for n in NODES]))
        assert [told(r) for r in replies[:5] + replies[6:]] == [{"count": 1}] * 11
        assert replies[5].error.code == ErrorCode.CLIENT_APP_CRASHED
        assert told(replies[5]) == {
            "error": "3 workers have died of this message to node 1000000005"
        }
        assert values(ask(grid, "count"), "count") == [2] * 5 + [1] + [2] * 6

    run(body, 2)


def test_an_app_that_workers_cannot_load_ends_the_run() -> None:
    app = ClientApp()
    app._lifespan = Unloadable()  # type: ignore[assignment]

    def main(grid: Grid, context: Context) -> None:
        ask(grid, "who")

    with pytest.raises(FedclError, match="a worker cannot run the client app"):
        run_app(asking(main), app, clients=2, workers=1)


class Unloadable:
    """Can be packed, but not unpacked."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return _not_here, ("no such data on this machine",)


def _not_here(reason: str) -> None:
    raise OSError(reason)
