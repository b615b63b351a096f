"""What lies on a device: damaged files are refused, what would be too much is not written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fedcl.core import durable
from fedcl.core.errors import ConfigError, ResumeError
from fedcl.flower.node.versions import BEFORE_ALL, Moment, Versions

FIRST: Moment = (0, 0, 0, 0)
SECOND: Moment = (0, 1, 0, 0)
HEADER = 15 + 32  # bytes before the content


def versions_with(folder: Path, *moments: Moment, **options: Any) -> Versions:
    """Returns versions of 100 bytes."""
    versions = Versions(folder / "client", **options)
    for moment in moments:
        versions.write(moment, bytes(100))
    return versions


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    versions.write(FIRST, b"what it remembers")
    path = tmp_path / "0_0_0_0.memory"
    assert path.stat().st_mode & 0o777 == 0o600  # it may hold the client's own examples
    whole = path.read_bytes()
    assert len(whole) == HEADER + 17
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ResumeError, match=rf"{path} is damaged \(64 bytes.*put it back"):
            versions.read(FIRST)
    for length in (0, 5, HEADER - 1, HEADER, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ResumeError, match=f"is damaged \\({length} bytes"):
            versions.read(FIRST)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ResumeError, match="is damaged"):
        versions.read(FIRST)
    path.write_bytes(whole)
    assert versions.read(FIRST) == b"what it remembers"


def test_what_a_killed_process_left_half_written_is_no_version_and_goes(tmp_path: Path) -> None:
    versions = versions_with(tmp_path, FIRST)
    (versions.folder / "0_1_0_0.memory.part").write_bytes(b"half")
    (versions.folder / "diary.part").write_bytes(b"not ours")
    assert versions.moments() == [FIRST]
    versions.roll_back(FIRST, (0, 1), (0, 0))
    assert sorted(path.name for path in versions.folder.iterdir()) == [
        "0_0_0_0.memory",
        "diary.part",
    ]


def test_a_moment_leads_nowhere_but_into_the_folder(tmp_path: Path) -> None:
    moment: Any = ("../secret", 0, 0, 0)
    for act in (versions_with(tmp_path).read, lambda at: versions_with(tmp_path).write(at, b"")):
        with pytest.raises(ValueError, match="format code 'd'"):
            act(moment)


def test_what_would_exceed_the_budget_is_not_written(tmp_path: Path) -> None:
    size = HEADER + 100
    versions = versions_with(tmp_path, FIRST, SECOND, budget=2 * size)
    with pytest.raises(ConfigError) as error:
        versions.write((0, 2, 0, 0), bytes(100))
    assert str(error.value) == (
        f"a memory of {size} bytes does not fit into {versions.folder}, which holds {2 * size} of "
        f"the {2 * size} bytes that the client may keep: raise budget in the node config, or let "
        "the method remember less"
    )
    assert versions.moments() == [FIRST, SECOND]
    versions.write(SECOND, b"the same version again, and shorter")
    with pytest.raises(ConfigError, match="a memory of 148 bytes does not fit"):
        versions.write(SECOND, bytes(101))
    assert versions.read(SECOND) == b"the same version again, and shorter"


def test_the_budget_is_for_all_experiments_of_a_client(tmp_path: Path) -> None:
    size = HEADER + 100
    versions_with(tmp_path / "old", FIRST, SECOND)
    versions = versions_with(tmp_path / "new", FIRST, budget=3 * size, within=tmp_path)
    with pytest.raises(ConfigError, match=rf"{tmp_path}, .* \({2 * size} bytes\), or let"):
        versions.write(SECOND, bytes(100))


def test_a_rolled_back_version_makes_room(tmp_path: Path) -> None:
    versions = versions_with(tmp_path, FIRST, SECOND, budget=2 * (HEADER + 100))
    versions.roll_back(FIRST, (0, 1), (0, 0))
    versions.write(SECOND, b"after another attempt")
    assert versions.moments() == [FIRST, SECOND]


def test_a_folder_that_was_never_written_can_be_rolled_back(tmp_path: Path) -> None:
    versions_with(tmp_path).roll_back(BEFORE_ALL, (0, 0), (0, 0))
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_its_name_and_names_are_made_to_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test can cut the power: this one looks at the order in which things are made to last."""
    seen: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(file: int) -> None:
        seen.append(("flush", os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    def watched_replace(path: Path, target: Path) -> Path:
        seen.append(("name", str(target)))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    place = tmp_path / "state" / "client"
    Versions(place).write(FIRST, b"")
    file = f"{place}/0_0_0_0.memory"
    assert seen == [
        ("flush", str(tmp_path)),
        ("flush", str(tmp_path / "state")),
        ("flush", f"{file}.part"),
        ("name", file),
        ("flush", str(place)),
    ]


def test_a_secret_file_is_nobody_elses_from_its_first_byte_on(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    (tmp_path / "secret.part").write_bytes(b"left by a process that was killed")
    (tmp_path / "secret.part").chmod(0o644)
    durable.write(path, b"whole", mode=0o600)
    assert path.read_bytes() == b"whole"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["secret"]


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    durable.make_folder(tmp_path / "a" / "b", mode=0o700)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    durable.make_folder(tmp_path / "a" / "b" / "c", mode=0o755)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
