"""A SuperLink of Flower on this machine, and what it keeps in its database."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from bench.processes import family
from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedcl.flower.transport.busy import again

APP = Path(__file__).resolve().parents[2] / "deploy"
# What messages leave in the SuperLink's database until they are fetched: questions, answers, the
# pieces of both, and who is about to bring such pieces.
TABLES = (
    "message_ins",
    "message_res",
    "objects",
    "object_children",
    "run_objects",
    "object_push_sessions",
)
_NAME = "load"  # of the connection in Flower's config
_BIN = Path(sys.executable).parent
_LONG = 120.0  # seconds that anything may take to start on a busy machine


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink that runs; made by `superlink`.

    Attributes:
        folder: Where everything of it lies, and where its ServerApps start.
        address: Host and port of all of its APIs.
        process: It.
        durable: Whether its database is a file; else it keeps everything in memory, as by default.
    """

    folder: Path
    address: str
    process: subprocess.Popen[bytes]
    durable: bool

    def run(self, config: Mapping[str, Path]) -> int:
        """Starts a run of fedcl's app, as `flwr run` does, and returns Flower's number of it.

        Args:
            config: What replaces values of the app's run config.
        """
        words = " ".join(f'{key}="{value}"' for key, value in config.items())
        done = subprocess.run(
            [_BIN / "flwr", "run", APP, _NAME, "--format", "json", "--run-config", words],
            cwd=self.folder,
            env=environment(self.folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONG,
            check=False,
        )
        number = done.stdout.partition('"run-id": "')[2].partition('"')[0]
        if not number:
            raise RuntimeError(f"Flower starts no run: {done.stdout}{done.stderr}")
        return int(number)

    def status(self, run: int) -> str:
        """Returns where a run stands, such as `running` or `finished:completed`."""
        found = self._runs(ListRunsRequest(run_id=run)).run_dict[run].status
        return f"{found.status}:{found.sub_status}".rstrip(":")

    def answers(self) -> bool:
        """Returns whether it answers already; raises RuntimeError when it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the SuperLink has ended:\n{self.log()}")
        try:
            self._runs(ListRunsRequest(limit=1))
        except (httpx.HTTPError, OSError):
            return False
        return True

    def rows(self) -> dict[str, int]:
        """Returns how many rows its database has in each of `TABLES`; nothing without a file."""
        if not self.durable:
            return {}
        database = sqlite3.connect(f"file:{self.folder / 'superlink.db'}?mode=ro", uri=True)
        try:
            counts = {
                table: database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
                for table in TABLES
            }
        finally:
            database.close()
        return counts

    def log(self, signs: int = 6000) -> str:
        """Returns the end of what it and its ServerApps have written."""
        return (self.folder / "superlink.log").read_text(errors="replace")[-signs:]

    def _runs(self, request: ListRunsRequest) -> ListRunsResponse:
        client = ControlHttpClient.from_server_address(
            self.address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="fedcl")],
        )
        try:
            return again(lambda: client.ListRuns(request))
        finally:
            client.close()


def environment(folder: Path) -> dict[str, str]:
    """Returns the environment of Flower's programs: nothing of the user's Flower, one thread.

    Args:
        folder: Of the SuperLink.
    """
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(_BIN), os.environ.get("PATH", "")]),  # helpers go by name
        "FLWR_HOME": str(folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }


@contextmanager
def superlink(folder: Path, durable: bool) -> Iterator[SuperLink]:
    """Runs a SuperLink without TLS on a free port of the loopback device, and ends it.

    Args:
        folder: A new or an empty folder.
        durable: Whether its database is a file.

    Raises:
        RuntimeError: It ends at once.
        TimeoutError: It does not answer.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (folder / "flower").mkdir(parents=True)
    connection = f'[superlink.{_NAME}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (folder / "flower" / "config.toml").write_text(connection, encoding="utf-8")
    words = ["--insecure", "--disable-runtime-dependency-installation"]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    if durable:
        words += ["--database", str(folder / "superlink.db")]
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            [_BIN / "flower-superlink", *words],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    own = SuperLink(folder, f"127.0.0.1:{port}", process, durable)
    try:
        end = time.monotonic() + _LONG
        while not own.answers():
            if time.monotonic() > end:
                raise TimeoutError(f"the SuperLink does not answer:\n{own.log()}")
            time.sleep(0.1)
        yield own
    finally:
        for number in family(process.pid):  # what it has started lives in sessions of its own
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()
