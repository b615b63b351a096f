"""Seeds are functions of a position, the same in every process and on every machine."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcl.core.seeds import hashes, numpy_generator, seed_of, torch_generator, uniforms

POSITION = st.lists(st.integers(-5, 5) | st.sampled_from(["a", "b", "1"]), max_size=4)


def test_seeds_are_fixed_for_all_time() -> None:
    # Written down once: if one of these moves, every number that fedcl ever gave moves.
    assert seed_of() == 8238016292129134938
    assert seed_of(0, "model") == 8645648053491204272
    assert seed_of(7, "cohort", 3, 0) == 2979448388921784620


def test_another_process_draws_the_same() -> None:
    code = "from fedcl.core.seeds import seed_of; print(seed_of(7, 'cohort', 3))"
    env = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env
    )
    assert int(done.stdout) == seed_of(7, "cohort", 3)


@given(POSITION, POSITION)
def test_different_positions_have_different_seeds(a: list[int | str], b: list[int | str]) -> None:
    assert (seed_of(*a) == seed_of(*b)) == (a == b)
    assert 0 <= seed_of(*a) < 2**63


def test_a_number_and_its_word_differ() -> None:
    assert seed_of(1) != seed_of("1")
    assert seed_of(1, 2) != seed_of(12)
    assert seed_of(1, 2) != seed_of(2, 1)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy_are_integers(kind: type) -> None:
    assert seed_of(3, kind(9)) == seed_of(3, 9)


def test_a_position_has_no_fractions() -> None:
    with pytest.raises(TypeError):
        seed_of(1.0)  # type: ignore[arg-type]


def test_generators_repeat_and_differ_by_position() -> None:
    draws = [torch.rand(4, generator=torch_generator(1, k)).tolist() for k in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    numbers = [numpy_generator(1, k).random(4).tolist() for k in (0, 0, 1)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_neighbours_are_uncorrelated() -> None:
    first = np.array([numpy_generator(5, k).random() for k in range(2000)])
    assert abs(first.mean() - 0.5) < 4 * (1 / 12 / 2000) ** 0.5
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.09


def test_hashes_are_splitmix64() -> None:
    """The reference generator's first values (Steele, Lea and Flood; Vigna's splitmix64.c)."""
    first = hashes(1234567, np.arange(1, 6, dtype=np.uint64))
    assert first.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_uniforms_are_functions_of_seed_item_and_draw() -> None:
    numbers = uniforms(5, np.arange(20_000), 3)
    assert np.array_equal(uniforms(5, np.array([70, 3]), 3), numbers[[70, 3]])
    assert not np.array_equal(uniforms(6, np.arange(20_000), 3), numbers)
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    # Ten bins of 6000 each, of standard deviation 73; draws do not know of each other.
    assert np.abs(np.histogram(numbers, 10, (0, 1))[0] - 6000).max() < 365
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.035
