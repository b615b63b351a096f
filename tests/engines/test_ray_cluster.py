"""A cluster of two machines, which here are two processes of `ray start` on the loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.apart, pytest.mark.slow]

# The second machine fails in the middle of the second run; its clients run on the first one then.
PROGRAM = """
import os, signal, sys, time
import fedcl, ray
from tests.tiny import assert_same_runs, tiny

changes = {"stream.clients": 10, "training.cohort": 0, "training.fold": 1}

def machines():
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

def cut(now):
    if now.done == 2:
        os.kill(int(sys.argv[2]), signal.SIGTERM)
        while len(machines()) > 1:
            time.sleep(0.1)

if __name__ == "__main__":
    plain = fedcl.run(tiny(changes, engine={"name": "vectorized"}))
    spread = tiny(changes, engine={"name": "ray", "workers": 2, "address": sys.argv[1]})
    assert_same_runs(fedcl.run(spread), plain)
    assert_same_runs(fedcl.run(spread, watch=cut), plain)
"""


@contextmanager
def machines() -> Iterator[tuple[str, int]]:
    """Address of a cluster of two machines with a processor each, and the second one's process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Ray's sockets lie in here, and their names must be short.
    with tempfile.TemporaryDirectory(prefix="fedcl-", ignore_cleanup_errors=True) as folder:
        common = ["--num-cpus=1", "--min-worker-port=0", "--max-worker-port=0", "--block"]
        head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for name, options in (("first", head), ("second", [f"--address=127.0.0.1:{port}"])):
                log = Path(folder) / name
                processes.append(start(log, *options, *common))
                await_machine(processes[-1], log)
            yield f"127.0.0.1:{port}", processes[1].pid
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
            for process in processes:
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()


def start(log: Path, *options: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
            cwd=ROOT,
            env={**os.environ, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )


def await_machine(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while "Ray runtime started" not in log.read_text(encoding="utf-8"):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_two_machines_give_the_same_bits_and_so_does_the_one_that_is_left() -> None:
    for _ in range(3):
        with machines() as (address, second):
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, address, str(second)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=240,
            )
        # Ray's own library now and then fails in a process that joins a cluster on a busy machine.
        if done.returncode != -signal.SIGSEGV:
            break
    assert done.returncode == 0, done.stderr
