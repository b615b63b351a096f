"""Data that arrive where clients are, file after file, while a run goes on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedcl.core.data.arrival import Arrival
from fedcl.core.data.cache import Cache
from fedcl.core.data.dataset import Dataset
from fedcl.core.data.diary import FILE
from fedcl.core.data.table import ArrayTable
from fedcl.core.errors import ConfigError
from fedcl.core.seeds import seed_of
from fedcl.datasets._archive import read_archive, read_inputs, read_labels
from fedcl.datasets._holdout import random_rows
from fedcl.datasets._root import checked

__all__ = ["Arrivals"]

_SUFFIX = ".npz"
_CACHE = 256 * 2**20  # bytes of arrivals that are held ready


@dataclass(frozen=True)
class Arrivals:
    """Files that arrive in a folder; what stands here is public and the same for all sides.

    Each file whose name ends in `.npz` is one arrival, with inputs `x` (rows, *shape) and labels
    `y` (rows,). It is written elsewhere on the same disk, or under a name that begins with a dot,
    and then renamed: a file with its name is whole. Other files and folders are ignored. Bytes are
    images, (N, H, W) or (N, H, W, C), scaled by 1/255.

    Attributes:
        root: On a device the folder in which its files arrive; in a simulation one that holds a
            folder for each client, named by its id; on the server of a deployment empty.
        shape: Shape of one input, images channels first.
        classes: Size of the label space; labels go from 0.
        mean: Subtracted from the inputs after they are scaled.
        std: Divides the inputs after the mean is subtracted.
        test_fraction: Share of each class of an arrival that is held out for testing, never all of
            it; which rows depends on the seed, the client and the arrival's name.
        seed: Decides which rows are held out.
    """

    root: str = ""
    shape: tuple[int, ...] = (2,)
    classes: int = 2
    mean: float = 0.0
    std: float = 1.0
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the options that need no file."""
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape must name at least one length, all above 0, not {self.shape}")
        if not (math.isfinite(self.mean) and 0.0 < self.std < math.inf):
            raise ValueError(f"std must be positive and mean finite, not {self.std}, {self.mean}")
        if not 0.0 <= self.test_fraction < 1.0:
            raise ValueError(f"test_fraction must lie in [0, 1), not {self.test_fraction}")
        for name, least in (("classes", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")

    def load(self) -> Dataset:
        """Returns the data set: without rows, since nobody knows what will arrive.

        Raises:
            ConfigError: The folder is missing.
        """
        where = "in which data arrive"
        root = checked(Path(self.root).expanduser(), where) if self.root else None
        nothing = ArrayTable(np.zeros((0, *self.shape), np.float32), np.zeros(0, np.int64))
        found = _Folders(self, root)
        return Dataset("arrivals", nothing, nothing, self.classes, self.shape, (), found)


@dataclass(frozen=True)
class _Folders:
    options: Arrivals
    root: Path | None
    _cache: Cache = field(default_factory=lambda: Cache(_CACHE), repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        # A worker reads for itself.
        return {**self.__dict__, "_cache": Cache(_CACHE)}

    @property
    def here(self) -> bool:
        """Whether there is a folder at all."""
        return self.root is not None

    @property
    def _house(self) -> bool:
        """Whether the folder holds one for each of several clients, as in a simulation."""
        return self.root is not None and any(
            path.name.isdigit() and path.is_dir() for path in self.root.iterdir()
        )

    def missing(self, clients: int) -> Sequence[int]:
        """Returns the clients without a folder, where there is one for each."""
        if self.root is None or not self._house:
            return ()
        return [id for id in range(clients) if not (self.root / str(id)).is_dir()]

    def _place(self, client: int) -> Path:
        assert self.root is not None
        return self.root / str(client) if self._house else self.root

    def names(self, client: int) -> Sequence[str]:
        """Returns the names of a client's arrivals, ascending."""
        if self.root is None:
            return ()
        found = (
            path.name
            for path in self._place(client).iterdir()
            if path.suffix == _SUFFIX and not path.name.startswith(".") and path.is_file()
        )
        return sorted(found)

    def stamp(self, client: int, name: str) -> str:
        """Returns the size of a file and the time of its last change."""
        told = (self._place(client) / name).stat()
        return f"{told.st_size} {told.st_mtime_ns}"

    def load(self, client: int, name: str) -> Arrival:
        """Returns an arrival; raises ConfigError for one that cannot be used."""
        try:
            stamp = self.stamp(client, name)
        except OSError as error:
            raise ConfigError(f"arrival {name!r} of client {client} is gone: {error}") from error
        key = client, name, stamp
        return self._cache.get(key, lambda: self._read(client, name), lambda one: one.nbytes)

    def _read(self, client: int, name: str) -> Arrival:
        path, options = self._place(client) / name, self.options
        archive = read_archive(path)
        for key in ("x", "y"):
            if key not in archive.arrays:
                raise archive.error(f"there is no array {key}", "save x and y in it")
        inputs = read_inputs(archive, "x")
        labels = read_labels(archive, "y", "x")
        if inputs.shape[1:] != options.shape:
            fact = f"an input has shape {inputs.shape[1:]}, but dataset.shape is {options.shape}"
            raise archive.error(fact, "save inputs as the federation has them")
        if not len(labels):
            raise archive.error("there are no rows", "save at least one")
        if labels.max() >= options.classes:
            fact = f"y has the label {labels.max()}, but labels go from 0 to {options.classes - 1}"
            raise archive.error(fact, "number the classes as the federation does")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        scale = 1.0 / 255.0 if inputs.dtype == np.uint8 else 1.0
        table = ArrayTable(inputs, labels, {}, scale / options.std, -options.mean / options.std)
        seed = seed_of(options.seed, "arrival", client, name)
        kept, held = random_rows(labels, options.test_fraction, seed)
        train, test = (
            replace(table, values=inputs[rows], labels=labels[rows]) for rows in (kept, held)
        )
        return Arrival(name, digest, train, test)

    def plan(self, client: int) -> str | None:
        """Returns the diary that lies among a client's arrivals, or None."""
        path = None if self.root is None else self._place(client) / FILE
        return path.read_text(encoding="utf-8") if path is not None and path.is_file() else None
