"""Scripts in processes of their own that find PyTorch and fedcl loaded already.

Loading them takes longer than most of what a smoke test does. A process that has loaded them and
done nothing else waits for scripts, and forks itself for each.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["fedcl.experiment", "fedcl.report"])


def run_script(
    script: Path, words: list[str], folder: Path, said: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs `python SCRIPT WORDS` and returns what it said and its status.

    Args:
        script: The file.
        words: Its arguments.
        folder: Where it runs.
        said: Folder for the files that take what it says.
        variables: Its environment, beside that of this process; it writes no bytecode.
    """
    files = said / "out", said / "err"
    process = _FORKS.Process(target=_become, args=(script, words, folder, files, variables))
    process.start()
    process.join()
    assert process.exitcode is not None
    out, err = (file.read_text(encoding="utf-8") for file in files)
    return subprocess.CompletedProcess([str(script), *words], process.exitcode, out, err)


def _become(
    script: Path,
    words: list[str],
    folder: Path,
    files: tuple[Path, Path],
    variables: Mapping[str, str],
) -> None:
    import torch

    for number, file in enumerate(files, start=1):
        with file.open("wb") as taken:
            os.dup2(taken.fileno(), number)
    os.environ.update(variables)
    sys.dont_write_bytecode = True
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = [str(script), *words]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
