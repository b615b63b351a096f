"""The wheel, in a new environment without extras, runs a client; no network is needed for it.

The environment holds links to what the wheel says it needs, and to what that needs, and nothing
else of what this one has installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, PathDistribution, distribution, distributions
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.commands import ROOT, write_config
from tests.flower.slim_client import HEAVY, digest

pytestmark = pytest.mark.apart


def run(*words: str | Path, cwd: Path) -> str:
    """Runs a program that sees nothing of this environment; it must end well."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**clean, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without an environment of its own for the builder."""
    folder = tmp_path_factory.mktemp("dist")
    program = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, check=True)
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def slim(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of programs of an environment that holds the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("slim") / "env"
    venv.create(folder, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (info,) = (at for at in zipfile.Path(wheel).iterdir() if at.name.endswith(".dist-info"))
    described = PathDistribution(info)
    link(needed(described.requires or ()), site)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    run(*pip, "check", cwd=folder)
    return folder / "bin"


def needed(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Returns the installed distributions that requirements name, and those that these need."""
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, str]] = set()
    pending = [(Requirement(text), "") for text in requirements]
    while pending:
        wanted, extra = pending.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        found.setdefault(name, distribution(name))
        for part in {"", *wanted.extras}:
            if (name, part) not in asked:
                asked.add((name, part))
                pending += [(Requirement(text), part) for text in found[name].requires or ()]
    return found


def link(wanted: Mapping[str, Distribution], site: Path) -> None:
    """Links what distributions have installed, and nothing of others in the same folders."""
    owners: dict[str, set[str]] = defaultdict(set)
    for each in distributions():
        name = each.name  # read anew each time
        for place in installed(each):
            owners[place.partition("/")[0]].add(name)
    for each in wanted.values():
        # A whole folder where it is nobody else's, else its files one by one.
        tops = ((file.partition("/")[0], file) for file in installed(each))
        for place in {top if len(owners[top]) == 1 else file for top, file in tops}:
            target = site / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(each.locate_file(place))))


def installed(each: Distribution) -> Iterator[str]:
    """Yields the places of a distribution's files in site-packages; no programs, no caches."""
    for line in (each.read_text("RECORD") or "").splitlines():
        place = line.rsplit(",", 2)[0].strip('"')
        if not place.startswith("../") and "__pycache__/" not in place:
            yield place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the data of a device."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(240, 6)).astype(np.float32), np.arange(240) % 4
    np.savez(folder / "own.npz", x_train=x[:160], y_train=y[:160], x_test=x[160:], y_test=y[160:])
    return folder


def test_a_client_answers_without_extras(slim: Path, data: Path, tmp_path: Path) -> None:
    """To the bit as it does here, where all extras are installed."""
    config = write_config(tmp_path, {"dataset": {"name": "npz", "root": "", "file": "own.npz"}})
    program = ROOT / "tests" / "flower" / "slim_client.py"
    said = run(slim / "python", program, config, tmp_path / "state", data, cwd=tmp_path)
    found = json.loads(said.splitlines()[-1])
    client, reply = digest(str(config), str(tmp_path / "here"), str(data))
    assert found == {"client": client, "reply": reply, "there": []}
    assert client == 1 and HEAVY


def test_the_command_line_is_there_and_makes_keys(slim: Path, tmp_path: Path) -> None:
    run(slim / "fedcl", "keys", tmp_path / "keys", "--nodes", "1", cwd=tmp_path)
    assert (tmp_path / "keys" / "node-0.key").exists()
