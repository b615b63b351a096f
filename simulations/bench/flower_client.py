"""The client of the Flower app, a module of its own so that Flower's workers can import it."""

from __future__ import annotations

import os

import torch
from bench.work import WORKS, client_data, make_model, train
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

torch.set_num_threads(1)
app = ClientApp()
# Examples stay with the worker, so that Flower is shown at its best.
_cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


@app.train()
def fit(message: Message, context: Context) -> Message:
    """Trains the received model on the client's examples."""
    name = os.environ["BENCH_MODEL"]
    model = make_model(name)
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    model.load_state_dict(arrays.to_torch_state_dict())
    client = int(context.node_config["partition-id"])
    if client not in _cache:
        _cache[client] = client_data(client, WORKS[name].examples)
    x, y = _cache[client]
    train(model, x, y, WORKS[name])
    metrics = MetricRecord({"num-examples": len(x)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)
