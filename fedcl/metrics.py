"""Continual-learning metrics: pure functions of stored accuracies, one name for one formula.

Accuracies are fractions in [0, 1], NaN where nothing was evaluated; stages and tasks count from 0.
A missing value that a formula needs makes the result NaN, it is never left out silently; so does a
mean over nothing (forgetting of a single task). Wrong shapes, empty arguments and accuracies
outside [0, 1] (percentages) raise `ValueError`. Formulas and sources: docs/metrics.md.

A `matrix` R is (T, T): accuracy on task j after stage i. A `curve` is (P, T): accuracy on task j at
evaluation point n, which lies in `stages[n]`, (P,) and never falling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def average_accuracy(matrix: npt.ArrayLike, stage: int | None = None) -> float:
    """Returns A_k, mean accuracy on tasks 0..stage after `stage`; the last one (ACC) by default.

    Source: Lopez-Paz & Ranzato 2017.
    """
    accuracy = _square(matrix)
    row = _stage(stage, len(accuracy))
    return _mean(accuracy[row, : row + 1])


def pooled_accuracy(accuracies: npt.ArrayLike, sizes: npt.ArrayLike) -> float:
    """Returns top-1 accuracy over the union of k test sets, from (k,) accuracies and (k,) sizes.

    A task of size 0 adds nothing to the union, so it may lack an accuracy; NaN if all have size 0.
    Source: TARGET 2023, LANDER 2024, FedCBDR 2025 ("A(f)").
    """
    accuracy, counts = _fractions(accuracies, "accuracies", 1), _numbers(sizes, "sizes", 1)
    if counts.shape != accuracy.shape:
        raise ValueError(f"{accuracy.size} accuracies need as many sizes, not {counts.size}")
    if np.any(counts < 0):
        raise ValueError(f"sizes must not be negative, but one is {np.nanmin(counts):g}")
    used = counts != 0
    return float(np.average(accuracy[used], weights=counts[used])) if used.any() else float("nan")


def average_incremental_accuracy(
    matrix: npt.ArrayLike, sizes: npt.ArrayLike | None = None, *, include_first: bool = True
) -> float:
    """Returns the mean over stages of A_k, or of pooled accuracy when test `sizes` are given.

    Source: Rebuffi et al. 2017 (iCaRL).

    Args:
        matrix: (T, T) accuracies.
        sizes: (T,) or (T, T) numbers of test examples of each task (at each stage).
        include_first: Whether the first stage, before which nothing could be forgotten, counts.
    """
    accuracy = _square(matrix)
    steps = _seen_accuracy(accuracy, np.arange(len(accuracy)), sizes)
    return _mean(steps if include_first else steps[1:])


def backward_transfer(matrix: npt.ArrayLike) -> float:
    """Returns the mean over i < T of R[T, i] - R[i, i]. Source: Lopez-Paz & Ranzato 2017."""
    accuracy = _square(matrix)
    return _mean((accuracy[-1] - np.diagonal(accuracy))[:-1])


def forward_transfer(matrix: npt.ArrayLike, untrained: npt.ArrayLike) -> float:
    """Returns the mean over i >= 2 of R[i-1, i] - b_i, with (T,) accuracies b before any training.

    Source: Lopez-Paz & Ranzato 2017.
    """
    accuracy = _square(matrix)
    before = _vector(untrained, "untrained", len(accuracy))
    return _mean(np.diagonal(accuracy, offset=1) - before[1:])


def forgetting(matrix: npt.ArrayLike) -> float:
    """Returns the mean over j < T of max_{l in 1..T-1} R[l, j] - R[T, j]; it can be negative.

    The maximum leaves out the last row only. NaN above the diagonal (unseen tasks are not always
    evaluated) is no candidate for it; NaN on or below makes the result NaN.
    Source: Chaudhry et al. 2018, eq. 3.
    """
    accuracy = _square(matrix)
    best = _candidates(accuracy)[:-1].max(axis=0, initial=-np.inf)
    return _mean((best - accuracy[-1])[:-1])


def forgetting_first_last(matrix: npt.ArrayLike) -> float:
    """Returns the mean over j < T of R[j, j] - R[T, j], minus the backward transfer.

    Source: Bakman et al. 2024 (FOT), whose tables call it FGT.
    """
    accuracy = _square(matrix)
    return _mean((np.diagonal(accuracy) - accuracy[-1])[:-1])


def forgetting_clipped(matrix: npt.ArrayLike) -> float:
    """Returns `forgetting` with the last row in the maximum: never negative. As PyCIL, Mammoth."""
    accuracy = _square(matrix)
    return _mean((_candidates(accuracy).max(axis=0) - accuracy[-1])[:-1])


def intransigence(matrix: npt.ArrayLike, joint: npt.ArrayLike, stage: int | None = None) -> float:
    """Returns a*_k - R[k, k] at `stage`, by default the last. Source: Chaudhry et al. 2018.

    Args:
        matrix: (T, T) accuracies.
        joint: (T,) accuracy on task j of a model trained jointly on tasks 0..j.
        stage: The stage k.
    """
    accuracy = _square(matrix)
    row = _stage(stage, len(accuracy))
    return float(_vector(joint, "joint", len(accuracy))[row] - accuracy[row, row])


def mean_intransigence(matrix: npt.ArrayLike, joint: npt.ArrayLike) -> float:
    """Returns the mean over all stages of `intransigence`. Source: Chaudhry et al. 2018."""
    accuracy = _square(matrix)
    return _mean(_vector(joint, "joint", len(accuracy)) - np.diagonal(accuracy))


def learning_accuracy(matrix: npt.ArrayLike) -> float:
    """Returns the mean of R[i, i], the plasticity. Source: Riemer et al. 2019."""
    return _mean(np.diagonal(_square(matrix)))


def min_accuracy(curve: npt.ArrayLike, stages: npt.ArrayLike, stage: int | None = None) -> float:
    """Returns min-ACC_k: the mean over tasks before `stage` of the lowest accuracy after their end.

    Points later than stage i and up to `stage` (default: the last evaluated) count for task i; NaN
    in the first stage, which has no earlier task. Source: De Lange et al. 2023.
    """
    accuracy, when, last = _curve(curve, stages, stage)
    lowest = [accuracy[(when > task) & (when <= last), task].min() for task in range(last)]
    return _mean(np.array(lowest))


def worst_case_accuracy(
    curve: npt.ArrayLike, stages: npt.ArrayLike, stage: int | None = None
) -> float:
    """Returns WC-ACC = A(E_k, f_t)/k + (1 - 1/k) min-ACC_k, where f_t is the last point of `stage`.

    In the first stage that is the accuracy on the first task. Source: De Lange et al. 2023.
    """
    accuracy, when, last = _curve(curve, stages, stage)
    share = 1 / (last + 1)
    current = float(share * accuracy[when == last][-1, last])
    return current if last == 0 else current + (1 - share) * min_accuracy(curve, stages, last)


def anytime_accuracy(
    curve: npt.ArrayLike, stages: npt.ArrayLike, sizes: npt.ArrayLike | None = None
) -> float:
    """Returns A_AUC, the mean over all evaluation points of the accuracy on the tasks seen so far.

    With `sizes`, (T,) or (P, T), tasks are pooled. Source: Koh et al. 2022 (i-Blurry).
    """
    accuracy, when, _ = _curve(curve, stages, None)
    return _mean(_seen_accuracy(accuracy, when, sizes))


def temporal_retention(current: npt.ArrayLike, initial: npt.ArrayLike) -> float:
    """Returns KR_t, the mean over clients of Acc(theta_i^r; T_i^0) / Acc(theta_i^0; T_i^0).

    Both are (clients,) accuracies on a client's first task: of its model of round r, and of its
    model after that task. NaN when a divisor is 0. Source: FedTA 2024, eq. 11.
    """
    return _mean_ratio(current, initial)


def spatial_retention(shared: npt.ArrayLike, local: npt.ArrayLike) -> float:
    """Returns KR_s, the mean over clients of Acc(theta_g^r; T_i^r) / Acc(theta_i^r; T_i^r).

    Both are (clients,) accuracies on a client's present task: of the global model, and of its own.
    NaN when a divisor is 0. Source: FedTA 2024, eq. 12.
    """
    return _mean_ratio(shared, local)


def local_update_loss(shared: npt.ArrayLike, local: npt.ArrayLike) -> npt.NDArray[Any]:
    """Returns (rounds, ...) G[r-1] - L[r]: what local training lost on old tasks.

    With `aggregation_loss` it sums to G[0] - G[rounds]: to the last digit for integers (numbers of
    correct answers) and `Fraction`s, whose type is kept; up to rounding for floats.

    Args:
        shared: (rounds + 1, ...) accuracy G of the global model before the first round and after
            each; further axes, such as tasks, are free.
        local: (rounds, ...) accuracy L after local training: of one client, or its cohort's mean.
    """
    whole, own = _rounds(shared, local)
    return np.asarray(whole[:-1] - own)


def aggregation_loss(shared: npt.ArrayLike, local: npt.ArrayLike) -> npt.NDArray[Any]:
    """Returns (rounds, ...) L[r] - G[r]: what aggregation lost. Arguments: `local_update_loss`."""
    whole, own = _rounds(shared, local)
    return np.asarray(own - whole[1:])


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else float("nan")  # numpy would warn


def _numbers(values: npt.ArrayLike, name: str, dimensions: int) -> FloatArray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a regular array of numbers: {error}") from error
    if array.size == 0:
        raise ValueError(f"{name} is empty")
    if array.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimension(s), but has shape {array.shape}")
    return array


def _fractions(values: npt.ArrayLike, name: str, dimensions: int) -> FloatArray:
    array = _numbers(values, name, dimensions)
    wrong = array[(array < -1e-9) | (array > 1 + 1e-9)]  # a mean may pass 1 by a rounding
    if wrong.size:
        raise ValueError(f"{name} must hold fractions in [0, 1] or NaN, not {wrong[0]:g}")
    return array


def _square(matrix: npt.ArrayLike) -> FloatArray:
    accuracy = _fractions(matrix, "matrix", 2)
    if accuracy.shape[0] != accuracy.shape[1]:
        raise ValueError(f"matrix must be square, stages by tasks, but has shape {accuracy.shape}")
    return accuracy


def _vector(values: npt.ArrayLike, name: str, tasks: int) -> FloatArray:
    vector = _fractions(values, name, 1)
    if vector.size != tasks:
        raise ValueError(f"{name} needs one accuracy for each of {tasks} tasks, not {vector.size}")
    return vector


def _stage(stage: int | None, stages: int) -> int:
    if stage is not None and not 0 <= stage < stages:
        raise ValueError(f"stage {stage} does not exist: stages go from 0 to {stages - 1}")
    return stages - 1 if stage is None else stage


def _candidates(accuracy: FloatArray) -> FloatArray:
    """Returns the matrix with -inf for what a maximum over stages leaves out."""
    return np.where(np.triu(np.isnan(accuracy), k=1), -np.inf, accuracy)


def _seen_accuracy(
    accuracy: FloatArray, stages: npt.NDArray[np.int64], sizes: npt.ArrayLike | None
) -> FloatArray:
    """Returns (P,) accuracy on tasks 0..stages[n] at each point n: mean over tasks, or pooled."""
    if sizes is None:
        return np.array([_mean(row[: k + 1]) for row, k in zip(accuracy, stages, strict=True)])
    counts = _numbers(sizes, "sizes", np.ndim(sizes) if np.ndim(sizes) in (1, 2) else 2)
    if counts.shape not in (accuracy.shape, accuracy.shape[1:]):
        raise ValueError(f"sizes of shape {counts.shape} do not fit accuracies {accuracy.shape}")
    table = zip(accuracy, np.broadcast_to(counts, accuracy.shape), stages, strict=True)
    return np.array([pooled_accuracy(row[: k + 1], n[: k + 1]) for row, n, k in table])


def _curve(
    curve: npt.ArrayLike, stages: npt.ArrayLike, stage: int | None
) -> tuple[FloatArray, npt.NDArray[np.int64], int]:
    accuracy, when = _fractions(curve, "curve", 2), _numbers(stages, "stages", 1)
    points, tasks = accuracy.shape
    if when.size != points:
        raise ValueError(f"curve has {points} points, but stages has {when.size}")
    if not np.isin(when, np.arange(tasks)).all() or np.any(np.diff(when) < 0):
        raise ValueError(f"stages must be whole numbers from 0 to {tasks - 1} that never fall")
    last = int(when[-1]) if stage is None else stage
    if last not in when:
        raise ValueError(f"no evaluation point lies in stage {last}")
    return accuracy, when.astype(np.int64), last


def _mean_ratio(above: npt.ArrayLike, below: npt.ArrayLike) -> float:
    numerator, divisor = _fractions(above, "numerator", 1), _fractions(below, "divisor", 1)
    if numerator.shape != divisor.shape:
        raise ValueError(f"{numerator.size} and {divisor.size} clients do not pair up")
    return _mean(numerator / np.where(divisor == 0, np.nan, divisor))


def _rounds(
    shared: npt.ArrayLike, local: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    whole, own = (
        array.astype(np.int64) if array.dtype.kind in "bu" else array  # unsigned would wrap at 0
        for array in (np.asarray(shared), np.asarray(local))
    )
    if own.ndim == 0 or own.size == 0 or whole.shape != (own.shape[0] + 1, *own.shape[1:]):
        raise ValueError(f"{whole.shape} and {own.shape} must be (rounds + 1, ...), (rounds, ...)")
    return whole, own
