"""The server half as a Flower ServerApp: the same run as `fedcl run`, on the Grid that Flower has.

Run config: `config` names a TOML file, `set` holds KEY=VALUE words as `fedcl run --set` takes them,
`out` the run's folder, and `resume` whether to go on from its checkpoint.
"""

from __future__ import annotations

import logging
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from fedcl.config import Experiment, load_config
from fedcl.core.errors import ConfigError, FedclError
from fedcl.experiment import run
from fedcl.flower.node.config import temporary
from fedcl.flower.runconfig import settings, words
from fedcl.flower.server.guestbook import open_guestbook
from fedcl.flower.server.handed import Handed, hand
from fedcl.flower.server.policy import check_live
from fedcl.flower.server.status import Status
from fedcl.progress import Progress

app = ServerApp()
_log = logging.getLogger("flwr")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the experiment of a run config; raises one FedclError that says what is wrong."""
    try:
        serve(grid, context.run_config)
    except FedclError as error:
        # Flower writes the traceback of whatever ends an app: here it would hide the message.
        raise error.with_traceback(None) from None


def serve(grid: Grid, config: Mapping[str, Any]) -> None:
    """Runs an experiment on a grid.

    Args:
        grid: Flower's grid: of its own simulation, or of a deployment.
        config: The run config.

    Raises:
        FedclError: As `fedcl.run` does, or the run config names no config.
    """
    live = not isinstance(grid, InMemoryGrid)
    experiment = read(config, live)
    if live:
        check_live(experiment)
    resume = bool(config.get("resume", False))
    folder = _folder(experiment, config, resume)
    status = Status(folder if live else None)

    def watch(now: Progress) -> None:
        status.watch(now)
        accuracy = "-" if now.accuracy is None else f"{100 * now.accuracy:.1f} %"
        _log.info(
            "stage %d: %d of %d rounds, accuracy %s", now.stage, now.done, now.total, accuracy
        )

    with hand(Handed(grid, live, status)):
        run(experiment, folder, resume=resume, watch=watch, command=_command(config, folder))
    if not live and not config.get("out"):  # simulated nodes could not be told where this is
        shutil.rmtree(temporary() / open_guestbook(folder).experiment, ignore_errors=True)
    _log.info("files: %s", folder)


def read(config: Mapping[str, Any], live: bool) -> Experiment:
    """Returns the experiment of a run config, with the engine that asks Flower's nodes.

    Args:
        config: The run config.
        live: Whether nodes are devices: a bad reply is left out, unless the config says otherwise,
            and every round is committed.
    """
    path = str(config.get("config", ""))
    if not path:
        raise ConfigError("the run config names no config: add --run-config 'config=\"FILE.toml\"'")
    changes = settings(str(config.get("set", "")))
    experiment = load_config(path, changes)
    engine = dict(experiment.resolved["engine"])
    changes["engine"] = engine if engine["name"] == "flower" else {"name": "flower"}
    changes = {key: value for key, value in changes.items() if not key.startswith("engine.")}
    if live:
        changes["checkpoint.seconds"] = 0
        named = tomllib.loads(Path(path).read_text(encoding="utf-8-sig")).get("replies", {})
        if "bad" not in named and not {"replies", "replies.bad"} & changes.keys():
            changes["replies.bad"] = "reject"
    return load_config(path, changes)


def _folder(experiment: Experiment, config: Mapping[str, Any], resume: bool) -> Path:
    """Returns the run's folder: the one that is named, or a new one; to resume, the newest."""
    if config.get("out"):
        return Path(str(config["out"])).absolute()
    method = experiment.names["method"].rpartition(":")[2]
    stem = f"{Path(str(config['config'])).stem}-{method}-{experiment.seed}"
    number, place = 1, Path("runs") / stem
    while place.exists():
        number += 1
        newer = Path("runs") / f"{stem}-{number}"
        if resume and not newer.exists():
            break
        place = newer
    return place.absolute()


def _command(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Returns the command that runs the same experiment as a simulation."""
    changes = [part for word in words(str(config.get("set", ""))) for part in ("--set", word)]
    return ("fedcl", "run", str(config["config"]), *changes, "--out", str(folder))
