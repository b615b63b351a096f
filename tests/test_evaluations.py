"""A run's long table: matrices of the server and of clients, and one metric over clients."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl import metrics
from fedcl.evaluations import accuracy_matrix, over_clients

NAN = float("nan")
HEADER = "round,stage,client,client_stage,model,task,split,metric,value,n"
COLUMNS = HEADER.split(",")


def evaluation(
    round: int, stage: int, task: int, value: float | None, **other: Any
) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS, None) | {"model": "global", "split": "test", "metric": "accuracy"}
    return row | {"round": round, "stage": stage, "task": task, "value": value, "n": 100} | other


def written(rows: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Returns the rows as they come back from a CSV file: all text, missing is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return list(csv.DictReader(io.StringIO(file.getvalue())))


RUN = [
    evaluation(0, 0, 0, 0.10),
    evaluation(0, 0, 1, 0.20, n=300),
    evaluation(1, 0, 0, 0.50),
    evaluation(2, 0, 0, 0.90),
    evaluation(2, 0, 1, 0.15, n=300),
    evaluation(3, 1, 0, 0.40),
    evaluation(3, 1, 1, 0.60, n=300),
    evaluation(4, 1, 0, 0.70),
    evaluation(4, 1, 1, 0.80, n=300),
]
OTHERS = [
    evaluation(4, 1, 0, 0.01, client=0, client_stage=1),
    evaluation(4, 1, 0, 0.02, model="local"),
    evaluation(4, 1, 0, 0.03, split="validation"),
    evaluation(4, 1, 0, 3.21, metric="loss"),
]


@pytest.mark.parametrize("shape", [list, written])
def test_matrix_takes_the_last_round_of_each_stage(shape: Any) -> None:
    table = accuracy_matrix(shape(OTHERS + RUN[::-1]))
    assert table.matrix.tolist() == [[0.9, 0.15], [0.7, 0.8]]
    assert table.untrained.tolist() == [0.1, 0.2]
    assert table.sizes.tolist() == [[100, 300], [100, 300]]
    assert table.stages.tolist() == [0, 0, 1, 1]
    np.testing.assert_equal(table.curve, [[0.5, NAN], [0.9, 0.15], [0.4, 0.6], [0.7, 0.8]])


def test_metrics_read_the_table() -> None:
    table = accuracy_matrix(RUN)
    assert metrics.forgetting(table.matrix) == pytest.approx(0.2)
    assert metrics.forward_transfer(table.matrix, table.untrained) == pytest.approx(-0.05)
    assert metrics.pooled_accuracy(table.matrix[-1], table.sizes[-1]) == pytest.approx(0.775)
    pooled = metrics.average_incremental_accuracy(table.matrix, table.sizes)
    assert pooled == pytest.approx((0.9 + 0.775) / 2)
    assert metrics.min_accuracy(table.curve, table.stages) == 0.4
    assert metrics.anytime_accuracy(table.curve, table.stages) == pytest.approx(
        (0.5 + 0.9 + 0.5 + 0.75) / 4
    )


def test_other_splits_and_models_are_their_own_table() -> None:
    assert accuracy_matrix(OTHERS, split="validation").matrix[-1, 0] == 0.03
    assert accuracy_matrix(OTHERS, model="local").matrix[-1, 0] == 0.02


def test_an_unfinished_run_has_missing_stages() -> None:
    table = accuracy_matrix(RUN[:5], tasks=3)
    np.testing.assert_equal(table.matrix, [[0.9, 0.15, NAN], [NAN] * 3, [NAN] * 3])
    assert math.isnan(metrics.average_accuracy(table.matrix))
    assert metrics.average_accuracy(table.matrix, 0) == 0.9
    np.testing.assert_equal(accuracy_matrix(RUN[:2]).matrix, [[NAN, NAN], [NAN, NAN]])


def test_an_older_round_does_not_stand_in_for_the_end_of_a_stage() -> None:
    table = accuracy_matrix([row for row in RUN if (row["round"], row["task"]) != (4, 0)])
    np.testing.assert_equal(table.matrix, [[0.9, 0.15], [NAN, 0.8]])


def test_a_null_value_is_missing() -> None:
    table = accuracy_matrix(written([*RUN[:-1], evaluation(4, 1, 1, None)]))
    np.testing.assert_equal(table.matrix, [[0.9, 0.15], [0.7, NAN]])


def own(round: int, stage: int, task: int, value: float, client: int = 7) -> dict[str, Any]:
    return evaluation(round, stage, task, value, client=client, client_stage=0)


OWN_ORDER = [
    own(2, 0, 2, 0.9),  # met task 2 first ...
    own(4, 1, 2, 0.6),  # ... rested in stage 1 ...
    own(6, 2, 2, 0.5),
    own(6, 2, 0, 0.8),  # ... met task 0 in stage 2 ...
    own(8, 3, 2, 0.7),  # ... and task 2 again in stage 3.
    own(8, 3, 0, 0.4),
    own(8, 3, 0, 0.0, client=70),
]


@pytest.mark.parametrize("shape", [list, written])
def test_a_client_has_a_matrix_in_its_own_order(shape: Any) -> None:
    table = accuracy_matrix(shape(OWN_ORDER + RUN), client=7)
    np.testing.assert_equal(table.matrix, [[0.9, NAN], [0.7, 0.4]])
    np.testing.assert_equal(table.curve, [[0.9, NAN], [0.6, NAN], [0.5, 0.8], [0.7, 0.4]])
    assert table.stages.tolist() == [0, 0, 1, 1]
    np.testing.assert_equal(table.untrained, [NAN, NAN])
    assert metrics.forgetting(table.matrix) == pytest.approx(0.2)
    assert accuracy_matrix(OWN_ORDER, client=70).matrix.tolist() == [[0.0]]


def test_a_client_that_met_two_tasks_at_once_lacks_the_stage_between() -> None:
    rows = [own(2, 0, 0, 0.9), own(2, 0, 1, 0.8), own(4, 1, 0, 0.7), own(4, 1, 1, 0.6)]
    table = accuracy_matrix(rows, client=7)
    np.testing.assert_equal(table.matrix, [[NAN, NAN], [0.7, 0.6]])
    assert metrics.average_accuracy(table.matrix) == pytest.approx(0.65)
    assert math.isnan(metrics.forgetting(table.matrix))


@pytest.mark.parametrize(
    ("rows", "options", "fact"),
    [
        ([], {}, "no accuracy of model 'global' on split 'test' for the union test set"),
        (RUN, {"split": "train"}, "on split 'train'"),
        (RUN, {"client": 3}, "for client 3"),
        ([own(0, 0, 0, 0.1)], {"client": 7}, "for client 7"),
        (RUN, {"tasks": 1}, "rows show stage or task 1, but there are 1 tasks"),
        ([*RUN, RUN[-1]], {}, "round 4 has two accuracies of model 'global' on task 1"),
        ([*RUN, evaluation(4, 0, 2, 0.5)], {}, "round 4 lies in two stages, 1 and 0"),
        ([{"metric": "accuracy"}], {}, "lacks the column 'client'"),
        ([{k: v for k, v in RUN[0].items() if k != "n"}], {}, "lacks the column 'n'"),
    ],
)
def test_wrong_tables_are_refused(rows: Any, options: dict[str, Any], fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        accuracy_matrix(rows, **options)


def test_summary_over_clients() -> None:
    accuracies = {4: 0.5, 2: 0.5, 9: 0.8}
    summary = over_clients(accuracies)
    assert summary.mean == pytest.approx(0.6)
    assert summary.std == pytest.approx(math.sqrt((0.01 + 0.01 + 0.04) / 3))  # of a population
    assert (summary.worst, summary.worst_client) == (0.5, 2)
    assert (summary.count, summary.missing) == (3, 0)
    forgetting = over_clients(accuracies, higher_is_better=False)
    assert (forgetting.worst, forgetting.worst_client) == (0.8, 9)


def test_clients_without_a_value_are_counted() -> None:
    summary = over_clients({0: NAN, 1: 0.25, 2: None}, higher_is_better=False)
    assert (summary.mean, summary.std, summary.worst, summary.worst_client) == (0.25, 0, 0.25, 1)
    assert (summary.count, summary.missing) == (1, 2)
    nobody = over_clients({0: NAN})
    assert math.isnan(nobody.mean) and math.isnan(nobody.std) and math.isnan(nobody.worst)
    assert (nobody.worst_client, nobody.count, nobody.missing) == (None, 0, 1)
    with pytest.raises(ValueError, match="no clients to summarise"):
        over_clients({})


@given(st.dictionaries(st.integers(0, 50), st.floats(0, 1), min_size=1))
def test_the_worst_client_is_worst(values: dict[int, float]) -> None:
    low, high = over_clients(values), over_clients(values, higher_is_better=False)
    assert low.worst == min(values.values()) <= low.mean + 1e-12
    assert high.worst == max(values.values()) >= high.mean - 1e-12
    assert low.worst_client is not None and values[low.worst_client] == low.worst
    assert over_clients(dict(reversed(values.items()))) == low
