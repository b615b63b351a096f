"""Measures what example-level privacy costs: a step of private training against one of plain SGD.

Run: python simulations/benchmark_private.py [--repeats 15] [--cohort 32] [--smoke]

Steps: plain SGD, ours (book-keeping), ours without its noise, gradients of single examples by
`torch.func.vmap` and by the hooks of Opacus (`pip install 'fedcl[privacy]'`), on an MLP
784-200-200-10 and a small CNN, batches of 32 and 256, one thread. Every way does the same: clip,
sum, noise where it says so, step. Ways alternate within each repeat, and processor time is counted:
what else the machine does matters less; ratios within a run are meaningful, times are not. Cohorts:
clients a second of 50 examples and batches of 10, MLP 784-128-10, trained one by one (`serial`) and
in blocks (`vectorized`).
"""

from __future__ import annotations

import copy
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from bench.options import arguments, tabulate, whole
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.assembly import build_site
from fedcl.config import parse
from fedcl.core.batch import run_batched
from fedcl.core.block import Batching
from fedcl.core.client import Model
from fedcl.core.local import Local, Trainer, cross_entropy
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.params import copy as copied
from fedcl.core.privacy.bookkeeping import Losses, clipped_sum
from fedcl.core.privacy.draws import PrivateSettings, hide
from fedcl.core.privacy.noise import secret_root
from fedcl.core.request import Position, Request
from fedcl.core.site import Site
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from fedcl.trainers.dp_sgd import DpSgd
from fedcl.trainers.sgd import Sgd

GATE = 2.5  # of plain SGD at most: book-keeping on the MLP with batches of 256
SETTINGS = PrivateSettings(clip=1.0, noise_multiplier=1.0, batch_size=1, epochs=1, lr=0.05)
Step = Callable[[], None]


def main(words: Sequence[str] | None = None) -> None:
    """Measures, and prints two tables and whether the gate is met."""
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=whole, default=15, help="of everything (default: 15)")
    parser.add_argument("--cohort", type=whole, default=32, help="clients (default: 32)")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    console = Console()
    sizes: Sequence[int] = (32, 256)
    repeats, cohort = args.repeats, args.cohort
    if args.smoke:
        sizes, repeats, cohort = (4,), 1, 2
    if importlib.util.find_spec("opacus") is None:
        console.print("opacus is left out: pip install 'fedcl[privacy]'")
    _steps(sizes, repeats, console)
    _cohorts(cohort, repeats, console)


def _steps(sizes: Sequence[int], repeats: int, console: Console) -> None:
    lines, gate = [], None
    for name, model in _models().items():
        for size in sizes:
            ways = _ways(model, size)
            times = _interleaved(ways, repeats)
            plain = times["plain SGD"]
            shares = {way: own / plain for way, own in times.items()}
            lines += [
                [name, str(size), way, f"{1e3 * times[way]:.2f}", f"{shares[way]:.2f}"]
                for way in ways
            ]
            if name == "mlp" and size == 256:
                gate = shares["book-keeping"]
    headings = ["model", "batch", "way", "ms a step", "of plain"]
    tabulate("A step: median of the repeats", headings, lines, console)
    if gate is not None:
        met = "met" if gate <= GATE else "MISSED"
        console.print(f"book-keeping, MLP, batch 256: {gate:.2f} of plain, at most {GATE}: {met}")


def _models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "mlp": Mlp().build((1, 28, 28), 10),
        "cnn": Cnn((16, 32), 32, groups=4).build((1, 28, 28), 10),
    }


def _interleaved(ways: dict[str, Step], repeats: int) -> dict[str, float]:
    """Returns the median processor time of a step of each way, in seconds."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for step in ways.values():
        step()  # pays for what is made once
    for _ in range(repeats):
        for way, step in ways.items():
            start = time.process_time()
            step()
            times[way].append(time.process_time() - start)
    return {way: statistics.median(own) for way, own in times.items()}


def _ways(model: nn.Module, size: int) -> dict[str, Step]:
    """Returns a step of each way, all on the same batch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((size, 1, 28, 28), generator=generator)
    y = torch.randint(10, (size,), generator=generator)

    def losses(params: Params, places: Tensor) -> Tensor:
        whole = len(places) == size
        own, labels = (x, y) if whole else (x[places], y[places])
        return F.cross_entropy(Net(model, params)(own), labels, reduction="none")

    ways: dict[str, Step] = {
        "plain SGD": partial(_plain, model, _own(model), losses, torch.arange(size)),
        "book-keeping": partial(_private, model, _own(model), losses, size, "books", 1.0),
        "book-keeping without noise": partial(
            _private, model, _own(model), losses, size, "books", 0.0
        ),
        "vmap": partial(_private, model, _own(model), losses, size, "vmap", 1.0),
    }
    if importlib.util.find_spec("opacus") is not None:
        from opacus import GradSampleModule

        wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
        ways["Opacus hooks"] = partial(_hooks, wrapped, x, y)
    return ways


def _own(model: nn.Module) -> dict[str, Tensor]:
    return copied(dict(model.named_parameters()))


def _plain(model: nn.Module, params: dict[str, Tensor], losses: Losses, places: Tensor) -> None:
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    gradients = torch.autograd.grad(losses(leaves, places).mean(), list(leaves.values()))
    with torch.no_grad():
        torch._foreach_add_(list(leaves.values()), list(gradients), alpha=-SETTINGS.lr)


def _private(
    model: nn.Module,
    params: dict[str, Tensor],
    losses: Losses,
    size: int,
    path: Any,
    multiplier: float,
) -> None:
    total = clipped_sum(model, params, losses, size, SETTINGS.clip, path).total
    _follow(params, total, size, multiplier)


def _follow(params: Params, total: Params, size: int, multiplier: float) -> None:
    settings = replace(SETTINGS, noise_multiplier=multiplier, batch_size=size)
    with torch.no_grad():
        for name, value in params.items():
            hide(total[name], ROOT, 0, name, size, settings)
            value.detach().add_(total[name], alpha=-settings.lr)


ROOT = secret_root()


def _hooks(wrapped: Any, x: Tensor, y: Tensor) -> None:
    wrapped.zero_grad()
    F.cross_entropy(wrapped(x), y, reduction="sum").backward()
    with torch.no_grad():
        named = dict(wrapped.named_parameters())
        own = {name: value.grad_sample for name, value in named.items()}
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in own.values()]).norm(dim=0)
        factors = (SETTINGS.clip / norms.clamp(min=1e-12)).clamp(max=1.0)
        total = {name: torch.einsum("n...,n->...", g, factors) for name, g in own.items()}
    _follow(named, total, len(x), 1.0)


def _cohorts(cohort: int, repeats: int, console: Console) -> None:
    site = build_site(parse(_table(cohort)))
    start = Model(copied(dict(site.model.named_parameters())))
    request = Request(Position(0, 0, 0), Local(cross_entropy), start, secret=ROOT)
    plain, private = Sgd(batch_size=10, lr=0.05), DpSgd(batch_size=10, lr=0.05)
    ways: dict[str, Step] = {
        f"{kind}, {engine}": partial(_round, replace(site, trainer=trainer), request, engine)
        for engine in ("serial", "vectorized")
        for kind, trainer in _trainers(plain, private).items()
    }
    times = _interleaved(ways, repeats)
    lines = [[way, f"{cohort / own:.0f}"] for way, own in times.items()]
    tabulate(f"A cohort of {cohort} clients", ["way", "clients a second"], lines, console)


def _trainers(plain: Trainer, private: DpSgd) -> dict[str, Trainer]:
    return {
        "plain SGD": plain,
        "dp_sgd": private,
        "dp_sgd without noise": replace(private, noise_multiplier=0.0),
    }


def _round(site: Site, request: Request, engine: str) -> None:
    clients = range(len(site.population.stream.members(0)))  # type: ignore[attr-defined]
    for ids in site.blocks(clients):
        if engine == "serial":
            site.loop(request, ids, {})
        else:
            run_batched(site, request, ids, {}, Batching())


def _table(cohort: int) -> dict[str, Any]:
    return {
        "dataset": {
            "name": "synthetic",
            "classes": 10,
            "features": [1, 28, 28],
            "train": 50 * cohort,
            "test": 10,
        },
        "stream": {
            "name": "domain_incremental",
            "tasks": 1,
            "clients": cohort,
            "partition": {"name": "iid"},
        },
        "model": {"name": "mlp", "hidden": [128]},
        "method": {"name": "fedavg"},
        "training": {"rounds": 1, "cohort": cohort, "device": "cpu"},
    }


if __name__ == "__main__":
    main()
