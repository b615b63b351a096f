"""The reference work as an ordinary Flower app with Flower's own FedAvg."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from bench.clock import Clock, Enough
from bench.work import make_model
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from fedcl.flower.grid.app import run_app


class Timed(FedAvg):
    """Flower's FedAvg; the clock sees the end of each round."""

    def __init__(self, clock: Clock, cohort: int) -> None:
        super().__init__(
            fraction_train=1.0,
            min_train_nodes=cohort,
            min_available_nodes=cohort,
            fraction_evaluate=0.0,
        )
        self._clock = clock

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Does what FedAvg does, and ends the run when the clock has seen enough."""
        result = super().aggregate_train(server_round, replies)
        if self._clock.tick():
            raise Enough
        return result


def measure(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Measures the app in Flower's simulation, or (`grid`) on our grid."""
    os.environ["BENCH_MODEL"] = spec["model"]
    from bench.flower_client import app

    cohort = spec["cohort"]
    server = ServerApp()
    clock = Clock(spec["seconds"])

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(make_model(spec["model"]).state_dict())
        with suppress(Enough):
            Timed(clock, cohort).start(grid=grid, initial_arrays=arrays, num_rounds=1_000_000)

    if spec["grid"]:
        run_app(server, app, clients=cohort, workers=spec["workers"])
        return clock.result(cohort)
    run_simulation(
        server,
        app,
        num_supernodes=cohort,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": spec["workers"], "log_to_driver": False},
        },
    )
    return clock.result(cohort)
