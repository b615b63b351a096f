"""Workers on Ray: what comes back in which order, who runs what, and what becomes of the dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from fedcl.core.errors import ConfigError, FedclError
from fedcl.engines._crew import Crew, Job
from tests.engines.toy_workers import Clerk, Stillborn
from tests.ray_house import RayHouse

pytestmark = pytest.mark.ray


def hired(
    workers: int, kind: type = Clerk, processors: float = 0.0, patience: float = 60.0
) -> Crew:
    remote: Any = ray.remote(num_cpus=processors)(kind)
    return Crew(remote.remote, workers, patience)


@pytest.fixture(scope="module")
def one(ray_house: RayHouse) -> Iterator[Crew]:
    """One worker: what it runs has an order."""
    ray_house.start()
    crew = hired(1)
    crew.gather()
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def two(ray_house: RayHouse) -> Iterator[Crew]:
    """Two workers."""
    ray_house.start()
    crew = hired(2)
    crew.gather()
    yield crew
    crew.close()


def jobs(log: Path, costs: Sequence[float], deaths: Mapping[int, int] | None = None) -> list[Job]:
    """Returns jobs that are named by their place."""

    def job(place: int, cost: float) -> Job:
        name = f"job{place}"
        return Job(cost, name, lambda: (str(log), name, (deaths or {}).get(place, 0)))

    return [job(place, cost) for place, cost in enumerate(costs)]


def names(results: Any) -> list[str]:
    return [name for name, _ in results]


def test_results_come_in_order_and_the_longest_job_runs_first(one: Crew, tmp_path: Path) -> None:
    results = one.run(jobs(tmp_path / "log", [2.0, 1.0, 3.0, 2.5]))
    assert names(results) == ["job0", "job1", "job2", "job3"]
    assert (tmp_path / "log").read_text().split() == ["job2", "job3", "job0", "job1"]


def test_no_worker_runs_far_ahead_of_a_result_that_is_to_come(one: Crew, tmp_path: Path) -> None:
    """The later, the longer, but the first job is not put off for all of the others."""
    results = one.run(jobs(tmp_path / "log", range(20)))
    assert next(results)[0] == "job0"
    assert (tmp_path / "log").read_text().split()[:4] == ["job3", "job2", "job1", "job0"]
    assert names(results) == [f"job{place}" for place in range(1, 20)]


def test_the_work_is_shared_out_by_its_cost(two: Crew, tmp_path: Path) -> None:
    pids = [pid for _, pid in two.run(jobs(tmp_path / "log", [1.0, 9.0, 1.0]))]
    assert pids[0] == pids[2] != pids[1]


def test_a_crew_runs_again_when_a_run_was_left_in_the_middle(two: Crew, tmp_path: Path) -> None:
    assert next(two.run(jobs(tmp_path / "left", [1.0] * 6)))[0] == "job0"
    assert names(two.run(jobs(tmp_path / "log", [1.0] * 3))) == ["job0", "job1", "job2"]
    assert names(two.run([])) == []


def test_what_a_dead_worker_had_is_run_again(two: Crew, tmp_path: Path) -> None:
    results = two.run(jobs(tmp_path / "log", [1.0] * 5, deaths={1: 1, 3: 2}))
    assert names(results) == [f"job{place}" for place in range(5)]
    runs = (tmp_path / "log").read_text().split()
    # A death may also take with it the result of the job before, which had not been sent yet: once.
    for place, least in enumerate((1, 2, 1, 3, 1)):
        assert least <= runs.count(f"job{place}") <= least + 1, runs


@pytest.mark.parametrize("attempt", range(5))
def test_a_neighbour_of_what_kills_workers_loses_but_one_result(
    one: Crew, tmp_path: Path, attempt: int
) -> None:
    """What a dead worker had runs alone from then on, so that the next death takes nothing else."""
    results = one.run(jobs(tmp_path / "log", [5.0, 4.0, 3.0, 2.0, 1.0], deaths={1: 2, 3: 2}))
    assert names(results) == [f"job{place}" for place in range(5)]
    runs = (tmp_path / "log").read_text().split()
    assert [runs.count(f"job{place}") for place in (1, 3)] == [3, 3], runs
    assert all(runs.count(f"job{place}") <= 2 for place in (0, 2, 4)), runs


def test_a_worker_that_is_killed_between_two_runs_is_replaced(one: Crew, tmp_path: Path) -> None:
    ((_, pid),) = one.run(jobs(tmp_path / "log", [1.0]))
    os.kill(pid, signal.SIGKILL)
    ((name, other),) = one.run(jobs(tmp_path / "log", [1.0]))
    assert name == "job0" and other != pid


def test_a_job_of_which_several_workers_die_ends_the_run_by_its_name(
    two: Crew, tmp_path: Path
) -> None:
    with pytest.raises(FedclError, match=r"3 workers died of job1: .*memory.*engine\.workers"):
        list(two.run(jobs(tmp_path / "log", [1.0, 1.0, 1.0], deaths={1: 9})))


def test_a_worker_that_cannot_start_says_why(ray_house: RayHouse) -> None:
    ray_house.start()
    crew = hired(1, Stillborn)
    with pytest.raises(FedclError, match=r"cannot start(.|\n)*no module named 'anything'"):
        crew.gather()
    crew.close()


def test_workers_that_find_no_room_are_awaited_for_a_while(ray_house: RayHouse) -> None:
    ray_house.start()
    first, second = hired(1, processors=1), hired(1, processors=ray_house.cpus, patience=0.5)
    first.gather()
    with pytest.raises(ConfigError, match=r"1 of engine\.workers = 1 did not start within.*0\.5 s"):
        second.gather()
    second.close()
    first.close()


def test_a_closed_crew_is_gone_and_can_be_closed_again(ray_house: RayHouse, tmp_path: Path) -> None:
    ray_house.start()
    crew = hired(1)
    crew.gather()
    ((_, pid),) = crew.run(jobs(tmp_path / "log", [1.0]))
    crew.close()
    crew.close()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
