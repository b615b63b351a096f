"""Analytic learning: a head in closed form over frozen features, equal to training on all at once.

One pass over each stage's data and no gradient: clients send sums over their examples, the server
adds them to those of earlier stages and solves one ridge regression. For given features the answer
is the same for any split among clients, any order of tasks and any number of stages. He et al.,
AFL: a single-round analytic approach for federated learning with pre-trained models, CVPR 2025 (the
sums; its pairwise law of aggregation gives the same, and is a test here); Tang et al., AFCL, arXiv
2505.12245 (sums over clients and tasks; we know its title, the formulas are ours); Guan et al.,
STSA, WWW 2026, arXiv 2506.01327 (features learnt by federated averaging at the first stage; here
with the full Gram matrix, not STSA-E's estimate of it); McDonnell et al., RanPAC, NeurIPS 2023
(random projection with ReLU).

`balance` follows the idea of Zhuang et al., AEF-OCL, 2024, of which we read no text or code. Ours
are: pseudo-examples in the space of the regressors, filled up anew at each solution (so that the
order of tasks does not matter), and `expected`, which adds what they give in expectation.

The Gram matrix says all about a client's features but their rotation: fewer examples than features
can be found from it. Use secure aggregation, which the sums allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedcl.core.client import Model
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.features.analytic import (
    ROWS,
    Correlations,
    Regressors,
    add_sums,
    balanced,
    ridge,
    with_head,
    without_head,
)
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy, masked_logits
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.model import Net
from fedcl.core.params import Params, add
from fedcl.core.statistic import Statistic

__all__ = ["Analytic"]


@dataclass(frozen=True)
class State:
    """Server state: model, sums of all stages and their noise, solution of a projected head."""

    params: Params
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Analytic(Method[State]):
    """Members send sums over their features once a stage; the head is ridge regression on them.

    Attributes:
        gamma: Strength of the ridge penalty.
        pretrain: Stages in whose rounds the features are learnt by federated averaging: 1 is the
            first, 0 takes the model as it is (weights from a file, random features). There are no
            more, since sums of earlier stages would belong to features that are gone.
        projection: Columns of a random projection with ReLU, 0 for none. Without one the solution
            is the model's own head; with one, it stays in the server's state.
        projection_seed: Seed of that projection, which nobody sends.
        constant: Whether a constant 1 joins the regressors where the head has a bias.
        balance: Gaussian pseudo-examples for classes with fewer examples than the largest: `none`,
            `drawn` ones, or their `expected` sums.
        exact: Whether sums travel in float64, or in the type of the inputs.
        masked: Compare only the classes of the first task in the loss of its rounds.
    """

    gamma: float = 1.0
    pretrain: Literal[0, 1] = 1
    projection: int = 0
    projection_seed: int = 0
    constant: bool = True
    balance: Literal["none", "expected", "drawn"] = "none"
    exact: bool = True
    masked: bool = False

    family: ClassVar[str] = "analytic"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = "each stage, once: Gram matrix of features and class sums up"
    paper: ClassVar[str] = "He et al., CVPR 2025"
    coverage: ClassVar[Coverage] = OWN  # plain training; correlations are sums over examples

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"gamma must be above 0, not {self.gamma}")
        if self.pretrain not in (0, 1):
            raise ValueError(f"pretrain must be 0 or 1 stage, not {self.pretrain}")
        if self.projection < 0 or self.projection_seed < 0:
            raise ValueError("projection and projection_seed must be at least 0")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the sums, the Gram matrix and its factor take."""
        features, classes = sizes.layers.get("head.weight", (0, 0))
        item = 8 if self.exact else sizes.item
        return Needs(**self._measure.needs(features, classes, self._rows, item))

    # Server half.

    def init(self, params: Params) -> State:
        """Starts without any sum."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort while features are learnt; else asks nobody."""
        if fed.task.index >= self.pretrain:
            return state
        change = fed.aggregate(fed.local(CrossEntropy(self.masked)), Model(state.params)).mean
        return replace(state, params=add(state.params, change))

    def end_task(self, state: State, fed: Federation) -> State:
        """Adds the sums of all members' examples of this stage, and solves."""
        kinds = ("gram", "cross", "counts", "squares") if self.exact else ()
        program = Statistic(self._measure, "correlations", exact=kinds, rows=self._rows)
        found = fed.aggregate(program, Model(without_head(state.params)), clients=fed.members)
        sums = full = add_sums(state.sums, found.sum)
        noise = (state.noise**2 + found.noise**2) ** 0.5
        if self.balance != "none":
            generator = torch.Generator().manual_seed(fed.seed("pseudo-examples"))
            full = balanced(sums, self.balance, generator, noise)
        weights = ridge(full, self.gamma, noise)
        if self.projection:
            return State(state.params, sums, weights, noise)
        return State(with_head(state.params, weights), sums, None, noise)

    def predict(self, state: State, net: Net, x: Tensor, allowed: Tensor) -> Tensor:
        """Returns the solution's answers; before the first one, those of the model's own head."""
        if state.weights is None:
            return masked_logits(net(x), allowed)
        return masked_logits(self._measure.regressors(net, x) @ state.weights, allowed)

    def for_prediction(self, state: State) -> State:
        """Returns the model, and the solution of a projected head: no sums over clients."""
        return State(state.params, weights=state.weights)

    @property
    def _measure(self) -> Correlations:
        regressors = Regressors(self.projection, self.projection_seed, self.constant)
        return Correlations(regressors, spread=self.balance != "none")

    @property
    def _rows(self) -> int:
        """Examples of a call: a large matrix is packed after each."""
        return 8 * ROWS if self.projection else ROWS
