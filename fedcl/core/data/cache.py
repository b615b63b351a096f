"""A cache that is bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Cache:
    """Keeps what was used last, up to a number of bytes.

    Attributes:
        limit: Bytes that it may keep; what is larger by itself is made anew each time.
        used: Bytes that it keeps.
    """

    limit: int
    used: int = 0
    _kept: OrderedDict[Hashable, tuple[Any, int]] = field(default_factory=OrderedDict)

    def get(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """Returns the value of a key, made unless it is kept: not to be written to."""
        if key in self._kept:
            self._kept.move_to_end(key)
            value: T = self._kept[key][0]
            return value
        value = make()
        nbytes = size(value)
        if nbytes <= self.limit:
            self._kept[key] = value, nbytes
            self.used += nbytes
            while self.used > self.limit:
                _, (_, freed) = self._kept.popitem(last=False)
                self.used -= freed
        return value
