"""What do the generators reveal? Each synthetic image beside the real ones that are nearest to it.

Run: python simulations/neighbours.py --root FOLDER [--methods target] [--seeds 0] [--out FOLDER]
     python simulations/neighbours.py --run FOLDER

FOLDER holds mnist.npz; each method that draws images runs as its configs/<method>_split_mnist.toml
says. `--run` takes a finished run's folder instead. A run keeps a few images of each class
(samples/); of those of its last stage that has some, the nearest training image of all clients and
the nearest test image are looked for: Euclidean, over pixels, normalised as for training, among
images of the same classes of the same stages, and as many of the one as of the other. Who copies
training images is nearer to them than to test images, whom no client ever trained on. The table has
four kinds of image:

- samples: the synthetic images;
- test images: real ones that nobody trained on and that are not among those compared with;
- class means: the mean training image of each class;
- disguised copies: training images with noise, as far from them as samples are from their nearest.
  What the samples would show if they were that: where it is near 1, the measure would miss it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mnist_cut import cut_mnist
from runner import CONFIGS, arguments, finished
from study_tables import show
from torch import Tensor

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment, available
from fedcl.core.data.stream import Stream
from fedcl.core.seeds import torch_generator
from fedcl.core.task import Examples, join

METHODS = ("target", "mfcl", "lander")  # those that draw images
PROBES = 500  # real test images that are compared like samples
SHOWN = 20  # classes in the figure
ACROSS = 10  # of them side by side
SMOKE: dict[str, Any] = {
    "dataset": {
        "name": "synthetic",
        "features": [1, 8, 8],
        "classes": 4,
        "train": 120,
        "test": 80,
    },
    "stream.tasks": 2,
    "stream.clients": 3,
    "training.rounds": 1,
    "model.hidden": [8],
    "method.steps": 10,
    "method.width": 8,
}
HEADINGS = (
    *("images", "number", "to nearest training image", "to nearest test image", "ratio"),
    *("nearer to training %", "nearest of all training images"),
)


@dataclass(frozen=True)
class Real:
    """Real images, (n, pixels) in float64 but where said otherwise.

    Attributes:
        train: All training images of all clients, of the classes and stages in question.
        train_pool: As many of them as there are in `test_pool`.
        test_pool: Test images.
        probes: Further test images.
        means: The mean training image of each class.
        shape: Channels, height and width of an image.
    """

    train: Tensor
    train_pool: Tensor
    test_pool: Tensor
    probes: Tensor
    means: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Nearness:
    """How near some images are to real ones.

    Attributes:
        train: (n,) distances to the nearest image of the training pool.
        test: (n,) distances to the nearest one of the test pool.
        all_train: (n,) distances to the nearest one of all training images.
    """

    train: Tensor
    test: Tensor
    all_train: Tensor

    @property
    def ratio(self) -> float:
        """Median distance to training images over that to test images."""
        return float(self.train.median() / self.test.median())

    @property
    def nearer(self) -> float:
        """Share of images that are nearer to a training image than to any test image."""
        return float((self.train < self.test).double().mean())

    def cells(self, name: str) -> list[str]:
        """Returns a row of the table."""
        medians = [f"{float(x.median()):.2f}" for x in (self.train, self.test, self.all_train)]
        return [
            *(name, str(len(self.train)), *medians[:2]),
            *(f"{self.ratio:.3f}", f"{100 * self.nearer:.0f}", medians[2]),
        ]


def nearest(queries: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (n,) distances to the nearest row of (m, d) and its index; a copy's is exactly 0."""
    found = [
        torch.cdist(some, pool, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        for some in queries.split(64)
    ]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def nearness(images: Tensor, real: Real) -> Nearness:
    """Compares (n, pixels) images with real ones."""
    pools = (real.train_pool, real.test_pool, real.train)
    return Nearness(*(nearest(images, pool)[0] for pool in pools))


def real_images(train: Examples, test: Examples, seed: int = 0) -> Real:
    """Divides real images into what is compared and what it is compared with."""
    draws = torch_generator(seed, "neighbours")
    rows, others = train.x.flatten(1).double(), test.x.flatten(1).double()
    others = others[torch.randperm(len(others), generator=draws)]
    probes = min(PROBES, len(others) // 4)
    size = min(len(rows), len(others) - probes)
    chosen = torch.randperm(len(rows), generator=draws)[:size]
    return Real(
        train=rows,
        train_pool=rows[chosen],
        test_pool=others[probes : probes + size],
        probes=others[:probes],
        means=torch.stack([rows[train.y == label].mean(0) for label in train.y.unique()]),
        shape=tuple(train.x.shape[1:]),
    )


def disguised(real: Real, distance: float, count: int, seed: int = 0) -> Tensor:
    """Returns training images of the pool with noise that takes them as far away as is said."""
    draws = torch_generator(seed, "disguise")
    rows = torch.randperm(len(real.train_pool), generator=draws)[:count]
    noise = torch.randn((len(rows), real.train.shape[1]), generator=draws, dtype=torch.float64)
    noise *= distance / torch.linalg.vector_norm(noise, dim=1, keepdim=True)
    return real.train_pool[rows] + noise


def real_of(experiment: Experiment, stage: int, classes: Sequence[int]) -> Real:
    """Returns the real images of a run up to a stage, of some classes."""
    stream: Stream = build_site(experiment).population.stream  # type: ignore[attr-defined]
    stages, wanted = range(stage + 1), torch.tensor(classes)
    shares = [stream.train(client, t) for t in stages for client in range(stream.clients)]
    held_out = [stream.held_out(task, "test") for task in stages]

    def of_these(parts: list[Examples]) -> Examples:
        whole = join([part for part in parts if len(part)])
        return whole.take(torch.isin(whole.y, wanted).nonzero().flatten())

    return real_images(of_these(shares), of_these(held_out))


def study(folder: Path, root: str, out: Path, name: str) -> None:
    """Prints the table of a finished run, and writes it and the figure."""
    from fedcl.reporting.samples import read_samples

    kept = read_samples(folder)
    if not kept:
        sys.exit(f"error: {folder} has no samples: its method draws no images, or only one stage")
    stage, samples = max(kept.items())
    changes = {"dataset.root": root} if root else {}
    experiment = fedcl.load_config(folder / "config.toml", changes)
    labels = torch.from_numpy(samples.labels)
    real = real_of(experiment, stage, labels.unique().tolist())
    images = torch.from_numpy(samples.images).flatten(1).double()
    own = nearness(images, real)
    copies = disguised(real, float(own.train.median()), PROBES)
    rows = [
        own.cells("samples"),
        nearness(real.probes, real).cells("test images"),
        nearness(real.means, real).cells("class means"),
        nearness(copies, real).cells("disguised copies"),
    ]
    title = (
        f"{name}, stage {stage}: median distances, among {len(real.train_pool)} training and "
        f"{len(real.test_pool)} test images of {len(real.means)} classes"
    )
    show(title, HEADINGS, rows, out, f"{name}.md")
    (out / f"{name}.png").write_bytes(side_by_side(images, labels, own, real))


def side_by_side(images: Tensor, labels: Tensor, own: Nearness, real: Real) -> bytes:
    """Draws for each class the sample that is nearest to a training image, and its neighbours."""
    from matplotlib.figure import Figure

    from fedcl.reporting.style import page, png

    classes = labels.unique().tolist()[:SHOWN]
    picked = []
    for label in classes:
        rows = (labels == label).nonzero().flatten()
        picked.append(int(rows[own.all_train[rows].argmin()]))
    chosen = images[picked]
    (near, train), (far, test) = nearest(chosen, real.train), nearest(chosen, real.test_pool)
    kinds = {
        "sample": (chosen, None),
        "training": (real.train[train], near),
        "test": (real.test_pool[test], far),
    }
    pixels = torch.cat([rows for rows, _ in kinds.values()])
    low, high = (float(pixels.quantile(q)) for q in (0.01, 0.99))
    across = min(ACROSS, len(classes))
    bands = -(-len(classes) // across)

    def draw() -> Figure:
        figure = page(0.9 + 0.85 * across, 0.3 + 3.2 * bands)
        panels = figure.subplots(3 * bands, across, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for place, label in enumerate(classes):
            band, column = divmod(place, across)
            for row, (kind, (rows, distances)) in enumerate(kinds.items()):
                axes = panels[3 * band + row, column]
                image = ((rows[place] - low) / max(high - low, 1e-12)).clamp(0, 1)
                shaped = image.reshape(real.shape)
                shaped = shaped.permute(1, 2, 0) if len(shaped) == 3 else shaped.mean(0)
                axes.imshow(shaped.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                title = f"class {label}" if distances is None else f"{float(distances[place]):.1f}"
                axes.set_title(title, size=8, pad=2, loc="center", weight="normal")
                if not column:
                    axes.annotate(
                        kind,
                        (-0.12, 0.5),
                        xycoords="axes fraction",
                        rotation=90,
                        va="center",
                        ha="right",
                        size=8.5,
                    )
        return figure

    return png(draw)()


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints a table for each run."""
    parser = arguments(__doc__ or "", "neighbours", seeds=(0,))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--run", type=Path, help="a finished run's folder, instead of running")
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            runs(Path(folder), args.methods, [0], SMOKE)
    elif args.run is not None:
        study(args.run, args.root, args.out, args.run.resolve().name)
    else:
        out = args.out.resolve()
        cut_mnist(Path(args.root), out / "data")
        runs(out, args.methods, args.seeds, {"dataset.root": str(out / "data")})


def runs(out: Path, methods: Sequence[str], seeds: Sequence[int], changes: dict[str, Any]) -> None:
    """Runs each method that there is with each seed, and looks at what it drew."""
    for method in methods:
        config = f"{method}_split_mnist.toml"
        if method not in available("methods") or not (CONFIGS / config).exists():
            print(f"{method} is left out: there is no such method, or no {config}")
            continue
        for seed in seeds:
            name = f"{method}-{seed}"
            finished(config, {**changes, "seed": seed}, out / name)
            study(out / name, "", out, name)


if __name__ == "__main__":
    main(sys.argv[1:])
