"""Lingo: the head is a frozen vector of meaning for each class, and only features are learnt.

The idea of language-guided federated continual learning: what a class means is written in a vector
that a model of language gave it before anything was learnt, so that all clients and all stages aim
at the same places. [MEM]: we read neither text nor code of a paper; the whole form is ours. With
h(x) the features and e_c the unit vector of class c, an answer is

    scale * cos(h(x), e_c) ,

and clients minimise cross-entropy. Nothing of the head is trained, sent or averaged. A client looks
up its classes' vectors and nothing else of them: their numbers need no agreement between clients as
long as each comes with its vector (a test shows it; in a run all clients share one file).

Vectors come from a file, or are rows of a random orthogonal frame: no meaning, but as far apart as
can be. Vectors of another width than the features' are taken there by a fixed random projection.
The model that is saved has them as its head and no bias: its plain answers choose the same class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from fedcl.core.client import Model
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.errors import ConfigError
from fedcl.core.features.analytic import with_head, without_head
from fedcl.core.features.layers import head_inputs
from fedcl.core.federation import Federation
from fedcl.core.local import masked_logits
from fedcl.core.losses.prototypes import ClassVectors, cosines, head_rows
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.model import Net
from fedcl.core.params import Params, add
from fedcl.core.task import ClientTask, Examples

__all__ = ["Lingo"]


@dataclass(frozen=True)
class State:
    """Server state: the model, whose head holds the vectors from the beginning on."""

    params: Params


@dataclass(frozen=True)
class VectorCrossEntropy:
    """Cross-entropy of the cosines with frozen vectors, one value per example.

    Attributes:
        vectors: The vectors; each client works them out by itself.
        scale: Factor of the cosines.
        masked: Compare only the classes of the client's present task.
    """

    rowwise: ClassVar[bool] = True

    vectors: ClassVectors
    scale: float
    masked: bool

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        """Returns (n,) losses."""
        features, allowed = head_inputs(net, batch.x), task.present if self.masked else task.head
        rows = self.vectors(allowed.shape[-1], features.shape[1])
        near = cosines(features, rows.to(device=features.device, dtype=features.dtype))
        logits = masked_logits(self.scale * near, allowed)
        return F.cross_entropy(logits, batch.y, reduction="none")


@dataclass(frozen=True)
class Lingo(Method[State]):
    """Clients train all but the head, towards frozen vectors of their classes.

    Attributes:
        vectors: `orthogonal`, or a .npz or .safetensors file with one (classes, k) array, which
            everybody who takes part needs.
        vectors_seed: Seed of the orthogonal frame, or of the projection of k to the features.
        scale: Factor of the cosines.
        masked: Compare only the classes of the present task in the loss. Else examples of new
            classes drive features away from the vectors of old ones, which has no remedy here.
    """

    vectors: str = "orthogonal"
    vectors_seed: int = 0
    scale: float = 10.0
    masked: bool = True

    family: ClassVar[str] = "language"
    travels: ClassVar[str] = "nothing; the head's weights stay where they are"
    paper: ClassVar[str] = "language-guided heads; the form is fedcl's own"
    coverage: ClassVar[Coverage] = OWN  # each example meets the public vectors by itself

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be above 0 and finite, not {self.scale}")
        ClassVectors(self.vectors, self.vectors_seed)  # whatever is wrong with a file shows now

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the vectors take in float64, as they are and cast."""
        width, classes = sizes.layers.get("head.weight", (0, 0))
        return Needs(client=2 * 8 * width * classes)

    def init(self, params: Params) -> State:
        """Puts the vectors in the head's place.

        Raises:
            ConfigError: The model is nothing but a head, or a file has other classes.
        """
        if "head.weight" not in params or not without_head(params):
            raise ConfigError("lingo needs a model with layers to train below a layer named head")
        rows = ClassVectors(self.vectors, self.vectors_seed)(*params["head.weight"].shape)
        return State(with_head(params, rows.T))

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort to all but the head."""
        vectors = ClassVectors(self.vectors, self.vectors_seed)
        local = fed.local(VectorCrossEntropy(vectors, self.scale, self.masked))
        body = without_head(state.params)
        change = fed.aggregate(local, Model(body)).mean
        return replace(state, params={**state.params, **add(body, change)})

    def predict(self, state: State, net: Net, x: Tensor, allowed: Tensor) -> Tensor:
        """Returns the scaled cosines with the vectors."""
        near = cosines(head_inputs(net, x), head_rows(net))
        return masked_logits(self.scale * near, allowed)
