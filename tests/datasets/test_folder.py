"""What is read from folders of images: pixels, classes, columns and splits."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.table import ArrayTable, Table
from fedcl.datasets.folder import Folder
from tests.pictures import picture, pixels, save, write

DIVIDED = {
    "train/dog/1.png": 1,
    "train/dog/0.png": 2,
    "train/ant/b.PNG": 3,
    "train/ant/a.png": 4,
    "train/cat/x.png": 5,
    "test/dog/0.png": 6,
    "test/ant/0.png": 7,
}


def load(root: Path, **options: Any) -> Dataset:
    return Folder(root=str(root), **options).load()


def every(table: Table) -> np.ndarray:
    return table.rows(np.arange(len(table.labels)))


def inputs(*numbers: int, **size: int) -> np.ndarray:
    return np.stack([np.moveaxis(pixels(number, **size), 2, 0) for number in numbers]) / 255.0


def test_reads_a_divided_folder_in_the_order_of_the_names(tmp_path: Path) -> None:
    dataset = load(write(tmp_path / "animals", DIVIDED))
    assert (dataset.name, dataset.classes, dataset.shape) == ("animals", 3, (3, 4, 5))
    assert dataset.class_names == ("ant", "cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 1, 2, 2]
    assert dataset.test.labels.tolist() == [0, 2]
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.columns == dataset.test.columns == {}
    rows = every(dataset.train)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, inputs(4, 3, 5, 2, 1), rtol=1e-6)
    np.testing.assert_allclose(every(dataset.test), inputs(7, 6), rtol=1e-6)


def test_levels_above_the_classes_are_columns(tmp_path: Path) -> None:
    files = {
        "train/photo/leeds/cat/0.png": 0,
        "train/photo/leeds/dog/0.png": 1,
        "train/photo/aachen/cat/0.png": 2,
        "train/art/leeds/dog/0.png": 3,
        "test/sketch/leeds/dog/0.png": 4,
        "test/art/ulm/cat/0.png": 5,
    }
    dataset = load(write(tmp_path, files), columns=("domain", "city"))
    # The names of both splits are numbered together: art, photo, sketch; aachen, leeds, ulm.
    assert {k: v.tolist() for k, v in dataset.train.columns.items()} == {
        "domain": [0, 1, 1, 1],
        "city": [1, 0, 1, 1],
    }
    assert {k: v.tolist() for k, v in dataset.test.columns.items()} == {
        "domain": [0, 2],
        "city": [2, 1],
    }
    assert dataset.train.labels.tolist() == [1, 0, 0, 1]
    np.testing.assert_allclose(every(dataset.train), inputs(3, 2, 0, 1), rtol=1e-6)


def test_of_an_undivided_folder_each_class_gives_its_share(tmp_path: Path) -> None:
    counts = {"a": 10, "b": 5, "c": 1}
    for number, (name, count) in enumerate(counts.items()):
        for image in range(count):
            save(tmp_path / "noon" / name / f"{image}.png", 20 * number + image)
    dataset = load(tmp_path, columns=("time",), test_fraction=0.4, seed=3)
    assert np.bincount(dataset.train.labels).tolist() == [6, 3, 1]
    assert np.bincount(dataset.test.labels).tolist() == [4, 2]
    assert dataset.train.columns["time"].tolist() == [0] * 10
    both = np.concatenate([every(dataset.train), every(dataset.test)])
    whole = inputs(*range(10), *range(20, 25), 40)
    assert sorted(row.tobytes() for row in both) == sorted(
        row.tobytes() for row in (whole * 255).astype(np.float32) * np.float32(1 / 255)
    )
    again, other = (load(tmp_path, columns=("time",), seed=seed) for seed in (3, 4))
    assert not np.array_equal(every(again.test), every(other.test))


def test_colours_and_sizes(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    grey = load(tmp_path, colour="L")
    assert grey.shape == (1, 4, 5)
    red, green, blue = np.moveaxis(pixels(4).astype(int), 2, 0)
    luminance = (red * 299 + green * 587 + blue * 114) / 1000  # ITU-R 601-2
    np.testing.assert_allclose(every(grey.train)[0, 0] * 255, luminance, atol=1)
    small = load(tmp_path, size=(2, 3))
    assert small.shape == (3, 2, 3)
    resized = np.asarray(picture(4).resize((3, 2), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(every(small.train)[0], np.moveaxis(resized, 2, 0) / 255, rtol=1e-6)
    assert load(tmp_path, size=7).shape == (3, 7, 7)
    # Resizing to the size that images have changes nothing.
    np.testing.assert_array_equal(
        every(load(tmp_path, size=(4, 5)).test), every(load(tmp_path).test)
    )


def test_mean_and_std_apply_after_scaling(tmp_path: Path) -> None:
    dataset = load(write(tmp_path, DIVIDED), mean=0.25, std=0.5)
    np.testing.assert_allclose(every(dataset.test), (inputs(7, 6) - 0.25) / 0.5, atol=1e-6)


def test_a_size_unites_images_of_many_sizes(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    save(tmp_path / "train/ant/large.jpg", 1, height=40, width=31)
    assert load(tmp_path, size=6).shape == (3, 6, 6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_kinds_of_pixels_become_colours(tmp_path: Path, mode: str) -> None:
    write(tmp_path, DIVIDED)
    image = picture(0).convert(mode)
    path = tmp_path / "train/ant" / ("0.jpeg" if mode == "CMYK" else "0.png")
    image.save(path)
    with Image.open(path) as saved:
        expected = np.asarray(saved.convert("RGB"))
    np.testing.assert_allclose(
        every(load(tmp_path).train)[0], np.moveaxis(expected, 2, 0) / 255, rtol=1e-6
    )


def test_a_palette_may_have_transparent_colours(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    image = picture(0).quantize(16)
    image.save(tmp_path / "train/ant/0.png", transparency=bytes(range(16)))
    expected = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0) / 255
    np.testing.assert_allclose(every(load(tmp_path).train)[0], expected, rtol=1e-6)


def test_a_photograph_with_a_preview_is_one_image(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    photograph = picture(0, 40, 50)
    path = tmp_path / "train/ant/0.jpg"
    photograph.save(path, format="MPO", save_all=True, append_images=[picture(1)])
    assert load(tmp_path, size=8).train.labels.tolist() == [0, 0, 0, 1, 2, 2]


def test_the_content_decides_between_png_and_jpeg(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    picture(9).save(tmp_path / "train/ant/0.jpg", format="PNG")
    np.testing.assert_allclose(every(load(tmp_path).train)[:1], inputs(9), rtol=1e-6)


def test_hidden_names_are_ignored_at_every_level(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    for name in (".DS_Store", ".git/x", "train/.cache/y.png", "train/ant/._a.png", "test/dog/.z/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "train/README.txt").write_text("a word beside the classes does no harm")
    assert load(tmp_path).train.labels.tolist() == [0, 0, 1, 2, 2]


def test_links_are_followed(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"1.png": 8, "0.png": 9})
    root = write(tmp_path / "root", DIVIDED)
    (root / "train/bee").symlink_to(elsewhere)
    (root / "train/ant/c.png").symlink_to(elsewhere / "1.png")
    (tmp_path / "link").symlink_to(root)
    dataset = load(tmp_path / "link")
    assert (dataset.name, dataset.class_names) == ("root", ("ant", "bee", "cat", "dog"))
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    np.testing.assert_allclose(every(dataset.train)[2:5], inputs(8, 9, 8), rtol=1e-6)


def test_the_home_folder_has_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "animals", DIVIDED)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder(root=os.path.join("~", "animals")).load().classes == 3


# What does not fit into memory.


@pytest.mark.parametrize("room", [0, 1, 4, 6])
@pytest.mark.parametrize("size", [0, 3])
def test_images_decoded_when_fetched_give_the_same_bits(
    tmp_path: Path, room: int, size: int
) -> None:
    write(tmp_path, DIVIDED)
    whole = load(tmp_path, mean=0.3, std=0.7, size=size)
    bytes_each = 3 * whole.shape[1] * whole.shape[2]
    memory = (room + 0.5) * bytes_each / 2**30
    lazy = load(tmp_path, mean=0.3, std=0.7, size=size, memory=memory)
    assert isinstance(whole.train, ArrayTable) and not isinstance(lazy.train, ArrayTable)
    assert lazy.shape == whole.shape
    for part in ("train", "test"):
        one, other = getattr(whole, part), getattr(lazy, part)
        assert other.columns == one.columns
        np.testing.assert_array_equal(other.labels, one.labels)
        for indices in ([1, 0], [0], [1, 1, 0, 1], []):
            chosen = np.array(indices, dtype=np.int64)
            rows = other.rows(chosen)
            assert rows.dtype == np.float32 and rows.shape == (len(indices), *whole.shape)
            np.testing.assert_array_equal(rows, one.rows(chosen))
    assert isinstance(load(tmp_path, size=size, memory=7 * bytes_each / 2**30).train, ArrayTable)


def test_the_latest_images_are_kept_and_no_more(tmp_path: Path) -> None:
    write(tmp_path, DIVIDED)
    table = load(tmp_path, memory=3 * 60 / 2**30).train  # of 7 images, room for 3: 2 of train
    everything = every(table)
    for name in ("train/dog/1.png", "train/ant/a.png"):
        save(tmp_path / name, 99)
    np.testing.assert_array_equal(table.rows(np.array([4, 3])), everything[[4, 3]])
    np.testing.assert_allclose(table.rows(np.array([0])), inputs(99), rtol=1e-6)
    # A copy that travels to another process begins with nothing.
    copy = pickle.loads(pickle.dumps(table))
    np.testing.assert_allclose(copy.rows(np.array([4])), inputs(99), rtol=1e-6)
    np.testing.assert_array_equal(copy.labels, table.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": -1}, "size must be 0 or positive, not -1"),
        ({"size": (4, 0)}, r"size must be 0 or positive, not \(4, 0\)"),
        ({"colour": "CMYK"}, 'colour must be "RGB" or "L", not \'CMYK\''),
        ({"memory": -0.5}, "memory must be finite and not negative, not -0.5"),
        ({"memory": float("inf")}, "memory must be finite"),
        ({"std": 0.0}, "std must be positive and mean finite, not 0.0, 0.0"),
        ({"mean": float("nan")}, "mean finite, not 1.0, nan"),
        ({"test_fraction": 1.0}, "test_fraction must lie between 0 and 1, not 1.0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"columns": ("a", "a")}, r"columns must be different words, not \['a', 'a'\]"),
        ({"columns": ("",)}, "columns must be different words"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Folder(**options)
