"""What a watcher is told of a run after each round."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after each round.

    Attributes:
        stage: Stage of the round.
        stages: Number of stages.
        round: Finished rounds of this stage.
        rounds: Rounds of a stage.
        done: Finished rounds of the whole run.
        total: Rounds of the whole run.
        accuracy: Mean accuracy over the tasks met so far, when last evaluated, or None.
        clients_per_second: Clients trained per second in this round.
        engine: Why this engine.
        bytes_up: Bytes from all clients so far.
        bytes_down: Bytes to all clients so far.
        rejected: Replies left out so far.
        epsilon: Bound on what was spent so far, of a live federation that protects its clients or
            their records; else None.
    """

    stage: int
    stages: int
    round: int
    rounds: int
    done: int
    total: int
    accuracy: float | None
    clients_per_second: float
    engine: str
    bytes_up: int = 0
    bytes_down: int = 0
    rejected: int = 0
    epsilon: float | None = None
