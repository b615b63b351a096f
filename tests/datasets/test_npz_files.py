"""Files that are missing, damaged or would need unpickling: each is named with a remedy."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcl.core.errors import ConfigError
from fedcl.datasets.npz import Npz

GREY = np.arange(6 * 2 * 2, dtype=np.uint8).reshape(6, 2, 2) * 10
DIVIDED: dict[str, Any] = {
    "x_train": GREY[:4],
    "y_train": np.array([0, 1, 2, 1]),
    "x_test": GREY[4:],
    "y_test": np.array([2, 0]),
}


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def test_asks_for_the_root() -> None:
    with pytest.raises(ConfigError, match=r"set dataset\.root, e\.g\. --set dataset\.root=FOLDER"):
        Npz().load()


@pytest.mark.parametrize(
    ("root", "file", "message"),
    [
        ("none", "", "{0}/none is missing, in dataset.root; set it to the folder of the data"),
        ("data.npz", "a.npz", "{0}/data.npz is not a folder, in dataset.root; set it"),
        (".", "a.npz", "the file a.npz is missing, in {0} (dataset.root); set dataset.file to one"),
        (".", "a.npz", "of: data.npz, other.npz"),
        (".", "", "no file is chosen, in {0} (dataset.root); set dataset.file to one of: data.npz"),
        ("empty", "", "no file is chosen, in {0}/empty (dataset.root); set dataset.file to one of"),
    ],
)
def test_a_missing_place_is_named(tmp_path: Path, root: str, file: str, message: str) -> None:
    save(tmp_path, **DIVIDED)
    (tmp_path / "other.npz").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        Npz(str(tmp_path / root), file).load()
    assert message.format(tmp_path) in str(caught.value)


def member(array: np.ndarray, folder: Path) -> bytes:
    np.save(folder / "member.npy", array)
    return (folder / "member.npy").read_bytes()


def damaged(kind: str, folder: Path) -> bytes:
    """Returns the content of an archive with a fault."""
    path = save(folder, **DIVIDED)
    whole = path.read_bytes()
    if kind == "text":
        return b"x,y\n1,2\n"
    if kind == "npy":
        return member(GREY, folder)
    if kind == "cut":
        return whole[:-30]
    if kind == "flipped":
        start = whole.index(GREY[:4].tobytes())
        return whole[:start] + b"\xff" + whole[start + 1 :]
    if kind == "compression":  # a number that no one knows
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x_train.npy", member(GREY, folder))
        content = path.read_bytes()
        return content.replace(
            b"PK\x03\x04\x14\0\0\0\x08\0", b"PK\x03\x04\x14\0\0\0\x63\0"
        ).replace(b"\x14\x03\x14\0\0\0\x08\0", b"\x14\x03\x14\0\0\0\x63\0")
    if kind == "deflated":
        np.savez_compressed(path, **DIVIDED)
        start = path.read_bytes().index(b"x_train.npy") + 31  # behind the name and its extra field
        return path.read_bytes()[:start] + b"\xff" * 9 + path.read_bytes()[start + 9 :]
    if kind == "huge":  # more numbers promised than any memory holds
        header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (9000000000000000,), }\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x_train.npy", b"\x93NUMPY\x01\0" + bytes([len(header), 0]) + header)
        return path.read_bytes()
    return b""


@pytest.mark.parametrize(
    "kind", ["text", "npy", "cut", "flipped", "compression", "deflated", "huge", "empty"]
)
def test_a_damaged_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "damaged.npz"
    path.write_bytes(damaged(kind, tmp_path))
    with pytest.raises(ConfigError) as caught:
        Npz(str(path)).load()
    message = str(caught.value)
    assert message.startswith("the file cannot be read (")
    assert f", in {path}; save it with numpy.savez, or copy it again" in message


@pytest.mark.parametrize("content", [b"no array", b"\x93NUMPY\x01\0\x10\0{'descr': '<i8'"])
def test_a_damaged_array_is_refused_when_it_is_needed(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        for key, array in DIVIDED.items():
            archive.writestr(f"{key}.npy", member(array, tmp_path))
        archive.writestr("notes.npy", content)
        archive.writestr("README", "not an array")
    assert Npz(str(tmp_path / "data.npz")).load().classes == 3
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        for key, array in DIVIDED.items():
            archive.writestr(f"{key}.npy", content if key == "y_test" else member(array, tmp_path))
    with pytest.raises(ConfigError, match=r"y_test is .*, in .*data\.npz; save class indices"):
        Npz(str(tmp_path / "data.npz")).load()


class Trap:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("an array was unpickled",)


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_python_objects_are_never_unpickled(tmp_path: Path, key: str) -> None:
    trap = np.empty(4, dtype=object)
    trap[:] = [Trap() for _ in range(4)]
    path = save(tmp_path, **DIVIDED | {key: trap})
    with pytest.raises(ConfigError, match=rf"{key} is object.*, in {re.escape(str(path))}; save "):
        Npz(str(path)).load()
