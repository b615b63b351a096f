"""The clients' memories in a simulation: those used last in RAM, within a bound; all on a shelf."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from fedcl.core import wire
from fedcl.core.errors import ResumeError
from fedcl.core.tree import tensors

# What Python and PyTorch keep around every value and every tensor in it, about.
_OVERHEAD = 1024


class Shelf(Protocol):
    """Where encoded memories lie that have no room in RAM."""

    def read(self, client: int) -> bytes | None:
        """Returns a client's memory as it was written last; None when it has none."""
        ...

    def empty(self) -> bool:
        """Returns whether nobody has a memory."""
        ...

    def write(self, client: int, data: bytes | None) -> None:
        """Replaces a client's memory; None takes it away."""
        ...

    def mark(self) -> None:
        """Begins what `keep` lets stand and `undo` takes back."""
        ...

    def keep(self) -> None:
        """Lets stand what was written since `mark`."""
        ...

    def undo(self) -> None:
        """Takes back what was written since `mark`."""
        ...


class Memories:
    """What each client remembers between exchanges.

    What one step of a method changes (a round, or what begins or ends a stage) is kept or dropped
    as a whole. RAM holds at most `cache` bytes of it; what else there is lies on the shelf, and
    `write` brings it there for good. A value that was read again gives the same bits as one that
    never left RAM: encoding is exact, and a client's tensors are laid out anew before they are
    computed with (`fedcl.core.tree.settle`).

    Attributes:
        recall: Fetches a memory that an engine leaves with its client, for the simulator's own view
            (`fedcl.core.client.Kept` stands here for it); None where memories lie here.
    """

    def __init__(
        self,
        shelf: Shelf | None = None,
        words: wire.Vocabulary | None = None,
        cache: int = 500_000_000,
    ) -> None:
        """Starts from what lies on the shelf.

        Args:
            shelf: Where memories lie that have no room; None holds all in RAM.
            words: What a memory may name; without it nothing, and plain values alone are kept.
            cache: Bytes of memories in RAM.
        """
        self.recall: Callable[[int, Any], Any] | None = None
        self._shelf = shelf
        self._bare = shelf is None or shelf.empty()  # then nobody need be looked up there
        self._words = words or wire.Vocabulary({}, {})
        self._cache = cache
        self._settled = _Held()  # as of the last finished step
        self._unwritten: set[int] = set()  # those of them that the shelf does not hold yet
        self._pending = _Held()  # changed in the present step
        self._marked = False  # whether some of these had no room and lie on the shelf already

    def load(self, ids: Iterable[int]) -> dict[int, Any]:
        """Returns the memories of those of `ids` that remember something.

        Raises:
            ResumeError: What lies on the shelf is no memory.
        """
        found = {id: self._get(id) for id in ids}
        return {id: value for id, value in found.items() if value is not None}

    def look(self, id: int) -> Any:
        """Returns the memory of one client, wherever it lies; None when it has none."""
        value = self._get(id)
        return value if self.recall is None or value is None else self.recall(id, value)

    def save(self, memories: Mapping[int, Any]) -> None:
        """Takes changed memories, until the step is kept or dropped; None forgets."""
        for id, value in memories.items():
            if id not in self._unwritten:
                self._settled.pop(id)  # the shelf has it, should the step be dropped
            self._pending.put(id, value)
        self._make_room()

    def keep(self) -> None:
        """Lets stand what the present step has changed."""
        for id in self._pending.ids():
            value = self._pending.pop(id)
            if value is None and self._shelf is None:
                self._settled.pop(id)
            else:
                self._settled.put(id, value)
                self._unwritten.add(id)
        if self._marked and self._shelf is not None:
            self._shelf.keep()
            self._marked = False

    def drop(self) -> None:
        """Takes back what the present step has changed."""
        self._pending = _Held()
        if self._marked and self._shelf is not None:
            self._shelf.undo()
            self._marked = False
            self._settled = _Held()  # the shelf has them all, as they were before the step

    def write(self) -> None:
        """Writes to the shelf what finished steps have changed and it does not hold yet."""
        for id in sorted(self._unwritten):
            self._put(id, self._settled.get(id))
        self._unwritten.clear()

    def _get(self, id: int) -> Any:
        for held in (self._pending, self._settled):
            if id in held:
                return held.get(id)
        data = None if self._bare or self._shelf is None else self._shelf.read(id)
        if data is None:
            return None
        try:
            value = wire.loads(data, self._words)
        except ValueError as error:
            raise ResumeError(
                f"the memory of client {id} is damaged: {error}; remove the run's folder and start "
                "anew, or name another --out"
            ) from error
        self._settled.put(id, value)
        self._make_room()
        return value

    def _make_room(self) -> None:
        """Moves to the shelf what has no room: what was used longest ago, pending values last.

        So the shelf holds all that the step began with before it takes any of the step's changes.
        """
        while self._shelf is not None and self._settled.bytes + self._pending.bytes > self._cache:
            if len(self._settled):
                id, value = self._settled.pop_oldest()
                if id in self._unwritten:
                    self._unwritten.remove(id)
                    self._put(id, value)
            else:
                if not self._marked:
                    self._shelf.mark()
                    self._marked = True
                self._put(*self._pending.pop_oldest())

    def _put(self, id: int, value: Any) -> None:
        assert self._shelf is not None
        self._bare = False
        self._shelf.write(id, None if value is None else wire.dumps(value, self._words))


class _Held:
    """Values by client, the one used longest ago first, and how many bytes they take in RAM."""

    def __init__(self) -> None:
        self.bytes = 0
        self._values: OrderedDict[int, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, id: int) -> bool:
        return id in self._values

    def ids(self) -> list[int]:
        return list(self._values)

    def get(self, id: int) -> Any:
        self._values.move_to_end(id)
        return self._values[id][0]

    def put(self, id: int, value: Any) -> None:
        self.pop(id)
        sizes = [_OVERHEAD + x.numel() * x.element_size() for x in tensors(value)]
        self._values[id] = value, _OVERHEAD + sum(sizes)
        self.bytes += self._values[id][1]

    def pop(self, id: int) -> Any:
        value, size = self._values.pop(id, (None, 0))
        self.bytes -= size
        return value

    def pop_oldest(self) -> tuple[int, Any]:
        id = next(iter(self._values))
        return id, self.pop(id)
