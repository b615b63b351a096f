"""A client's memory keeps what a resumed run, a dropped attempt and a repeated question need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedcl.core.client import Kept
from fedcl.core.errors import ResumeError
from fedcl.core.request import Position
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.node.memories import ClientMemory
from fedcl.flower.node.versions import Moment

WORDS = vocabulary()


def memory_with(folder: Path, *moments: Moment) -> ClientMemory:
    """Returns a memory with a version for each moment, which holds that moment."""
    memory = ClientMemory(folder / "3", WORDS)
    for moment in moments:
        memory.write(moment, moment)
    return memory


def test_a_client_that_keeps_nothing_has_no_folder(tmp_path: Path) -> None:
    memory = memory_with(tmp_path)
    memory.roll_back(None, Position(0, 0, 0), (0, 0))
    assert memory.read(None) is None
    assert list(tmp_path.iterdir()) == []


def test_a_version_comes_back_as_it_was(tmp_path: Path) -> None:
    memory = memory_with(tmp_path)
    value = {"a": torch.arange(6.0).view(2, 3).T, "b": (1, None, -0.0)}
    memory.write((0, -1, 0, 0), value)
    found = memory.read(Kept((0, -1, 0, 0)))
    assert torch.equal(found["a"], value["a"])  # type: ignore[arg-type]
    assert found["b"] == value["b"]
    assert [path.name for path in memory.folder.iterdir()] == ["0_-1_0_0.memory"]


def test_forgetting_is_a_version_too(tmp_path: Path) -> None:
    memory = memory_with(tmp_path, (0, 0, 0, 0))
    memory.write((0, 1, 0, 0), None)
    assert memory.read(Kept((0, 1, 0, 0))) is None
    assert memory.read(Kept((0, 0, 0, 0))) == (0, 0, 0, 0)


def test_a_version_that_is_gone_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"0_1_0_0\.memory is gone: put the folder back"):
        memory_with(tmp_path, (0, 0, 0, 0)).read(Kept((0, 1, 0, 0)))


def test_at_most_four_versions_lie_side_by_side(tmp_path: Path) -> None:
    memory = memory_with(tmp_path)
    base = None
    for stage in range(3):
        for round in range(4):
            committed = (stage, 2) if round >= 2 else (stage, 0)
            for exchange in range(4):
                memory.roll_back(base, Position(stage, round, exchange), committed)
                memory.write((stage, round, 0, exchange), round)
                assert len(memory.moments()) <= 4
                base = Kept((stage, round, 0, exchange))


@pytest.mark.parametrize(
    ("committed", "left"),
    [
        ((0, 0), [(1, 1, 0, 0)]),  # nothing was ever committed: a resumed run starts empty
        ((0, 2), [(0, 1, 0, 0), (1, 1, 0, 0)]),
        ((1, 0), [(0, 4, 0, 0), (1, 1, 0, 0)]),  # the beginning of stage 1 comes after its border
        ((1, 1), [(1, 0, 0, 0), (1, 1, 0, 0)]),
        ((1, 2), [(1, 1, 0, 0)]),
    ],
)
def test_what_a_resumed_run_needs_is_kept(
    tmp_path: Path, committed: tuple[int, int], left: list[Moment]
) -> None:
    earlier = (0, 0, 0, 0), (0, 1, 0, 0), (0, 2, 0, 0), (0, 4, 0, 0), (1, -1, 0, 0), (1, 0, 0, 0)
    memory = memory_with(tmp_path, *earlier, (1, 1, 0, 0))
    memory.roll_back(Kept((1, 1, 0, 0)), Position(1, 2, 0), committed)
    assert memory.moments() == left


def test_what_a_dropped_attempt_started_from_is_kept(tmp_path: Path) -> None:
    memory = memory_with(tmp_path, (0, 1, 0, 0), (0, 2, 0, 0))
    memory.roll_back(Kept((0, 2, 0, 0)), Position(0, 2, 1), (0, 0))
    memory.write((0, 2, 0, 1), None)
    assert memory.moments() == [(0, 1, 0, 0), (0, 2, 0, 0), (0, 2, 0, 1)]
    memory.roll_back(Kept((0, 1, 0, 0)), Position(0, 2, 0, attempt=1), (0, 0))
    assert memory.moments() == [(0, 1, 0, 0)]


def test_what_was_dropped_or_cut_off_is_rolled_back(tmp_path: Path) -> None:
    memory = memory_with(tmp_path, (0, 1, 0, 0), (0, 2, 0, 0), (0, 2, 0, 1), (0, 2, 1, 0))
    memory.roll_back(Kept((0, 1, 0, 0)), Position(0, 3, 0), (0, 2))
    assert memory.moments() == [(0, 1, 0, 0)]
    memory.roll_back(None, Position(0, 3, 0), (0, 2))
    assert memory.moments() == []


def test_a_dropped_attempt_is_no_rescue_for_a_resumed_run(tmp_path: Path) -> None:
    memory = memory_with(tmp_path, (0, 1, 0, 0), (0, 3, 0, 0))  # round 3 was skipped
    memory.roll_back(Kept((0, 1, 0, 0)), Position(0, 6, 0), (0, 5))
    memory.write((0, 6, 0, 0), None)
    memory.roll_back(Kept((0, 6, 0, 0)), Position(0, 7, 0), (0, 5))
    assert memory.moments() == [(0, 1, 0, 0), (0, 6, 0, 0)]
