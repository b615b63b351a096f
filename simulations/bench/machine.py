"""What the machine can do at best: matrix products a second of one process, and of two at once."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Mapping
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

SIZES = (256, 384, 512, 768, 1024, 2048)
_PAUSE = 120.0  # seconds to wait for the other process at most


def rate(size: int, seconds: float, device: str = "cpu") -> float:
    """Returns the floating-point operations a second of square float32 products in one thread."""
    torch.set_num_threads(1)
    left = torch.randn(size, size, device=device)
    right = torch.randn(size, size, device=device)
    out = torch.empty_like(left)
    torch.mm(left, right, out=out)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        torch.mm(left, right, out=out)
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - start)


def peak(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Measures the best rate of one thread, and how far two processes come together.

    One and two alternate, since a shared machine changes from second to second.
    """
    share = spec["seconds"] / len(SIZES)
    rates = {size: rate(size, share) for size in SIZES}
    best = max(rates, key=lambda size: rates[size])
    # Spawned, as Ray's workers are: nothing of this process's memory is shared.
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    answers = context.SimpleQueue()
    words = (best, share, barrier, answers)
    pair = [context.Process(target=_together, args=words) for _ in range(2)]
    for process in pair:
        process.start()
    alone, together = [], []
    for _ in range(_TURNS):
        alone.append(rate(best, share))
        barrier.wait(_PAUSE)
        together.append(answers.get() + answers.get())
    for process in pair:
        process.join(_PAUSE)
    scaling = sorted(two / one for one, two in zip(alone, together, strict=True))
    return {
        "gflops": max(*rates.values(), *alone) / 1e9,
        "size": best,
        "two_processes": scaling[len(scaling) // 2],
    }


_TURNS = 5


def _together(size: int, seconds: float, barrier: Barrier, answers: Any) -> None:
    for _ in range(_TURNS):
        barrier.wait(_PAUSE)
        answers.put(rate(size, seconds))


def describe() -> dict[str, str]:
    """Returns the machine and the versions that the numbers belong to."""
    processor = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        processor = names[0] if names else processor
    except OSError:
        pass  # not Linux
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{processor or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
