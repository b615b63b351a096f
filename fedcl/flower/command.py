"""The command `fedcl flower`; Flower itself loads when it runs."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def flower(
    app_dir: Annotated[Path, typer.Argument(help="A Flower app's folder, with pyproject.toml.")],
    clients: Annotated[int, typer.Option(help="Number of nodes.")],
    workers: Annotated[int, typer.Option(help="Processes on Ray; 0 stays in this one.")] = 0,
    run_config: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE ...", help="Changes of the app's config, in TOML."),
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Folder for the contexts of nodes.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the contexts in that folder.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of what the app draws without a seed.")] = 0,
    gpus: Annotated[float, typer.Option(help="Share of a GPU that each worker has.")] = 0.0,
    quiet: Annotated[bool, typer.Option(help="Only warnings of Flower's log.")] = False,
) -> None:
    """Runs an unchanged Flower app, its nodes in blocks, in this process or on Ray workers."""
    from fedcl.flower.grid.app import run_app
    from fedcl.flower.grid.folder import read_app

    logging.getLogger("flwr").setLevel(logging.WARNING if quiet else logging.INFO)
    app = read_app(app_dir, run_config or ())
    try:
        finished = run_app(
            app.server,
            app.client,
            clients=clients,
            workers=workers,
            run_config=app.config,
            state=state,
            resume=resume,
            seed=seed,
            gpus=gpus,
            name=app.name,
        )
    except KeyboardInterrupt:
        words = [word for word in sys.argv[1:] if word != "--resume"]
        again = shlex.join(["fedcl", *words, "--resume"])
        typer.echo(f"stopped; go on with: {again}" if state else "stopped", err=True)
        raise typer.Exit(130) from None
    speed = finished.answered / max(finished.seconds, 1e-9)
    typer.echo(
        f"{app.name}: {finished.answered} replies, {finished.failed} of them errors, in "
        f"{finished.seconds:.1f} s ({speed:.0f} a second)"
    )
    if state is not None:
        typer.echo(f"contexts: {state}")
