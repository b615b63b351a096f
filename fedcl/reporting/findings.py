"""What a summary says of audits, as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def failures(summary: Mapping[str, Any]) -> list[str]:
    """Returns the names of the audits that contradict what a run promises."""
    return [name for name, found in (summary.get("audits") or {}).items() if found["failed"]]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def told(summary: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Yields audit, number and value of all that a summary says of audits, as text."""
    for name, found in (summary.get("audits") or {}).items():
        for key, value in found.items():
            if key not in ("note", "failed"):
                yield name, key.replace("_", " "), _text(value)
        yield name, "note", f"FAILED: {found['note']}" if found["failed"] else found["note"]
