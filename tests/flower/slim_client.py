"""A program for an environment without extras: one client meets a server and trains once.

python slim_client.py CONFIG STATE DATA
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from importlib.util import find_spec

import torch
from flwr.app import Context, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.app.user_config import UserConfig

from fedcl.assembly import build_site
from fedcl.config import Experiment, load_config
from fedcl.core.client import Model
from fedcl.core.local import CrossEntropy, Local
from fedcl.core.request import Position, Request
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.device import app
from fedcl.flower.protocol.agreement import fingerprints
from fedcl.flower.protocol.introductions import Introduced, Introduction
from fedcl.flower.protocol.messages import Coded, Question, read_failure, read_reply

# What simulators, reports and audits need, and tests.
HEAVY = (
    "datasets",
    "dp_accounting",
    "hypothesis",
    "matplotlib",
    "opacus",
    "PIL",
    "pytest",
    "ray",
    "sklearn",
)
EXPERIMENT = "0123456789abcdef"


def ask(content: RecordDict, kind: str, own: Context) -> RecordDict:
    """Returns what the ClientApp answers to a message of Flower."""
    asked = make_message(Metadata(1, "1", 2, 5, "", "", time.time(), 60.0, kind, 3, 4), content)
    return app(asked, own).content


def digest(config: str, state: str, data: str) -> tuple[int, str]:
    """Returns who answers, and a hash of what it sends up after its first training."""
    torch.set_num_threads(1)
    experiment: Experiment = load_config(config)
    told: UserConfig = {"client": 1, "config": config, "state": state, "data": data}
    own = Context(1, 5, told, RecordDict(), {})
    met = ask(Introduction.of(EXPERIMENT, experiment.resolved).write(), "query.introduction", own)
    words = vocabulary(experiment.method)
    site = build_site(load_config(config, {"dataset.root": data}))
    params = {name: value.detach() for name, value in site.model.named_parameters()}
    request = Request(Position(0, 0, 0), Local(CrossEntropy()), Model(params))
    coded = Coded.of((request.program, request.message, request.told), words)
    question = Question(
        EXPERIMENT,
        fingerprints(experiment.resolved),
        coded,
        request.position,
        None,
        request.committed,
    )
    answer = ask(question.write(), "query.exchange", own)
    assert (failure := read_failure(answer)) is None, failure
    reply, _ = read_reply(answer, request.position, words)
    found = hashlib.sha256()
    for name, value in sorted(reply.tensors.items()):
        found.update(name.encode() + value.numpy().tobytes())
    return Introduced.read(met).client, found.hexdigest()


if __name__ == "__main__":
    client, told = digest(*sys.argv[1:])
    there = [name for name in HEAVY if find_spec(name) is not None]
    print(json.dumps({"client": client, "reply": told, "there": there}))
