"""Images and folders that cannot be used: each is named with a remedy, and nothing else breaks."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedcl.core.errors import ConfigError
from fedcl.datasets.folder import Folder
from tests.pictures import picture, save, write

DIVIDED = {
    "train/ant/0.png": 1,
    "train/ant/1.png": 2,
    "train/dog/0.png": 3,
    "test/ant/0.png": 4,
    "test/dog/0.png": 5,
}


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Folder(root=str(root), **options).load()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_asks_for_the_root() -> None:
    with pytest.raises(ConfigError, match=r"set dataset\.root, e\.g\. --set dataset\.root=FOLDER"):
        Folder().load()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "{0}/none is missing, in dataset.root; set it to the folder of the images"),
        ("file", "{0}/file is not a folder, in dataset.root; set it"),
        ("void", "{0}/void holds no folder of a class; put some there"),
    ],
)
def test_a_root_without_images_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "void").mkdir()
    assert message.format(tmp_path) in refusal(tmp_path / name)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def animate(path: Path, form: str) -> None:
    picture(0).save(path, format=form, save_all=True, append_images=[picture(1)])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut png": (lambda path: cut(path, 0.7), "0.png; save it as one still image"),
    "text": (lambda path: path.write_text("no image"), "its content is no PNG or JPEG), in "),
    "empty": (lambda path: path.write_bytes(b""), "its content is no PNG or JPEG), in "),
    "gif": (
        lambda path: picture(0).save(path, format="GIF"),
        "its content is no PNG or JPEG), in ",
    ),
    "animated": (lambda path: animate(path, "PNG"), "animated or has pages: 2 images in one), in "),
    "deep": (
        lambda path: Image.fromarray(np.zeros((4, 5), np.uint16)).save(path),
        "its channels have more than 8 bits), in ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_image_that_cannot_be_used_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, DIVIDED)
    make, words = DAMAGES[damage]
    for name in ("train/ant/0.png", "test/dog/0.png"):
        path = tmp_path / name
        whole = path.read_bytes()
        make(path)
        message = refusal(tmp_path)
        assert message.startswith("an image cannot be used (")
        assert f"), in {path}; save it as one still image of 8 bits a channel" in message
        assert words in message
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", ["text", "gif", "animated", "deep"])
def test_it_is_named_at_the_start_though_it_is_decoded_later(tmp_path: Path, damage: str) -> None:
    write(tmp_path, DIVIDED)
    path = tmp_path / "test/dog/0.png"
    DAMAGES[damage][0](path)
    assert f"), in {path}; " in refusal(tmp_path, memory=0.0)


def test_what_its_header_hides_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    path = save(tmp_path / "test/dog/1.jpg", 6, height=64, width=64)
    cut(path, 0.7)
    table = Folder(root=str(tmp_path), size=8, memory=0.0).load().test
    table.rows(np.arange(2))
    with pytest.raises(ConfigError, match=r"truncated .*, in .*1\.jpg; save it as one still image"):
        table.rows(np.arange(3))
    path.unlink()
    with pytest.raises(ConfigError, match=r"No such file .*1\.jpg; save it"):
        table.rows(np.array([2]))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_whatever_the_damage_the_file_is_named(tmp_path: Path, form: str) -> None:
    """Bytes changed at random: an image is read, or refused by its name; nothing else happens."""
    write(tmp_path, DIVIDED)
    path = tmp_path / "train/ant/0.png"
    picture(0, 24, 24).save(path, format=form)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = whole.copy()
        places = generator.integers(len(whole), size=generator.integers(1, 4))
        changed[places] = generator.integers(256, size=len(places))
        path.write_bytes(changed.tobytes())
        try:
            assert Folder(root=str(tmp_path), size=4).load().shape == (3, 4, 4)
        except ConfigError as error:
            refused += 1
            assert f"), in {path}; " in str(error)
    assert 10 < refused < 300


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    save(tmp_path / "test/dog/0.png", height=5, width=4)
    wanted = (
        f"images measure 4x5 and 5x4, in {tmp_path}/train/ant/0.png and {tmp_path}/test/dog/0.png; "
        "set dataset.size, e.g. dataset.size = 32"
    )
    assert refusal(tmp_path) == refusal(tmp_path, memory=0.0) == wanted


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    (tmp_path / "train/bee").mkdir()
    (tmp_path / "train/bee/.hidden.png").touch()
    assert f"the class {tmp_path}/train/bee holds no image; put some" in refusal(tmp_path)


def test_classes_that_train_lacks_are_named(tmp_path: Path) -> None:
    write(tmp_path, {**DIVIDED, "test/bee/0.png": 6, "test/cat/0.png": 7})
    message = refusal(tmp_path)
    assert message.startswith("the test labels have classes that train lacks: bee, cat, in ")
    assert f", in {tmp_path}; remove those rows" in message


@pytest.mark.parametrize(("present", "missing"), [("train", "test"), ("test", "train")])
def test_a_missing_split_is_named(tmp_path: Path, present: str, missing: str) -> None:
    write(tmp_path, {f"{present}/ant/0.png": 0})
    message = refusal(tmp_path)
    assert message.startswith(f"the folder {tmp_path}/{missing} is missing (dataset.root); put it")
    assert message.endswith(f"set dataset.root to {tmp_path}/{present} to hold out a share of it")


def test_a_kind_of_file_that_is_not_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    picture(0).save(tmp_path / "train/ant/2.webp")
    assert f"{tmp_path}/train/ant/2.webp is no image of a known kind; save" in refusal(tmp_path)


def test_an_image_outside_of_a_class_is_named(tmp_path: Path) -> None:
    write(tmp_path, {**DIVIDED, "train/0.png": 6})
    assert f"the image {tmp_path}/train/0.png lies outside of a class" in refusal(tmp_path)


def test_levels_that_no_column_names_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"train/art/ant/0.png": 0, "test/art/ant/0.png": 1})
    message = refusal(tmp_path)
    assert f"the folder {tmp_path}/train/art/ant lies among images of a class" in message
    assert "name each level above the classes in dataset.columns" in message
    assert "lies outside of a class" in refusal(tmp_path, columns=("domain", "city"))


def test_links_that_lead_nowhere_or_in_circles_are_named(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    link = tmp_path / "train/ant/link.png"
    for target in ("nowhere", "link.png"):
        link.symlink_to(target)
        message = refusal(tmp_path)
        assert message.startswith(f"{link} cannot be read (")
        assert message.endswith(", in dataset.root; mend or remove it")
        link.unlink()
    (tmp_path / "train/ant/loop").symlink_to(tmp_path / "train")
    assert f"the folder {tmp_path}/train/ant/loop lies among images" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    closed = tmp_path / "train/dog"
    closed.chmod(0)
    message = refusal(tmp_path)
    closed.chmod(0o700)
    assert f"{closed} cannot be read (Permission denied)" in message


def test_too_few_images_to_hold_any_out_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"ant/0.png": 0, "dog/0.png": 1})
    message = refusal(tmp_path)
    assert message.startswith(f"2 images leave none for testing, in {tmp_path}; raise dataset.")


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that claims to be a huge image; the limit is lowered to keep the test quick."""
    write(tmp_path, DIVIDED)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = save(tmp_path / "train/ant/0.png", height=60, width=60)
    message = refusal(tmp_path)
    assert "decompression bomb" in message and f"), in {path}; " in message


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, DIVIDED)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert 'install fedcl with its extra "sim"' in refusal(tmp_path)
