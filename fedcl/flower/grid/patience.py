"""How many nodes Flower's own code waits for: with a fixed number of nodes it may wait for ever."""

from __future__ import annotations

import inspect
from types import FrameType

from flwr.server.compat import app_utils
from flwr.serverapp.strategy.strategy_utils import sample_nodes


def awaited(frame: FrameType | None) -> int:
    """Returns the number of nodes without which the caller does not go on, 0 when it will.

    Flower's strategies say it nowhere but in local variables, and then sleep until it is true.

    Args:
        frame: Of the code that asks for the nodes there are.
    """
    if frame is None:
        return 0
    if frame.f_code is sample_nodes.__code__:
        return int(frame.f_locals["min_available_nodes"])
    outer = frame.f_back  # in the old API, a client manager looks for nodes before it samples some
    if outer is None or outer.f_code.co_filename != app_utils.__file__:
        return 0
    known = outer.f_locals
    method = known.get("original_method")
    if method is None or method.__name__ != "sample":
        return 0
    asked = inspect.signature(method).bind(*known["args"], **known["kwargs"])
    return int(asked.arguments.get("min_num_clients") or asked.arguments["num_clients"])
