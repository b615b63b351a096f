"""Frozen backbones: their weights are a function of the file, and nobody meets them."""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedcl
from fedcl.config import Experiment
from fedcl.core.cost import forward_flops
from fedcl.core.errors import ConfigError
from fedcl.core.features.layers import layer_inputs, protected_layers
from fedcl.core.frozen import Frozen
from fedcl.core.model import check_model
from fedcl.core.training.blockmodel import block_model
from fedcl.models import _efficientnet_lite0, _resnet20
from fedcl.models._weights import Weights, read
from fedcl.models.frozen import FrozenBackbone
from tests.models.backbones import KINDS, write
from tests.tiny import assert_same_folders, distance, first_parameters, same, tiny

SMALL = {"resnet20": 12, "efficientnet_lite0": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of both backbones."""
    found: Path = tmp_path_factory.mktemp("weights")
    for kind in KINDS:
        write(found, kind)
    return found


def build(folder: Path, backbone: Any = "resnet20", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    size = SMALL[backbone]
    return FrozenBackbone(backbone, str(folder), **options).build((3, size, size), 5)


def images(rows: int, backbone: str = "resnet20", channels: int = 3) -> Tensor:
    size = SMALL[backbone]
    return torch.rand((rows, channels, size, size), generator=torch.Generator().manual_seed(1))


# --- What the networks compute, against the published layers one by one. ---


def normed(w: Mapping[str, Tensor], x: Tensor, name: str, epsilon: float) -> Tensor:
    kinds = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (w[f"{name}.{kind}"] for kind in kinds)
    return F.batch_norm(x, mean, variance, weight, bias, eps=epsilon)


def slow_resnet20(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    numbers = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)
    mean, std = numbers[:, :, None, None]
    x = (x - mean) / std
    x = F.relu(normed(w, F.conv2d(x, w["conv1.weight"], padding=1), "bn1", 1e-5))
    for stage in (1, 2, 3):
        for number in (0, 1, 2):
            name = f"layer{stage}.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            y = F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.relu(normed(w, y, f"{name}.bn1", 1e-5))
            y = F.conv2d(y, w[f"{name}.conv2.weight"], padding=1)
            y = normed(w, y, f"{name}.bn2", 1e-5)
            if stride == 2:  # option A
                wider = torch.zeros_like(y)
                wider[:, x.shape[1] // 2 : -(x.shape[1] // 2)] = x[:, :, ::2, ::2]
                x = wider
            x = F.relu(y + x)
    return x.mean((2, 3))


def slow_efficientnet_lite0(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    def convolved(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        k = weight.shape[-1]
        # At even sizes, "same" padding of stride 2 is (k - 2) in all, the larger part behind.
        more = k - stride
        x = F.pad(x, (more // 2, more - more // 2) * 2)
        groups = x.shape[1] // weight.shape[1]
        return normed(w, F.conv2d(x, weight, stride=stride, groups=groups), norm, 1e-3)

    x = convolved((255 * x - 127) / 128, "_conv_stem", "_bn0", 2).clamp(0, 6)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for number, stride in enumerate(strides):
        name, y = f"_blocks.{number}", x
        if number:
            y = convolved(y, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
        y = convolved(y, f"{name}._depthwise_conv", f"{name}._bn1", stride).clamp(0, 6)
        y = convolved(y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if x.shape == y.shape else y
    return convolved(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))


@pytest.mark.parametrize(
    ("backbone", "slow", "size"),
    [
        ("resnet20", slow_resnet20, 12),
        ("resnet20", slow_resnet20, 32),
        ("efficientnet_lite0", slow_efficientnet_lite0, 64),
    ],
)
def test_folded_equals_unfolded_in_float64(
    backbone: str, slow: Callable[[Mapping[str, Tensor], Tensor], Tensor], size: int, folder: Path
) -> None:
    kind = {"resnet20": _resnet20, "efficientnet_lite0": _efficientnet_lite0}[backbone]
    weights = read(folder / kind.FILE)
    given = {k: torch.from_numpy(v).double() for k, v in weights.arrays.items()}
    x = torch.rand((3, 3, size, size), dtype=torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (kind.MEAN, kind.STD))
    with torch.no_grad():
        found = kind.network(weights).eval()((x - mean) / std)
    wanted = slow(given, x)
    assert found.shape == wanted.shape == (3, kind.WIDTH)
    assert float((found - wanted).abs().max()) < 1e-9 * float(wanted.abs().max())
    assert float(wanted.std(0).max()) > 1e-3, "inputs make a difference"
    # And so does the whole model, which holds them in float32.
    model = FrozenBackbone(backbone, str(folder)).build((3, size, size), 5)  # type: ignore[arg-type]
    features = model.get_submodule("backbone")(x.float())
    assert torch.allclose(features.double(), wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("backbone", SMALL)
def test_images_are_resized_and_grey_ones_are_three_channels(backbone: str, folder: Path) -> None:
    x = images(4, backbone)
    size = 2 * SMALL[backbone]
    resized = build(folder, backbone, resize=size)
    larger = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    assert torch.allclose(resized(x), build(folder, backbone)(larger), atol=1e-4)
    grey = images(4, backbone, 1)
    model = FrozenBackbone(backbone, str(folder)).build((1, *grey.shape[2:]), 5)  # type: ignore[arg-type]
    model.load_state_dict(build(folder, backbone).state_dict())
    assert torch.allclose(model(grey), build(folder, backbone)(grey.repeat(1, 3, 1, 1)), atol=1e-5)


def test_examples_do_not_see_each_other_however_many(folder: Path) -> None:
    model, x = build(folder), images(150)
    alone = torch.cat([model(row[None]) for row in x])
    assert torch.allclose(model(x), alone, atol=1e-5)


# --- Nobody meets the weights. ---


def test_only_the_head_is_there(folder: Path) -> None:
    model = build(folder)
    check_model(model)
    assert list(model.state_dict()) == ["head.weight", "head.bias"]
    assert [name for name, _ in model.named_parameters()] == ["head.weight", "head.bias"]
    assert not list(model.named_buffers())
    assert [type(module) for module in model.modules()] == [nn.Sequential, Frozen, nn.Linear]
    assert list(protected_layers(model)) == ["head.weight"]
    model(images(2)).sum().backward()
    hidden = model.get_submodule("backbone").hidden
    assert isinstance(hidden, nn.Module)
    values = [*hidden.parameters(), *hidden.buffers()]
    assert len(values) == 2 * 19 + 2
    assert not any(value.requires_grad for value in values) and not hidden.training


def test_it_follows_the_model_and_is_copied_and_pickled_with_it(folder: Path) -> None:
    model, x = build(folder), images(3)
    wanted = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), wanted)
    double = copy.deepcopy(model).to(torch.float64)
    assert double(x.double()).dtype == torch.float64
    assert torch.allclose(double(x.double()).float(), wanted, atol=1e-4)
    assert torch.equal(model(x), wanted), "a copy has weights of its own"
    model.train()
    assert torch.equal(model(x), wanted)


def test_its_work_is_counted(folder: Path) -> None:
    """ResNet-20 takes 40.55 M multiplications for 32x32 pixels (Idelbayev), the head 64 by 5."""
    model = FrozenBackbone(root=str(folder)).build((3, 32, 32), 5)
    assert forward_flops(model, (3, 32, 32)) / 2 == pytest.approx(40.55e6, rel=2e-3)


def test_its_head_is_a_block_layer(folder: Path) -> None:
    model = build(folder)
    found = block_model(model, dict(model.named_parameters()))
    assert found is not None and list(found.layers) == ["head"]
    inputs = layer_inputs(model, dict(model.named_parameters()), images(3))
    assert inputs["head.weight"].shape == (3, 64)


# --- Runs. ---


def experiment(folder: Path, *, engine: str = "serial", **tables: Any) -> Experiment:
    changes = {
        "dataset.features": [3, 8, 8],
        "dataset.train": 60,
        "dataset.test": 20,
        "training.rounds": 2,
        "training.dtype": "float64",
    }
    model = {"name": "frozen", "root": str(folder), **tables.pop("model", {})}
    return tiny(changes, model=model, engine={"name": engine}, **tables)


@pytest.mark.parametrize("method", ["fedavg", "analytic", "fot"])
def test_serial_equals_vectorized(method: str, folder: Path) -> None:
    """With federated averaging it is a linear probe."""
    runs = [
        fedcl.run(experiment(folder, engine=engine, method={"name": method}))
        for engine in ("serial", "vectorized")
    ]
    assert distance(runs[0].params, runs[1].params) < 1e-9
    assert list(runs[0].params) == ["head.weight", "head.bias"]
    assert distance(runs[0].params, first_parameters(experiment(folder))) > 1e-3
    sent = [row for row in runs[0].costs if row["payload"] == "model" and row["direction"] == "up"]
    assert {row["bytes"] for row in sent} == {3 * 8 * (64 * 4 + 4)}  # the cohort's heads


@pytest.mark.parametrize("path", ["vmap", "loop", "fused"])
def test_every_path_of_a_block_trains_the_head(path: str, folder: Path) -> None:
    vectorized = {"name": "vectorized", "path": path}
    table = dict(experiment(folder).resolved) | {"engine": vectorized}
    found = fedcl.run(fedcl.config.parse(table))
    assert distance(found.params, fedcl.run(experiment(folder)).params) < 1e-9


@pytest.mark.ray
def test_ray_equals_serial_to_the_bit(folder: Path) -> None:
    ray = {"name": "ray", "workers": 2, "inner": "serial"}
    table = dict(experiment(folder).resolved) | {"engine": ray}
    found = fedcl.run(fedcl.config.parse(table))
    assert same(dict(found.params), dict(fedcl.run(experiment(folder)).params))


def test_its_folder_holds_the_head_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        fedcl.run(experiment(folder), tmp_path / name)
    assert_same_folders(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "model.safetensors").stat().st_size < 4000


# --- What is refused, before anything is written. ---


def test_files_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    name = _resnet20.FILE

    def message(**model: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            fedcl.run(experiment(folder, model=model), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    assert message(root="") == (
        f"[model] the weights {name} need a folder: set model.root, e.g. --set model.root=FOLDER"
    )
    assert f"the weights {name} are missing, in {tmp_path}" in message(root=str(tmp_path))
    (tmp_path / name).write_bytes(b"not an archive")
    assert "cannot be read" in message(root=str(tmp_path))
    other = message(file=_efficientnet_lite0.FILE)
    assert "the weight 'conv1.weight' is missing, in " in other and "model.file" in other
    arrays = dict(read(folder / name).arrays)
    np.savez(tmp_path / name, **arrays | {"bn1.bias": np.zeros(7)})  # type: ignore[arg-type]
    fact = "the weight 'bn1.bias' is float64 of shape (7,), not numbers of shape (16,), in "
    assert fact in message(root=str(tmp_path))
    np.savez(tmp_path / name, **arrays | {"bn1.bias": np.full(16, np.nan)})  # type: ignore[arg-type]
    assert "the weight 'bn1.bias' holds NaN or infinity" in message(root=str(tmp_path))
    np.savez(tmp_path / name, **arrays | {"bn1.bias": np.array([None] * 16)})  # type: ignore[arg-type]
    assert "cannot be read" in message(root=str(tmp_path / name))


def test_a_changed_file_is_refused(folder: Path) -> None:
    path = folder / _resnet20.FILE
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    found = [fedcl.run(experiment(folder, model={"sha256": s})) for s in ("", own, own[:8].upper())]
    assert all(same(dict(found[0].params), dict(run.params)) for run in found[1:])
    with pytest.raises(ConfigError, match=f"is {own}, not 0123: these are other weights"):
        fedcl.run(experiment(folder, model={"sha256": "0123"}))


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({}, (20,), "frozen needs grey or colour images"),
        ({}, (2, 32, 32), "frozen needs grey or colour images"),
        ({}, (3, 7, 32), "images of 7x32 are too small for resnet20: set model.resize to 8"),
        ({"resize": 31, "backbone": "efficientnet_lite0"}, (3, 64, 64), "31x31 are too small"),
    ],
)
def test_images_that_do_not_fit(
    options: dict[str, Any], shape: tuple[int, ...], words: str, folder: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        FrozenBackbone(root=str(folder), **options).build(shape, 5)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="resize must be at least 0"):
        FrozenBackbone(resize=-1)
    with pytest.raises(ValueError, match="backbone must be one of"):
        FrozenBackbone("resnet50")  # type: ignore[arg-type]


# --- The real weights, where they are at hand. ---


def test_the_real_weights_tell_classes_apart(data_root: Path) -> None:
    """On 400 pictures of PACS, which neither was trained on; chance is about a fifth."""
    for backbone, kind in (("resnet20", _resnet20), ("efficientnet_lite0", _efficientnet_lite0)):
        if not (data_root / kind.FILE).is_file():
            pytest.skip(f"{kind.FILE} is not among the real data")
        with np.load(data_root / "pacs32.npz") as archive:
            train, test = np.arange(0, 7993, 20), np.arange(0, 1998, 10)
            x, y = archive["x_train"][train], archive["y_train"][train]
            x_test, y_test = archive["x_test"][test], archive["y_test"][test]
        size = 64 if backbone == "efficientnet_lite0" else 0
        model = FrozenBackbone(backbone, str(data_root), resize=size).build((3, 32, 32), 7)  # type: ignore[arg-type]
        features = [
            model.get_submodule("backbone")(torch.from_numpy(v).permute(0, 3, 1, 2).float() / 255)
            for v in (x, x_test)
        ]
        h = features[0].double()
        gram = h.T @ h + 10.0 * torch.eye(h.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(gram, h.T @ F.one_hot(torch.from_numpy(y), 7).double())
        answers = (features[1].double() @ weights).argmax(1).numpy()
        assert (answers == y_test).mean() > 0.4
        assert isinstance(read(data_root / kind.FILE), Weights)
