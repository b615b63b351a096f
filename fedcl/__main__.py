"""The command line: `fedcl run`, `show`, `report`, ...; a thin function a command."""

from __future__ import annotations

import importlib
import inspect
import io
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedcl import __version__
from fedcl.core.errors import ClientError, ConfigError, FedclError
from fedcl.reporting.text import duration, volume

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
out_console, error_console = Console(), Console(stderr=True)

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one option, e.g. --set method.name=fot."
    ),
]


def _version(asked: bool) -> None:
    if asked:
        out_console.print(__version__)
        raise typer.Exit


@app.callback(help="A simulator for federated continual learning.", invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it and stop.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A TOML file.")],
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run [runs/CONFIG-METHOD-SEED].")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Runs an experiment, writes its folder and its report."""
    from fedcl.config import load_config
    from fedcl.experiment import run as run_experiment

    experiment = load_config(config, overrides(set_))
    name = f"{config.stem}-{experiment.names['method'].rpartition(':')[2]}-{experiment.seed}"
    folder = out or Path("runs") / name
    words = ["fedcl", "run", str(config), *[w for s in set_ or [] for w in ("--set", s)]]
    words += ["--out", str(folder)]
    columns = (
        TextColumn("stage {task.fields[stage]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(
            "rounds, accuracy {task.fields[accuracy]}, {task.fields[speed]} clients/s, left"
        ),
        TimeRemainingColumn(),
    )
    drawn = error_console.is_terminal
    try:
        with Progress(
            *columns, console=error_console, disable=quiet or not drawn, transient=True
        ) as bars:
            bar = bars.add_task("", total=None, stage="-", accuracy="-", speed="-")

            def watch(now: Any) -> None:
                accuracy = "-" if now.accuracy is None else f"{100 * now.accuracy:.1f} %"
                stage = f"{now.stage + 1}/{now.stages}"
                speed = f"{now.clients_per_second:.0f}"
                bars.update(
                    bar,
                    total=now.total,
                    completed=now.done,
                    stage=stage,
                    accuracy=accuracy,
                    speed=speed,
                )
                # A log file gets a line a stage instead of a moving bar.
                if not drawn and not quiet and now.round == now.rounds:
                    _say(f"stage {stage}: {now.done} of {now.total} rounds, accuracy {accuracy}")

            record = run_experiment(
                experiment, folder, resume=resume, watch=watch, command=tuple(words)
            )
    except KeyboardInterrupt:
        _say(f"stopped; go on with: {shlex.join(words)} --resume")
        raise typer.Exit(130) from None
    _print_result(record.summary)
    out_console.print(f"engine: {record.summary['engine_reason']}", markup=False, soft_wrap=True)
    out_console.print(f"files: {_report(folder)}", markup=False, soft_wrap=True)


@app.command()
def show(
    config: Annotated[Path, typer.Argument(help="A TOML file.")],
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="Folder that a run would write to.")] = Path("runs"),
) -> None:
    """Shows what a config means: stream, shares, what a run needs, and every option."""
    from fedcl.config import load_config
    from fedcl.preview import preview

    for part in preview(load_config(config, overrides(set_)), out_console.width, out):
        out_console.print(part)


@app.command(name="list")
def list_(
    kind: Annotated[str, typer.Argument(help="methods, streams, models, ... [all]")] = "",
) -> None:
    """Lists the plug-ins, one line each."""
    from fedcl.plugins import KINDS, available, find

    if kind and kind not in KINDS:
        raise ConfigError(f"there are no {kind!r} to list (known: {', '.join(KINDS)})")
    for each in [kind] if kind else KINDS:
        rows = [(name, *_about(each, find(each, name))) for name in available(each)]
        if each == "methods":
            rows.insert(0, ("name", "family", "sees", "also travels", "what it is (from)"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        out_console.print(each, style="bold")
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            line = Text("  ".join(("", *cells)).rstrip())
            # A narrow terminal shows the beginning of a line; a file gets all of it.
            out_console.print(
                line,
                no_wrap=True,
                overflow="ellipsis" if out_console.is_terminal else "ignore",
                crop=out_console.is_terminal,
            )


def _about(kind: str, cls: Any) -> tuple[str, ...]:
    """Returns what a listing says of a plug-in: the beginning of its file, and more of a method."""
    module = inspect.getdoc(importlib.import_module(cls.__module__)) or ""
    phrase = re.split(r":(?: |$)|\n\n", module)[0].replace("\n", " ").rstrip(".")
    if kind != "methods":
        return (phrase,)
    return cls.family, cls.exposure, cls.travels, f"{phrase} ({cls.paper})"


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="Folder of a comparison of several runs.")] = Path(
        "comparison"
    ),
) -> None:
    """Draws the report of a run, or compares several runs (seeds of one setting are averaged)."""
    try:
        from fedcl.report import comparison_table, write_comparison, write_report
    except ImportError as error:
        raise ConfigError(f"no report without {error.name}: pip install 'fedcl[report]'") from error

    if len(runs) == 1:
        out_console.print(str(write_report(runs[0])), markup=False, soft_wrap=True)
        return
    page = write_comparison(runs, out)
    rows = comparison_table(runs)
    # One column a configuration: a terminal has room for few columns and many lines.
    heading, *names = rows[0]
    table = Table(heading, *(row[heading] for row in rows))
    for name in names:
        table.add_row(name, *(row[name] for row in rows))
    out_console.print(table)
    out_console.print(str(page), markup=False, soft_wrap=True)


for _module in ("auditcommand", "flower.command", "keyscommand", "watchcommand"):
    _name = _module.removesuffix("command").rstrip(".")
    app.command(name=_name)(getattr(importlib.import_module(f"fedcl.{_module}"), _name))


def overrides(settings: list[str] | None) -> dict[str, Any]:
    """Returns `KEY=VALUE` words as overrides: values parse as TOML, else as strings.

    Raises:
        ConfigError: A word is no KEY=VALUE.
    """
    found: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not all(part.strip() for part in key.split(".")):
            raise ConfigError(
                f"--set {setting!r} is not KEY=VALUE, such as --set training.rounds=20"
            )
        try:
            parsed = tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            parsed = {}
        # A text of several lines might hold more than its value.
        found[key] = parsed["value"] if parsed.keys() == {"value"} else value.strip()
    return found


def _print_result(summary: dict[str, Any]) -> None:
    method, stream, scenario, seed = (
        summary[key] for key in ("method", "stream", "scenario", "seed")
    )
    out_console.print(f"{method} on {stream} ({scenario}-incremental), seed {seed}", markup=False)
    table = Table(show_header=False)
    names = (
        "average_accuracy",
        "pooled_accuracy",
        "forgetting",
        "forgetting_first_last",
        "learning_accuracy",
    )
    for name in names:
        if summary[name] is not None:
            table.add_row(name.replace("_", " "), f"{100 * summary[name]:.2f} %")
    worst = (summary["clients"] or {}).get("average_accuracy")
    if worst:
        table.add_row(
            "worst client's accuracy",
            f"{100 * worst['worst']:.2f} % (client {worst['worst_client']})",
        )
    for name, way in (("bytes_up", "up"), ("bytes_down", "down")):
        table.add_row(f"bytes {way}", volume(summary[name]))
    table.add_row("wall time", duration(summary["seconds"]))
    out_console.print(table)


def _report(folder: Path) -> str:
    try:
        from fedcl.report import write_report
    except ImportError:
        return f"{folder} (no report: pip install 'fedcl[report]')"
    return str(write_report(folder))


def _say(message: str, style: str = "") -> None:
    """Writes one line to standard error, whatever lines an exception's message has."""
    error_console.print(" ".join(message.split()), markup=False, soft_wrap=True, style=style)


def _run(words: list[str]) -> int:
    """Runs the command line and returns its exit status."""
    try:
        status: int | None = app(words, prog_name="fedcl", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "fedcl"
        # click and typer may both say what was meant.
        sentences = dict.fromkeys(re.split(r"(?<=[.?]) ", error.format_message()))
        _say(f"error: {' '.join(sentences).rstrip('.')}; see {command} --help", "red")
        return 2
    except FedclError as error:
        _say(f"error: {error}", "red")
        return 1 if isinstance(error, ClientError) else 2
    except OSError as error:
        _say(f"error: {error}; see to it, then run again (add --resume to go on)", "red")
        return 1
    except MemoryError as error:
        _say(f"error: out of memory: {error}; fedcl show estimates what a config needs", "red")
        return 1
    return status or 0


def main() -> None:
    """Runs the command line; bad input gives one message and exit status 2."""
    # A plug-in of one's own, `module:Class`, may lie in the folder that one stands in.
    sys.path.insert(0, "")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the signs for bars
    sys.exit(_run(sys.argv[1:]))


if __name__ == "__main__":
    main()
