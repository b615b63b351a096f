"""Permuted, rotated and natural domains."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.stream import Stream
from fedcl.core.data.table import ArrayTable
from fedcl.core.errors import ConfigError
from fedcl.streams.domain_incremental import DomainIncremental, Permute, Rotate
from tests.core import toys


def images(side: int = 6, channels: int = 2, rows: int = 40) -> Dataset:
    """Returns random images, the test split with other ones."""
    generator = np.random.default_rng(0)

    def table(n: int) -> ArrayTable:
        values = generator.random((n, channels, side, side), dtype=np.float32)
        return ArrayTable(values, toys.ints(np.arange(n) % 4))

    return Dataset("images", table(rows), table(rows // 2), 4, (channels, side, side))


def build(dataset: Dataset | None = None, seed: int = 1, **options: Any) -> Stream:
    scenario = DomainIncremental(**{"tasks": 4, "clients": 2, **options})
    return scenario.build(dataset or images(), seed, "toy")


def inputs(stream: Stream, task: int) -> torch.Tensor:
    return stream.held_out(task, "test").x


# Permuted features.


def test_the_first_task_is_the_original_and_others_permute_all_inputs_alike() -> None:
    stream = build()
    original = inputs(stream, 0).flatten(1)
    raw = stream.dataset.test.rows(stream.tasks[0].test)
    assert np.array_equal(original.numpy(), raw.reshape(len(raw), -1))
    seen = []
    for task in (1, 2, 3):
        permuted = inputs(stream, task).flatten(1)
        change = stream.tasks[task].transform
        assert isinstance(change, Permute)
        assert sorted(change.order.tolist()) == list(range(72))
        # Feature j of the new input is feature order[j] of the old one, in every row.
        for j in range(72):
            assert torch.equal(permuted[:, j], original[:, change.order[j]])
        assert inputs(stream, task).shape == (20, 2, 6, 6)
        seen.append(change.order.tolist())
    assert seen[0] != seen[1] != seen[2]


def test_training_and_test_inputs_are_permuted_alike() -> None:
    stream = build()
    change = stream.tasks[2].transform
    assert change is not None
    own = stream.train(1, 2)
    raw = stream.dataset.train.rows(stream.rows(1, 2))
    assert np.array_equal(own.x.numpy(), change(raw))
    assert own.x.is_contiguous()


def test_permutations_are_functions_of_seed_and_task() -> None:
    first, again, other = build(), build(tasks=6, clients=5), build(seed=2)
    assert torch.equal(inputs(first, 2), inputs(again, 2))
    assert not torch.equal(inputs(first, 2), inputs(other, 2))


def test_the_first_task_may_be_permuted_too() -> None:
    assert build().tasks[0].name == "original"
    stream = build(keep_first=False)
    assert [task.name for task in stream.tasks] == [f"permutation {t}" for t in range(4)]
    assert not torch.equal(inputs(stream, 0), inputs(build(), 0))
    # The others stay what they are.
    assert torch.equal(inputs(stream, 1), inputs(build(), 1))


def test_the_classes_stay() -> None:
    stream = build()
    assert {task.classes for task in stream.tasks} == {(0, 1, 2, 3)}
    assert stream.scenario == "domain"
    assert stream.seen_classes(0) == (0, 1, 2, 3)


# Rotations.


@pytest.mark.parametrize("side", [5, 6, 8])
@pytest.mark.parametrize("quarter", [1, 2, 3, -1])
def test_quarter_turns_are_exact_and_counter_clockwise(side: int, quarter: int) -> None:
    x = images(side).test.rows(np.arange(20))
    turned = Rotate(90.0 * quarter)(x)
    # From rows to columns is counter-clockwise, as rows go down.
    expected = torch.rot90(torch.from_numpy(x), quarter, (2, 3))
    assert turned.dtype == np.float32
    assert np.array_equal(turned, expected.numpy())


def test_a_small_turn_moves_the_right_edge_up() -> None:
    x = np.zeros((1, 1, 21, 21), dtype=np.float32)
    x[0, 0, 10, 18] = 1.0  # right of the centre, in the middle row
    turned = Rotate(30.0)(x)[0, 0]
    row, column = np.unravel_index(turned.argmax(), turned.shape)
    # 8 cos 30 = 6.9 to the right, 8 sin 30 = 4 up, where rows count down.
    assert (int(row), int(column)) == (6, 17)


@pytest.mark.parametrize("degrees", [17.0, 45.0, 130.0, -60.0])
def test_slopes_are_turned_exactly(degrees: float) -> None:
    """Linear interpolation has no error on 2 r + 3 c, so that the turned image is known."""
    row, column = np.meshgrid(np.arange(15.0), np.arange(15.0), indexing="ij")
    image = (2 * row + 3 * column).astype(np.float32)[None, None]
    down, right = row - 7, column - 7
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    # What lands here came from the place that lies as far back, clockwise.
    expected = 2 * (7 + cosine * down + sine * right) + 3 * (7 + cosine * right - sine * down)
    inside = down**2 + right**2 < 36
    turned = Rotate(degrees)(image)[0, 0]
    assert np.allclose(turned[inside], expected[inside], atol=1e-4)


def test_turned_images_stay_in_range_and_are_empty_outside() -> None:
    turned = Rotate(45.0)(np.ones((2, 3, 9, 9), dtype=np.float32))
    assert turned.shape == (2, 3, 9, 9)
    assert turned.min() == 0.0
    assert turned.max() == pytest.approx(1.0)
    assert np.all(turned[:, :, 0, 0] == 0.0)
    assert np.allclose(turned[:, :, 4, 4], 1.0)


@pytest.mark.parametrize("degrees", [0.5, 17.0, 45.0, 90.0, 130.0, -60.0, 359.0])
@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (3, 3, 32, 32), (2, 2, 9, 14), (1, 1, 1, 4)])
def test_images_turn_as_scipy_turns_them(degrees: float, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    expected = rotate(x, degrees, axes=(3, 2), reshape=False, order=1)
    assert np.abs(Rotate(degrees)(x) - expected).max() < 1e-6


@pytest.mark.parametrize("change", [Rotate(17.0), Permute(toys.ints(np.arange(72)[::-1].copy()))])
def test_each_input_is_changed_by_itself(change: Any) -> None:
    x = images().test.rows(np.arange(20))
    alone = np.concatenate([change(x[i : i + 1]) for i in range(20)])
    assert np.array_equal(change(x), alone)


def test_angles_go_in_equal_steps_from_zero() -> None:
    stream = build(transform="rotate", degrees=60.0)
    assert [task.name for task in stream.tasks] == [f"{a} degrees" for a in (0, 20, 40, 60)]
    assert stream.tasks[0].transform is None
    change = stream.tasks[2].transform
    assert isinstance(change, Rotate)
    assert change.degrees == 40.0
    assert build(transform="rotate", tasks=1).tasks[0].transform is None


@pytest.mark.parametrize("transform", ["rotate", "permute"])
def test_no_rows_are_fine(transform: Any) -> None:
    stream = build(transform=transform)
    assert stream.held_out(3, "validation").x.shape == (0, 2, 6, 6)


def test_only_images_turn() -> None:
    flat = toys.dataset([0, 1] * 20, shape=(6,))
    with pytest.raises(ConfigError, match=r'needs images .* have shape \(6,\): use "permute"'):
        build(flat, transform="rotate")


@pytest.mark.parametrize("transform", ["rotate", "permute"])
def test_transforms_need_a_number_of_tasks(transform: str) -> None:
    with pytest.raises(ConfigError, match=f'transform = "{transform}" needs tasks, at least 1'):
        build(transform=transform, tasks=0)


def test_transforms_travel() -> None:
    x = images().test.rows(np.arange(3))
    for change in (Rotate(17.0), Permute(toys.ints(np.arange(72)[::-1].copy()))):
        assert np.array_equal(pickle.loads(pickle.dumps(change))(x), change(x))


# Natural domains.


def domains(**options: Any) -> Stream:
    column = {"camera": [5, 5, 2, 2, 9, 9, 2, 5]}
    dataset = toys.dataset([0, 1] * 4, columns=column, test_columns=column)
    options = {"transform": "column", "column": "camera", "tasks": 0, **options}
    return build(dataset, **options)


def test_natural_domains_are_the_values_of_a_column() -> None:
    stream = domains()
    assert [task.name for task in stream.tasks] == ["camera 2", "camera 5", "camera 9"]
    assert [task.train.tolist() for task in stream.tasks] == [[2, 3, 6], [0, 1, 7], [4, 5]]
    assert [task.test.tolist() for task in stream.tasks] == [[2, 3, 6], [0, 1, 7], [4, 5]]
    assert domains(tasks=3).stages == 3


def test_domains_may_be_chosen_and_ordered() -> None:
    stream = domains(domains=(9, 2))
    assert [task.train.tolist() for task in stream.tasks] == [[4, 5], [2, 3, 6]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"domains": (9, 4)}, r"domains \[4\] do not occur in column 'camera': it has \[2, 5, 9\]"),
        ({"tasks": 2}, "names 3 domains, but tasks = 2: set it to 3 or 0"),
        ({"column": "lens"}, "'lens' is not in the training split .* has the columns: camera"),
    ],
)
def test_domains_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        domains(**options)


def test_the_test_split_must_name_the_domain_too() -> None:
    dataset = toys.dataset([0, 1] * 4, columns={"domain": [0, 1] * 4})
    with pytest.raises(ConfigError, match=r"'domain' is not in the test split .* columns: none"):
        build(dataset, transform="column", tasks=0)
