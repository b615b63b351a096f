"""An unchanged app gives the model of Flower's own simulation, and the same bits for any crew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.commands import spawn

APP = Path(__file__).parent / "stock_app"
CLIENTS, ROUNDS = 6, 2
STRATEGIES = "fedavg fedadam krum"

# It takes all of Ray for itself and ends it for everybody, so it has a process of its own. With
# `Context(run_config={})` as it gives to client apps, they take their defaults.
SIMULATION = """
import sys
sys.path.insert(0, sys.argv[1])
import stock_client, stock_server
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
server = ServerApp()
@server.main()
def main(grid, context):
    names = sys.argv[3].split()
    results = {name: stock_server.start(grid, name, int(sys.argv[4])) for name in names}
    stock_server.save(results, sys.argv[2])
run_simulation(server, stock_client.app, num_supernodes=int(sys.argv[5]), backend_config={
    "client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}})
"""


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def ours(out: Path, workers: int) -> dict[str, np.ndarray]:
    """Runs the app by the command line in a process of its own."""
    config = f'strategies="{STRATEGIES}" num-server-rounds={ROUNDS} out="{out}"'
    called = spawn(
        *("flower", APP, "--clients", str(CLIENTS), "--workers", str(workers), "--quiet"),
        *("--run-config", config),
    )
    assert called.status == 0, called.err
    assert f"fedcl/stock-app: {3 * ROUNDS * 2 * CLIENTS} replies, 0 of them errors" in called.out
    return arrays(out)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return ours(tmp_path_factory.mktemp("grid") / "ours.npz", 0)


@pytest.mark.flower
@pytest.mark.apart
@pytest.mark.slow
def test_the_model_is_that_of_flowers_simulation(
    in_process: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Flower adds replies in the order in which they come, so bits may differ."""
    out = tmp_path / "theirs.npz"
    words = [str(APP), str(out), STRATEGIES, str(ROUNDS), str(CLIENTS)]
    done = subprocess.run(
        [sys.executable, "-c", SIMULATION, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = arrays(out)
    assert theirs.keys() == in_process.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(in_process[name], value, rtol=0, atol=1e-5, err_msg=name)
    # A counter in context.state goes up with every round, whoever runs the app.
    counts = [in_process[f"{name} train {r} rounds"] for name in STRATEGIES.split() for r in (1, 2)]
    np.testing.assert_allclose(counts, [1, 2, 3, 4, 5, 6])


@pytest.mark.ray
@pytest.mark.apart
@pytest.mark.slow
def test_bits_are_the_same_for_any_number_of_workers(
    in_process: dict[str, np.ndarray], tmp_path: Path
) -> None:
    for workers in (1, 2):
        found = ours(tmp_path / f"{workers}.npz", workers)
        assert found.keys() == in_process.keys()
        for name, value in found.items():
            assert value.tobytes() == in_process[name].tobytes(), name
