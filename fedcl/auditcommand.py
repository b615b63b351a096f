"""The command `fedcl audit`: repeats a run under audits, and says what they found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedcl.core.errors import ConfigError

DEFAULT = ("residual", "canaries", "backdoor", "inversion", "classes")
# They attack what clients send, and would attack canaries among them.
ATTACKS = ("inversion", "classes")


def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    name: Annotated[
        list[str] | None,
        typer.Option("--audit", metavar="NAME", help="An audit; all that fit when none is named."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME.OPTION=VALUE", help="An option of an audit."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the repeat [RUN/audited, audited-2, ...].")
    ] = None,
) -> None:
    """Repeats a run under audits: what do its payloads tell, and does its noise hold?"""
    from fedcl.__main__ import overrides

    folder = out or _free(run / "audited")
    summary = audit_run(run, folder, name or (), overrides(set_))
    Console().print(shown(summary))
    typer.echo(f"files: {folder}")
    with suppress(ImportError):  # without the extra `report` there is none
        from fedcl.report import write_report

        typer.echo(f"report: {write_report(run)}")
    from fedcl.reporting.findings import failures

    if failed := failures(summary):
        typer.echo(f"FAILED: {', '.join(failed)}", err=True)
        raise typer.Exit(3)


def audit_run(
    run: Path, folder: Path, names: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Repeats a run's config under audits; returns the summary of the repeat.

    The repeat draws noise of its own. Its bound from below, and what else the audits found, is
    written into the run's summary too, since it is about the same mechanism.

    Args:
        run: Folder of a finished run; its config says what to repeat.
        folder: Folder of the repeat.
        names: Audits; empty for `DEFAULT`, as far as they fit the run, and without attacks on what
            clients send where canaries are among them.
        options: Options of audits by `name.option`.

    Raises:
        ConfigError: The folder holds no finished run, or an audit does not fit it.
    """
    from fedcl.assembly import build_site
    from fedcl.audited import opened_watches
    from fedcl.config import load_config
    from fedcl.core.accounting.ledger import Ledger
    from fedcl.experiment import run as run_experiment
    from fedcl.record import write_text

    done = _summary(run)
    wanted = []
    for name in names or DEFAULT:
        own = {k.partition(".")[2]: v for k, v in options.items() if k.partition(".")[0] == name}
        wanted.append({"name": name, **own})
    unknown = {key.partition(".")[0] for key in options} - {table["name"] for table in wanted}
    if unknown:
        raise ConfigError(
            f"--set {sorted(unknown)[0]}...: no such audit runs; name it with --audit first"
        )
    if not names:
        fitting = []
        for table in wanted:
            try:
                one = load_config(run / "config.toml", {"audit": [table]})
                opened_watches(one, build_site(one), Ledger(), whole=True)
            except ConfigError:
                continue
            fitting.append(table)
        joined = any(table["name"] == "canaries" for table in fitting)
        wanted = [table for table in fitting if not (joined and table["name"] in ATTACKS)]
        if not wanted:
            raise ConfigError(
                f"none of the audits {', '.join(DEFAULT)} fits run {run}: name one with --audit "
                '(fedcl list audits), or protect the run with a [[channel]] such as "central_dp"'
            )
    experiment = load_config(run / "config.toml", {"audit": wanted})
    command = ("fedcl", "audit", str(run), *(w for n in names for w in ("--audit", n)))
    summary = run_experiment(experiment, folder, command=command).summary
    added = {key: summary[key] for key in ("epsilon_lower", "audits")}
    write_text(run / "summary.json", json.dumps({**done, **added}, indent=2) + "\n")
    return dict(summary)


def _free(folder: Path) -> Path:
    """Returns a folder of this name that is not there yet, numbered from the second on."""
    found, number = folder, 1
    while found.exists():
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found


def _summary(run: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"folder {run} holds no finished run: name one with config.toml and summary.json"
        ) from error
    return found


def shown(summary: Mapping[str, Any]) -> Table:
    """Returns a table of what audits found."""
    from fedcl.reporting.findings import told

    table = Table("audit", "found", "value")
    for row in told(summary):
        table.add_row(*row)
    lower, upper = summary["epsilon_lower"], summary["epsilon"]
    table.add_row("all", "epsilon, from below and above", f"{lower} to {upper}")
    return table
