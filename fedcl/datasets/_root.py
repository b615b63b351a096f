"""The folder of a dataset's files, as `dataset.root` names it."""

from __future__ import annotations

from pathlib import Path

from fedcl.core.errors import ConfigError


def named(root: str, of: str) -> Path:
    """Returns the path that is named; raises ConfigError for none.

    Args:
        root: The option.
        of: What lies there, such as `images`.
    """
    if not root:
        fact = f"the dataset needs the folder of its {of}, in the table [dataset]"
        raise ConfigError(f"{fact}; set dataset.root, e.g. --set dataset.root=FOLDER")
    return Path(root).expanduser()


def checked(root: Path, what: str) -> Path:
    """Returns a folder that is there; raises ConfigError for another path.

    Args:
        root: Its path.
        what: What it is to be, for the remedy.
    """
    if not root.is_dir():
        fact = "not a folder" if root.exists() else "missing"
        raise ConfigError(f"{root} is {fact}, in dataset.root; set it to the folder {what}")
    return root
