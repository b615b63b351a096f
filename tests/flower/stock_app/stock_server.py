"""The server half: runs Flower's own strategies one after the other and saves what they give."""

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Krum, Result, Strategy
from stock_client import make_model  # type: ignore[import-not-found] # beside this file

app = ServerApp()


def make_strategy(name: str) -> Strategy:
    if name == "fedadam":
        return FedAdam(eta=0.05)
    if name == "krum":
        return Krum(num_malicious_nodes=1)
    return FedAvg()


def start(grid: Grid, name: str, rounds: int) -> Result:
    """Trains from the same start with all nodes."""
    arrays = ArrayRecord(make_model().state_dict())
    return make_strategy(name).start(grid=grid, initial_arrays=arrays, num_rounds=rounds)


def save(results: dict[str, Result], out: str) -> None:
    """Writes final arrays and metrics of every strategy."""
    found: dict[str, np.ndarray] = {}
    for name, result in results.items():
        for key, array in result.arrays.items():
            found[f"{name} {key}"] = array.numpy()
        for kind in ("train", "evaluate"):
            history = getattr(result, f"{kind}_metrics_clientapp")
            for round, metrics in history.items():
                for key, value in metrics.items():
                    found[f"{name} {kind} {round} {key}"] = np.asarray(value)
    np.savez(Path(out), **found)  # type: ignore[arg-type]


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    names = str(config["strategies"]).split()
    rounds = int(config["num-server-rounds"])
    results = {name: start(grid, name, rounds) for name in names}
    if config["out"]:
        save(results, str(config["out"]))
