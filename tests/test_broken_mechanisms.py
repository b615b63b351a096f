"""Each demand on privacy holds, and each fault that somebody might make is noticed by one of them.

The table "What would be noticed" of docs/privacy.md is that of `tests/privacy_breaks.py`; a test
holds them together.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from fedcl.core.accounting import composition as accounting
from tests import privacy_checks
from tests.privacy_breaks import BREAKS, Check

PAGE = Path(__file__).parent.parent / "docs" / "privacy.md"
CHECKS = [
    check
    for check in vars(privacy_checks).values()
    if inspect.isfunction(check) and re.match(r"T\d+: ", check.__doc__ or "")
]
PAIRS = [(name, check) for name, fault in BREAKS.items() for check in fault.noticed]


def demand(check: Check) -> str:
    """Returns the number of what a check demands, such as T4."""
    return (check.__doc__ or "").partition(":")[0]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_is_demanded_holds(check: Check) -> None:
    check()


@pytest.mark.parametrize(("name", "check"), PAIRS, ids=lambda part: getattr(part, "__name__", part))
def test_a_fault_is_noticed(name: str, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    accounting._bound.cache_clear()
    BREAKS[name].apply(monkeypatch)
    try:
        with pytest.raises(AssertionError):
            check()
    finally:
        accounting._bound.cache_clear()


def test_every_demand_has_a_fault_that_it_notices() -> None:
    assert {check for _, check in PAIRS} == set(CHECKS)


def test_the_page_tells_of_just_these_faults() -> None:
    text = PAGE.read_text(encoding="utf-8")
    part = text.partition("## What would be noticed")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if re.match(r"\| .*\| T\d", line)]
    elsewhere = [row for row in rows if "::" in row]
    for row in elsewhere:
        file, name = row.split("`")[1].split("::")
        assert f"def {name}(" in (PAGE.parent.parent / file).read_text(encoding="utf-8"), row
    for name, fault in BREAKS.items():
        told = ", ".join(f"{demand(c)} `{c.__name__}`" for c in fault.noticed)
        assert f"| {name} | {told} |" in rows
    assert len(rows) - len(elsewhere) == len(BREAKS)
    assert {*re.findall(r"T\d+(?= `)", part)} == {f"T{k}" for k in range(1, 16)}
