"""Measurements in processes of their own, kept in a file so that a stopped study goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent.parent
_PROGRAM = "from bench.lanes import main; main()"
_LONGEST = 3600.0  # seconds after which a measurement counts as hanging


@dataclass
class Lab:
    """Runs measurements, or takes them from `measurements.jsonl` in its folder.

    Attributes:
        out: The folder.
        console: Where progress goes.
        total: Number of measurements that are to come, for the progress.
        known: Results by measurement.
    """

    out: Path
    console: Console
    total: int = 0
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    _done: int = 0

    def __post_init__(self) -> None:
        self._file = self.out / "measurements.jsonl"
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
            for line in text.splitlines():
                row = json.loads(line)
                self.known[_key(row["spec"], row["repeat"])] = row["result"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(
                f"error: {self._file} cannot be used: {error}; remove it, or name another --out"
            )
        if self.known:
            self.console.print(
                f"{len(self.known)} measurements are in {self._file} already and are not repeated; "
                "remove the folder to begin anew",
                soft_wrap=True,
            )

    def measure(
        self,
        spec: Mapping[str, Any],
        repeat: int = 0,
        python: str = sys.executable,
        live: bool = False,
    ) -> dict[str, Any] | None:
        """Returns the result of one measurement; None, and a line that says why, when it fails.

        Args:
            spec: What to measure: `measure` names it, the rest is for it; see `bench.lanes`.
            repeat: Which of several equal ones.
            python: The interpreter of the process.
            live: Whether what it says on the way is shown at once.
        """
        self._done += 1
        key = _key(spec, repeat)
        if key in self.known:
            return self.known[key]
        shown = ", ".join(_shown(name, value) for name, value in spec.items())
        self.console.print(f"[{self._done}/{self.total}] {shown}", markup=False, soft_wrap=True)
        result = self._run(spec, python, live)
        if result is not None:
            self.known[key] = result
            with self._file.open("a", encoding="utf-8") as file:
                row = {"spec": dict(spec), "repeat": repeat, "result": result}
                file.write(json.dumps(row) + "\n")
        return result

    def _run(self, spec: Mapping[str, Any], python: str, live: bool) -> dict[str, Any] | None:
        try:
            done = subprocess.run(
                [python, "-c", _PROGRAM, json.dumps(spec)],
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=None if live else subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                timeout=_LONGEST,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self.console.print(f"  left out: {error}", markup=False, soft_wrap=True)
            return None
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            said = ((done.stderr or done.stdout).strip() or "see above").splitlines()
            self.console.print(f"  left out: {said[-1]}", markup=False, soft_wrap=True)
            return None
        result: dict[str, Any] = json.loads(lines[-1])
        return result


def environment() -> dict[str, str]:
    """Returns the environment of a measurement: one thread a process, everyone equally nice."""
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), *([inherited] if inherited else [])]),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        # Ray's workers are the experiment, not background jobs, in Flower's simulation too.
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
    }


def importable(python: str, module: str) -> bool:
    """Returns whether an interpreter can be started and finds a module."""
    test = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return (
            subprocess.run([python, "-c", test], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def _key(spec: Mapping[str, Any], repeat: int) -> str:
    return json.dumps([spec, repeat], sort_keys=True)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(map(str, value.values()))
    return value if isinstance(value, str) else f"{name} {value}"
