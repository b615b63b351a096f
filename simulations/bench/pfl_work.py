"""The reference work in pfl (Apple, https://github.com/apple/pfl-research), one process.

Needs PyTorch and pfl alone: it runs in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from bench.clock import Clock
from bench.work import WORKS, client_data, make_model
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F


class Trained(nn.Module):
    """A network with the loss and the metrics that pfl asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the mean loss of a batch."""
        return F.cross_entropy(self.network(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """Returns the loss, weighted by the examples."""
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Ticking(TrainingProcessCallback):  # type: ignore[misc]
    """Tells the clock when a round ends."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Ends the run when the clock has seen enough."""
        return self._clock.tick(), Metrics()


def measure(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Measures federated averaging over the whole cohort."""
    cohort, work = spec["cohort"], WORKS[spec["model"]]
    clock = Clock(spec["seconds"])
    data = {client: client_data(client, work.examples) for client in range(cohort)}
    users = FederatedDataset(
        lambda client: Dataset(raw_data=list(data[client]), user_id=str(client)),
        get_user_sampler("minimize_reuse", list(data)),
    )
    network = Trained(make_model(spec["model"]))
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=1_000_000,
            # Nothing is evaluated after the first round, which evaluates in any case.
            evaluation_frequency=1_000_000,
            train_cohort_size=cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=users, val_data=users),
        model,
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=work.lr,
            local_batch_size=work.batch_size,
        ),
        None,
        [Ticking(clock)],
        send_metrics_to_platform=False,
    )
    return clock.result(cohort)
