"""Results depend on values alone, never on how a tensor happens to lie in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fedcl
from fedcl.assembly import build_site
from fedcl.core.client import Model
from fedcl.core.local import Local, cross_entropy
from fedcl.core.request import Position, Request
from tests.tiny import (
    Interrupted,
    assert_same_runs,
    first_parameters,
    interrupt_after,
    same,
    tiny,
)


def test_a_basis_from_the_checkpoint_gives_the_bits_of_one_just_computed(tmp_path: Path) -> None:
    """QR returns its factor column by column, a file gives it row by row: products differ."""
    experiment = tiny({"method.name": "fot", "training.dtype": "float64"})
    with pytest.raises(Interrupted):
        fedcl.run(experiment, tmp_path, watch=interrupt_after(3))
    assert_same_runs(fedcl.run(experiment, tmp_path, resume=True), fedcl.run(experiment))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_client_answers_alike_however_its_message_lies(dtype: str) -> None:
    experiment = tiny({"training.dtype": dtype})
    site = build_site(experiment)
    params = first_parameters(experiment)
    # Matrices column by column, and from an address that no allocator would choose.
    turned = {k: v.T.contiguous().T if v.dim() == 2 else v for k, v in params.items()}
    shifted = {k: _shifted(v) for k, v in params.items()}
    results = []
    for given in (params, turned, shifted):
        request = Request(Position(0, 0, 0), Local(cross_entropy), Model(given), True)
        results.append(site.loop(request, (0, 1, 2), {}).replies)
    assert same(results[0], results[1]) and same(results[0], results[2])


def _shifted(value: torch.Tensor) -> torch.Tensor:
    room = torch.empty(value.numel() + 1, dtype=value.dtype)
    return room[1:].view(value.shape).copy_(value)
