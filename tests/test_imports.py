"""Heavy packages load when a run asks for them, not before.

The import contracts see only what is written as an import; a plug-in is imported by its name.
"""

import subprocess
import sys
from pathlib import Path

import pytest

import fedcl

ROOT = Path(__file__).parent.parent


def loaded_by(module: str, packages: set[str]) -> set[str]:
    """Returns those of the packages that a fresh interpreter holds after importing the module."""
    program = f"import {module}, sys; print(*(sys.modules.keys() & {packages!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("fedcl", {"torch", "ray", "flwr", "opacus", "matplotlib"}),
        ("fedcl.experiment", {"ray", "flwr", "opacus", "datasets", "PIL"}),
        ("fedcl.__main__", {"torch", "ray", "flwr", "opacus", "datasets"}),
        ("fedcl.flower.device", {"ray", "opacus", "scipy", "sklearn", "matplotlib", "PIL"}),
        ("fedcl.watching.frame", {"torch", "ray", "flwr"}),
        ("fedcl.datasets.folder", {"PIL"}),
        ("fedcl.datasets.hub", {"PIL", "datasets"}),
    ],
)
def test_an_import_leaves_heavy_packages_alone(module: str, absent: set[str]) -> None:
    assert loaded_by(module, absent) == set()


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_by("torch", {"torch", "ray"}) == {"torch"}


def test_public_names_load_at_first_use() -> None:
    for name in fedcl.__all__:
        assert getattr(fedcl, name) is not None, name
