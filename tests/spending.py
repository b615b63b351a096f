"""What a real run needs, in a process of its own: peak memory of all processes, and its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import tomli_w

ROOT = Path(__file__).parent.parent
_MARK = "FEDCL_SPENDING"
# A child of a large process begins with its parent's peak in `ru_maxrss`; VmHWM is its own.
_PROGRAM = """
import json, sys
from fedcl.config import load_config
from fedcl.assembly import build_site
from fedcl.experiment import run
from fedcl.forecast import forecast
from fedcl.report import write_report

experiment = load_config(sys.argv[1])
found = forecast(experiment, build_site(experiment))
run(experiment, sys.argv[2])
write_report(sys.argv[2])
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
parts = [(part.what, part.size) for part in found.memory]
print(json.dumps([found.peak, found.written, parts, 1024 * peak]))
"""


class Spent(NamedTuple):
    """A prediction and what came of it, in bytes.

    Attributes:
        expected: Predicted peak of memory.
        peak: The real one.
        written: Predicted size of the finished folder.
        disk: The real one.
        parts: Predicted parts of the memory, without Python itself, by what they are.
    """

    expected: float
    peak: float
    written: float
    disk: float
    parts: Mapping[str, float]


def spent(folder: Path, table: Mapping[str, Any]) -> Spent:
    """Predicts and runs an experiment of a config's tables in a process of its own."""
    config, out, mark = folder / "config.toml", folder / "run", uuid4().hex
    config.write_text(tomli_w.dumps(dict(table)), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", _MARK: mark}
    words = [sys.executable, "-c", _PROGRAM, str(config), str(out)]
    together = 0
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.poll() is None:
            if table["engine"]["name"] == "ray":
                together = max(together, _occupied(mark))
            time.sleep(0.1)
        said = process.stdout.read()
    assert process.returncode == 0
    expected, written, parts, peak = json.loads(said)
    disk = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Spent(expected, max(peak, together), written, disk, dict(parts[1:]))


def _occupied(mark: str) -> int:
    """Returns the bytes that all processes of a run occupy now; what they share counts once."""
    found = list(_sizes(mark))
    own = sum(sizes["Pss_Anon"] + sizes["Pss_Shmem"] for sizes in found)
    # Libraries are shared with whoever else uses them here; the process with most stands for all.
    return 1024 * (own + max((sizes["RssFile"] for sizes in found), default=0))


def _sizes(mark: str) -> Iterator[dict[str, int]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{_MARK}={mark}".encode() not in (process / "environ").read_bytes():
                continue
            files = [(process / name).read_text() for name in ("smaps_rollup", "status")]
        except OSError:  # it has ended, or is somebody else's
            continue
        words = [line.split() for file in files for line in file.splitlines()]
        sizes = {word[0].rstrip(":"): int(word[1]) for word in words if word[2:] == ["kB"]}
        if "RssFile" in sizes:  # else it has ended between the two
            yield sizes
