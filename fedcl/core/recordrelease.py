"""The door's part in example-level privacy: nothing is handed out that was not charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedcl.core.accounting.recordledger import RecordEvent, grouped
from fedcl.core.client import Program
from fedcl.core.coverage import is_trusted, spent_of
from fedcl.core.door import Door
from fedcl.core.errors import ConfigError
from fedcl.core.local import Local
from fedcl.core.owed import knows_rows
from fedcl.core.request import BlockResult, Position, program_name


def charge_ahead(
    door: Door, position: Position, program: Program[Any] | Local, ids: Sequence[int]
) -> None:
    """Charges clients for what they are about to be asked, where their answers may not count.

    Args:
        door: Holds the ledger; nothing happens where every answer is read.
        position: Where in the run.
        program: What the clients run; of one that is not believed each answer that is read tells.
        ids: The clients.

    Raises:
        ConfigError: The budget does not allow it.
    """
    if door.promise is None or door.owed is None or not ids or not is_trusted(program):
        return
    spent = door.owed(door.coverage, program, position.stage, ids)
    event = RecordEvent(*position.numbers, program_name(program), grouped(spent), asked=True)
    # A bound that answers mostly stay below must not end a run: its answers will tell.
    limited = knows_rows(door.coverage, program)
    door.ledger.records.intend(event, door.promise if limited else replace(door.promise, budget=0))


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
    spent, bare = spent_of(door.coverage, program, results, door.owed is not None)
    name = program_name(program)
    if bare and promise.budget:
        raise ConfigError(
            f"program {name!r} at stage {position.stage}, round {position.round} sends what "
            f"nothing protects, which no budget allows: its replies were not handed out"
        )
    if bare:
        ledger.uncharged(name)
    if spent:
        ledger.intend(RecordEvent(*position.numbers, name, grouped(spent)), promise)
