"""What `flwr run deploy` ships: the app's description, and no line of code."""

from __future__ import annotations

import io
import tomllib
import zipfile

import pytest
from flwr.cli.build import build_fab_from_disk

import fedcl
from tests.flower.live import APP


# Flower 1.41 asks pathspec for patterns by an old name.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_no_code_travels_with_the_app() -> None:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(APP))) as bundle:
        assert sorted(bundle.namelist()) == [".info/CONTENT", "pyproject.toml"]
        described = tomllib.loads(bundle.read("pyproject.toml").decode())
    assert described["tool"]["flwr"]["app"]["config"] == {
        "config": "",
        "set": "",
        "out": "",
        "resume": False,
    }


def test_the_app_is_of_this_version_and_needs_only_the_flower_that_fedcl_needs() -> None:
    app = tomllib.loads((APP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = tomllib.loads((APP.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert app["version"] == fedcl.__version__
    (flower,) = app["dependencies"]
    assert flower in package["dependencies"]
