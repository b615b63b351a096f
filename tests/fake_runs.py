"""Run folders as a run writes them, without any training: accuracies rise and fall by formula."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from fedcl import metrics
from fedcl.evaluations import accuracy_matrix, over_clients

Row = dict[str, Any]
_COLUMNS = {
    "evaluations": "round stage client client_stage model task split metric value n",
    "costs": "round stage client direction payload bytes steps examples seconds",
    "privacy": "channel mechanism unit epsilon delta note",
}


def write_run(
    folder: Path,
    *,
    method: str = "fot",
    scenario: str = "domain",
    seed: int = 0,
    tasks: int = 5,
    rounds: int = 10,
    clients: int = 20,
    own_orders: bool = False,
    loss: float = 0.015,
    options: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a finished run.

    Args:
        folder: The run's folder.
        method: Name of the method.
        scenario: `task`, `class` or `domain`.
        seed: Seed of the run.
        tasks: Tasks and stages.
        rounds: Rounds of a stage.
        clients: Clients with rows of their own.
        own_orders: Whether each client has its own task order.
        loss: Share of its accuracy that an old task loses in a round.
        options: Further keys of the config's table `[method]`.
        summary: Entries of summary.json that replace the right ones.
    """
    generator = np.random.default_rng([seed, tasks, clients])
    rows = [*_global_rows(generator, scenario, tasks, rounds, loss)]
    rows += _client_rows(rows, generator, tasks, rounds, clients, own_orders)
    costs = _costs(tasks, rounds)
    numbers = _numbers(rows, scenario, tasks, own_orders)
    up = {"model": 40_000_000 + seed, "gram": 3_200_000, "metrics": 9_600}
    down = {"model": 80_000_000}
    config = {
        "seed": seed,
        "dataset": {"name": "digits"},
        "stream": {"name": f"{scenario}_incremental", "tasks": tasks, "partition": {"name": "iid"}},
        "method": {"name": method, **(options or {})},
        "training": {"rounds": rounds, "local": {"name": "sgd", "lr": 0.2}},
        "evaluation": {"reference": ""},
    }
    values = {
        "method": method,
        "stream": f"{scenario}_incremental",
        "scenario": scenario,
        "seed": seed,
        "dataset": "digits",
        "model": "mlp",
        "engine": "vectorized",
        "engine_reason": "auto: the model batches",
        **numbers,
        "bytes_up": sum(up.values()),
        "bytes_down": sum(down.values()),
        "bytes_by_payload": {"up": up, "down": down},
        "steps": 1000 * tasks,
        "examples": 16_000 * tasks,
        "seconds": 83.2 + seed,
        "rounds": rounds * tasks,
        "versions": {"fedcl": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
        "command": ["fedcl", "run", "my configs/fot.toml", "--set", f"seed={seed}"],
        **dict.fromkeys(("epsilon", "delta", "noise", "intransigence")),
        **(summary or {}),
    }
    privacy = [
        {
            "channel": kind,
            "mechanism": "none",
            "unit": "client",
            "epsilon": "inf",
            "note": "sent as it is",
        }
        for kind in up
    ]
    folder.mkdir(parents=True)
    for name, table in (("evaluations", rows), ("costs", costs), ("privacy", privacy)):
        write_rows(folder, name, table)
    (folder / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def write_rows(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table of a run's folder; missing values are empty."""
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS[name].split(), restval="")
        writer.writeheader()
        writer.writerows(rows)


def _global_rows(
    generator: np.random.Generator, scenario: str, tasks: int, rounds: int, loss: float
) -> list[Row]:
    """Rows of the union test set: a task rises in its stage and falls after it."""
    rows = []
    top = generator.uniform(0.86, 0.97, tasks)
    unmet = 0.0 if scenario == "class" else 0.1
    for at in range(tasks * rounds + 1):
        stage = max(at - 1, 0) // rounds
        for task in range(tasks):
            trained, since = at - task * rounds, max(0, at - (task + 1) * rounds)
            value = unmet
            if trained > 0:
                value = top[task] - (top[task] - unmet) * np.exp(-0.6 * min(trained, rounds))
                value *= (1 - loss) ** since
            value = float(np.clip(value + (trained > 0) * generator.normal(0, 0.008), 0, 1))
            is_end = at % rounds == 0
            if (at % 2 == 0 and task <= stage) or is_end:
                rows.append(_row(at, stage, task, value, n=360))
    return rows


def _client_rows(
    rows: Sequence[Row],
    generator: np.random.Generator,
    tasks: int,
    rounds: int,
    clients: int,
    own_orders: bool,
) -> list[Row]:
    """Rows of single clients at stage ends: the union's accuracy, with noise and a bias."""
    union = {(row["round"], row["task"]): row["value"] for row in rows}
    found = []
    for client in range(clients):
        order = generator.permutation(tasks) if own_orders else np.arange(tasks)
        bias = generator.normal(0, 0.04)
        for stage in range(tasks):
            at = (stage + 1) * rounds
            for place in range(stage + 1):
                value = float(np.clip(union[at, place] + bias + generator.normal(0, 0.02), 0, 1))
                row = _row(at, stage, int(order[place]), value, n=18)
                found.append({**row, "client": client, "client_stage": stage})
    return found


def _row(at: int, stage: int, task: int, value: float, n: int) -> Row:
    row = {"round": at, "stage": stage, "client": None, "client_stage": None, "model": "global"}
    return row | {"task": task, "split": "test", "metric": "accuracy", "value": value, "n": n}


def _costs(tasks: int, rounds: int) -> list[Row]:
    flows = [("up", "model", 100), ("down", "model", 200)]
    work = {"direction": "", "payload": "train", "steps": 100, "examples": 1600, "seconds": 1.5}
    return [
        {"round": at, "stage": at // rounds} | row
        for at in range(tasks * rounds)
        for row in [work, *({"direction": d, "payload": p, "bytes": b} for d, p, b in flows)]
    ]


def _numbers(rows: Sequence[Row], scenario: str, tasks: int, own_orders: bool) -> dict[str, Any]:
    table = accuracy_matrix(rows, tasks=tasks)
    ids = sorted({row["client"] for row in rows if row["client"] is not None})
    own = {client: accuracy_matrix(rows, client=client).matrix for client in ids}
    losses = ("forgetting", "forgetting_first_last", "forgetting_clipped", "backward_transfer")
    values: dict[str, Any] = {
        name: getattr(metrics, name)(table.matrix)
        for name in (
            "average_accuracy",
            "average_incremental_accuracy",
            "learning_accuracy",
            *losses,
        )
    }
    values["pooled_accuracy"] = values["average_accuracy"]
    values["anytime_accuracy"] = metrics.anytime_accuracy(table.curve, table.stages)
    values["forward_transfer"] = (
        None if scenario == "class" else metrics.forward_transfer(table.matrix, table.untrained)
    )
    stages = [metrics.average_accuracy(table.matrix, stage) for stage in range(tasks)]
    values |= {"accuracy_matrix": table.matrix.tolist(), "average_accuracy_by_stage": stages}
    values["untrained_accuracy"] = table.untrained.tolist()
    if own_orders:
        values |= {
            name: np.mean([getattr(metrics, name)(m) for m in own.values()]) for name in losses
        }
        missing = ("accuracy_matrix", "average_accuracy_by_stage", "forward_transfer")
        values |= dict.fromkeys((*missing, "average_incremental_accuracy", "anytime_accuracy"))
    spread = {}
    for name, better in (("average_accuracy", True), ("forgetting", False)):
        over = over_clients(
            {i: getattr(metrics, name)(m) for i, m in own.items()}, higher_is_better=better
        ) if own else None  # fmt: skip
        spread[name] = vars(over) if over is not None and over.count else None
    return {name: _plain(value) for name, value in values.items()} | {
        "clients": spread if own else None
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value
