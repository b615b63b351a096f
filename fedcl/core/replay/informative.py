"""Which examples matter most to a model between a client's own and the global one (Re-Fed).

The model is a copy of the global one that takes steps on the client's examples while a spring holds
it back; an example's importance adds up how long its own gradients are on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedcl.core.client import Client, Reply
from fedcl.core.local import Loss
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.replay.memory import Rehearsal, RowwiseCrossEntropy, share_budget, with_present
from fedcl.core.seeds import torch_generator
from fedcl.core.task import ClientTask, Examples

BYTES = 2**27  # gradients of single examples that are held together, if more than one is


@dataclass(frozen=True)
class Informative:
    """How the informative model v is trained beside the global model w.

    Attributes:
        locality: lambda in (0, 1]: the spring is q = (1 - lambda) / (2 lambda).
        passes: Passes over the examples.
        batch_size: Examples of a step.
        lr: Step size eta, at most 1 / q: a longer step would throw v beyond w.
    """

    locality: float
    passes: int
    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        if not 0 < self.locality <= 1:
            raise ValueError(f"locality must lie in (0, 1], not {self.locality}")
        for name in ("passes", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, not {self.lr}")
        if self.lr * self.spring > 1:
            raise ValueError(
                f"lr = {self.lr} is too large for locality = {self.locality}: their spring "
                f"{self.spring:g} would throw the informative model beyond the global one; "
                f"lower lr to {1 / self.spring:g}"
            )

    @property
    def spring(self) -> float:
        """The factor q of the pull to the global model."""
        return (1 - self.locality) / (2 * self.locality)

    def __call__(
        self, net: Net, rows: Examples, task: ClientTask, loss: Loss, seed: int
    ) -> tuple[Tensor, Params]:
        """Trains v; returns the (n,) float64 importance of each example, and v.

        In pass p a step is `v <- v - lr (g + q (v - w))` with g the mean gradient of a batch's
        losses at v, and each of its examples gains 1 / p times the norm of its own gradient there.

        Args:
            net: The network with the parameters w.
            rows: Examples.
            task: Handed to the loss.
            loss: One value per example, each independent of the other examples.
            seed: Of the batches.
        """
        start = {k: v.detach() for k, v in dict(net.params or {}).items()}
        params: Params = start
        scores = torch.zeros(len(rows), dtype=torch.float64, device=rows.y.device)
        generator = torch_generator(seed, "informative")
        for number in range(1, self.passes + 1):
            order = torch.randperm(len(rows), generator=generator).to(rows.y.device)
            for chosen in order.split(self.batch_size) if len(rows) else ():
                norms, mean = example_gradients(net.at(params), rows.take(chosen), task, loss)
                scores[chosen] += norms / number
                params = {
                    name: v - self.lr * (mean[name] + self.spring * (v - start[name]))
                    for name, v in params.items()
                }
        return scores, params


def example_gradients(
    net: Net, rows: Examples, task: ClientTask, loss: Loss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the (n,) float64 norms of each example's own gradient, and the mean of gradients.

    Args:
        net: The network and its parameters, all of which count.
        rows: One example or more.
        task: Handed to the loss.
        loss: One value per example, each independent of the other examples.
    """
    params = dict(net.params or net.model.named_parameters())

    def one(own: Params, x: Tensor, y: Tensor, extra: dict[str, Tensor]) -> Tensor:
        alone = Examples(x[None], y[None], {name: value[None] for name, value in extra.items()})
        return loss(net.at(own), alone, task, None)[0]

    # No parameter of the network itself is a leaf here: `grad` sees what it is given alone.
    with torch.no_grad():
        each = vmap(grad_and_value(one), in_dims=(None, 0, 0, 0))
        size = sum(value.numel() * value.element_size() for value in params.values())
        norms: list[Tensor] = []
        total: dict[str, Tensor] = {}
        for part in torch.arange(len(rows), device=rows.y.device).split(max(1, BYTES // size)):
            few = rows.take(part)
            own, _ = each(params, few.x, few.y, dict(few.extra))
            lengths = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in own.values()]
            norms.append(torch.stack(lengths).double().square().sum(0).sqrt())
            for name, g in own.items():
                summed = g.sum(0)
                total[name] = total[name] + summed if name in total else summed
    return torch.cat(norms), {name: value / len(rows) for name, value in total.items()}


@dataclass(frozen=True)
class CacheImportant:
    """A program: of what it remembers and its present share, a client keeps what matters most.

    Nothing goes up.

    Attributes:
        informative: How importance is measured.
        budget: Bytes of examples that stay.
        by_stage: Whether equally many of each stage stay, the most important ones of each.
        name: Name of the program in records and errors.
    """

    informative: Informative
    budget: int
    by_stage: bool = False
    name: str = "importance"

    def __call__(self, client: Client, message: Rehearsal) -> Reply:
        """Returns an empty reply; the memory is the rows of highest importance, in their order."""
        rows = with_present(client, client.state, message.separate)
        net = Net(client.model, message.params)
        measure = self.informative
        scores, _ = measure(net, rows, client.task, RowwiseCrossEntropy(), client.seed)
        order = scores.argsort(descending=True, stable=True)  # of equal ones the first
        if self.by_stage:
            kept: Any = share_budget(rows, self.budget, order)
        else:
            room = self.budget // max(1, rows.nbytes // max(1, len(rows)))
            kept = rows.take(order[:room].sort().values)
        batches = -(-len(rows) // measure.batch_size)
        return Reply(
            {},
            state=kept if len(kept) else None,
            steps=measure.passes * batches,
            examples=measure.passes * len(rows),
        )
