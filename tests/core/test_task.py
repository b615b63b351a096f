"""Examples, their joining and taking, and masks of classes."""

import torch

from fedcl.core.task import Examples, class_mask, join

ROWS = Examples(
    torch.arange(12.0).reshape(4, 3),
    torch.tensor([3, 2, 1, 0]),
    {"weight": torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)},
)


def test_taking_rows_takes_all_columns_in_the_order_given() -> None:
    chosen = ROWS.take(torch.tensor([2, 0, 2]))
    assert len(chosen) == 3
    assert chosen.x[:, 0].tolist() == [6.0, 0.0, 6.0]
    assert chosen.y.tolist() == [1, 3, 1]
    assert chosen.extra["weight"].tolist() == [3.0, 1.0, 3.0]
    assert len(ROWS.take(torch.tensor([], dtype=torch.int64))) == 0


def test_joining_puts_one_after_the_other() -> None:
    both = join([ROWS, ROWS.take(torch.tensor([1]))])
    assert both.y.tolist() == [3, 2, 1, 0, 2]
    assert both.extra["weight"].tolist() == [1.0, 2.0, 3.0, 4.0, 2.0]
    assert both.x.shape == (5, 3)


def test_bytes_of_all_columns() -> None:
    assert ROWS.nbytes == 12 * 4 + 4 * 8 + 4 * 8


def test_masks_of_classes() -> None:
    assert class_mask([2, 0], 4).tolist() == [True, False, True, False]
    assert class_mask([], 2).tolist() == [False, False]
