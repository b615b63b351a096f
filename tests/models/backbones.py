"""Random weights with the names, shapes and types of published backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def write(folder: Path, kind: str) -> Path:
    """Writes random weights of a backbone under its own file name."""
    file, arrays = KINDS[kind]
    np.savez(folder / file, **arrays())  # type: ignore[arg-type]
    return folder / file


def resnet20() -> Arrays:
    generator, found = np.random.default_rng(0), Arrays()
    _convolution(found, generator, "conv1", "bn1", (16, 3, 3, 3))
    channels = 16
    for stage, filters in ((1, 16), (2, 32), (3, 64)):
        for number in range(3):
            name = f"layer{stage}.{number}"
            _convolution(
                found, generator, f"{name}.conv1", f"{name}.bn1", (filters, channels, 3, 3)
            )
            _convolution(
                found, generator, f"{name}.conv2", f"{name}.bn2", (filters, filters, 3, 3), 0.4
            )
            channels = filters
    found["linear.weight"] = generator.normal(size=(10, 64))
    found["linear.bias"] = generator.normal(size=10)
    return {name: value.astype(np.float32) for name, value in found.items()}


def efficientnet_lite0() -> Arrays:
    generator, found = np.random.default_rng(1), Arrays()
    _convolution(found, generator, "_conv_stem", "_bn0", (32, 3, 3, 3))
    outputs = [16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
    kernels = [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]
    channels = 32
    for number, (filters, kernel) in enumerate(zip(outputs, kernels, strict=True)):
        name, wide = f"_blocks.{number}", channels * (6 if number else 1)
        if number:
            expand = f"{name}._expand_conv", f"{name}._bn0"
            _convolution(found, generator, *expand, (wide, channels, 1, 1))
        depthwise = f"{name}._depthwise_conv", f"{name}._bn1"
        _convolution(found, generator, *depthwise, (wide, 1, kernel, kernel))
        project = f"{name}._project_conv", f"{name}._bn2"
        _convolution(found, generator, *project, (filters, wide, 1, 1))
        channels = filters
    _convolution(found, generator, "_conv_head", "_bn1", (1280, 320, 1, 1))
    found["_fc.weight"] = generator.normal(size=(1000, 1280))
    return {name: value.astype(np.float16) for name, value in found.items()} | {
        "_bn0.num_batches_tracked": np.array(0)
    }


def _convolution(
    found: Arrays,
    generator: np.random.Generator,
    name: str,
    norm: str,
    shape: tuple[int, ...],
    gain: float = 1.0,
) -> None:
    size = (2.0 / np.prod(shape[1:])) ** 0.5
    found[f"{name}.weight"] = size * generator.normal(size=shape)
    for kind, low, high in (
        ("weight", 0.5 * gain, 1.5 * gain),
        ("bias", -0.3, 0.3),
        ("running_mean", -0.3, 0.3),
        ("running_var", 0.5, 1.5),
    ):
        found[f"{norm}.{kind}"] = generator.uniform(low, high, shape[0])


KINDS = {
    "resnet20": ("backbone_resnet20_cifar10.npz", resnet20),
    "efficientnet_lite0": ("backbone_efficientnet_lite0_fp16.npz", efficientnet_lite0),
}
