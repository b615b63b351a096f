"""Flower's simulation gives the plain loop's bits, resumes, and reports what goes wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray

import fedcl
from fedcl.config import Experiment, find, parse
from fedcl.core.client import Kept
from fedcl.core.errors import ClientError, ConfigError, FedclError, ResumeError
from fedcl.core.site import Site
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.node.memories import ClientMemory
from fedcl.flower.simulation import session
from fedcl.flower.simulation.nodes import enter
from tests.conformance import every_method, light
from tests.ray_house import RayHouse
from tests.sealing import betrayed, looked, spied
from tests.tiny import Interrupted, Watching, assert_same_runs, interrupt_after, tiny

pytestmark = pytest.mark.flower

NODES = 7
TRIAL = "tests.flower_trial:Trial"
REMEMBERING = {
    "replay": {"name": "replay"},
    "joint": {"name": "joint"},
    "local statistics": {
        "name": "fot",
        "statistics_model": "local",
        "statistics_clients": "cohort",
    },
    "own models": {"name": TRIAL},
}
with_memory = pytest.mark.parametrize("method", REMEMBERING.values(), ids=list(REMEMBERING))


@pytest.fixture(scope="module", autouse=True)
def flower() -> Iterator[None]:
    """One simulation for all tests: starting one takes some ten seconds."""
    with session.keep(NODES, workers=2):
        yield


def of(
    method: str | Mapping[str, Any], changes: Mapping[str, Any] | None = None, **tables: Any
) -> Experiment:
    """Returns a tiny experiment of seven uneven clients; five are asked, in blocks of two."""
    table = {"name": method} if isinstance(method, str) else dict(method)
    sizes = {"stream.clients": NODES, "training.cohort": 5, "dataset.train": 240}
    if getattr(find("methods", table["name"], "method"), "needs_public", False):
        sizes["stream.public"] = 0.1  # type: ignore[assignment]
    return tiny({**sizes, **(changes or {})}, method=table, **tables)


def on_flower(experiment: Experiment, **options: Any) -> Experiment:
    """Returns the same experiment with its clients in Flower's simulation."""
    return parse({**experiment.resolved, "engine": {"name": "flower", **options}})


@every_method
def test_every_method_equals_serial_to_the_bit(name: str) -> None:
    own = of(light(name), {"evaluation.where": "clients"})
    assert_same_runs(fedcl.run(on_flower(own)), fedcl.run(own))


@pytest.mark.parametrize("name", ["fedavg", "fot"])
def test_sums_in_float64_under_secure_aggregation_are_equal_too(name: str) -> None:
    experiment = of(name, {"training.dtype": "float64"}, channel=[{"name": "secure_aggregation"}])
    assert_same_runs(fedcl.run(on_flower(experiment)), fedcl.run(experiment))


@pytest.mark.parametrize("cohort", [2, 5])
def test_the_server_reaches_nothing_of_one_client(
    cohort: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T14 with nodes: the last fold block of five clients holds one."""
    channel = [{"name": "secure_aggregation"}]
    experiment = of("fedavg", {"training.cohort": cohort}, channel=channel)
    looks = looked(on_flower(experiment), monkeypatch)
    assert len(looks.results) == len(looks.received) == 4
    assert betrayed(looks.everything, spied(experiment)) == []


def test_nodes_add_the_same_noise() -> None:
    channel = [{"name": "distributed_dp", "noise": "seeded", "noise_multiplier": 0.5}]
    experiment = of("fedavg", channel=channel)
    assert_same_runs(fedcl.run(on_flower(experiment)), fedcl.run(experiment))


@pytest.mark.parametrize("method", ["fedavg", "fot", "analytic"])
def test_nodes_protect_single_records_with_the_same_noise(method: str) -> None:
    """Gradients, and the statistics of phases that train nothing."""
    local = {"name": "dp_sgd", "noise": "seeded", "noise_multiplier": 0.7, "batch_size": 8}
    experiment = of(method, {"training.local": local})
    record = fedcl.run(on_flower(experiment))
    assert_same_runs(record, fedcl.run(experiment))
    other = {"training.local": {**local, "noise_multiplier": 0.8}}
    assert fedcl.run(of(method, other)).evaluations != record.evaluations


@pytest.mark.parametrize("shortfall", ["skip", "repeat"])
@pytest.mark.parametrize("name", ["replay", "joint", TRIAL])
def test_a_dropped_attempt_leaves_no_memory(name: str, shortfall: str) -> None:
    rare = {"training.availability": 0.75, "training.minimum": 4, "training.shortfall": shortfall}
    experiment = of(name, rare)
    record = fedcl.run(on_flower(experiment))
    assert_same_runs(record, fedcl.run(experiment))
    assert record.summary["skipped_or_repeated_rounds"]


@with_memory
@pytest.mark.parametrize(("rounds", "seconds"), [(1, 0), (1, 1e9), (3, 0), (3, 1e9)])
def test_an_interrupted_run_resumes_to_the_same_bits(
    method: dict[str, Any], rounds: int, seconds: float, tmp_path: Path
) -> None:
    changes = {"checkpoint.seconds": seconds, "evaluation.where": "clients"}
    experiment = of(method, changes)
    with pytest.raises(Interrupted):
        fedcl.run(on_flower(experiment), tmp_path, watch=interrupt_after(rounds))
    # Without a commit in every round the clients are ahead of the checkpoint and must roll back.
    clients = tmp_path / "checkpoint" / "clients"
    if rounds == 3 and method["name"] != "fot":
        assert max(version for id in range(NODES) for version in moments(clients, id)) >= (1, -1)
    record = fedcl.run(on_flower(experiment), tmp_path, resume=True)
    assert_same_runs(record, fedcl.run(experiment))
    assert all(len(moments(clients, id)) <= 4 for id in range(NODES))


def moments(clients: Path, id: int) -> list[tuple[int, int, int, int]]:
    """Returns the versions of a client's memory."""
    return ClientMemory(clients / str(id), vocabulary()).moments()


def test_the_server_holds_no_memory(tmp_path: Path) -> None:
    @dataclass
    class Peeking(Watching):
        found: Any = None

        def run(self, *arguments: Any) -> Any:
            yield from super().run(*arguments)
            self.found = arguments[2].load(range(NODES))

    experiment = on_flower(of("replay"))
    engine = Peeking(experiment.engine)
    fedcl.run(replace(experiment, engine=engine), tmp_path)
    assert engine.found and all(isinstance(value, Kept) for value in engine.found.values())


def test_memories_that_are_gone_are_told(tmp_path: Path) -> None:
    experiment = on_flower(of("replay"))
    with pytest.raises(Interrupted):
        fedcl.run(experiment, tmp_path, watch=interrupt_after(2))
    for path in (tmp_path / "checkpoint" / "clients").glob("*/*"):
        path.unlink()
    with pytest.raises(ResumeError, match=r"client \d: its memory .* is gone"):
        fedcl.run(experiment, tmp_path, resume=True)


def test_a_failing_program_is_reported_as_the_plain_loop_does() -> None:
    experiment = of({"name": TRIAL, "fails": 2}, {"training.cohort": 0})
    errors = []
    for each in (experiment, on_flower(experiment)):
        with pytest.raises(ClientError) as caught:
            fedcl.run(each)
        errors.append(caught.value)
    plain, flower = errors
    assert str(flower) == str(plain)
    assert (flower.client, flower.stage, flower.round, flower.program) == (2, 1, 0, "look")
    assert "no luck today" in str(flower.__cause__) and "in look" in str(flower.__cause__)


def test_nodes_with_another_config_refuse_to_answer() -> None:
    @dataclass
    class Tampering(Watching):
        def open(self, site: Site, launch: Mapping[str, Any]) -> None:
            super().open(site, launch)
            engine: Any = self.inner
            home, name = engine._simulation.home, engine._link.experiment
            (home / name / "config.toml").unlink()
            (home / name / "memory.txt").unlink()
            (home / name).rmdir()
            enter(home, name, of("fedavg", {"seed": 1}).resolved, home)

    experiment = on_flower(of("fedavg"))
    with pytest.raises(ConfigError, match=r"client 0: .*\(seed: \w+ here, \w+ asked for\)"):
        fedcl.run(replace(experiment, engine=Tampering(experiment.engine)))


def test_a_reply_that_does_not_come_in_time_is_missing() -> None:
    slow = {"name": TRIAL, "sleeps": 1, "seconds": 2.5}
    experiment = on_flower(of(slow, {"training.cohort": 0, "stream.tasks": 1}), timeout=1.5)
    engine = Watching(experiment.engine)
    fedcl.run(replace(experiment, engine=engine))
    first = [result for result in engine.results if 1 in result.failures]
    assert [dict(result.failures) for result in first] == [{1: "no answer within 1.5 s"}]
    assert first[0].ids == (0,)
    answered = [id for result in engine.results for id in result.ids]
    assert answered.count(1) == 2, "it is awake for both trainings that follow"


def test_it_lives_beside_other_users_of_ray(ray_house: RayHouse) -> None:
    experiment = of("fedavg")
    plain = fedcl.run(experiment)
    # Open workers of a Ray engine, here and below, while nodes answer.
    assert_same_runs(fedcl.run(ray_house.on(experiment, 2, "serial")), plain)
    assert_same_runs(fedcl.run(on_flower(experiment)), plain)
    # More clients than the kept simulation has nodes: another one, for this run alone.
    larger = of("fedavg", {"stream.clients": NODES + 1})
    assert_same_runs(fedcl.run(on_flower(larger, workers=1)), fedcl.run(larger))
    assert_same_runs(fedcl.run(on_flower(experiment)), plain)
    assert_same_runs(fedcl.run(ray_house.on(experiment, 2, "serial")), plain)


def test_it_starts_anew_when_ray_was_shut_down_under_it() -> None:
    experiment = of("fedavg")
    engine = Watching(on_flower(experiment).engine)

    def shut_down(_: object) -> None:
        ray.shutdown()

    with pytest.raises(FedclError, match="Ray was shut down under it"):
        fedcl.run(replace(on_flower(experiment), engine=engine), watch=shut_down)
    assert_same_runs(fedcl.run(on_flower(experiment)), fedcl.run(experiment))


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"workers must be at least 0, not -1"):
        on_flower(of("fedavg"), workers=-1)
    with pytest.raises(FedclError, match="kept already"), session.keep(1):
        pass


def test_the_plug_in_loads_neither_flower_nor_ray() -> None:
    program = (
        "import sys, fedcl.engines.flower; print(*{'ray', 'flwr', 'fedcl.flower'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "", done.stderr
