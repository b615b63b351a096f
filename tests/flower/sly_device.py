"""A device's app that lies where its node config says so, as in `lies="nan stale"`."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedcl.flower.device import at_home
from fedcl.flower.node import client_app
from tests.flower.lying import lie

app = ClientApp()


@app.query("introduction")
def introduction(message: Message, context: Context) -> Message:
    """Says who it is, and no lie."""
    told = client_app.introduce(message.content, lambda name: at_home(context, name))
    return Message(told, reply_to=message)


@app.query("exchange")
def exchange(message: Message, context: Context) -> Message:
    """Answers, with the next lie if it has any."""
    content = client_app.respond(message.content, lambda name: at_home(context, name))
    lies = str(context.node_config.get("lies", "")).split()
    if lies:
        told = Path(str(context.node_config["state"])) / "told"
        number = len(told.read_text()) if told.exists() else 0
        told.write_text("x" * (number + 1))
        content = lie(lies[number % len(lies)], content)
    return Message(content, reply_to=message)
