"""The study of kron: what it tunes on, how far a search goes, and the noise that it adds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kron_rows import PHASES, ROWS, SETTINGS
from kron_runs import Study, possible
from kron_tables import difference, paired
from ladder import TUNING_SEED
from noise import MomentNoise, frobenius, private_noise, side, trace
from runner import CONFIGS, Cell
from torch import Tensor

import fedcl
from fedcl.core.channel import Aggregate
from fedcl.core.features.subspace import pack, unpack

PAIRS = [(stream, row) for stream in SETTINGS for row in ROWS if possible(stream, row)]


def moment(d: int, seed: int = 0) -> Tensor:
    half = torch.randn(d, 2 * d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return half @ half.T


def noisy(tensors: dict[str, Tensor], sigma: float, seed: int = 0) -> dict[str, Tensor]:
    return dict(MomentNoise(sigma).receive(Aggregate(tensors, 1.0, 1), None, seed)[0].total)


def finish(study: Study, cells: tuple[Cell, ...], accuracy: Callable[[Cell], float]) -> None:
    for cell in cells:
        folder = study.out / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        summary = {"split": "validation", "average_accuracy": accuracy(cell)}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def searched(study: Study, row: str, accuracy: Callable[[float], float]) -> list[int]:
    """Finishes what a search asks for until it is over; returns how many were tried each time."""
    option, tried = ROWS[row].option, []
    for _ in range(30):
        found = study.search("pmnist-iid", row)
        tried.append(len(found.tried))
        if found.place is not None:
            return tried
        finish(study, found.tried, lambda cell: accuracy(cell.changes["method"][option]))
    raise AssertionError("the search does not end")


@pytest.mark.parametrize(("stream", "row"), PAIRS)
def test_values_are_chosen_on_validation_data_with_a_seed_of_their_own(
    stream: str, row: str, tmp_path: Path
) -> None:
    study = Study(tmp_path, "data")
    tried = study.search(stream, row).tried
    assert len(tried) == (5 if ROWS[row].option else 0), "as many for every row"
    for cell in tried:
        experiment = fedcl.load_config(CONFIGS / cell.config, cell.changes)
        assert experiment.evaluation.splits == ("validation",) and experiment.seed == TUNING_SEED
        assert experiment.stream.validation == 0.2 and experiment.evaluation.every == 0
    finish(study, tried, lambda cell: -abs(tried.index(cell) - 2))
    final = study.final(stream, row, 4)
    assert final is not None
    experiment = fedcl.load_config(CONFIGS / final.config, final.changes)
    assert experiment.evaluation.splits == ("test",) and experiment.seed == 4
    assert experiment.stream.validation == 0.2, "final runs do not train on it either"
    if tried:
        assert final.changes["method"] == tried[2].changes["method"]


def test_no_final_seed_is_the_tuning_seed() -> None:
    assert max(phase.seeds for phase in PHASES) <= TUNING_SEED


@pytest.mark.parametrize("row", ["fot", "kron"])
def test_a_search_goes_on_while_the_best_is_the_first_or_the_last(row: str, tmp_path: Path) -> None:
    ladder, first = ROWS[row].ladder, ROWS[row].ladder.index(ROWS[row].first)
    for target, tried in ((first + 2, [5, 5]), (first - 2, [5, 6, 7, 8, 8])):
        study = Study(tmp_path / str(target), "data")
        distance = {value: -abs(place - target) for place, value in enumerate(ladder)}
        assert searched(study, row, distance.__getitem__) == tried
        found = study.search("pmnist-iid", row)
        assert found.place is not None and found.values[found.place] == ladder[target]
        assert not found.open
    study = Study(tmp_path / "end", "data")
    searched(study, row, lambda value: value)
    found = study.search("pmnist-iid", row)
    assert found.open and found.values[-1] == ladder[-1], "nothing lies beyond"


def test_a_value_that_failed_is_never_chosen(tmp_path: Path) -> None:
    study = Study(tmp_path, "data")
    tried = study.search("pmnist-iid", "kron").tried
    finish(study, tried[:4], lambda cell: float(tried.index(cell)))
    assert study.search("pmnist-iid", "kron").place is None
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / tried[4].name).touch()
    assert study.search("pmnist-iid", "kron").place == 3


def test_a_candidate_that_saw_the_test_set_is_refused(tmp_path: Path) -> None:
    study = Study(tmp_path, "data")
    tried = study.search("pmnist-iid", "kron").tried
    finish(study, tried, lambda cell: 0.5)
    text = json.dumps({"split": "test", "average_accuracy": 0.5})
    (tmp_path / tried[1].name / "summary.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="validation"):
        study.search("pmnist-iid", "kron")


def test_differences_are_between_runs_of_one_seed() -> None:
    def runs(*values: float) -> dict[int, dict[str, float]]:
        return {seed: {"average_accuracy": value} for seed, value in enumerate(values)}

    found = paired(runs(0.5, 0.75, 0.9), runs(0.25, 1.0))
    assert found == pytest.approx([25.0, -25.0])
    assert difference(found) == "+0.00 ± 35.36 (1/2)"
    assert difference([]) == ""


@pytest.mark.parametrize("d", [1, 2, 7])
def test_norms_of_packed_matrices(d: int) -> None:
    matrix = moment(d)
    packed = pack(matrix)
    assert side(packed) == d
    assert frobenius(packed) == pytest.approx(float(matrix.norm()))
    assert trace(packed) == pytest.approx(float(matrix.trace()))


def test_noise_has_the_norm_that_was_asked_for_and_spares_other_kinds() -> None:
    matrix = moment(20)
    tensors = {
        "input_moments/a": pack(matrix),
        "output_moments/a": pack(matrix),
        "count/n": torch.tensor(3.0),
        "fc.weight": matrix,
    }
    shares = []
    for seed in range(200):
        found = noisy(tensors, 0.1, seed)
        assert found["count/n"] is tensors["count/n"] and found["fc.weight"] is matrix
        added = {
            kind: unpack(found[f"{kind}/a"]) - matrix
            for kind in ("input_moments", "output_moments")
        }
        assert not torch.equal(added["input_moments"], added["output_moments"])
        shares += [float(noise.norm() / matrix.norm()) for noise in added.values()]
    mean_square = sum(share**2 for share in shares) / len(shares)
    assert math.sqrt(mean_square) == pytest.approx(0.1, rel=0.02)


def test_noise_is_a_function_of_the_seed_and_none_leaves_the_bits() -> None:
    tensors = {"input_moments/a": pack(moment(5))}
    assert torch.equal(
        noisy(tensors, 0.5, 1)["input_moments/a"], noisy(tensors, 0.5, 1)["input_moments/a"]
    )
    assert not torch.equal(
        noisy(tensors, 0.5, 1)["input_moments/a"], noisy(tensors, 0.5, 2)["input_moments/a"]
    )
    assert torch.equal(noisy(tensors, 0.0)["input_moments/a"], tensors["input_moments/a"])


def test_the_noise_of_a_private_sum_by_hand() -> None:
    """Of 50 vectors (2, 0) the sum is [[200, 0], [0, 0]], and C squared is 4."""
    packed = torch.tensor([200.0, 0.0, 0.0])
    deviation = 4 * math.sqrt(2 * math.log(1.25 / 1e-5))
    assert private_noise(packed, 50, 1.0, 1e-5) == pytest.approx(deviation * 2 / 200)
    assert private_noise(packed, 50, 0.5, 1e-5) == pytest.approx(2 * deviation * 2 / 200)
