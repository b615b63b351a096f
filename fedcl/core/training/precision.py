"""Faster matrix products on a GPU, at the price of digits; a CPU's results never change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def reduced(device: torch.device, precision: str) -> Iterator[None]:
    """Computes with less precise matrix products for the time of a block of clients.

    Args:
        device: Where clients compute; on a CPU nothing changes.
        precision: `full`; `tf32`, whose products have 10 bits of mantissa and float32 sums; or
            `bf16`, PyTorch's autocast to bfloat16, which leaves parameters and sums in float32.
    """
    if device.type != "cuda" or precision == "full":
        yield
    elif precision == "bf16":
        with torch.autocast("cuda", dtype=torch.bfloat16):
            yield
    else:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
