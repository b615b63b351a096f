"""The grid in one process: order, isolation, errors, contexts, generators, the old API."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import flwr.server
import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
from flwr.server.workflow import DefaultWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedcl.core.errors import ConfigError
from fedcl.flower.grid.app import Finished, run_app
from fedcl.flower.grid.letters import FIRST_NODE, pack
from tests.flower.grid_apps import arrays, ask, asking, message, odd, told, values


def during(body: Callable[[Grid], Any], clients: int = 4, **options: Any) -> Finished:
    """Runs a server app over the odd clients; `body` asks and asserts."""
    return run_app(asking(lambda grid, context: body(grid)), odd, clients=clients, **options)


def test_nodes_have_stable_ids_and_find_partition_and_config() -> None:
    def body(grid: Grid) -> None:
        assert list(grid.get_node_ids()) == [FIRST_NODE + c for c in range(4)]
        assert [node.node_id for node in grid.get_nodes()] == list(grid.get_node_ids())
        found = ask(grid, "who")
        assert found[2] == {
            "partition-id": 2,
            "num-partitions": 4,
            "lr": 0.1,
            "node": FIRST_NODE + 2,
        }

    finished = during(body, run_config={"lr": 0.1})
    assert (finished.answered, finished.failed) == (4, 0)


def test_replies_come_in_the_order_of_messages() -> None:
    def body(grid: Grid) -> None:
        order = [FIRST_NODE + c for c in (3, 0, 2, 1)]
        assert values(ask(grid, "who", order), "node") == order
        ids = list(grid.push_messages([message(node, "who") for node in order]))
        replies = list(grid.pull_messages(reversed(ids)))
        assert [reply.metadata.reply_to_message_id for reply in replies] == ids[::-1]
        assert [reply.metadata.src_node_id for reply in replies] == order[::-1]
        assert list(grid.pull_messages(ids)) == [], "a reply is handed over once"

    during(body)


def test_what_messages_share_is_packed_once() -> None:
    def content(rate: float, array: float = 1.0) -> RecordDict:
        return RecordDict({"arrays": arrays(array), "config": ConfigRecord({"rate": rate})})

    def packed(*contents: RecordDict) -> tuple[int, list[int]]:
        shared, letters = pack([Message(c, FIRST_NODE, "query.who") for c in contents])
        for letter, c in zip(letters, contents, strict=True):
            assert letter.open(shared).content == c
        return len(shared), [sum(isinstance(r, bytes) for _, r in ltr.records) for ltr in letters]

    def body(grid: Grid) -> None:
        one = content(0.1)
        assert packed(one, one, one) == (2, [0, 0, 0])
        assert packed(content(0.1), content(0.1)) == (2, [0, 0]), "equal, not the same"
        assert packed(content(0.1), content(0.2)) == (1, [1, 1]), "a config of one's own"
        assert packed(content(0.1), content(0.1, 2.0)) == (1, [1, 1])
        assert packed(one) == (0, [2])
        different = [RecordDict({"config": ConfigRecord({"a": v})}) for v in (1, 1.0, True)]
        assert packed(*different) == (0, [1, 1, 1]), "equal numbers, other types"

    during(body)


def test_a_node_may_spoil_what_it_was_sent() -> None:
    def body(grid: Grid) -> None:
        content = RecordDict({"arrays": arrays()})
        nodes = list(grid.get_node_ids())
        replies = grid.send_and_receive([Message(content, node, "query.spoil") for node in nodes])
        assert [told(reply) for reply in replies] == [{"shape": [2, 3], "left": 0}] * 4
        assert list(content) == ["arrays"] and len(content.array_records["arrays"]) == 1

    during(body)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "ValueError: no luck at 1"),
        ("exit", "SystemExit: 3"),
        ("nothing", "TypeError: the client app returned NoneType, not a Message"),
        ("no reply", "ValueError: the client app returned no reply"),
        ("config", "ValueError: the client app changed context.run_config"),
    ],
)
def test_an_error_is_a_reply_and_leaves_the_state(how: str, said: str) -> None:
    def body(grid: Grid) -> None:
        nodes = list(grid.get_node_ids())
        mixed = [message(nodes[0], "count"), message(nodes[1], "fail", how=how)]
        first, second = grid.send_and_receive(mixed)
        assert told(first) == {"count": 1}
        assert told(second)["error"].startswith(said)
        assert second.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert second.metadata.src_node_id == nodes[1]
        assert "Traceback" in str(second.error.reason)
        assert ask(grid, "count", nodes[:2]) == [{"count": 2}, {"count": 1}]

    finished = during(body, run_config={"lr": 0.1})
    assert (finished.answered, finished.failed) == (4, 1)


def test_an_unknown_message_type_is_an_error_of_the_client() -> None:
    during(lambda grid: _assert_error(ask(grid, "nonsense")[0]))


def _assert_error(reply: dict[str, Any]) -> None:
    assert "No query function registered with name 'nonsense'" in reply["error"]


def test_several_messages_to_one_node_are_answered_in_order() -> None:
    def body(grid: Grid) -> None:
        one, two = list(grid.get_node_ids())[:2]
        assert values(ask(grid, "count", [one, two, one, one]), "count") == [1, 1, 2, 3]

    during(body)


def test_bad_messages_are_refused() -> None:
    def body(grid: Grid) -> None:
        with pytest.raises(ValueError, match=f"no node 7: the nodes of this run are {FIRST_NODE}"):
            grid.push_messages([message(7, "who")])
        (reply,) = grid.send_and_receive([message(FIRST_NODE, "fail")])
        with pytest.raises(ValueError, match="has no content"):
            grid.push_messages([reply])

    during(body)


def test_a_timeout_withdraws_what_has_not_begun() -> None:
    def body(grid: Grid) -> None:
        messages = [message(node, "sleep", seconds=0.05) for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages, timeout=0.01))
        assert [told(reply) for reply in replies] == [{"count": 1}]
        assert values(ask(grid, "count"), "count") == [2, 1, 1, 1]

    during(body)


def test_unseeded_draws_belong_to_node_and_message_and_to_nobody_else() -> None:
    def drawn(order: list[int], **options: Any) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}

        def body(grid: Grid) -> None:
            before = random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002
            for _ in range(2):
                nodes = [FIRST_NODE + client for client in order]
                for client, reply in zip(order, ask(grid, "draw", nodes), strict=True):
                    found.setdefault(client, []).append(reply["drawn"])
                    assert reply["threads"] == 1
            found[-1] = [before, random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

        during(body, **options)
        return found

    random.seed(1), torch.manual_seed(1)
    outside = random.getstate(), torch.get_rng_state()
    first = drawn([0, 1, 2])
    assert random.getstate() == outside[0] and torch.equal(torch.get_rng_state(), outside[1])
    assert drawn([2, 0, 1]) == first, "in any order"
    assert drawn([0, 1, 2], seed=1) != first
    everything = [tuple(draw) for client in (0, 1, 2) for draw in first[client]]
    assert len(set(everything)) == 6


# --- Too few nodes, and other bad arguments. ---


@pytest.mark.parametrize(
    "strategy",
    [FedAvg(min_available_nodes=5), FedAvg(min_train_nodes=5), FedAvg(min_evaluate_nodes=5)],
)
def test_a_strategy_that_would_wait_for_ever_is_refused(strategy: FedAvg) -> None:
    def body(grid: Grid) -> None:
        strategy.start(grid=grid, initial_arrays=arrays(), num_rounds=1)

    with pytest.raises(ConfigError, match="waits for 5 nodes, but there are 4: raise the number"):
        during(body)


def test_an_old_strategy_that_would_wait_for_a_day_is_refused() -> None:
    with pytest.raises(ConfigError, match="waits for 5 nodes, but there are 3"):
        run_app(old_server(minimum=5), old_client, clients=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clients": 0}, "clients must be at least 1, not 0"),
        ({"workers": -1}, "workers must be at least 0, not -1"),
        ({"resume": True}, "nothing to resume without a folder"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_app(ServerApp(), odd, **{"clients": 2, **options})


# --- The API before messages: client_fn, NumPyClient, server_fn, workflows. ---


class Adds(NumPyClient):
    """Adds its number to the model."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_parameters(self, config: Any) -> Any:
        return [np.zeros(3)]

    def fit(self, parameters: Any, config: Any) -> Any:
        return [parameters[0] + self.number], 10, {}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        return float(parameters[0][0]), 10, {}


old_client = ClientApp(lambda context: Adds(int(context.node_config["partition-id"])).to_client())


def old_server(minimum: int = 2) -> ServerApp:
    strategy = flwr.server.strategy.FedAvg(min_available_clients=minimum)
    components = ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))
    return ServerApp(server_fn=lambda context: components)


def test_an_app_of_the_old_api_runs() -> None:
    finished = run_app(old_server(), old_client, clients=3)
    assert finished.answered == 1 + 2 * 2 * 3


def test_a_workflow_of_the_old_api_runs() -> None:
    losses: list[tuple[int, float]] = []

    def main(grid: Grid, context: Context) -> None:
        old = LegacyContext(context, ServerConfig(num_rounds=2), flwr.server.strategy.FedAvg())
        DefaultWorkflow()(grid, old)
        losses.extend(old.history.losses_distributed)

    run_app(asking(main), old_client, clients=3)
    rounds, means = zip(*losses, strict=True)
    assert rounds == (1, 2) and means == pytest.approx((1.0, 2.0)), "the mean of 0, 1 and 2"
