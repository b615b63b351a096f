"""`[memory] cache` bounds what clients' memories take in RAM; 10,000 clients are for the script."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.memory_budget import ROW, spent

# Blocks at work (16 clients' memories of 158 kB, old and new, joined and shuffled), the database's
# pages, and what an allocator leaves between.
CONSTANT = 30_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="asks the system as POSIX has it")
def test_memories_stay_within_their_budget(tmp_path: Path) -> None:
    clients, remembered, cache = 600, 50, 5_000_000
    held = clients * remembered * ROW
    assert held > 2 * (cache + CONSTANT), "the test would show nothing"
    forgetful = spent(tmp_path, clients, 0, cache)
    full = spent(tmp_path, clients, remembered, cache)
    assert full.peak - forgetful.peak < cache + CONSTANT
    assert held < full.disk < 1.2 * held
    assert forgetful.disk < held / 10
