"""How a Ray session is found, and how its processors and GPUs are shared out."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedcl
from fedcl.core.errors import ConfigError
from fedcl.engines._session import divide
from fedcl.engines._worker import _lay_down, _pick_up
from tests.commands import ROOT, assert_refused, spawn, write_config
from tests.ray_house import RayHouse
from tests.tiny import tiny

pytestmark = pytest.mark.ray

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("workers", "gpus", "device", "there", "expected"),
    [
        (3, 0.0, CPU, {"CPU": 4.0}, (3, 0.0)),
        (0, 0.0, CPU, {"CPU": 4.0, "GPU": 1.0}, (4, 0.0)),
        # The server has a GPU, so its clients have.
        (0, 0.0, CUDA, {"CPU": 8.0, "GPU": 2.0}, (2, 1.0)),
        (2, 0.0, CUDA, {"CPU": 8.0, "GPU": 2.0}, (2, 1.0)),
        (3, 0.0, CUDA, {"CPU": 8.0, "GPU": 2.0}, (3, 0.5)),
        (49, 0.0, CUDA, {"CPU": 64.0, "GPU": 1.0}, (49, 1 / 49)),
        # Only the workers have one.
        (0, 0.25, CPU, {"CPU": 64.0, "GPU": 2.0}, (8, 0.25)),
        (0, 0.25, CPU, {"CPU": 6.0, "GPU": 2.0}, (6, 0.25)),
        # 0.4 of one and 0.4 of another make no 0.8 of one.
        (4, 0.4, CUDA, {"CPU": 8.0, "GPU": 2.0}, (4, 0.4)),
        (0, 2.0, CUDA, {"CPU": 8.0, "GPU": 5.0}, (2, 2.0)),
    ],
)
def test_workers_divide_what_there_is(
    workers: int,
    gpus: float,
    device: torch.device,
    there: dict[str, float],
    expected: tuple[int, float],
) -> None:
    assert divide(workers, gpus, device, there) == expected


@pytest.mark.parametrize(
    ("workers", "gpus", "device", "there"),
    [
        (5, 0.0, CPU, {"CPU": 4.0}),
        (5, 0.4, CUDA, {"CPU": 8.0, "GPU": 2.0}),
        (0, 0.0, CUDA, {"CPU": 8.0}),
        (1, 2.0, CUDA, {"CPU": 8.0, "GPU": 1.0}),
    ],
)
def test_more_than_there_is_is_refused(
    workers: int, gpus: float, device: torch.device, there: dict[str, float]
) -> None:
    with pytest.raises(ConfigError, match=r"engine\.workers = .* GPUs, so some would wait"):
        divide(workers, gpus, device, there)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(2.5),
        torch.zeros(0, 3),
        torch.arange(6.0, dtype=torch.float64).view(2, 3).T,
        torch.tensor([True, False]),
        torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        torch.ones(2, requires_grad=True),
    ],
    ids=str,
)
def test_a_tensor_comes_back_as_it_was_and_can_be_written_to(tensor: torch.Tensor) -> None:
    data, dtype, shape = _lay_down(tensor)
    data.flags.writeable = False
    found = _pick_up((data, dtype, shape))
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found, tensor.detach())
    assert _lay_down(found)[0].tobytes() == data.tobytes()
    found.zero_()


@pytest.mark.apart
def test_a_cluster_that_does_not_answer_is_refused_soon(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        config = write_config(tmp_path, {"engine": {"name": "ray", "address": address}})
        # In a process of its own: in this one, another test's session may be joined.
        called = spawn("run", config, "--out", tmp_path / "out")
    assert_refused(called, "[engine] Ray cannot be", "refused", f"engine.address ({address!r})")


@pytest.mark.apart
def test_closing_hides_no_error_and_starts_nothing() -> None:
    """Ray itself starts a session when it is asked for anything without one."""
    program = """
import ray, fedcl
from dataclasses import dataclass
from tests.tiny import tiny

class Stop(Exception): pass

def watch(now):
    ray.shutdown()
    raise Stop

if __name__ == "__main__":
    experiment = tiny(engine={"name": "ray", "workers": 1})
    try:
        fedcl.run(experiment, watch=watch)
    except Stop as error:
        assert error.__context__ is None
    assert not ray.is_initialized()
    experiment.engine.close()
    assert not ray.is_initialized()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_more_workers_than_processors_of_the_session_are_refused(ray_house: RayHouse) -> None:
    """They would wait for each other for ever."""
    ray_house.start()
    many = ray_house.cpus + 1
    with pytest.raises(ConfigError, match=f"workers = {many}.*{ray_house.cpus}"):
        fedcl.run(tiny(engine={"name": "ray", "workers": many}))


@pytest.mark.apart
def test_ray_starts_and_ends_its_own_session() -> None:
    program = """
import ray, fedcl
from tests.tiny import assert_same_runs, tiny
if __name__ == "__main__":
    record = fedcl.run(tiny(engine={"name": "ray", "workers": 1, "inner": "serial"}))
    assert not ray.is_initialized()
    assert_same_runs(record, fedcl.run(tiny()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
