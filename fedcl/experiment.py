"""An experiment from its config to its record: checked, run in the one loop, summed up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fedcl.assembly import build_site, check_minimum, check_protection, is_live
from fedcl.audited import examined
from fedcl.config import Experiment
from fedcl.core.channel import mechanism
from fedcl.core.data.stream import Stream
from fedcl.elsewhere import check_reach
from fedcl.forecast import check_room, forecast, occupied
from fedcl.journal import Journal
from fedcl.ledgerfile import opened_ledger
from fedcl.loop import Loop
from fedcl.privacy import privacy_summary
from fedcl.progress import Progress as Progress
from fedcl.record import Record, finish
from fedcl.runfolder import clients_folder, opened
from fedcl.summary import read_reference, summarise
from fedcl.tuning import tuned


def run(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    watch: Callable[[Progress], None] | None = None,
    command: tuple[str, ...] = (),
) -> Record:
    """Runs an experiment and returns its record.

    Args:
        experiment: What to run.
        out: Folder for its files; None writes nothing.
        resume: Go on from the folder's checkpoint, to the same bits as an uninterrupted run.
        watch: Called after each round.
        command: The command that repeats the run, for the summary.

    Raises:
        ConfigError: The experiment cannot be run as it is, is predicted not to fit in memory or on
            disk, or the folder is in use.
        ResumeError: The checkpoint belongs to another config or version.
        ClientError: A client's program failed.
    """
    # One thread everywhere: one and two threads give different bits.
    torch.set_num_threads(1)
    folder = None if out is None else Path(out)
    with clients_folder(experiment, folder) as keep:
        return _run(experiment, folder, keep, resume, watch, command)


def _run(
    experiment: Experiment,
    folder: Path | None,
    keep: Path | None,
    resume: bool,
    watch: Callable[[Progress], None] | None,
    command: tuple[str, ...],
) -> Record:
    before = occupied("VmHWM")
    site = build_site(experiment, keep)
    stream: Stream = site.population.stream  # type: ignore[attr-defined]
    check_reach(experiment, stream)
    check_minimum(experiment, stream)
    check_protection(experiment, stream)
    joint = read_reference(experiment.evaluation.reference, experiment, stream)
    check_room(forecast(experiment, site, before), experiment, folder)
    experiment = tuned(experiment, site, folder if resume else None)
    protection, seed = mechanism(experiment.channel), experiment.seed
    with (
        opened(folder, experiment.resolved, experiment.toml, resume, is_live(experiment)) as store,
        opened_ledger(
            folder, protection, seed, experiment.resolved, site, live=is_live(experiment)
        ) as (root, ledger),
    ):
        loop = Loop(experiment, site, Journal(experiment, folder, store, ledger), root, watch)
        record = loop.run()
        findings = examined(experiment, loop.watches, record.params, folder)
        record.summary = {
            **summarise(experiment, loop.stream, record, joint),
            **privacy_summary(ledger, protection, loop.stream.stages, experiment),
            **findings,
            "engine": experiment.names["engine"],
            "engine_reason": loop.engine_reason,
            "rounds": loop.journal.rounds,
            **loop.journal.events_by_kind(),
            "rejected_replies": len(loop.journal.rejected),
            "seconds": loop.journal.seconds,
            "command": list(command),
        }
        if folder is not None:
            loop.journal.export()
            finish(record)
    return record
