"""Federated orthogonal training: the server keeps updates off the space of old tasks' inputs.

Bakman, Yaldiz, Ezzeldin and Avestimehr, Federated orthogonal training: mitigating global
catastrophic forgetting in continual federated learning, ICLR 2024 (arXiv 2309.01289). The defaults
differ from the released code where it can be exact: a Gram matrix instead of a sketch, the energy
rule for the rank, statistics of the global model over all members. `gpse = "sketch"`, `eps_rule =
"paper_code"`, `statistics_model = "local"` and `statistics_clients = "cohort"` give the released
behaviour, which its published numbers belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedcl.core.client import Client, Model, Reply
from fedcl.core.coverage import OWN, Coverage, refused
from fedcl.core.features.layers import Head, guarded_layers
from fedcl.core.features.moments import (
    InputMoments,
    Inputs,
    Sketch,
    extended_basis,
    gram_needs,
    input_statistics,
)
from fedcl.core.features.subspace import project_layers
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy, own_state
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.optimizer import Moments, check_server, server_needs, server_step
from fedcl.core.params import Params, add
from fedcl.core.statistic import Statistic

__all__ = ["FOT"]


@dataclass(frozen=True)
class State:
    """Server state: model, basis of each protected layer, the server optimizer's moments."""

    params: Params
    basis: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Moments = field(default_factory=Moments)


@dataclass(frozen=True)
class LocalModel:
    """What a client keeps from the last round for the statistics: its model, and of which stage."""

    params: Params
    stage: Tensor


@dataclass(frozen=True)
class FOT(Method[State]):
    """Clients train as in FedAvg; the server projects its final step.

    Attributes:
        energy: Share of the layer inputs' energy that each task's basis must hold (epsilon).
        energy_step: Added to `energy` after each task.
        gpse: `gram` sends the exact Gram matrix of the residual inputs, `sketch` their product with
            a random matrix that each client draws for itself and never shows (the paper's).
        sketch_columns: Columns of the sketch as a multiple of the layer's input width.
        sketch_noise: `normal`, or `uniform` on [-1, 1] as in the released code: few examples behind
            a uniform sketch can be recovered from it by independent component analysis.
        eps_rule: `energy` takes the ratio of squared norms, `paper_code` that of norms and at least
            one direction.
        statistics_model: Layer inputs of the `global` model, or of each client's `local` one after
            the last round.
        statistics_clients: All `members` of the stage, or the last round's `cohort`.
        head: Whether the last layer is protected: `auto` means in the domain-incremental scenario.
        biases: Protect biases too, as the weight of a constant input.
        masked: Compare only the classes of the present task in the loss.
        server: Server optimizer: `mean`, `momentum` or `adam`; its step is what gets projected.
        server_lr: Its learning rate.
        server_momentum: Its momentum.
    """

    energy: float = 0.95
    energy_step: float = 0.0
    gpse: Literal["gram", "sketch"] = "gram"
    sketch_columns: float = 1.0
    sketch_noise: Literal["normal", "uniform"] = "normal"
    eps_rule: Literal["energy", "paper_code"] = "energy"
    statistics_model: Literal["global", "local"] = "global"
    statistics_clients: Literal["members", "cohort"] = "members"
    head: Head = "auto"
    biases: bool = False
    masked: bool = False
    server: Literal["mean", "momentum", "adam"] = "mean"
    server_lr: float = 1.0
    server_momentum: float = 0.9

    family: ClassVar[str] = "orthogonal"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = "each stage: bases down, Gram matrices or sketches up"
    paper: ClassVar[str] = "Bakman et al., ICLR 2024"
    client_half: ClassVar[tuple[str, ...]] = ("gram", "sketch", "keep_params")

    def __post_init__(self) -> None:
        if not 0 <= self.energy <= 1:
            raise ValueError(f"energy must lie in [0, 1], not {self.energy}")
        if self.sketch_columns <= 0:
            raise ValueError(f"sketch_columns must be above 0, not {self.sketch_columns}")
        if self.statistics_model == "local" and self.statistics_clients == "members":
            raise ValueError(
                'statistics_model = "local" needs statistics_clients = "cohort": '
                "others have no local model"
            )
        check_server(self.server, self.server_lr, self.server_momentum)

    def records(self) -> Coverage:
        """Training is plain, and exact Gram matrices of the global model are sums over examples."""
        if isinstance(self._program(), Statistic):
            return OWN
        return refused(
            "sketches, and statistics of local models or by the rule of the paper's code, bound no "
            'single example; take gpse = "gram", statistics_model = "global", eps_rule = "energy"'
        )

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what bases, statistics and the largest decomposition take."""
        widths = {name: width + self.biases for name, (width, _) in sizes.layers.items()}
        sent = self.sketch_columns if self.gpse == "sketch" else 0.5
        most = gram_needs(widths, sizes.rows, sizes.item, sent)
        moments, step = server_needs(self.server, sizes.params // sizes.item)
        # A basis has as many directions as its layer has inputs at most, and as were seen.
        seen = {name: sizes.examples * rows for name, rows in sizes.rows.items()}
        directions = [width * min(width, seen[name]) for name, width in widths.items()]
        return Needs(
            state=8 * sum(directions) + moments,
            server=max(step, most["server"]),
            client=most["client"],
            reply=most["reply"],
            memory=sizes.params if self.statistics_model == "local" else 0,
        )

    # Server half.

    def init(self, params: Params) -> State:
        """Starts without any basis."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the server optimizer's step without its part along the bases (FedProject)."""
        keep = (
            self.keep_params if self.statistics_model == "local" and fed.last_round else own_state
        )
        change = fed.aggregate(
            fed.local(CrossEntropy(self.masked), keep=keep), Model(state.params)
        ).mean
        step, moments = server_step(
            change, state.moments, self.server, self.server_lr, self.server_momentum
        )
        step = project_layers(step, state.basis, self.biases)
        return replace(state, params=add(state.params, step), moments=moments)

    def end_task(self, state: State, fed: Federation) -> State:
        """Extends each basis by what this task's layer inputs add to it (GPSE)."""
        layers = guarded_layers(fed.model, self.head, fed.task.scenario)
        params = state.params if self.statistics_model == "global" else {}
        clients = fed.members if self.statistics_clients == "members" else None
        question = Inputs(params, state.basis, layers)
        found = fed.aggregate(self._program(), question, clients=clients)
        sums, noise = found.sum, found.noise
        energy = min(1.0, self.energy + self.energy_step * fed.task.index)
        rounding = torch.finfo(next(iter(state.params.values())).dtype).eps
        basis = {
            n: extended_basis(sums, n, state.basis.get(n), energy, self.eps_rule, rounding, noise)
            for n in layers
        }
        return replace(state, basis=basis)

    def _program(self) -> Any:
        """Returns the exact statistic of the global model, or what each client alone can send."""
        if self.gpse == "sketch":
            return self.sketch
        if self.statistics_model == "local" or self.eps_rule == "paper_code":
            return self.gram
        return Statistic(InputMoments(self.biases), "gram", exact=("norms",))

    # Client half.

    def keep_params(self, client: Client, message: Model, params: Params) -> LocalModel:
        """Keeps the local model for the statistics that follow the last round."""
        return LocalModel(params, client.task.index)

    def gram(self, client: Client, message: Inputs) -> Reply:
        """Sends, for each layer, the Gram matrix of the inputs' residual, packed."""
        return self._statistics(client, message, None)

    def sketch(self, client: Client, message: Inputs) -> Reply:
        """Sends, for each layer, the residual inputs times the client's own random matrix."""
        return self._statistics(client, message, Sketch(self.sketch_columns, self.sketch_noise))

    def _statistics(self, client: Client, message: Inputs, sketch: Sketch | None) -> Reply:
        params, own = message.params, client.state
        if not params and own is not None and torch.equal(own.stage, client.task.index):
            params = own.params
        if not params:
            # It missed the last round and has nothing to add: no examples give zeros.
            params = dict(client.model.named_parameters())
            nothing = torch.zeros(0, dtype=torch.int64, device=client.data.y.device)
            client = replace(client, data=client.data.take(nothing))
        tensors = input_statistics(
            client, params, message.basis, message.layers, self.biases, sketch
        )
        return Reply(tensors, examples=len(client.data), state=None)
