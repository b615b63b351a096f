"""Payloads of real runs are inverted as they were sent, and not where noise hides them (T13)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import fedcl
import fedcl.core.release
from fedcl.config import parse
from fedcl.core.errors import ConfigError
from tests.tiny import assert_same_runs, read_csv, same, scenario, tiny

FEW = {"name": "digits", "test_fraction": 0.95, "seed": 5}  # 88 examples to train on
NOISE = {"name": "central_dp", "clip": 1.0, "noise_multiplier": 1.0, "noise": "seeded"}
PRIVATE = {"name": "dp_sgd", "noise_multiplier": 1.0, "noise": "seeded"}
SECURE = {"name": "secure_aggregation"}


def digits(clients: int, **tables: Any) -> dict[str, Any]:
    """Returns digits of one task, shared out equally: 1437 clients have one each."""
    return {
        "seed": 3,
        "dataset": {"name": "digits", "seed": 5},
        "stream": {"name": "domain_incremental", "tasks": 1, "clients": clients},
        "model": {"name": "mlp", "hidden": [32]},
        "method": {"name": "fedavg"},
        "training": {"rounds": 1, "cohort": 4},
        "engine": {"name": "serial"},
        "evaluation": {"every": 0},
        "audit": [{"name": "inversion", "seed": 7, "iterations": 40}],
        **tables,
    }


def found(table: dict[str, Any], out: Path) -> list[dict[str, str]]:
    """Returns the rows that the audit of a run wrote."""
    fedcl.run(parse(table), out)
    return read_csv(out / "audit" / "inversion.csv")


def numbers(rows: list[dict[str, str]], column: str, **wanted: str) -> list[float]:
    chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return [float(row[column]) for row in chosen if row[column]]


def upscaled(folder: Path) -> dict[str, Any]:
    """Writes the digits at 28 x 28 pixels and returns them as a data set."""
    data = load_digits()
    images = torch.from_numpy(data.images / 16.0)[:, None].float()
    large = F.interpolate(images, size=(28, 28), mode="bilinear").clamp(0, 1).numpy()[:, 0]
    pixels, labels = np.rint(255 * large).astype(np.uint8), data.target.astype(np.int64)
    parts = {"x_train": pixels[:1400], "y_train": labels[:1400]}
    rest = {"x_test": pixels[1400:], "y_test": labels[1400:]}
    folder.mkdir()
    np.savez(folder / "large.npz", **parts, **rest)
    return {"name": "npz", "root": str(folder), "file": "large.npz"}


def test_a_change_of_the_model_gives_its_one_example_away_until_there_is_noise(
    tmp_path: Path,
) -> None:
    bare = found(digits(1437), tmp_path / "bare")
    assert {row["view"] for row in bare} != {"sum"} and len(bare) == 6
    attack = {"payload": "model", "attack": "linear layer"}
    assert min(numbers(bare, "psnr_mean", **attack)) > 100
    assert numbers(bare, "recovered_25", **attack) == [1.0] * 3
    assert numbers(bare, "labels", **attack) == [1.0] * 3
    # A sum of one client, clipped without noise, hides nothing.
    alone = {"rounds": 1, "cohort": 1}
    table = digits(1437, training=alone, channel=[{**NOISE, "noise_multiplier": 0.0}])
    clipped = found(table, tmp_path / "clipped")
    assert {row["view"] for row in clipped} == {"sum"}
    assert min(numbers(clipped, "psnr_mean", **attack)) > 100
    for seed in range(3):
        private = {**digits(1437, training=alone, channel=[NOISE]), "seed": 40 + seed}
        rows = found(private, tmp_path / f"private{seed}")
        assert {row["view"] for row in rows} == {"sum"}
        for name in ("linear layer", "search by cosine"):
            (quality,), (mean,) = (
                numbers(rows, column, attack=name) for column in ("psnr_best", "baseline_psnr")
            )
            assert quality < mean


def test_noise_on_single_examples_hides_them_in_their_clients_replies(tmp_path: Path) -> None:
    training = {"rounds": 1, "cohort": 4, "local": PRIVATE}
    rows = found(digits(1437, training=training), tmp_path / "run")
    assert "sum" not in {row["view"] for row in rows} and len(rows) == 6
    for row in rows:
        assert float(row["psnr_best"]) < float(row["baseline_psnr"]), row
    clipped = {**training, "local": {**PRIVATE, "noise_multiplier": 0.0}}
    rows = found(digits(1437, training=clipped), tmp_path / "clipped")
    best = numbers(rows, "psnr_best", attack="linear layer")
    assert max(best) > 100  # whose one example was in the step


def test_forgotten_noise_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(root: bytes, shape: Any, scale: float, *place: Any) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64)

    monkeypatch.setattr(fedcl.core.release, "gaussian", none)
    alone = {"rounds": 1, "cohort": 1}
    rows = found(digits(1437, training=alone, channel=[NOISE]), tmp_path / "run")
    assert numbers(rows, "psnr_best", attack="linear layer")[0] > 100


def test_a_search_finds_one_image_through_a_convolution(tmp_path: Path) -> None:
    """No layer sees whole inputs: what is left is to seek them."""
    table = digits(1437, model={"name": "cnn", "channels": [8], "hidden": 16, "groups": 2})
    table["audit"] = [{"name": "inversion", "clients": 2, "iterations": 100}]
    rows = found(table, tmp_path / "run")
    assert {row["attack"] for row in rows} == {"search by cosine"}
    best = max(rows, key=lambda row: float(row["psnr_best"]))
    assert float(best["psnr_best"]) > float(best["baseline_best"]) + 2


def test_a_uniform_sketch_gives_ten_images_away_and_a_private_gram_does_not(
    tmp_path: Path,
) -> None:
    data = upscaled(tmp_path / "data")
    sketch = {"name": "fot", "gpse": "sketch", "sketch_noise": "uniform", "head": "free"}
    common = {"dataset": data, "model": {"name": "mlp", "hidden": [8]}}
    audit = [{"name": "inversion", "clients": 2, "seed": 9, "iterations": 0}]
    uniform = digits(140, method=sketch, audit=audit, **common)
    rows = found(uniform, tmp_path / "uniform")
    attack = {"payload": "sketch", "attack": "ICA"}
    assert numbers(rows, "examples", **attack) == [10.0, 10.0]
    assert min(numbers(rows, "psnr_mean", **attack)) > 25
    assert min(numbers(rows, "membership_auc", **attack)) == 1.0
    assert max(numbers(rows, "baseline_best", **attack)) < 20
    with np.load(tmp_path / "uniform" / "audit" / "inversion_pictures.npz") as pictures:
        assert set(pictures["payload"]) == {"model", "sketch"}
        own = pictures["payload"] == "sketch"
        assert pictures["found"][own].shape == (8, 1, 28, 28)
        assert (pictures["psnr"][own] > 25).all() and (pictures["baseline"][own] < 20).all()
        far = np.square(pictures["found"][own] - pictures["original"][own]).mean((1, 2, 3))
        np.testing.assert_allclose(-10 * np.log10(far), pictures["psnr"][own], atol=1e-3)
    # The Gram matrix of one client's ten images under the noise of client-level privacy.
    gram = digits(140, method={"name": "fot", "head": "free"}, audit=audit, **common)
    private = found({**gram, "channel": [NOISE]}, tmp_path / "private")
    # And under noise that each client adds, for every one of its images.
    training = {"rounds": 1, "cohort": 4, "local": PRIVATE}
    own = found({**gram, "training": training}, tmp_path / "own")
    assert {row["view"] for row in private} == {"sum"} != {row["view"] for row in own}
    assert numbers(own, "examples", payload="gram", attack="ICA") == [10.0, 10.0]
    for rows in (private, own):
        hidden = numbers(rows, "psnr_mean", payload="gram")
        assert hidden and max(hidden) < min(numbers(rows, "baseline_psnr", payload="gram"))
    assert max(abs(area - 0.5) for area in numbers(own, "membership_auc", payload="gram")) < 0.3


def test_a_gram_matrix_of_one_example_is_that_example(tmp_path: Path) -> None:
    audit = [{"name": "inversion", "clients": 0, "iterations": 0}]
    table = digits(70, dataset=FEW, method={"name": "fot", "head": "free"}, audit=audit)
    rows = found(table, tmp_path / "run")
    quality = numbers(rows, "psnr_best", payload="gram", examples="1")
    assert len(quality) > 40 and min(quality) > 60
    assert set(numbers(rows, "membership_auc", payload="gram")) == {1.0}


@pytest.mark.parametrize(
    ("method", "payload", "attack", "least"),
    [
        ("ewc", "fisher", "linear layer", 60),
        ("mas", "sensitivity", "linear layer", 60),
        ("kron", "input_moments", "one direction", 60),
        ("kron", "input_moments", "mean", 60),
        ("cuber", "gradient", "linear layer, no bias", 20),
    ],
)
def test_statistics_of_one_example_give_it_away(
    tmp_path: Path, method: str, payload: str, attack: str, least: float
) -> None:
    audit = [{"name": "inversion", "clients": 0, "iterations": 0}]
    rows = found(digits(70, dataset=FEW, method={"name": method}, audit=audit), tmp_path / "run")
    quality = numbers(rows, "psnr_best", payload=payload, attack=attack, examples="1")
    assert len(quality) > 40 and np.median(quality) > least


def test_secure_sums_are_attacked_as_sums(tmp_path: Path) -> None:
    rows = found(digits(1437, channel=[SECURE]), tmp_path / "run")
    assert {row["view"] for row in rows} == {"sum"} and {row["examples"] for row in rows} == {"4"}
    assert numbers(rows, "images", attack="linear layer")[0] > 1


def test_what_no_attack_fits_is_named(tmp_path: Path) -> None:
    table = digits(20, method={"name": "analytic"})
    fedcl.run(parse(table), tmp_path / "run")
    summary = fedcl.run(parse(table)).summary["audits"]["inversion"]
    assert summary["not_attacked"] == ["cross", "gram"]
    assert summary["payloads"] == ["cross", "gram", "model"] and not summary["failed"]
    assert "labels and membership leak" in summary["note"]


def test_examples_are_those_that_were_trained_on(tmp_path: Path) -> None:
    """Replayed ones count, and of a model that nobody watched nothing changes."""
    changes = {**scenario("class"), "method.name": "replay", "training.cohort": 0}
    table = tiny(changes, audit=[{"name": "inversion", "clients": 0}])
    record = fedcl.run(table, tmp_path / "run")
    rows = read_csv(tmp_path / "run" / "audit" / "inversion.csv")
    count = {
        stage: sum(numbers(rows, "examples", stage=stage, attack="linear layer"))
        for stage in ("0", "1")
    }
    assert count["0"] < count["1"] == 160
    assert_same_runs(record, fedcl.run(tiny(changes)))


def test_an_audited_private_run_has_the_bits_of_one_that_is_not() -> None:
    changes = {"method.name": "fot", "engine.name": "vectorized"}
    audits = [{"name": "inversion"}, {"name": "classes"}]
    watched = fedcl.run(tiny(changes, audit=audits, channel=[NOISE]))
    assert same(dict(watched.params), dict(fedcl.run(tiny(changes, channel=[NOISE])).params))


def test_inputs_that_are_no_images_have_no_pictures(tmp_path: Path) -> None:
    fedcl.run(tiny({"dataset.features": [6]}, audit=[{"name": "inversion"}]), tmp_path / "run")
    assert (tmp_path / "run" / "audit" / "inversion.csv").is_file()
    assert not (tmp_path / "run" / "audit" / "inversion_pictures.npz").exists()


def test_options_that_cannot_work_are_refused() -> None:
    for name in ("inversion", "classes"):
        with pytest.raises(ConfigError, match="rounds must be at least 0"):
            tiny(audit=[{"name": name, "rounds": -1}])
