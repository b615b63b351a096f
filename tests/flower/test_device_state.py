"""A device's state folder: one client's for good, and one node's for as long as that lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedcl.core.errors import ConfigError
from fedcl.flower.node import tenancy
from fedcl.flower.node.client_app import introduce
from fedcl.flower.node.statefolder import EXPERIMENTS, StateFolder, token_of
from fedcl.flower.node.tenancy import move_in
from fedcl.flower.protocol.introductions import Introduced, Introduction
from fedcl.flower.protocol.messages import read_failure
from tests.commands import ROOT, write_config
from tests.flower.nodes import EXPERIMENT, device
from tests.tiny import tiny

# A node: a process that starts the ones that answer, and lives on.
NODE = """
import os, sys
from pathlib import Path
from fedcl.flower.node.tenancy import move_in
child = os.fork()
if not child:
    move_in(Path(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
print(os.waitpid(child, 0)[1], flush=True)
sys.stdin.read()
"""
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(program: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """Runs a program without what torch needs, until it has said a line and then is killed."""
    command = [sys.executable, "-S", "-c", program, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as found:
        assert found.stdout is not None and found.stdout.readline() in ("0\n", "held\n")
        try:
            yield found
        finally:
            found.kill()


def token(config: Path, state: Path, experiment: str = EXPERIMENT) -> str:
    """Returns the token that a device shows."""
    asked = Introduction.of(experiment, tiny().resolved).write()
    return Introduced.read(introduce(asked, device(config, state))).token


def test_a_token_binds_a_client_to_its_state_folder(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    own = token(config, tmp_path / "own")
    assert len(own) == 64 and int(own, 16)
    assert token(config, tmp_path / "own") == own
    assert token(config, tmp_path / "other") != own
    assert token(config, tmp_path / "own", "fedcba9876543210") != own


def test_before_there_is_an_experiment_there_is_no_token(tmp_path: Path) -> None:
    find = device(write_config(tmp_path), tmp_path / "state")
    assert Introduced.read(introduce(Introduction().write(), find)) == Introduced(0)


def test_identity_and_secret_root_are_made_once_and_are_their_owners_alone(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "deep" / "state", 3)
    with folder.held(1) as root:
        pass
    path = folder.path / "identity.json"
    assert json.loads(path.read_text()) == {"client": 3, "root": root.hex()}
    assert len(root) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o644)  # as a backup may bring it back
    with folder.held(1) as again:
        assert again == root
    assert path.stat().st_mode & 0o777 == 0o600
    with StateFolder(tmp_path / "other", 3).held(1) as other:
        assert other != root
    assert token_of(root, EXPERIMENT) != token_of(other, EXPERIMENT)


def test_a_state_folder_is_no_other_clients(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    token(config, tmp_path / "state")
    find = device(config, tmp_path / "state", client=4)
    failure = read_failure(introduce(Introduction().write(), find))
    assert failure is not None
    assert failure[:2] == (
        "ConfigError",
        f"state folder {tmp_path}/state is that of client 0, not of client 4: give each client a "
        "state folder of its own",
    )


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"client": 0}', '{"client": 0, "root": "abcd"}', "\x00", "7"]
)
def test_a_damaged_identity_is_refused_and_not_made_anew(content: str, tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    path.write_text(content)
    with (
        pytest.raises(ConfigError, match=f"{path} is damaged: .*; put it back, or name another"),
        StateFolder(tmp_path, 0).held(1),
    ):
        pass
    assert path.read_text() == content


def test_an_identity_that_is_gone_is_not_made_anew_beside_experiments(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, 0)
    with folder.held(1):
        folder.experiment(EXPERIMENT).mkdir(parents=True)
    (tmp_path / "identity.json").unlink()
    with pytest.raises(ConfigError, match="is gone, though there are experiments"), folder.held(1):
        pass


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            ConfigError, match=f"state folder {tmp_path}/file/state cannot be used: File"
        ),
        StateFolder(tmp_path / "file" / "state", 0).held(1),
    ):
        pass


def test_experiments_that_were_asked_longest_ago_are_forgotten(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, 0)
    for number in range(EXPERIMENTS + 3):
        with folder.held(1):
            place = folder.experiment(f"{number:08x}")
            (place / "0").mkdir(parents=True)
            (place / "0" / "0_0_0_0.memory").write_bytes(b"old")
            os.utime(place, (number, number))
        with folder.held(1):
            folder.used(f"{0:08x}")  # the first one goes on being asked
    left = {path.name for path in folder.experiments.iterdir()}
    recent = {f"{number:08x}" for number in range(4, EXPERIMENTS + 3)}
    assert left == {f"{0:08x}", *recent}


def test_a_second_node_is_refused_while_the_first_one_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "tenant.json"
    with process(NODE, note, 111) as first:
        with monkeypatch.context() as hasty:
            hasty.setattr(tenancy, "_PATIENCE", 0.0)
            with pytest.raises(ConfigError) as error:
                move_in(note, 222)
        assert str(error.value) == (
            f"state folder {tmp_path} is in use by Flower node 111 (process {first.pid}): end that "
            "one, or give node 222 a client and a state folder of its own"
        )
        first.kill()  # and nobody has waited for it yet
        move_in(note, 222)
    assert json.loads(note.read_text())["node"] == "222"


def test_a_node_that_registers_anew_goes_on(tmp_path: Path) -> None:
    note = tmp_path / "tenant.json"
    move_in(note, 111)
    before = note.stat().st_ino
    move_in(note, 111)
    assert note.stat().st_ino == before  # nothing was written
    move_in(note, 222)
    assert json.loads(note.read_text())["node"] == "222"


@pytest.mark.parametrize("key", ["place", "parent"])
def test_a_process_of_the_same_number_is_no_node(key: str, tmp_path: Path) -> None:
    """After the machine was started anew, or when the number was given again."""
    note = tmp_path / "tenant.json"
    with process(NODE, note, 111):
        found = json.loads(note.read_text())
        found[key] = "another boot" if key == "place" else [found[key][0], found[key][1] - 1]
        note.write_text(json.dumps(found))
        move_in(note, 222)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"node": "5", "parent": 3}', "7"])
def test_a_note_that_says_nothing_holds_nobody_up(content: str, tmp_path: Path) -> None:
    note = tmp_path / "tenant.json"
    note.write_text(content)
    move_in(note, 222)
    assert json.loads(note.read_text())["node"] == "222"


def test_answers_take_turns_and_the_dead_let_go(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, 0)
    happened: list[str] = []

    def answer() -> None:
        with folder.held(1):
            happened.append("in")

    with process(HOLDER, tmp_path / "lock") as holder:
        waiting = threading.Thread(target=answer)
        waiting.start()
        time.sleep(0.2)  # it would be in by now
        happened.append("killed")
        holder.kill()
        waiting.join()
    assert happened == ["killed", "in"]
