"""A client that joins at a later stage catches up, whatever the method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import fedcl
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from tests.conformance import every_method, of
from tests.tiny import Watching


@dataclass
class Late(Watching):
    """An engine whose client 0 is not there during the first stage.

    Attributes:
        stages: Stages at which it answered.
    """

    stages: set[int] = field(default_factory=set)

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Lets the others run."""
        stage = request.position.stage
        here = [id for id in ids if id != 0 or stage > 0]
        for result in super().run(request, here, memories):
            if 0 in result.ids:
                self.stages.add(stage)
            yield result


@every_method
def test_a_client_that_joins_at_the_second_stage_takes_part(name: str) -> None:
    experiment = of(name, {"training.cohort": 0, "training.rounds": 1})
    engine = Late(experiment.engine)
    record = fedcl.run(replace(experiment, engine=engine))
    assert engine.stages == {1}
    assert record.summary["skipped_or_repeated_rounds"] == []
