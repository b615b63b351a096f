"""The engine studies measure what they say: the reference work, the clock, slopes, and targets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench import clock as clocks
from bench.lab import Lab
from bench.memory import megabytes, slope
from bench.plugins import ReferenceData, table
from bench.speed import Speeds, Spread
from bench.targets import targets
from bench.work import WORKS, client_data, make_model, train
from rich.console import Console

import fedcl
from fedcl.assembly import build_site
from fedcl.config import parse
from fedcl.core.params import copy

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "simulations" / "benchmark_engines.py"


def size(model: torch.nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def test_the_reference_models_have_their_sizes_and_fedcl_builds_the_same() -> None:
    for name, parameters in (("mlp", 101_770), ("cnn", 11_274), ("mlp_dropout", 638_810)):
        site = build_site(parse(table(name, 2, {"name": "serial"})))
        assert size(make_model(name)) == size(site.model) == parameters
        shapes = [value.shape for value in make_model(name).parameters()]
        assert [value.shape for value in site.model.parameters()] == shapes


def test_floating_point_operations_are_those_of_the_layers() -> None:
    """Forward and weight gradient everywhere, input gradient in all layers but the first."""
    for name, first in (("mlp", 784 * 128), ("cnn", 784 * 25 * 8)):
        x, products = client_data(0, 1)[0], 0
        for layer in make_model(name).children():
            x = layer(x)
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                products += x.numel() * layer.weight[0].numel()
        assert WORKS[name].flops == 2 * 50 * (3 * products - first)


def test_each_client_of_fedcl_holds_the_examples_of_the_reference_work() -> None:
    site = build_site(parse(table("mlp", 3, {"name": "serial"})))
    for client in range(3):
        data = site.population.client(client, 0, site.model, None, 0).data
        x, y = client_data(client, 50)
        assert torch.equal(data.x, x) and torch.equal(data.y, y)


def test_a_round_of_fedcl_is_the_plain_loops_round_up_to_the_order_of_examples() -> None:
    """One step over all 50 examples does not depend on their order."""
    config = table("cnn", 2, {"name": "serial"})
    config["training"] |= {"rounds": 1, "dtype": "float64"}
    config["training"]["local"]["batch_size"] = 50
    experiment = parse(config)
    site = build_site(experiment)
    expected = {name: torch.zeros_like(value) for name, value in site.model.named_parameters()}
    start = copy(dict(site.model.named_parameters()))
    for client in range(2):
        site.model.load_state_dict(start)
        x, y = client_data(client, 50)
        optimizer = torch.optim.SGD(site.model.parameters(), lr=0.05)
        torch.nn.functional.cross_entropy(site.model(x.double()), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, own in site.model.named_parameters():
            expected[name] += own.detach() / 2
    for name, value in fedcl.run(experiment).params.items():
        torch.testing.assert_close(value, expected[name])


def test_the_plain_loop_learns() -> None:
    model, (x, y) = make_model("mlp"), client_data(0, 50)
    before = torch.nn.functional.cross_entropy(model(x), y)
    train(model, x, y, WORKS["mlp"])
    assert torch.nn.functional.cross_entropy(model(x), y) < before


def test_the_data_set_names_its_owners() -> None:
    data = ReferenceData(clients=3, examples=2).load()
    assert data.train.columns["client"].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_clock_counts_neither_the_first_rounds_nor_too_few() -> None:
    clock = clocks.Clock(seconds=0.0)
    enough = [clock.tick() for _ in range(clocks.WARM + clocks.LEAST)]
    assert enough == [False] * (clocks.WARM + clocks.LEAST - 1) + [True]
    clock.wall = [0.0, 7.0, 8.0, 8.5, 9.0, 10.0]
    clock.cpu = [0.0, 1.0, 2.0, 2.25, 2.5, 3.0]
    assert clock.result(cohort=4) == {
        "cohort": 4,
        "rounds": 3,
        "updates_per_second": 6.0,
        "first_round_seconds": 7.0,
        "round_seconds": pytest.approx(2 / 3),
        "median_round_seconds": 0.5,
        "driver_ms_per_update": pytest.approx(1000 / 12),
    }


def test_a_slope_is_that_of_the_last_half() -> None:
    rounds = list(range(0, 200, 20))
    sizes = [500.0, 900.0, 100.0, 300.0, 700.0, *(10 + 0.02 * r for r in rounds[5:])]
    assert slope(rounds, sizes) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="too few"):
        slope([0, 20], [1.0, 1.0])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_memory_is_that_of_children_too() -> None:
    before = sum(megabytes().values())
    program = "held = b'x' * 50_000_000; print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        assert sum(megabytes().values()) - before > 50
        child.stdin.write(b"\n")


def test_only_measurements_of_the_same_repeat_are_compared() -> None:
    speeds = Speeds()
    for repeat, ours, theirs in ((0, 100.0, 10.0), (1, 40.0, 2.0), (2, 900.0, None)):
        for engine, value in (("ray", ours), ("flower", theirs)):
            if value is not None:
                result = {"updates_per_second": value}
                speeds.add(engine, "mlp", 100, repeat, result)
    assert speeds.ratio("ray", "flower", "mlp", 100) == Spread(15.0, 10.0, 20.0)
    assert speeds.ratio("ray", "pfl", "mlp", 100) is None
    assert speeds.best(("serial", "ray"), "mlp", 100) == "ray"


def test_every_target_is_named_and_says_whether_it_is_met() -> None:
    assert all(row.met is None for row in targets(Speeds(), {}, 100))
    speeds = Speeds()
    for engine, speed in (("vectorized", 2000.0), ("flower", 99.0), ("pfl", 600.0)):
        result = {"first_round_seconds": 0.5, "driver_ms_per_update": 1.0}
        speeds.add(engine, "mlp", 100, 0, {"updates_per_second": speed, **result})
    rows = targets(speeds, {"peak": [{"gflops": 100.0, "two_processes": 2.0}]}, 100)
    met = {row.what.partition(",")[0]: row.met for row in rows if row.met is not None}
    assert met == {
        "updates a second against flower": True,  # 20.2 of 20
        "updates a second against pfl": False,  # 3.33 of 3.5
        "share of one core's matrix-multiply peak": True,  # 40.9 % of 25 %
        "time until the first round ends": True,  # 0.5 s of 1 s
    }


def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "measurements.jsonl").write_text(
        json.dumps({"spec": {"measure": "peak", "seconds": 9e9}, "repeat": 1, "result": {"a": 1}})
    )
    lab = Lab(tmp_path, Console(quiet=True))
    assert lab.measure({"seconds": 9e9, "measure": "peak"}, repeat=1) == {"a": 1}


def test_what_fails_is_left_out_and_said(tmp_path: Path) -> None:
    console = Console(record=True, quiet=False, file=(tmp_path / "said").open("w"), width=200)
    assert Lab(tmp_path, console).measure({"measure": "nothing"}) is None
    console.file.close()
    assert "left out: KeyError: 'nothing'" in (tmp_path / "said").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cohort", "0"], "'0' is no whole number of at least 1"),
        (["--seconds", "nan"], "'nan' is no number above 0"),
        (["--engines", "flour"], "invalid choice: 'flour'"),
        (["--engines", "pfl", "--pfl-python", "no-such-python"], "cannot import pfl"),
        (["--out", "file"], "cannot be used"),
    ],
)
def test_bad_input_is_answered_with_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--engines", "serial", *words],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode != 0 and said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_json_prints_one_line_for_each_engine_model_and_cohort(tmp_path: Path) -> None:
    words = ["--engines", "serial", "--models", "mlp", "--cohort", "2", "1", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--seconds", "0.01", "--json"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["engine"], line["model"], line["cohort"]) for line in lines] == [
        ("serial", "mlp", 1),
        ("serial", "mlp", 2),
    ]
    assert all(line["updates_per_second"] > 0 for line in lines)
    assert all(line["first_round_seconds"] > 0 for line in lines)
