"""The door's part in example-level privacy: nothing is handed out that was not charged."""

from __future__ import annotations

from typing import Any

from fedcl.core.client import Program
from fedcl.core.coverage import spent_of
from fedcl.core.door import Door
from fedcl.core.engine import BlockResult, Position, program_name
from fedcl.core.errors import ConfigError
from fedcl.core.local import Local
from fedcl.core.recordledger import RecordEvent, grouped


def charge(
    door: Door, position: Position, program: Program[Any] | Local, results: list[BlockResult]
) -> None:
    """Charges the replies of an exchange to the records of the clients that sent them.

    Args:
        door: Holds the ledger and the trainer's promise; without one nothing happens.
        position: Where in the run.
        program: What the clients ran.
        results: What they answered.

    Raises:
        ConfigError: The budget does not allow it.
    """
    promise, ledger = door.promise, door.ledger.records
    if promise is None:
        return
    spent, bare = spent_of(door.coverage, program, results)
    name = program_name(program)
    if bare and promise.budget:
        raise ConfigError(
            f"program {name!r} at stage {position.stage}, round {position.round} sends what "
            f"nothing protects, which no budget allows: its replies were not handed out"
        )
    if bare:
        ledger.uncharged(name)
    if spent:
        at = (position.stage, position.round, position.exchange, position.attempt)
        ledger.intend(RecordEvent(*at, name, grouped(spent)), promise)
