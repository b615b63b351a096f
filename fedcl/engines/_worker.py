"""What runs in a worker process of the Ray engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedcl.core.batch import run_batched
from fedcl.core.block import Batching
from fedcl.core.client import Each
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site
from fedcl.core.tree import move, settle


class Worker:
    """Runs blocks of clients, one after the other."""

    def __init__(self, site: Site, batching: Batching | None, device: torch.device) -> None:
        import ray

        torch.set_num_threads(1)
        # Ray would pack a tensor as a file in memory; an array's bytes travel as they are.
        ray.util.register_serializer(Tensor, serializer=_lay_down, deserializer=_pick_up)
        self._site = replace(
            site,
            model=site.model.to(device),
            population=site.population.on(device),
            device=device,
        )
        self._batching = batching
        self._request: tuple[str, Request] | None = None

    def ready(self) -> bool:
        """Answers as soon as the worker has its data."""
        return True

    def run(
        self,
        shared: Sequence[Any],
        own: Each | None,
        ids: Sequence[int],
        memories: Mapping[int, Any],
    ) -> BlockResult:
        """Runs one fold block.

        Args:
            shared: Reference of the request, in a list, so that Ray does not fetch it.
            own: The clients' own messages, where each has one.
            ids: The clients.
            memories: What those remember that remember something.
        """
        request = self._fetched(shared[0])
        if own is not None:
            request = replace(request, message=own)
        if self._batching is not None:
            result = run_batched(self._site, request, ids, memories, self._batching)
        else:
            result = self._site.loop(request, ids, memories)
        return move(result, torch.device("cpu"))

    def _fetched(self, reference: Any) -> Request:
        """Returns a request that all blocks of an exchange share: unpacked once."""
        import ray

        key = reference.hex()
        if self._request is None or self._request[0] != key:
            self._request = None
            request = ray.get(reference)
            message = settle(request.message, self._site.device)
            self._request = key, replace(request, message=message)
        return self._request[1]


def _lay_down(tensor: Tensor) -> tuple[np.ndarray, torch.dtype, torch.Size]:
    """Returns a tensor's bytes; NumPy does not know all of PyTorch's types."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy(), flat.dtype, tensor.shape


def _pick_up(parts: tuple[np.ndarray, torch.dtype, torch.Size]) -> Tensor:
    """Returns a copy: what lies in the store cannot be written to."""
    data, dtype, shape = parts
    tensor = torch.empty(shape, dtype=dtype)
    tensor.flatten().view(torch.uint8).numpy()[:] = data
    return tensor
