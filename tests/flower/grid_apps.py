"""Small Flower apps whose clients do odd things; workers find them by their names."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

odd = ClientApp()


def asking(body: Callable[[Grid, Context], None]) -> ServerApp:
    """Returns a server app with this main."""
    app = ServerApp()
    app.main()(body)
    return app


def message(node: int, action: str, **values: Any) -> Message:
    """Returns a query whose config holds some values."""
    return Message(RecordDict({"config": ConfigRecord(values)}), node, f"query.{action}")


def told(reply: Message) -> dict[str, Any]:
    """Returns the values in a reply, or its error's first line."""
    if reply.has_error():
        return {"error": str(reply.error.reason).splitlines()[0]}
    return dict(reply.content.config_records["config"])


def replying(message: Message, **values: Any) -> Message:
    return Message(RecordDict({"config": ConfigRecord(values)}), reply_to=message)


def count(context: Context) -> int:
    """Counts up in the node's own state."""
    before = context.state.metric_records.get("seen", MetricRecord({"count": 0}))
    context.state["seen"] = MetricRecord({"count": int(before["count"]) + 1})  # type: ignore[arg-type]
    return int(context.state.metric_records["seen"]["count"])  # type: ignore[arg-type]


@odd.query("who")
def who(message: Message, context: Context) -> Message:
    return replying(message, **context.node_config, **context.run_config, node=context.node_id)


@odd.query("count")
def counting(message: Message, context: Context) -> Message:
    return replying(message, count=count(context))


@odd.query("draw")
def draw(message: Message, context: Context) -> Message:
    """Draws from every global generator, unseeded, as many apps do."""
    drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002
    return replying(message, drawn=drawn, threads=torch.get_num_threads())


@odd.query("spoil")
def spoil(message: Message, context: Context) -> Message:
    """Empties what it was sent, as `keep_input=False` does."""
    sent = message.content.array_records["arrays"]
    shape = sent.to_numpy_ndarrays(keep_input=False)[0].shape
    message.content["config"] = ConfigRecord({"spoilt": True})
    return replying(message, shape=list(shape), left=len(sent))


@odd.query("fail")
def fail(message: Message, context: Context) -> Message:
    """Fails in a way of the server's choice, after it has counted."""
    counted = count(context)
    how = str(message.content.config_records["config"].get("how", "raise"))
    if how == "raise":
        raise ValueError(f"no luck at {context.node_config['partition-id']}")
    if how == "exit":
        raise SystemExit(3)
    if how == "nothing":
        return None  # type: ignore[return-value]
    if how == "no reply":
        return Message(message.content, context.node_id, "query.fail")
    if how == "config":
        context.run_config["lr"] = 0.5
    return replying(message, count=counted)


@odd.query("die")
def die(message: Message, context: Context) -> Message:
    """Kills its process, if this node shall: once (until a file is there) or always."""
    config = message.content.config_records["config"]
    if context.node_config["partition-id"] == config["client"]:
        mark = Path(str(config["mark"]))
        if config["always"] or not mark.exists():
            mark.touch()
            os._exit(1)
    return replying(message, count=count(context))


@odd.query("interrupt")
def interrupt(message: Message, context: Context) -> Message:
    """Is where somebody presses Ctrl-C, at one node."""
    if context.node_config["partition-id"] == message.content.config_records["config"]["client"]:
        raise KeyboardInterrupt
    return replying(message, count=count(context))


@odd.query("sleep")
def sleep(message: Message, context: Context) -> Message:
    time.sleep(float(message.content.config_records["config"]["seconds"]))  # type: ignore[arg-type]
    return replying(message, count=count(context))


def arrays(value: float = 1.0) -> ArrayRecord:
    return ArrayRecord([np.full((2, 3), value)])


def ask(
    grid: Grid, action: str, nodes: Sequence[int] | None = None, **values: Any
) -> list[dict[str, Any]]:
    """Asks some nodes, or all, and returns what they tell."""
    ids = list(grid.get_node_ids()) if nodes is None else nodes
    return [told(r) for r in grid.send_and_receive([message(n, action, **values) for n in ids])]


def values(of: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return [each[key] for each in of]
