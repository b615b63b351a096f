"""Services and images start Flower with words that it understands, and without rights to spare."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from tests.commands import ROOT

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "flower-superlink": _parse_args_run_superlink,
    "flower-supernode": _parse_args_run_supernode,
}


def parsed(words: list[str]) -> argparse.Namespace:
    """Returns what Flower makes of a command line; a word that it does not know ends the test."""
    return PARSERS[Path(words[0]).name]().parse_args(words[1:])


def started(unit: Path) -> list[str]:
    """Returns the command line of a service."""
    text = unit.read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    return shlex.split(line.replace("${RUNTIME_PORT}", "9094"))


def entry_points() -> dict[str, list[str]]:
    """Returns the command line of each image."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^FROM fedcl AS (\w+)$.*?^ENTRYPOINT (\[.*?\])$", text, re.M | re.S)
    return {name: json.loads(words) for name, words in found}


@pytest.mark.parametrize(
    "words", [*map(started, UNITS), *entry_points().values()], ids=lambda words: Path(words[0]).name
)
def test_flower_understands_its_command_line(words: list[str]) -> None:
    given = parsed(words)
    assert not given.insecure
    if Path(words[0]).name == "flower-superlink":
        assert given.enable_supernode_auth and not given.runtime_dependency_install
        assert given.ssl_certfile and given.ssl_keyfile and given.ssl_ca_certfile
        assert given.database.endswith(".db")
    else:
        assert given.auth_supernode_private_key and given.root_certificates
        assert not given.runtime_dependency_install and given.max_retries is None


def test_there_is_a_service_and_an_image_of_each() -> None:
    assert {Path(started(unit)[0]).name for unit in UNITS} == set(PARSERS)
    assert {Path(words[0]).name for words in entry_points().values()} == set(PARSERS)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_a_service_and_finds_little_exposed(unit: Path, tmp_path: Path) -> None:
    """With the programs and the user of this machine."""
    text = unit.read_text(encoding="utf-8").replace(
        "/opt/fedcl/bin", str(Path(sys.executable).parent)
    )
    here = tmp_path / unit.name
    here.write_text(text.replace("User=fedcl", "User=root").replace("Group=fedcl", "Group=root"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(here)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0 and str(here) not in checked.stderr, checked.stderr
    here.write_text(text)
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(here)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout
