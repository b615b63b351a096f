"""The study of what generators reveal: who copies training images is found out, nobody else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from neighbours import disguised, nearest, nearness, real_images, real_of, study

import fedcl
from fedcl.core.task import Examples
from tests.tiny import scenario, stream_of, tiny


def drawn(count: int, seed: int) -> Examples:
    """Images of four classes, normal around a mean of their class."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    noise = torch.randn((count, 1, 5, 5), generator=draws)
    return Examples(noise + labels[:, None, None, None], labels)


def test_the_nearest_is_found_by_hand() -> None:
    pool = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]]).double()
    distances, rows = nearest(torch.tensor([[3.0, 4.0], [9.0, 0.0], [0.0, 2.0]]).double(), pool)
    assert distances.tolist() == [0.0, 1.0, 2.0] and rows.tolist() == [1, 2, 0]


def test_pools_are_of_one_size_and_share_nothing() -> None:
    train, test = drawn(300, 0), drawn(200, 1)
    real = real_images(train, test)
    assert len(real.probes) == 50 and len(real.train_pool) == len(real.test_pool) == 150
    assert len(real.train) == 300 and real.means.shape == (4, 25) and real.shape == (1, 5, 5)
    rows = {tuple(row) for row in torch.cat([real.test_pool, real.probes]).tolist()}
    assert rows == {tuple(row) for row in test.x.flatten(1).double().tolist()}
    assert {tuple(r) for r in real.train_pool.tolist()} < {tuple(r) for r in real.train.tolist()}
    few = real_images(drawn(20, 0), test)
    assert len(few.train_pool) == len(few.test_pool) == 20
    expected = train.x[train.y == 2].flatten(1).double().mean(0)
    assert torch.equal(real.means[2], expected)


def test_copies_are_told_from_fresh_images() -> None:
    real = real_images(drawn(400, 0), drawn(400, 1))
    fresh = nearness(drawn(200, 2).x.flatten(1).double(), real)
    assert 0.95 < fresh.ratio < 1.05 and 0.35 < fresh.nearer < 0.65
    copied = nearness(real.train_pool[:40], real)
    assert copied.ratio == 0.0 and copied.nearer == 1.0
    far = float(fresh.train.median())
    hidden = disguised(real, far, 40)
    moved, _ = nearest(hidden, real.train)
    assert float(moved.max()) <= far * (1 + 1e-12)
    assert nearness(hidden, real).ratio < 0.85


def test_a_run_is_compared_with_its_own_data(tmp_path: Path) -> None:
    """Images of the classes that were drawn, of the stages so far, of all clients."""
    experiment = tiny(scenario("class"))
    stream = stream_of(experiment)
    real = real_of(experiment, 1, [0, 1])
    assert len(real.train) == sum(len(stream.train(i, 0)) for i in range(5))
    both = real_of(experiment, 1, [0, 1, 2, 3])
    assert len(both.train) == sum(len(stream.train(i, t)) for i in range(5) for t in (0, 1))
    assert len(both.test_pool) + len(both.probes) == 48
    assert len(both.means) == 4


def test_a_finished_run_gives_a_table_and_a_figure(tmp_path: Path) -> None:
    method = {"name": "target", "images": 40, "steps": 2, "batch": 8, "rounds": 3, "width": 4}
    folder = tmp_path / "run"
    fedcl.run(tiny(scenario("class"), method=method), folder)
    study(folder, "", tmp_path, "target")
    lines = (tmp_path / "target.md").read_text(encoding="utf-8").splitlines()
    cells = {row[1]: row[2:] for row in ([w.strip() for w in x.split("|")] for x in lines[2:])}
    assert list(cells) == ["samples", "test images", "class means", "disguised copies"]
    assert cells["samples"][0] == "16" and cells["class means"][0] == "2"
    with np.load(folder / "samples" / "stage_1.npz") as kept:
        images = torch.from_numpy(kept["images"]).flatten(1).double()
    real = real_of(tiny(scenario("class")), 1, [0, 1])
    own = nearness(images, real)
    assert cells["samples"][3] == f"{float(own.train.median() / own.test.median()):.3f}"
    assert (tmp_path / "target.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_images_is_refused(tmp_path: Path) -> None:
    fedcl.run(tiny(), tmp_path / "run")
    with pytest.raises(SystemExit, match="has no samples"):
        study(tmp_path / "run", "", tmp_path, "plain")
