"""A frame as the terminal shows it.

Reasons come from clients and from files: they are shown as text, never as markup, and without the
control characters that would move a terminal's cursor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedcl.reporting.text import duration, percent, points, volume
from fedcl.watching.frame import Frame
from fedcl.watching.learnt import TaskNow

_TASKS = 15  # lines of tasks; earlier ones share a line
_FAILURES = 5
_IDS = 12
_LONG = 200  # characters of a reason


def shown(frame: Frame) -> RenderableType:
    """Returns what a terminal shows of a run."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(frame):
        facts.add_row(Text(name, style="dim"), Text(_clean(value)))
    parts: list[RenderableType] = [facts]
    if frame.total:
        bar = ProgressBar(total=frame.total, completed=min(frame.done, frame.total))
        parts.insert(0, Padding(bar, 0))  # by itself it ends no line
    if frame.tasks:
        parts += [Text(""), _tasks(frame.tasks)]
    if frame.failures and not frame.finished:
        parts += [Text(""), _failures(frame)]
    if frame.trouble:
        parts.append(Text(f"could not be read just now: {_clean(frame.trouble)}", style="red"))
    state = "finished" if frame.finished else "running" if frame.done else "begins"
    return Panel(
        Group(*parts),
        title=Text(_clean(f"{frame.title}: {state}")),
        subtitle=Text(_clean(str(frame.folder))),
        title_align="left",
        subtitle_align="left",
    )


def _facts(frame: Frame) -> Iterator[tuple[str, str]]:
    if frame.stage is not None:
        place = f"stage {frame.stage}{_of(frame.stages)}, round {frame.round}{_of(frame.rounds)}"
        yield "place", f"{place} ({frame.done}{_of(frame.total)} in all)"
    if frame.connected is not None:
        yield "connected", f"{len(frame.connected)}{_of(frame.clients)} clients{_ids(frame)}"
    elif frame.clients and not frame.finished:
        yield "clients", f"{frame.clients}, simulated"
    if frame.connected is not None and frame.asked:
        yield "exchange", f"{frame.answered or 0} of {frame.asked} clients have answered"
    if frame.waiting:
        yield "waiting", frame.waiting
    if frame.accuracy is not None:
        yield "accuracy", f"{percent(frame.accuracy)}, mean over the tasks met{_when(frame)}"
    if frame.forgetting is not None:
        yield "forgetting", points(frame.forgetting)
    yield "traffic", f"{volume(frame.up)} up, {volume(frame.down)} down"
    if frame.epsilon is not None:
        told = "∞" if math.isinf(frame.epsilon) else f"{frame.epsilon:.3g}"
        yield "epsilon", told
    yield "refused", f"{_many(frame.rejected, 'message')}"
    if frame.skipped:
        yield "rounds", f"{frame.skipped} skipped or repeated"
    if frame.seconds is not None:
        yield "last round", f"{duration(frame.seconds)} of exchanges"
    if frame.silent is not None and not frame.finished:
        yield "written", f"{duration(frame.silent)} ago"


def _when(frame: Frame) -> str:
    who = " on clients' own data" if frame.by == "clients" else ""
    return f"{who}, after round {frame.evaluated}"


def _ids(frame: Frame) -> str:
    ids = frame.connected or ()
    if not ids:
        return ""
    more = ", ..." if len(ids) > _IDS else ""
    return f": {', '.join(map(str, ids[:_IDS]))}{more}"


def _tasks(tasks: tuple[TaskNow, ...]) -> Table:
    table = Table("task", "accuracy", "lost", "", box=None, padding=(0, 2), header_style="dim")
    early, late = tasks[: max(0, len(tasks) - _TASKS)], tasks[-_TASKS:]
    if early:
        lost = [task.lost for task in early if task.lost is not None]
        mean = sum(task.accuracy for task in early) / len(early)
        span = f"{early[0].task + 1} to {early[-1].task + 1}, mean"
        table.add_row(*_line(span, mean, sum(lost) / len(lost) if lost else None))
    for task in late:
        table.add_row(*_line(str(task.task + 1), task.accuracy, task.lost))
    return table


def _line(name: str, accuracy: float, lost: float | None) -> tuple[RenderableType, ...]:
    told = "" if lost is None else points(lost)
    bar = ProgressBar(total=1.0, completed=accuracy, width=30)
    return Text(name), Text(f"{percent(accuracy):>7}"), Text(told), bar


def _failures(frame: Frame) -> Group:
    lines = [Text(f"{_many(len(frame.failures), 'client')} did not answer in the last round:")]
    for client, why in list(frame.failures.items())[:_FAILURES]:
        lines.append(Text(_clean(f"  client {client}: {why}")[:_LONG]))
    if len(frame.failures) > _FAILURES:
        lines.append(Text(f"  and {len(frame.failures) - _FAILURES} more"))
    return Group(*lines)


def _of(whole: int | None) -> str:
    return "" if whole is None else f" of {whole}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _clean(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)
