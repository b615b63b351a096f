"""Every script in `simulations/` runs from end to end with `--smoke`, and leaves nothing behind."""

from pathlib import Path

import pytest

from tests.scripts import run_script

ROOT = Path(__file__).parent.parent
# Not all are scripts: some share what scripts have in common.
SCRIPTS = [
    path
    for path in sorted((ROOT / "simulations").glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs_with_smoke(script: Path, tmp_path: Path) -> None:
    before = sorted((ROOT / "simulations").iterdir())
    folder = tmp_path / "here"
    folder.mkdir()
    # What it starts itself leaves no folder of bytecode either.
    variables = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = run_script(script, ["--smoke"], folder, tmp_path, variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "a table"
    assert "Traceback" not in done.stderr
    assert not list(folder.iterdir()), "nothing is left"
    assert sorted((ROOT / "simulations").iterdir()) == before


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_what_it_is_and_how_it_is_run(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith('"""') and f"simulations/{script.name}" in text.split('"""')[1]


def test_there_is_a_demo() -> None:
    assert "demo" in {script.stem for script in SCRIPTS}
