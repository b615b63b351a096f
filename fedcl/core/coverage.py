"""What a method's client half does with single records: which of it example-level privacy covers.

A private trainer bounds what one record adds to a sum of gradients, a private statistic what it
adds to a sum of measurements. Both say nothing of a client half that lets one record decide what is
done to another one. A method therefore declares what it does, with a proof in a line; the door
compares what programs did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedcl.core.client import Program, Spent
from fedcl.core.errors import ExposureError
from fedcl.core.local import Local, change, own_data, own_state
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.core.request import BlockResult, program_name
from fedcl.core.statistic import Statistic


@dataclass(frozen=True)
class Coverage:
    """What a client half does with records.

    Attributes:
        kind: `own`: programs look at each present record by itself, and train on no other record.
            `kept`: they also train on records that they keep, each at most once in an exchange,
            chosen without a look at what any record holds. `refused`: something else. `undeclared`:
            nobody says; standard local training and statistics alone are let through.
        reason: Why it is refused, and what to do about it.
        drawn: Examples that are nobody's, made up by a model, which programs train on besides: the
            most for each own one.
    """

    kind: Literal["own", "kept", "refused", "undeclared"]
    reason: str = ""
    drawn: float = 0.0


OWN = Coverage("own")
KEPT = Coverage("kept")
UNDECLARED = Coverage("undeclared")


def refused(reason: str) -> Coverage:
    """Returns the coverage of a method that no proof covers.

    Args:
        reason: Fact and remedy, after "example-level privacy does not cover it: ".
    """
    return Coverage("refused", reason)


def admit(
    promise: ExampleMechanism | None, coverage: Coverage, program: Program[Any] | Local
) -> None:
    """Refuses a program before any client is asked.

    Args:
        promise: What the trainer promises to single records; without one all is let through.
        coverage: What the method declares.
        program: What clients are to run.

    Raises:
        ExposureError: Nobody declared what it does with records, or it mixes them.
    """
    if promise is None:
        return
    name = program_name(program)
    if isinstance(program, Local):
        if getattr(program.loss, "mixes", False):
            raise ExposureError(
                f"program {name!r} has a loss that mixes examples, so that one record changes what "
                "others add: example-level privacy does not cover it; take another method, or a "
                "trainer that is not private"
            )
        if coverage.kind == "own" and program.keep is not own_state:
            raise ExposureError(
                f"program {name!r} lets clients remember something, which its method does not "
                "declare: let `records` return KEPT if nothing but their number decides which "
                "records are kept"
            )
        parts = (program.data, program.keep, program.report)
        if coverage.kind != "undeclared" or parts == (own_data, own_state, change):
            return
    elif isinstance(program, Statistic) or coverage.kind != "undeclared":
        return
    raise ExposureError(
        f"program {name!r} is no plain local training and no statistic, and its method does not "
        "declare what it does with single records: give the method `records(self)` (see "
        "fedcl.core.coverage), or take a trainer that is not private"
    )


def is_trusted(program: Program[Any] | Local) -> bool:
    """Returns whether a program is believed what it says that it spends.

    Only training and statistics are: any other one could say of itself what it likes.
    """
    return isinstance(program, Local | Statistic)


def covered(coverage: Coverage, spent: Mapping[int, Spent]) -> dict[int, Spent]:
    """Returns what clients spent of their records, as the method's declaration has it.

    A trainer cannot know whether examples that a method chooses are remembered ones.
    """
    own = coverage.kind == "own"
    return {id: replace(one, earlier=False) if own else one for id, one in spent.items()}


def spent_of(
    coverage: Coverage,
    program: Program[Any] | Local,
    results: list[BlockResult],
    ahead: bool = False,
) -> tuple[dict[int, Spent], bool]:
    """Returns what clients spent of their records, and whether something came without protection.

    Replies without a tensor release nothing.

    Args:
        coverage: What the method declares.
        program: What clients ran.
        results: What they answered.
        ahead: Whether clients were charged before they were asked: what is refused is paid for.
    """
    trusted = is_trusted(program)
    spent = {k: v for result in results for k, v in result.spent.items()} if trusted else {}
    answered = {id for result in results for id in result.ids}
    if not (trusted and ahead):
        answered |= {id for result in results for id in result.rejected}
    told = any(
        (result.total is not None and result.total.total)
        or any(reply.tensors for reply in result.replies or ())
        for result in results
    )
    return covered(coverage, spent), told and bool(answered - spent.keys())
