"""FOT's Split CIFAR-100 rows, task-incremental: 50 clients, 25 a round, AlexNet, IID and non-IID.

Run: python simulations/fot_cifar100.py --root FOLDER [--rows fedavg fot_paper] [--splits IID]
     [--seeds 0 1 2] [--rounds 1000] [--out FOLDER] [--table] [--tune] [--short]

The published protocol has 10 tasks of 1,000 rounds: 250,000 client updates of a 6.7 M network in a
cell, work for a GPU, which is taken where there is one. `--short` is a small experiment of its own
for a CPU: a tenth of the images (cifar100_small.npz), a quarter of the width, 5 tasks of 20
classes, 6 clients, 40 rounds a task. Its numbers compare with each other only.

Published (Bakman et al., ICLR 2024, README's table of the released code). `fot_paper` is what was
released, `fot_energy` our exact form, `gpm` projects each local step, `kron` is ours.
"""

from __future__ import annotations

import sys
from typing import Any

from fot_table import Row, Study, main

SMOKE: dict[str, Any] = {
    "dataset": {"name": "synthetic", "features": [3, 20, 20], "train": 80, "test": 40},
    "stream.tasks": 2,
    "stream.clients": 4,
    "training.rounds": 1,
    "training.cohort": 2,
    "training.local.lr": 0.1,
    "model.width": 0.1,
}
SHORT: dict[str, Any] = {
    "dataset.file": "cifar100_small.npz",
    "stream.tasks": 5,
    "stream.clients": 6,
    "training.cohort": 3,
    "training.local.lr": 0.1,
    "model.width": 0.25,
}
FOT = {
    "IID": ((71.90, 0.06), (0.87, 0.10)),
    "non-IID": ((66.31, 0.25), (0.60, 0.43)),
}
STUDY = Study(
    title="Split CIFAR-100 (task-incremental), AlexNet",
    name="fot_cifar100",
    configs={"IID": "fot_cifar100.toml", "non-IID": "fot_cifar100_noniid.toml"},
    rows={
        "fedavg": Row(
            {"method.name": "fedavg"},
            published={
                "IID": ((63.12, 0.48), (13.57, 1.57)),
                "non-IID": ((62.56, 0.17), (10.49, 0.40)),
            },
        ),
        "fot_paper": Row(published=FOT),
        "fot_energy": Row(
            {"method": {"name": "fot", "energy": 0.95}},
            grid={"method.energy": (0.9, 0.94, 0.96, 0.98, 0.99)},
            published=FOT,
        ),
        "gpm": Row({"method.name": "gpm"}, grid={"method.energy": (0.9, 0.94, 0.96, 0.98)}),
        # mu is the default: it has not been chosen for this stream yet (`--tune --rows kron`).
        "kron": Row({"method": {"name": "kron", "mu": 1.0}}, grid={"method.mu": (0.1, 1.0, 10.0)}),
    },
    rounds=1000,
    tuning_rounds=100,
    tuning={},
    smoke=SMOKE,
    short=SHORT,
    short_rounds=40,
)

if __name__ == "__main__":
    main(STUDY, __doc__ or "", sys.argv[1:])
