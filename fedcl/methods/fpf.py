"""k-FPF: plain training, and now and then the layers that forget are finetuned on a small memory.

Zhao et al., Does continual learning equally forget all parameters?, ICML 2023 (arXiv 2304.04158): a
few modules change much more between tasks than others; finetuning only them on buffered data, k
times in the course of training instead of replay in every step, costs a fraction of replay.

Ours, as we know the paper by its idea alone: the measure, which is the mean absolute change of a
layer's weight and bias between the ends of consecutive stages over their mean size, averaged over
stages, the present one counting as far as it has come; and the federation. A finetuning is an
exchange of its own, k times a stage at even distances, the last after the last round: the cohort
trains on its memory, equally many examples of each stage, the present one included, and sends the
chosen layers' changes alone. In the first stage nothing can be forgotten: there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from fedcl.core.client import Client, Model
from fedcl.core.consolidation.plasticity import chosen_layers, relative_changes
from fedcl.core.coverage import Coverage, refused
from fedcl.core.federation import Federation
from fedcl.core.local import cross_entropy, own_state
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
from fedcl.core.replay.memory import RowwiseCrossEntropy, present_rows, share_budget, with_present
from fedcl.core.seeds import torch_generator
from fedcl.core.task import Examples

__all__ = ["FPF"]


@dataclass(frozen=True)
class State:
    """Server state: model, model at the last stage's end, and what each layer changed by so far."""

    params: Params
    before: Params = field(default_factory=dict)
    changes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finetuning:
    """What goes down: the model, which parameters may change, and whether tasks have own logits."""

    params: Params
    names: tuple[str, ...]
    separate: bool


@dataclass(frozen=True)
class FPF(Method[State]):
    """Trains on the present examples; k times a stage, some layers on remembered ones.

    Attributes:
        budget: Bytes of examples that one client may keep; 0 makes it FedAvg.
        k: Finetunings of a stage, at most one after each round; 0 makes it FedAvg.
        modules: Share of the layers that are finetuned: the most plastic ones, at least one.
        layers: Names of the layers instead, such as `["head"]`; `["auto"]` measures.
        passes: How often a client's memory stands among the examples of a finetuning; its epochs,
            batch size and learning rate are those of training.
    """

    budget: int = 200_000
    k: int = 2
    modules: float = 0.3
    layers: tuple[str, ...] = ("auto",)
    passes: int = 3

    family: ClassVar[str] = "replay"
    needs_borders: ClassVar[bool] = True
    paper: ClassVar[str] = "Zhao et al., ICML 2023"
    coverage: ClassVar[Coverage] = refused(
        "a finetuning passes an example several times, and its clip is not that of the layers it "
        "sends; take replay"
    )
    client_half: ClassVar[tuple[str, ...]] = ("remember", "buffer", "only", "chosen")

    def __post_init__(self) -> None:
        for name, least in (("budget", 0), ("k", 0), ("passes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 < self.modules <= 1:
            raise ValueError(f"modules must lie in (0, 1], not {self.modules}")
        if not self.layers:
            raise ValueError('layers must name a layer, or be ["auto"]')

    def needs(self, sizes: Sizes) -> Needs:
        """Returns the model at the last stage's end, and the memory of a client."""
        if not self.budget * self.k:
            return Needs()
        kept = min(self.budget, sizes.stages * sizes.share * sizes.example)
        client = self.passes * kept
        return Needs(state=sizes.params, client=client, memory=kept, training="projected")

    # Server half.

    def init(self, params: Params) -> State:
        """Starts without a measured change; refuses layers that the model has not."""
        chosen_layers(params, params, {}, self.layers, self.modules)
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort, and after some rounds that of a finetuning."""
        keep = self.remember if self.budget * self.k else own_state
        change = fed.aggregate(fed.local(cross_entropy, keep=keep), Model(state.params)).mean
        state = replace(state, params=add(state.params, change))
        due = (fed.round + 1) * self.k // fed.rounds > fed.round * self.k // fed.rounds
        if not (self.budget and due and fed.task.index):
            return state
        names = chosen_layers(state.params, state.before, state.changes, self.layers, self.modules)
        parts: Any = dict(data=self.buffer, report=self.chosen, project=self.only, name="finetune")
        finetune = fed.local(RowwiseCrossEntropy(), **parts)
        message = Finetuning(state.params, names, fed.task.scenario == "task")
        moved = fed.aggregate(finetune, message).mean
        own = {name: state.params[name] for name in names}
        return replace(state, params={**state.params, **add(own, moved)})

    def end_task(self, state: State, fed: Federation) -> State:
        """Notes how much each layer has changed since the last stage's end."""
        changes = dict(state.changes)
        for layer, size in relative_changes(state.params, state.before).items():
            changes[layer] = changes.get(layer, 0.0) + size
        return replace(state, before=state.params, changes=changes)

    # Client half.

    def remember(self, client: Client, message: Model, params: Params) -> Any:
        """Keeps an equal number of examples of every stage so far, chosen at random."""
        rows = with_present(client, client.state, separate=True)
        generator = torch_generator(client.seed, "remember")
        order = torch.randperm(len(rows), generator=generator).to(rows.y.device)
        kept = share_budget(rows, self.budget, order)
        return kept if len(kept) else None

    def buffer(self, client: Client, message: Finetuning) -> Examples:
        """Trains on what it remembers, so many times over; on nothing where there is nothing."""
        rows = client.state if client.state is not None else present_rows(client).part(0, 0)
        if not message.separate:
            head = client.task.head.expand(len(rows), -1).clone()
            rows = replace(rows, extra={**rows.extra, "head": head})
        return rows.take(torch.arange(len(rows), device=rows.y.device).repeat(self.passes))

    def only(self, gradients: Params, message: Finetuning) -> Params:
        """Follows the gradients of the chosen parameters alone."""
        names = message.names
        return {k: g if k in names else torch.zeros_like(g) for k, g in gradients.items()}

    def chosen(self, client: Client, message: Finetuning, params: Params) -> Params:
        """Reports the changes of the chosen parameters."""
        return {name: params[name] - message.params[name] for name in message.names}
