"""The client half on a real device: `app` is the ClientApp that a SuperNode runs.

Its node config says which client it is and where config, data and state lie
(`fedcl.flower.node.config`). Each message is answered by a new process, so that all that must last
lies in the state folder (`fedcl.flower.node.statefolder`). As a node of Flower's own simulation it
takes the config of the run, and has neither identity nor secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from fedcl.core.errors import ConfigError
from fedcl.core.privacy.noise import key_of
from fedcl.flower.node.client_app import make_app
from fedcl.flower.node.config import NodeConfig, read
from fedcl.flower.node.home import Home, Own
from fedcl.flower.node.statefolder import StateFolder, token_of

_ID = re.compile(r"[0-9a-f]{8,64}")


@contextmanager
def at_home(context: Context, experiment: str) -> Iterator[Home]:
    """Opens a node's home in an experiment, for the time of an answer.

    Args:
        context: Flower's context of the node.
        experiment: fedcl's id of the experiment; nothing before there is one.

    Raises:
        ConfigError: The node config, the state folder or the id cannot work.
    """
    own = read(context.node_config, context.run_config)
    if experiment and not _ID.fullmatch(experiment):
        raise ConfigError(
            f"{experiment!r:.80} is no id of an experiment: ids are 8 to 64 hexadecimal digits"
        )
    if own.simulated:
        yield Home(own.client, lambda: _own(own, experiment, own.state / experiment))
        return
    folder = StateFolder(own.state, own.client)
    with folder.held(context.node_id) as root:
        yield Home(
            own.client,
            lambda: _own(own, experiment, folder.experiment(experiment)),
            root=key_of(root, "experiment", experiment),
            token=token_of(root, experiment) if experiment else "",
            budget=own.budget,
            within=folder.experiments,
        )
        folder.used(experiment)


@lru_cache(maxsize=2)
def _own(own: NodeConfig, experiment: str, keep: Path) -> Own:
    """Returns what a node makes of its config; for an experiment built once in a process."""
    return Own(own.load(), keep, device=not own.simulated)


app = make_app(at_home)
