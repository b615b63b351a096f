"""Flower's strategies as rules: the one place here that knows Flower, which it loads when asked."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from fedcl.core.params import Params

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict

_ARRAYS, _NUMBERS, _WEIGHT = "arrays", "metrics", "num-examples"


@dataclass(frozen=True)
class _Answer:
    """What a strategy looks at of a message; a real one belongs to a run of Flower's."""

    content: RecordDict

    def has_error(self) -> bool:
        """Whether there is no content."""
        return False


def chosen(strategy: str, replies: Sequence[Params], **options: Any) -> Mapping[str, Tensor]:
    """Returns what one of Flower's strategies makes of replies, all of which weigh 1.

    It computes in float64 on the CPU, whatever the replies' type and device.

    Args:
        strategy: Name of a class of `flwr.serverapp.strategy`.
        replies: Finite tensors of the same names and shapes; at least one reply.
        options: Arguments of the class.

    Returns:
        Float64 tensors, named and shaped as the replies', on their device.
    """
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp import strategy as strategies

    messages = [
        _Answer(
            RecordDict(
                {
                    _ARRAYS: ArrayRecord(
                        {name: Array(_float64(value)) for name, value in reply.items()}
                    ),
                    _NUMBERS: MetricRecord({_WEIGHT: 1}),
                }
            )
        )
        for reply in replies
    ]
    rule = getattr(strategies, strategy)(weighted_by_key=_WEIGHT, **options)
    with _quiet():
        found, _ = rule.aggregate_train(0, cast("Sequence[Message]", messages))
    assert found is not None, f"{strategy} made nothing of {len(replies)} replies"
    return {
        name: torch.from_numpy(np.array(found[name].numpy())).to(value.device)
        for name, value in replies[0].items()
    }


def _float64(value: Tensor) -> np.ndarray:
    return value.detach().to("cpu", torch.float64).numpy()


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower tells of every aggregation, and its Bulyan collects garbage after each reply.

    What lies in memory by then is no garbage: looking through it takes longer than the rule.
    """
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        logger.setLevel(level)
