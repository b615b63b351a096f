"""The command `fedcl watch`: a run as it goes on, in the terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live


def watch(
    run: Annotated[Path, typer.Argument(help="Folder of a run, going on or finished.")],
    once: Annotated[bool, typer.Option("--once", help="Show the run once and stop.")] = False,
    every: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks at the folder.")
    ] = 1.0,
) -> None:
    """Shows a run until it has ended; it reads the run's folder and changes nothing there."""
    from fedcl.watching.frame import frame_of
    from fedcl.watching.sources import read
    from fedcl.watching.view import shown

    frame = frame_of(read(run), time.time())
    console = Console()
    if once:
        console.print(shown(frame))
        return
    try:
        with Live(shown(frame), console=console, auto_refresh=False) as view:
            while not frame.finished:
                time.sleep(every)
                frame = frame_of(read(run), time.time())
                view.update(shown(frame), refresh=True)
    except KeyboardInterrupt:
        return  # who looks on may leave whenever they like
