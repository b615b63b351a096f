"""A real federation on this machine: Flower's SuperLink and SuperNodes as processes of their own.

    with federation(tmp_path, secure=True) as live:
        nodes = [live.node(client=id, state=tmp_path / f"state-{id}") for id in range(4)]
        run = live.run(config=str(config), out=str(tmp_path / "run"))
        nodes[1].kill()                 # SIGKILL to the node and all that it has started
        nodes[1].start()
        run.finish(120)

Whatever happens, every process ends with the block; when it raises, the logs are shown.

Two things that Flower 1.41 does when a node dies without a word. Its SuperLink takes the node for
connected for up to 60 s. Until then a registered node's key is refused, and the new process of
that node ends (`Federation.rejoin` starts it until it stays); a node without a key comes back at
once, as another node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from flwr.cli.supernode.register import try_load_public_key
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StopRunRequest,
    StreamLogsRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedcl.keys import make_keys
from tests.commands import ROOT
from tests.flower.parts import Part, free_port, until

APP = ROOT / "deploy"
NAME = "live"  # of the connection in Flower's config
Value = str | int | float | bool | Path
_BIN = Path(sys.executable).parent
_LONG = 180.0  # seconds that starting anything may take on a busy machine


def environment(home: Path) -> dict[str, str]:
    """Returns the environment of Flower's programs: this fedcl, and nothing of the user's Flower.

    Args:
        home: Flower's own folder.
    """
    path = os.pathsep.join([str(_BIN), os.environ.get("PATH", "")])
    imported = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ,
        "PATH": path,  # Flower starts its helpers by name
        "PYTHONPATH": imported,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }


def told(out: Path) -> dict[str, Any]:
    """Returns what a run says of itself now; nothing has happened before it says anything."""
    try:
        found: dict[str, Any] = json.loads((out / "live.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"done": 0, "asked": 0, "answered": 0, "waiting": "", "failures": {}}
    return found


def toml(values: Mapping[str, Value]) -> str:
    """Returns `key=value` pairs as `--run-config` and `--node-config` take them."""
    return " ".join(f"{key}={_toml(value)}" for key, value in values.items())


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, Path)):
        assert '"' not in str(value), f"Flower splits at quotes: {value}"
        return f'"{value}"'
    return str(value)


@dataclass
class Run:
    """A run of the app.

    Attributes:
        id: Flower's number of it.
    """

    id: int
    _live: Federation

    @property
    def status(self) -> str:
        """Where it stands, such as `running` or `finished:completed`."""
        with self._live.control() as control:
            return self._status(control)

    def _status(self, control: ControlHttpClient) -> str:
        run = control.ListRuns(ListRunsRequest(run_id=self.id)).run_dict[self.id]
        return f"{run.status.status}:{run.status.sub_status}".rstrip(":")

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status.startswith("finished")

    def wait(self, seconds: float) -> str:
        """Waits for its end and returns its status then."""
        with self._live.control() as control:

            def over() -> bool:
                return self._status(control).startswith("finished")

            until(over, f"run {self.id} ends", seconds, pause=1.0)
        return self.status

    def finish(self, seconds: float) -> None:
        """Waits until it has ended well."""
        status = self.wait(seconds)
        assert status == "finished:completed", f"{status}\n{self.log()}"

    def stop(self) -> None:
        """Stops it, as `flwr stop` does."""
        with self._live.control() as control:
            control.StopRun(StopRunRequest(run_id=self.id))

    def log(self) -> str:
        """Returns what its ServerApp has written so far; it must have written something."""
        with self._live.control() as control:
            return str(next(control.StreamLogs(StreamLogsRequest(run_id=self.id))).log_output)


@dataclass
class Federation:
    """A SuperLink with whatever joins it; made by `federation`.

    Attributes:
        folder: Where everything of it lies; the ServerApp's working directory.
        secure: Whether there is TLS, and nodes must be registered.
        simulated: Number of nodes of Flower's own simulation; 0 waits for real ones.
        durable: Whether the SuperLink keeps its state in a file, which costs three times the time.
        port: Where the SuperLink listens.
        superlink: Its process, and the ServerApps that it starts (`flwr-serverapp`).
        nodes: SuperNodes by name.
    """

    folder: Path
    secure: bool = False
    simulated: int = 0
    durable: bool = False
    port: int = field(default_factory=free_port)
    nodes: dict[str, Part] = field(default_factory=dict)
    superlink: Part = field(init=False)

    def __post_init__(self) -> None:
        for name in ("home", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        connection = [f"[superlink.{NAME}]", f'address = "127.0.0.1:{self.port}"']
        words = ["--host", "127.0.0.1", "--port", str(self.port)]
        if self.durable:
            words += ["--database", str(self.folder / "superlink.db")]
        if self.secure:
            make_keys(self.keys)
            words += ["--ssl-ca-certfile", str(self.keys / "ca.pem"), "--enable-supernode-auth"]
            words += ["--ssl-certfile", str(self.keys / "server.pem")]
            words += ["--ssl-keyfile", str(self.keys / "server.key")]
            connection.append(f'root-certificates = "{self.keys / "ca.pem"}"')
        else:
            words.append("--insecure")
            connection.append("insecure = true")
        if self.simulated:
            words.append("--simulation")
        (self.folder / "home" / "config.toml").write_text("\n".join(connection) + "\n")
        self.superlink = self.part(
            "superlink", "flower-superlink", "--disable-runtime-dependency-installation", *words
        )

    @property
    def keys(self) -> Path:
        """Folder of the keys, as `fedcl keys` makes them."""
        return self.folder / "keys"

    def part(self, name: str, program: str, *words: str) -> Part:
        """Returns a program of this federation's environment, not yet started."""
        return Part(
            name,
            [str(_BIN / program), *words],
            self.folder / "logs" / f"{name}.log",
            environment(self.folder / "home"),
            self.folder,
        )

    def ready(self) -> bool:
        """Whether the SuperLink answers."""
        assert self.superlink.alive, f"the SuperLink has ended\n{self.superlink.text()}"
        try:
            with self.control() as control:
                control.ListRuns(ListRunsRequest(limit=1))
        except (httpx.HTTPError, OSError):
            return False
        return True

    def start(self) -> None:
        """Starts the SuperLink, again if it has ended, and waits until it answers."""
        self.superlink.start()
        until(self.ready, "the SuperLink answers", _LONG)

    @contextmanager
    def control(self) -> Iterator[ControlHttpClient]:
        """Speaks to the SuperLink as `flwr` does, without a process of its own."""
        client = ControlHttpClient.from_server_address(
            f"127.0.0.1:{self.port}",
            insecure=not self.secure,
            root_certificates=(self.keys / "ca.pem").read_bytes() if self.secure else None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="tests")],
        )
        try:
            yield client
        finally:
            client.close()

    def flwr(self, *words: str | Path) -> str:
        """Runs `flwr WORDS` and returns what it says; it must end well."""
        done = subprocess.run(
            [str(_BIN / "flwr"), *map(str, words)],
            cwd=self.folder,
            env=environment(self.folder / "home"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONG,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def node(
        self,
        name: str = "",
        *,
        words: tuple[str, ...] | None = None,
        port: int = 0,
        **config: Value,
    ) -> Part:
        """Starts a SuperNode; where there is TLS, with a new key that is registered first.

        Args:
            name: What its log is called; `node-N` when empty.
            words: How it joins; None for what a rightful node says.
            port: Where it finds the SuperLink; 0 for the SuperLink's own.
            config: Its node config.
        """
        name = name or f"node-{len(self.nodes)}"
        if words is None:
            words = self.rightful() if self.secure else ("--insecure",)
        node = self.part(
            name,
            "flower-supernode",
            *("--superlink", f"127.0.0.1:{port or self.port}", "--port", str(free_port())),
            *words,
            *("--node-config", toml(config)),
        )
        self.nodes[name] = node
        return node.start()

    def rightful(self) -> tuple[str, ...]:
        """Makes a node's key, registers it as `flwr supernode register` does, and returns the words
        with which its node joins."""
        _, (number,) = make_keys(self.keys, nodes=1)
        public = try_load_public_key(self.keys / f"node-{number}.pub")
        with self.control() as control:
            control.RegisterNode(RegisterNodeRequest(public_key=public))
        key = self.keys / f"node-{number}.key"
        return (*self.trusting(), "--auth-supernode-private-key", str(key))

    def trusting(self) -> tuple[str, ...]:
        """Returns the words with which a node trusts this federation's CA."""
        return "--root-certificates", str(self.keys / "ca.pem")

    def online(self) -> int:
        """Returns the number of nodes that the SuperLink takes for connected."""
        with self.control() as control:
            found = control.ListNodes(ListNodesRequest()).nodes_info
        return sum(node.status == "online" for node in found)

    def rejoin(self, node: Part) -> None:
        """Starts a node that was killed, again each time that it is sent away, until it is back."""

        def back() -> bool:
            if not node.alive:
                node.start()
            return "SuperNode ID:" in node.news()

        until(back, f"{node.name} is back", 2 * _LONG, pause=1.0)

    def await_nodes(self, count: int) -> None:
        """Waits until so many nodes are connected."""
        until(lambda: self.online() >= count, f"{count} nodes are online", _LONG, pause=0.5)

    def run(self, app: Path = APP, **config: Value) -> Run:
        """Starts a run of the app, as `flwr run` does.

        Args:
            app: The app's folder.
            config: What replaces values of the app's run config.
        """
        words = ["--run-config", toml(config)] if config else []
        if self.simulated:
            words += ["--federation-config", f"num-supernodes={self.simulated}"]
        said = self.flwr("run", app, NAME, "--format", "json", *words)
        return Run(int(said.partition('"run-id": "')[2].partition('"')[0]), self)

    def end(self) -> None:
        """Kills every process."""
        for part in (*self.nodes.values(), self.superlink):
            part.kill()

    def logs(self) -> str:
        """Returns the ends of all logs."""
        found = sorted((self.folder / "logs").glob("*.log"))
        return "\n".join(
            f"=== {log.name}\n{log.read_text(errors='replace')[-6000:]}" for log in found
        )


@contextmanager
def federation(
    folder: Path, *, secure: bool = False, simulated: int = 0, durable: bool = False
) -> Iterator[Federation]:
    """Runs a federation in a folder of its own, and ends all of its processes.

    Args:
        folder: A new or an empty folder.
        secure: Whether there is TLS, and nodes must be registered.
        simulated: Number of nodes of Flower's own simulation; 0 waits for real ones.
        durable: Whether the SuperLink keeps its state in a file.
    """
    live = Federation(folder, secure, simulated, durable)
    try:
        live.start()
        yield live
    except BaseException:
        print(live.logs())  # pytest shows what a failing test has printed
        raise
    finally:
        live.end()
        shutil.rmtree(folder / "home", ignore_errors=True)
