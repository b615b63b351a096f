"""The table of `docs/privacy.md` says of each method what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from fedcl.config import available, find
from fedcl.core.method import Method

DOCS = Path(__file__).parent.parent / "docs" / "privacy.md"


def row_of(name: str) -> str:
    found = find("methods", name)
    assert issubclass(found, Method)
    coverage = found().records()
    clients = "no: asks for single replies" if found.exposure == "replies" else "yes"
    records = {
        "own": "yes",
        "kept": "yes, and remembered records go on paying",
        "refused": f"no: {coverage.reason.split('; ')[0]}",
    }[coverage.kind]
    return f"| `{name}` | {clients} | {records} |"


def test_the_table_lists_every_method_as_the_code_has_it() -> None:
    text = DOCS.read_text(encoding="utf-8")
    section = text.split("## Which methods run under which mechanism")[1].split("\n## ")[0]
    listed = [line for line in section.splitlines() if re.match(r"\| `", line)]
    assert listed == [row_of(name) for name in available("methods")]
