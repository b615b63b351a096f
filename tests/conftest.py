"""What every test may count on: one thread, the same examples each time, real data if any."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.ray_house import RayHouse

# One and two threads give different bits, and the results here are compared to the bit.
torch.set_num_threads(1)
torch.set_num_interop_threads(1)

settings.register_profile("fedcl", derandomize=True, database=None, deadline=None)
settings.load_profile("fedcl")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps what shares a session of Ray in one worker, and so what shares a module's processes."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        marked = item.get_closest_marker("ray") or item.get_closest_marker("flower")
        if item.get_closest_marker("apart"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
        elif marked or "ray_house" in fixtures:
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Gives each test the name with its group: pytest 9.2 reads it elsewhere than xdist writes it.

    Otherwise groups come to nothing, and every worker starts Ray and the processes of a module.
    """
    for item in session.items:
        grouped = getattr(item, "_nodeid", item.nodeid)
        if grouped != item.nodeid:
            item._id = type(item.id).parse(grouped)


@pytest.fixture(scope="session", autouse=True)
def no_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hugging Face's packages stay offline and keep their files among those of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("huggingface")))
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """A folder with mnist.npz, pacs32.npz and uci_har.npz; skips where none is named."""
    root = os.environ.get("FEDCL_DATA")
    if not root:
        pytest.skip("real data: set FEDCL_DATA to a folder of unpacked data sets")
    return Path(root)


@pytest.fixture(scope="session")
def ray_house() -> Iterator[RayHouse]:
    """One Ray session for all tests, and workers that serve many runs."""
    house = RayHouse()
    yield house
    house.close()
