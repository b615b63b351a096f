"""The client half: trains a small network on data of its own, and counts its rounds."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn import functional as F

app = ClientApp()


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def examples(client: int) -> tuple[Tensor, Tensor]:
    """Twenty to thirty examples, the same at every call."""
    generator = torch.Generator().manual_seed(100 + client)
    count = 20 + client % 11
    y = torch.randint(0, 3, (count,), generator=generator)
    x = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    x[torch.arange(count), y] += 2.0
    return x, y


@app.train()
def train(message: Message, context: Context) -> Message:
    model = make_model()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    x, y = examples(int(context.node_config["partition-id"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=float(context.run_config.get("lr", 0.1)))
    for start in range(0, len(x), 10):
        optimizer.zero_grad()
        F.cross_entropy(model(x[start : start + 10]), y[start : start + 10]).backward()
        optimizer.step()
    if "rounds" not in context.state:
        context.state["rounds"] = MetricRecord({"count": 0})
    rounds = context.state.metric_records["rounds"]
    rounds["count"] = int(rounds["count"]) + 1  # type: ignore[arg-type]
    metrics = MetricRecord({"num-examples": len(x), "rounds": rounds["count"]})
    return Message(
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}),
        reply_to=message,
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model = make_model()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    x, y = examples(int(context.node_config["partition-id"]))
    with torch.no_grad():
        loss = F.cross_entropy(model(x), y).item()
    metrics = MetricRecord({"num-examples": len(x), "loss": loss})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
