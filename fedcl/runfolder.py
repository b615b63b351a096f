"""The folder of a run: made or checked, held against other runs, clean after a false start."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fedcl import __version__
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.ledgerfile import is_charged
from fedcl.record import write_text
from fedcl.store import Store, check_same


@contextmanager
def opened(
    folder: Path | None,
    resolved: Mapping[str, Any],
    toml: str,
    resume: bool,
    live: bool = False,
) -> Iterator[Store | None]:
    """Opens a run's folder for the time of the run; one that could not begin leaves nothing behind.

    Args:
        folder: Where to, or None for a run without files.
        resolved: The resolved config.
        toml: The same as text.
        resume: Whether the folder may hold this run's checkpoint.
        live: Whether clients are devices: what they were charged for stays, however the run ends.
    """
    if folder is None:
        yield None
        return
    new = not folder.exists()
    open_folder(folder, resume)
    empty = not any(folder.iterdir())
    with _alone(folder):
        store = None
        try:
            store = Store(folder / "checkpoint")
            check_same(store, resolved, __version__)
            write_text(folder / "config.toml", toml)
            yield store
        except Exception:
            begun = live and is_charged(folder / "checkpoint")
            if empty and not begun and (store is None or store.saved() is None):
                if store is not None:
                    store.close()
                shutil.rmtree(folder)
                if not new:
                    folder.mkdir()
            raise
        finally:
            if store is not None:
                store.close()


@contextmanager
def clients_folder(experiment: Experiment, folder: Path | None) -> Iterator[Path | None]:
    """Yields where clients keep what must outlive a process, for those whose data arrive.

    Args:
        experiment: The experiment; where its data do not arrive, nothing is kept.
        folder: The run's folder; None for a run without files, whose clients forget at its end.
    """
    if not experiment.stream.elsewhere:
        yield None
    elif folder is not None:
        yield folder / "checkpoint" / "clients"
    else:
        with tempfile.TemporaryDirectory(prefix="fedcl-clients-") as temporary:
            yield Path(temporary)


def open_folder(folder: Path, resume: bool) -> None:
    """Makes a run's folder, or checks that it may be used.

    Raises:
        ConfigError: The folder holds something already and `resume` is not asked for, or holds no
            checkpoint to resume from, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = [path.name for path in folder.iterdir()]
        if held and not resume:
            raise ConfigError(
                f"folder {folder} is not empty: add --resume to go on, or name another --out"
            )
        if held and "checkpoint" not in held:
            raise ConfigError(
                f"folder {folder} holds no checkpoint to go on from: name the folder of a run, or "
                "another --out without --resume"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise ConfigError(
            f"folder {folder} cannot be written: {error.strerror or error}; name another --out"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a run's folder against other processes; one that is killed lets go of it."""
    path = folder / "checkpoint" / "lock"
    with ExitStack() as held:
        # Where there can be no lock, the checkpoint says what is wrong, if anything is.
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            _lock(held.enter_context(path.open("w")), folder)
        yield


def _lock(file: IO[str], folder: Path) -> None:
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"folder {folder} is in use by another run that goes on: wait for it, or name "
                "another --out"
            ) from error
