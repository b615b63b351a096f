"""The door: what a method may ask, what it gets, what is booked, and what is refused."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from fedcl.aggregations.mean import Mean
from fedcl.channels.secure_aggregation import SecureAggregation
from fedcl.core.channel import Aggregate, Sending, Transform
from fedcl.core.client import Client, Model, Reply, Unchanged
from fedcl.core.data.scenario import Task
from fedcl.core.data.stream import Stream
from fedcl.core.door import Door, TooFewReplies
from fedcl.core.engine import Engine
from fedcl.core.errors import ClientError, ConfigError, ExposureError
from fedcl.core.exchange import Exchange
from fedcl.core.federation import Federation
from fedcl.core.local import Local, cross_entropy
from fedcl.core.memories import Memories
from fedcl.core.method import Method
from fedcl.core.params import Params, add
from fedcl.core.population import Simulated
from fedcl.core.request import Position
from fedcl.core.seeds import seed_of
from fedcl.core.sgd import train_one
from fedcl.core.site import Site
from fedcl.core.vocabulary import vocabulary
from fedcl.core.watch import Watch
from fedcl.engines.serial import Serial
from fedcl.engines.vectorized import Vectorized
from fedcl.streams._order import Shared
from fedcl.streams._partition import Natural
from fedcl.trainers.sgd import Sgd
from tests.core import toys

SIZES = (3, 1, 4, 2, 5)  # examples of clients 0 to 4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class State:
    params: Params


@dataclass(frozen=True)
class Ask:
    """A message: numbers by name, a layer's name, and a factor."""

    basis: Params = field(default_factory=dict)
    factor: float = 1.0
    bad: int = -1


@dataclass(frozen=True)
class Probe(Method[State]):
    """Clients answer with numbers that are known."""

    client_half: ClassVar[tuple[str, ...]] = (
        "sizes",
        "ids",
        "seeds",
        "remember",
        "recall",
        "broken",
        "endless",
        "odd",
        "renamed",
        "retyped",
        "nothing",
    )

    def init(self, params: Params) -> State:
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        return state

    def sizes(self, client: Client, message: Ask) -> Reply:
        n = len(client.data)
        numbers = {"n/count": torch.tensor([float(n)]), "ones": torch.ones(2, 2)}
        return Reply(numbers, float(n), {"size": float(n)}, steps=2, examples=n)

    def ids(self, client: Client, message: Ask) -> Reply:
        return Reply({"id": torch.tensor([float(client.id)]) * message.factor})

    def seeds(self, client: Client, message: Ask) -> Reply:
        return Reply({"seed": torch.tensor([client.seed])})

    def remember(self, client: Client, message: Ask) -> Reply:
        kept = None if client.id == message.bad else {"id": torch.tensor(client.id)}
        return Reply({}, state=kept)

    def recall(self, client: Client, message: Ask) -> Reply:
        known = client.state["id"].double() if client.state else torch.tensor(-1.0)
        return Reply({"known": known.double()}, state=client.state)

    def broken(self, client: Client, message: Ask) -> Reply:
        if client.id == message.bad:
            raise RuntimeError("the disk is full")
        return Reply({"a": torch.ones(1)})

    def endless(self, client: Client, message: Ask) -> Reply:
        value = message.factor if client.id == message.bad else 0.0
        return Reply({"fine": torch.ones(1), "a": torch.tensor([1.0, value])})

    def odd(self, client: Client, message: Ask) -> Reply:
        return Reply({"a": torch.ones(2 if client.id == message.bad else 1)})

    def renamed(self, client: Client, message: Ask) -> Reply:
        return Reply({"b" if client.id == message.bad else "a": torch.ones(1)})

    def retyped(self, client: Client, message: Ask) -> Reply:
        dtype = torch.float64 if client.id == message.bad else torch.float32
        return Reply({"a": torch.ones(1, dtype=dtype)})

    def nothing(self, client: Client, message: Ask) -> Reply:
        return Reply({})

    def unlisted(self, client: Client, message: Ask) -> Reply:
        return Reply({})


PROBE = Probe()


def stream() -> Stream:
    """Returns one task of which client i holds SIZES[i] rows."""
    owner = [id for id, size in enumerate(SIZES) for _ in range(size)]
    data = toys.dataset([k % 3 for k in range(len(owner))], columns={"who": owner}, shape=(4,))
    rows = toys.ints(range(len(owner)))
    task = Task(0, "all", (0, 1, 2), rows, rows, rows[:0], rows[:0])
    partition = Natural("who")
    return Stream("toy", "domain", data, (task,), 5, partition, Shared(), seed=4, natural="who")


def federation(
    *,
    cohort: Sequence[int] = (0, 1, 2, 3, 4),
    channel: Sequence[Transform] = (),
    fold: int = 2,
    equal: bool = False,
    engine: Engine | None = None,
    attempt: int = 0,
    trainer: Sgd | None = None,
    **door: Any,
) -> tuple[Federation, Door]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    own = stream()
    site = Site(
        Simulated(own, torch.float64, CPU),
        model,
        trainer or Sgd(batch_size=2, lr=0.01),
        channel,
        seed=9,
        fold=fold,
        equal=equal,
        device=CPU,
    )
    engine = engine or Serial()
    engine.open(site, {})
    made = Door(
        engine,
        Mean("equal" if equal else "examples"),
        channel,
        [step.init() for step in channel],
        Memories(),
        vocabulary(PROBE),
        seed=9,
        **door,
    )
    fed = Federation(
        own.info(0), 3, 7, tuple(cohort), own.members(0), model, CPU, attempt, _door=made
    )
    return fed, made


# What comes back.


def test_aggregate_gives_the_weighted_sum() -> None:
    fed, _ = federation()
    total = fed.aggregate(PROBE.sizes, Ask())
    assert total.sum["n/count"].tolist() == [9 + 1 + 16 + 4 + 25]
    assert total.mean["ones"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert (total.weight, total.count) == (15.0, 5)
    assert total.metrics == {"size": pytest.approx(55 / 15)}


def test_equal_weights() -> None:
    fed, _ = federation(equal=True)
    total = fed.aggregate(PROBE.sizes, Ask())
    assert total.mean["n/count"].tolist() == [3.0]
    assert (total.weight, total.metrics) == (5.0, {"size": 3.0})


def test_collect_gives_each_reply_in_the_order_of_ids() -> None:
    fed, _ = federation(fold=2)
    replies = fed.collect(PROBE.sizes, Ask(), clients=(4, 0, 2))
    assert [reply.tensors["n/count"].item() for reply in replies] == [3.0, 4.0, 5.0]
    assert [reply.weight for reply in replies] == [3.0, 4.0, 5.0]
    fed, _ = federation(fold=2, equal=True)
    replies = fed.collect(PROBE.sizes, Ask(), clients=(4, 0, 2))
    assert [reply.weight for reply in replies] == [1.0, 1.0, 1.0]


def test_a_memory_stays_with_its_client() -> None:
    fed, door = federation()
    replies = fed.collect(PROBE.remember, Ask(), clients=(1, 2))
    assert all(isinstance(reply.state, Unchanged) for reply in replies)
    assert sorted(door.memories.load(range(5))) == [1, 2]
    known = [reply.tensors["known"].item() for reply in fed.collect(PROBE.recall, Ask())]
    assert known == [-1.0, 1.0, 2.0, -1.0, -1.0]
    # A state that comes back as it was is no change; None forgets.
    door.memories.keep()
    fed.aggregate(PROBE.recall, Ask())
    fed.aggregate(PROBE.remember, Ask(bad=2), clients=(2,))
    assert door.memories.load([1, 2]) == {1: {"id": torch.tensor(1)}}
    door.memories.drop()
    assert sorted(door.memories.load(range(5))) == [1, 2]


def test_the_cohort_is_asked_unless_others_are_named() -> None:
    fed, door = federation(cohort=(1, 3))
    assert fed.aggregate(PROBE.ids, Ask()).sum["id"].tolist() == [4.0]
    assert fed.aggregate(PROBE.ids, Ask(), clients=fed.members).sum["id"].tolist() == [10.0]
    assert [exchange.asked for exchange in door.exchanges] == [(1, 3), (0, 1, 2, 3, 4)]


def test_nobody_is_asked_twice() -> None:
    fed, door = federation()
    assert fed.aggregate(PROBE.ids, Ask(), clients=(3, 1, 3)).sum["id"].tolist() == [4.0]
    assert door.exchanges[0].asked == door.exchanges[0].answered == (1, 3)


def test_clients_are_asked_in_the_order_of_their_ids() -> None:
    fed, door = federation(availability=1e-12, minimum=0)
    fed.aggregate(PROBE.ids, Ask(), clients=(64, 8, 1, 32))
    assert door.exchanges[0].asked == (1, 8, 32, 64)


@pytest.mark.parametrize("fold", [1, 2, 3, 16])
@pytest.mark.parametrize("engine", [Serial, Vectorized])
def test_local_training_equals_training_each_client_by_hand(fold: int, engine: Any) -> None:
    fed, _ = federation(fold=fold, engine=engine())
    message = Model(toys.parameters(fed.model))
    total = fed.aggregate(fed.local(cross_entropy), message)
    own, settings = stream(), Sgd(batch_size=2, lr=0.01).settings
    expected: dict[str, Tensor] = {}
    losses = 0.0
    for id, size in enumerate(SIZES):
        seed = seed_of(9, 0, 3, 0, id)
        client = Simulated(own, torch.float64, CPU).client(id, 0, fed.model, None, seed)
        trained = train_one(Local(cross_entropy), settings, client, message)
        losses += size * trained.loss / 15
        change = {k: (v - message.params[k]) * size / 15 for k, v in trained.params.items()}
        expected = add(expected, change) if expected else change
    assert toys.distance(total.mean, expected) < 1e-12
    assert total.metrics["loss"] == pytest.approx(losses, abs=1e-12)


def test_each_exchange_round_and_attempt_has_seeds_of_its_own() -> None:
    def seeds(fed: Federation) -> list[int]:
        return [int(r.tensors["seed"]) for r in fed.collect(PROBE.seeds, Ask())]

    fed, _ = federation()
    first, second = seeds(fed), seeds(fed)
    again, _ = federation()
    repeated, _ = federation(attempt=1)
    drawn = [first, second, seeds(repeated)]
    assert seeds(again) == first
    assert first == [seed_of(9, 0, 3, 0, id) for id in range(5)]
    assert len({seed for some in drawn for seed in some}) == 15


def test_the_servers_own_seeds_differ_by_purpose() -> None:
    fed, _ = federation()
    assert fed.seed("a") == fed.seed("a") != fed.seed("b")


# What is booked.


def test_bytes_are_booked_exactly() -> None:
    fed, door = federation()
    message = Ask({"w": torch.zeros(3, 2)})
    fed.aggregate(PROBE.sizes, message, clients=(0, 2))
    (exchange,) = door.exchanges
    assert exchange.down == {"basis": 2 * 24}
    # One number of kind `n`, four under the program's own name, a weight and a metric of 8 bytes.
    assert exchange.up == {"n": 2 * 4, "sizes": 2 * 16, "metrics": 2 * 16}
    assert (exchange.steps, exchange.examples) == (4, 7)
    assert exchange.program == "sizes"
    assert exchange.position == Position(0, 3, 0, 0)
    assert exchange.metrics == {"size": pytest.approx(25 / 7)}
    assert exchange.seconds >= 0.0


def test_local_training_is_booked_as_model() -> None:
    fed, door = federation(trainer=Sgd(epochs=2, batch_size=2, lr=0.01))
    local = fed.local(cross_entropy, name="warm up")
    fed.aggregate(local, Model(toys.parameters(fed.model)), clients=(1, 2))
    fed.aggregate(PROBE.nothing, None, clients=(0,))
    first, second = door.exchanges
    assert first.program == "warm up"
    assert first.down == {"model": 2 * 15 * 8}
    assert first.up == {"model": 2 * 15 * 8, "metrics": 2 * 16}
    # Two epochs of 1 and 4 examples in batches of two: 2 + 4 steps.
    assert (first.steps, first.examples) == (6, 10)
    assert (second.program, second.down, second.up) == ("nothing", {}, {"metrics": 8})
    assert [exchange.position.exchange for exchange in door.exchanges] == [0, 1]


@dataclass
class Watcher(Watch):
    """An audit that keeps what it is shown."""

    seen: list[Exchange] = field(default_factory=list)

    def observe(self, exchange: Exchange) -> None:
        self.seen.append(exchange)


def test_audits_see_what_the_server_sees() -> None:
    watcher = Watcher()
    fed, door = federation(watches=[watcher])
    total = fed.aggregate(PROBE.ids, Ask())
    fed.collect(PROBE.ids, Ask())
    assert watcher.seen == door.exchanges
    assert watcher.seen[0].total is total
    assert watcher.seen[1].total is None


# The channel.


@dataclass(frozen=True)
class Times:
    """A step that multiplies on the way up, and adds on the server."""

    factor: float
    log: list[str]
    hides_replies: bool = False

    def init(self) -> int:
        return 0

    def upload(self, reply: Reply, client: Client, sending: Sending) -> Reply:
        self.log.append(f"up {self.factor:g}")
        tensors = {k: v * self.factor for k, v in reply.tensors.items()}
        return Reply(tensors, reply.weight, reply.metrics, reply.state)

    def receive(self, total: Aggregate, state: int, seed: int) -> tuple[Aggregate, int]:
        self.log.append(f"receive {self.factor:g}")
        tensors = {k: v + 1000 * self.factor for k, v in total.total.items()}
        return Aggregate(tensors, total.weight, total.count, total.metrics), state + 1


def test_steps_go_up_in_order_and_are_received_in_reverse() -> None:
    log: list[str] = []
    fed, door = federation(channel=[Times(2.0, log), Times(3.0, log)])
    total = fed.aggregate(PROBE.ids, Ask(), clients=(1, 2))
    assert log == ["up 2", "up 3"] * 2 + ["receive 3", "receive 2"]
    assert total.sum["id"].tolist() == [(1 + 2) * 6 + 5000]
    assert door.channel_state == [1, 1]
    fed.aggregate(PROBE.ids, Ask(), clients=(1,))
    assert door.channel_state == [2, 2]
    assert door.exchanges[0].total is total


def test_secure_aggregation_gives_the_same_sum_and_no_metrics() -> None:
    open_fed, _ = federation()
    fed, door = federation(channel=[SecureAggregation()])
    plain = open_fed.aggregate(PROBE.sizes, Ask())
    hidden = fed.aggregate(PROBE.sizes, Ask())
    assert all(torch.equal(plain.sum[k], hidden.sum[k]) for k in plain.sum)
    assert (hidden.weight, hidden.count, hidden.metrics) == (15.0, 5, {})
    assert door.exchanges[0].metrics == {}
    assert door.exchanges[0].up["metrics"] == 5 * 8


def test_metrics_are_dropped_wherever_replies_are_hidden() -> None:
    fed, door = federation(channel=[Times(1.0, [], hides_replies=True)])
    assert fed.aggregate(PROBE.sizes, Ask()).metrics == {}
    assert door.exchanges[0].metrics == {}
    open_fed, _ = federation(channel=[Times(1.0, [])])
    assert open_fed.aggregate(PROBE.sizes, Ask()).metrics == {"size": pytest.approx(55 / 15)}


def test_single_replies_are_refused_where_they_are_hidden() -> None:
    log: list[str] = []
    for channel in ([SecureAggregation()], [Times(1.0, log), Times(1.0, log, hides_replies=True)]):
        fed, door = federation(channel=channel)
        with pytest.raises(ExposureError, match=r"'ids' asks for single replies.*fed\.aggregate"):
            fed.collect(PROBE.ids, Ask())
        assert door.exchanges == []
    assert log == []


# What is refused.


def scaled(client: Client, message: Ask) -> Reply:
    return Reply({})


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (lambda client, message: Reply({}), "'<lambda>' has no name that a client could look up"),
        (scaled, "'scaled' has no name"),
        (PROBE.unlisted, "'unlisted' has no name .* not listed in client_half"),
        (Local(lambda *a: a[0], name="mine"), "'mine' has no name .*lambda"),
    ],
)
def test_programs_that_cannot_travel_are_refused(program: Any, words: str) -> None:
    fed, door = federation()
    for ask in (fed.aggregate, fed.collect):
        with pytest.raises(ConfigError, match=words):
            ask(program, Ask())
    assert door.exchanges == []


def test_messages_that_cannot_travel_are_refused() -> None:
    fed, _ = federation()
    with pytest.raises(
        ConfigError, match=r"'ids' is sent with a message that cannot travel: .*set"
    ):
        fed.aggregate(PROBE.ids, Ask(factor={1}))  # type: ignore[arg-type]


def test_an_error_names_client_stage_round_and_program() -> None:
    fed, door = federation()
    with pytest.raises(
        ClientError,
        match="program 'broken' of client 2 failed in stage 0, round 3: the disk is full",
    ) as caught:
        fed.aggregate(PROBE.broken, Ask(bad=2))
    error = caught.value
    assert (error.client, error.stage, error.round, error.program) == (2, 0, 3, "broken")
    assert isinstance(error.__cause__, RuntimeError)
    assert door.exchanges == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ask", ["aggregate", "collect"])
def test_replies_that_are_not_finite_name_client_and_tensor(value: float, ask: str) -> None:
    fed, _ = federation()
    with pytest.raises(ClientError, match=r"'endless' of client 3 .* 'a' holds NaN") as caught:
        getattr(fed, ask)(PROBE.endless, Ask(factor=value, bad=3))
    assert caught.value.client == 3


@pytest.mark.parametrize("engine", [Serial, Vectorized])
def test_training_that_diverges_names_the_client(engine: Any) -> None:
    fed, _ = federation(engine=engine(), trainer=Sgd(epochs=2, batch_size=1, lr=1e308))
    with pytest.raises(ClientError, match=r"'train' of client \d .* lower training\.local\.lr"):
        fed.aggregate(fed.local(cross_entropy), Model(toys.parameters(fed.model)))


@pytest.mark.parametrize("fold", [1, 2, 5])
@pytest.mark.parametrize("bad", [1, 2, 4])
@pytest.mark.parametrize("program", ["odd", "renamed"])
@pytest.mark.parametrize("ask", ["aggregate", "collect"])
def test_replies_of_another_form_are_refused(ask: str, program: str, bad: int, fold: int) -> None:
    fed, _ = federation(fold=fold)
    with pytest.raises(ClientError, match=r"its reply differs in names.* from client \d's"):
        getattr(fed, ask)(getattr(PROBE, program), Ask(bad=bad))


def test_replies_of_another_type_are_refused_within_a_block() -> None:
    fed, _ = federation(fold=5)
    with pytest.raises(ClientError, match=r"'retyped' of client 4 .* types from client 0's"):
        fed.aggregate(PROBE.retyped, Ask(bad=4))


# Who answers.


def test_availability_thins_the_clients_out_the_same_way_each_time() -> None:
    answered: list[tuple[int, ...]] = []
    for attempt in (0, 0, 1):
        fed, door = federation(availability=0.5, attempt=attempt, minimum=0)
        for _ in range(40):
            fed.aggregate(PROBE.ids, Ask())
        answered.append(tuple(id for e in door.exchanges for id in e.answered))
        assert all(e.asked == (0, 1, 2, 3, 4) for e in door.exchanges)
        assert all(set(e.answered) <= set(e.asked) for e in door.exchanges)
    assert answered[0] == answered[1] != answered[2]
    # 200 draws of variance 1 / 4: four standard deviations are 28.
    assert abs(len(answered[0]) - 100) < 29


def test_too_few_replies_stop_the_round() -> None:
    fed, door = federation(availability=1e-9, minimum=2)
    with pytest.raises(TooFewReplies, match=r"0 of 5 clients answered"):
        fed.aggregate(PROBE.ids, Ask())
    assert [exchange.answered for exchange in door.exchanges] == [()]
    fed, door = federation(minimum=6)
    with pytest.raises(TooFewReplies, match=r"5 of 5 clients answered; training\.minimum is 6"):
        fed.collect(PROBE.ids, Ask())


def test_enough_replies_are_enough() -> None:
    fed, _ = federation(minimum=5)
    assert fed.aggregate(PROBE.ids, Ask()).count == 5


def test_nobody_may_be_enough() -> None:
    fed, door = federation(minimum=0)
    total = fed.aggregate(PROBE.ids, Ask(), clients=())
    assert (total.count, total.weight, total.mean) == (0, 0, {})
    assert fed.collect(PROBE.ids, Ask(), clients=()) == []
    assert [exchange.asked for exchange in door.exchanges] == [(), ()]


def test_the_last_round_knows_itself() -> None:
    fed, _ = federation()
    assert (fed.round, fed.rounds, fed.last_round) == (3, 7, False)
    assert fed.net(toys.parameters(fed.model))(torch.zeros(1, 4).double()).shape == (1, 3)
