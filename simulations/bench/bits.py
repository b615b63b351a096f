"""Whether bits are the same for any number of workers, and after kill -9 and resume."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.lanes import write_config

_EVERY_ROUND = {"checkpoint.seconds": 0.0}


def bits(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how many of the runs end with the bits of an uninterrupted one in one process.

    Args:
        spec: `rounds` of the run, `workers` to compare and number of `kills`.
    """
    same = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        changes = {"training.rounds": spec["rounds"], **_EVERY_ROUND}
        config = write_config(spec, folder, changes)
        start = time.perf_counter()
        _run(config, folder / "whole")
        seconds = time.perf_counter() - start
        expected = _hash(folder / "whole")
        for workers in spec["workers"]:
            out, place = folder / f"ray{workers}", folder / f"config{workers}"
            place.mkdir()
            engine = {"name": "ray", "workers": workers}
            _run(write_config({**spec, "engine": engine}, place, changes), out)
            same[f"{workers} workers"] = _hash(out) == expected
        generator = random.Random(0)
        for kill in range(spec["kills"]):
            out = folder / f"killed{kill}"
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(_words(config, out), stdout=quiet, stderr=quiet)
            try:
                process.wait(generator.uniform(0.3, 0.95) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if not (out / "summary.json").exists():
                _run(config, out, "--resume")
            same[f"kill {kill}"] = _hash(out) == expected
    return {"runs": len(same), "same": sum(same.values()), "each": same}


def _words(config: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "fedcl", "run", str(config), "--out", str(out), *options]


def _run(config: Path, out: Path, *options: str) -> None:
    done = subprocess.run(
        _words(config, out, *options), capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])


def _hash(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
