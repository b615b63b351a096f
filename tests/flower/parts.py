"""Processes of a federation that can be ended and started again, children included."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

MARK = "FEDCL_TEST_PART"


class Part:
    """A program with whatever it starts: its children bear its mark in their environments.

    Flower's programs start others in sessions of their own, which no signal to a group reaches.

    Attributes:
        name: What its log is called.
        words: Its command line.
        log: File that it and its children write to.
    """

    def __init__(
        self, name: str, words: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path
    ) -> None:
        """Describes it; `start` starts it."""
        self.name, self.words, self.log = name, list(words), log
        self._mark = uuid4().hex
        self._environment = {**environment, MARK: self._mark}
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._told = 0

    def start(self) -> Part:
        """Starts the program, again if it has ended."""
        assert not self.alive, f"{self.name} runs already"
        self._told = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                self.words,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    @property
    def alive(self) -> bool:
        """Whether the program itself runs."""
        return self._process is not None and self._process.poll() is None

    def pids(self, program: str = "") -> list[int]:
        """Returns the processes of this part, or those of them that run a program such as
        `flwr-serverapp`."""
        group = 0  # nobody's; a number that the system may give to others once it is waited for
        if self._process is not None and self._process.returncode is None:
            group = self._process.pid
        return [pid for pid, line in _marked(self._mark, group) if program in line]

    def kill(self, program: str = "") -> None:
        """Kills all processes of this part at once, as a loss of power does, or one program."""
        until(lambda: not self._signal(signal.SIGKILL, program), f"{self.name} is killed", 30)
        if not program and self._process is not None:
            self._process.wait()

    def stop(self) -> int:
        """Asks the program to end, kills what is left of it, and returns its exit status."""
        assert self._process is not None, f"{self.name} was never started"
        if self.alive:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=20)
        self.kill()
        return self._process.returncode

    def wait(self, seconds: float) -> int:
        """Waits until the program ends by itself; returns its exit status."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.wait(timeout=seconds)

    def text(self) -> str:
        """Returns what was written to its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def news(self) -> str:
        """Returns what was written to its log since it was started last."""
        return self.log.read_bytes()[self._told :].decode(errors="replace")

    def _signal(self, number: signal.Signals, program: str = "") -> int:
        """Sends a signal to its processes, and returns how many there were."""
        found = self.pids(program)
        for pid in found:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if self._process is not None:
            self._process.poll()  # who is dead shall not stay a zombie
        return len(found)


def _marked(mark: str, group: int) -> list[tuple[int, str]]:
    """Returns number and command line of every living process with a mark, or of a group.

    Flower's helpers are in groups of their own; nginx hides its environment.
    """
    wanted = f"{MARK}={mark}".encode()
    found = []
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            theirs = (place / "environ").read_bytes().split(b"\0")
            # A process that is dead and not yet waited for has no command line.
            if line and (wanted in theirs or os.getpgid(int(place.name)) == group):
                found.append((int(place.name), line))
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found


def until(done: Callable[[], object], what: str, seconds: float, pause: float = 0.1) -> None:
    """Waits until something is so.

    Raises:
        TimeoutError: It was not so in time.
    """
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s in vain: {what}")
        time.sleep(pause)


def free_port() -> int:
    """Returns a port of the loopback device that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
