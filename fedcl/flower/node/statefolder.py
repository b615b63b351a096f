"""A device's state folder: who it is, its secret root, what it remembers, and who is using it.

identity.json   client id and secret root of 32 bytes; made once, readable to its owner alone
tenant.json     the node that uses the folder: how Flower calls it, and a process that lives with it
lock            held by whoever answers, for as long as it answers
experiments/    a folder for each experiment, by fedcl's id of it

One answer at a time works in the folder, whoever gives it: the lock is the kernel's and ends with
its holder. A second node is refused while the first one lives (`fedcl.flower.node.tenancy`).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedcl.core import durable
from fedcl.core.errors import ConfigError
from fedcl.core.privacy.noise import ROOT_BYTES, key_of, secret_root
from fedcl.flower.node.tenancy import move_in

EXPERIMENTS = 8  # of which a device keeps the memory: those that were asked last


@dataclass(frozen=True)
class StateFolder:
    """Where one client keeps what must last.

    Attributes:
        path: The folder; it is the client's alone.
        client: The client's id.
    """

    path: Path
    client: int

    @property
    def experiments(self) -> Path:
        """Holds a folder for each experiment."""
        return self.path / "experiments"

    @contextmanager
    def held(self, node: int) -> Iterator[bytes]:
        """Holds the folder for the time of an answer; yields the secret root.

        Args:
            node: How Flower calls the node that asks for it.

        Raises:
            ConfigError: It belongs to another client or to a node that lives, is damaged, or cannot
                be written.
        """
        with ExitStack() as held:
            try:
                durable.make_folder(self.path, mode=0o700)
                file = held.enter_context((self.path / "lock").open("w"))
                fcntl.flock(file, fcntl.LOCK_EX)
                root = self._identity()
                move_in(self.path / "tenant.json", node)
            except OSError as error:
                raise ConfigError(
                    f"state folder {self.path} cannot be used: {error.strerror or error} "
                    f"({error.filename or 'lock'}); name one in the node config that this node may "
                    "write, on a disk of this machine"
                ) from error
            yield root
            self._forget_old()

    def _identity(self) -> bytes:
        path = self.path / "identity.json"
        if not path.exists():
            if self.experiments.exists():
                raise ConfigError(
                    f"{path} is gone, though there are experiments beside it: put it back, or name "
                    "another state folder to begin as a new device"
                )
            root = secret_root()
            text = json.dumps({"client": self.client, "root": root.hex()})
            durable.write(path, text.encode(), mode=0o600)
            return root
        path.chmod(0o600)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            owner, root = found["client"], bytes.fromhex(found["root"])
            if type(owner) is not int or len(root) != ROOT_BYTES:
                raise ValueError(f"client {owner!r} with a root of {len(root)} bytes")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged: {error!r:.100}; put it back, or name another state folder to "
                "begin as a new device"
            ) from error
        if owner != self.client:
            raise ConfigError(
                f"state folder {self.path} is that of client {owner}, not of client {self.client}: "
                "give each client a state folder of its own"
            )
        return root

    def experiment(self, id: str) -> Path:
        """Returns the folder of an experiment."""
        return self.experiments / id

    def used(self, id: str) -> None:
        """Takes note that an experiment was asked now."""
        if self.experiment(id).is_dir():
            os.utime(self.experiment(id))

    def _forget_old(self) -> None:
        """Drops the memory of experiments that were asked longest ago, when there are too many."""
        if not self.experiments.is_dir():
            return
        found = sorted(self.experiments.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        gone = [path for path in found if path.suffix == ".gone"]
        for path in [path for path in found if path not in gone][:-EXPERIMENTS]:
            gone.append(path.rename(path.with_suffix(".gone")))  # at once as a whole
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)


def token_of(root: bytes, experiment: str) -> str:
    """Returns what binds a client's id to its state folder in one experiment, and tells no more."""
    return key_of(root, "token", experiment).hex()
