"""The real command line, called in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli_w

from fedcl import __main__ as command_line
from fedcl.config import override
from tests.tiny import TABLE

ROOT = Path(__file__).parent.parent


class Called(NamedTuple):
    """What a call of the command line came to."""

    status: int
    out: str
    err: str


def call(*words: str | Path) -> Called:
    """Calls `main` as `fedcl WORDS` would."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        patch.setattr(sys, "argv", ["fedcl", *map(str, words)])
        patch.setattr(sys, "path", list(sys.path))
        command_line.main()
    assert isinstance(left.value.code, int)
    return Called(left.value.code, out.getvalue(), err.getvalue())


def spawn(*words: str | Path, **variables: str) -> Called:
    """Runs `python -m fedcl WORDS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "fedcl", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return Called(done.returncode, done.stdout, done.stderr)


def write_config(
    folder: Path, changes: Mapping[str, Any] | None = None, name: str = "tiny.toml"
) -> Path:
    """Writes the tiny experiment as a config file, with values replaced by dotted key."""
    path = folder / name
    path.write_text(tomli_w.dumps(override(TABLE, changes or {})), encoding="utf-8")
    return path


def assert_refused(called: Called, *fragments: str, status: int = 2) -> None:
    """Asserts that a call said one thing, with these fragments, and ended with this status."""
    (line,) = called.err.splitlines()
    assert line.startswith("error: "), line
    for fragment in fragments:
        assert fragment in line, line
    assert called.status == status
    assert called.out == ""


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder; SQLite's own log comes and goes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if "sqlite-" not in f.name}
