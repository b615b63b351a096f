"""`fedcl flower`: runs the app in a folder; bad input gives one message and exit status 2."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.commands import assert_refused, call, spawn

APP = Path(__file__).parent / "stock_app"
MODULES = ("stock_client", "stock_server", "broken")


@pytest.fixture(autouse=True)
def fresh_modules() -> Iterator[None]:
    """Lets each test import its own app: Python would give the first one again."""
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A copy of the app, to spoil."""
    return Path(shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__py*")))


def test_an_app_runs_with_its_config_and_changes(app: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    called = call("flower", app, "--clients", "3", "--run-config", f'lr=0.2 out="{out}"')
    assert called.status == 0
    (line,) = called.out.splitlines()
    assert line.startswith("fedcl/stock-app: 12 replies, 0 of them errors, in ")
    with np.load(out) as found:
        np.testing.assert_allclose(found["fedavg train 2 rounds"], 2.0)
    changes = tmp_path / "changes.toml"
    changes.write_text(f'lr = 0.2\nnum-server-rounds = 1\nout = "{out}"\n', encoding="utf-8")
    called = call("flower", app, "--clients", "3", "--quiet", "--run-config", changes)
    assert called.out.startswith("fedcl/stock-app: 6 replies") and called.status == 0


def test_contexts_go_on_with_resume(app: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out.npz", tmp_path / "state"
    words = ("flower", app, "--clients", "2", "--state", state, "--run-config", f'out="{out}"')
    called = call(*words)
    assert called.out.splitlines()[1] == f"contexts: {state}"
    assert_refused(call(*words), "holds the contexts of an earlier run", "add --resume")
    assert call(*words, "--resume").status == 0
    with np.load(out) as found:
        np.testing.assert_allclose(found["fedavg train 2 rounds"], 4.0)


def test_an_interrupted_run_says_how_to_go_on(app: Path, tmp_path: Path) -> None:
    client = app / "stock_client.py"
    text = client.read_text(encoding="utf-8")
    client.write_text(
        text.replace(
            "    with torch.no_grad", "    raise KeyboardInterrupt\n    with torch.no_grad"
        )
    )
    words = ("flower", app, "--clients", "2", "--state", tmp_path / "a state")
    called = call(*words)
    assert called.status == 130
    assert called.err.splitlines()[-1] == (
        f"stopped; go on with: fedcl flower {app} --clients 2 --state "
        f"'{tmp_path / 'a state'}' --resume"
    )


def test_an_error_of_a_client_is_told_and_counted(app: Path) -> None:
    client = app / "stock_client.py"
    text = client.read_text(encoding="utf-8")
    client.write_text(
        text.replace("    with torch.no_grad", "    raise ValueError\n    with torch.no_grad")
    )
    called = call("flower", app, "--clients", "2")
    assert called.status == 0 and ": 8 replies, 4 of them errors" in called.out


# --- Bad input. ---


def spoilt(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Returns what replaces text in a file of the app."""

    def change(app: Path) -> None:
        text = (app / name).read_text(encoding="utf-8")
        assert old in text
        (app / name).write_text(text.replace(old, new), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("spoil", "fragments"),
    [
        (lambda app: (app / "pyproject.toml").unlink(), ("no pyproject.toml", "`flwr run` takes")),
        (spoilt("pyproject.toml", "[project]", "[project"), ("describes no Flower app", "line 1")),
        (
            spoilt("pyproject.toml", 'clientapp = "stock_client:app"', ""),
            ('"clientapp" missing in [tool.flwr.app.components]', "correct it"),
        ),
        (
            spoilt("pyproject.toml", "[tool.flwr.app.components]", "[tool.flwr.app.parts]"),
            ("Missing [tool.flwr.app.components]", "correct it"),
        ),
        (
            spoilt("pyproject.toml", '"stock_client:app"', "3"),
            ("names no clientapp", 'clientapp = "module:name"'),
        ),
        (
            spoilt("pyproject.toml", '"stock_client:app"', '"stock_client"'),
            ("'stock_client'", "Missing attribute"),
        ),
        (
            spoilt("pyproject.toml", "stock_client:app", "nowhere_to_find:app"),
            ("'nowhere_to_find:app'", "ModuleNotFoundError: No module named", "install"),
        ),
        (
            spoilt("pyproject.toml", "stock_client:app", "stock_client:ap"),
            ("'stock_client:ap'", "Unable to load attribute ap from module stock_client"),
        ),
        (
            spoilt("pyproject.toml", "stock_client:app", "stock_client:train"),
            ("is no ClientApp but function", "name the right object"),
        ),
        (
            spoilt("stock_server.py", "app = ServerApp()", "app = 1 / 0"),
            ("'stock_server:app'", "ZeroDivisionError: division by zero"),
        ),
    ],
)
def test_a_bad_app_is_refused(
    spoil: Callable[[Path], None], fragments: tuple[str, ...], app: Path
) -> None:
    spoil(app)
    called = call("flower", app, "--clients", "2")
    assert_refused(called, str(app), *fragments)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--clients", "0"], ("clients must be at least 1, not 0",)),
        (["--clients", "2", "--workers", "-1"], ("workers must be at least 0, not -1",)),
        (["--clients", "two"], ("'--clients'", "'two' is not a valid int", "fedcl flower --help")),
        ([], ("Missing option '--clients'", "see fedcl flower --help")),
        (["--clients", "2", "--resume"], ("nothing to resume", "name it")),
        (["--clients", "2", "--run-config", "lr"], ("--run-config 'lr' is not key=value",)),
        (["--clients", "2", "--run-config", "lr=fast"], ("--run-config 'lr=fast'", "format")),
        (["--clients", "2", "--run-config", "Lr=1"], ("'Lr' is not present", "known: strategies")),
        (["--clients", "2", "--run-config", "nowhere.toml"], ("No such file", "nowhere.toml")),
        (["--clients", "1"], ("waits for 2 nodes, but there are 1", "raise the number of clients")),
    ],
)
def test_bad_words_are_refused(words: list[str], fragments: tuple[str, ...]) -> None:
    assert_refused(call("flower", APP, *words, "--quiet"), *fragments)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    called = call("flower", tmp_path / "nowhere", "--clients", "2")
    assert_refused(called, f"{tmp_path / 'nowhere'} is no folder of a Flower app")


def test_a_process_of_its_own_says_the_same() -> None:
    called = spawn("flower", APP, "--clients", "1", "--quiet")
    assert_refused(called, "the app's strategy waits for 2 nodes")
