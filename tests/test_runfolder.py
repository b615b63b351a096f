"""A run's folder is new, empty, or that of a run to go on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcl.core.errors import ConfigError
from fedcl.runfolder import open_folder


def test_a_folder_is_made_with_its_parents_or_taken_when_empty(tmp_path: Path) -> None:
    open_folder(tmp_path / "a" / "b", resume=False)
    open_folder(tmp_path / "a" / "b", resume=False)
    open_folder(tmp_path / "a" / "b", resume=True)
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_in_use_needs_resume_and_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    with pytest.raises(ConfigError, match="is not empty: add --resume"):
        open_folder(tmp_path, resume=False)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        open_folder(tmp_path, resume=True)
    (tmp_path / "checkpoint").mkdir()
    open_folder(tmp_path, resume=True)
