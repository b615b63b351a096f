"""The path for any model, as one program."""

import shutil
from typing import Any

import pytest

from fedcl.core.local import Local, Proximal, cross_entropy
from fedcl.core.params import Params
from tests.core.blocks import FULL, check, clients, mlp


@pytest.mark.slow
# PyTorch's compiler uses what PyTorch deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_step_equals_the_loop() -> None:
    """Uneven clients: those that have finished stay in the computation, and out of the result."""
    some = clients(mlp(dropout=(0.4,)), (7, 4, 0))
    check("compiled", Local(cross_entropy, Proximal(0.3)), FULL, some)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_step_may_be_projected() -> None:
    """The projection follows the compiled step, for the clients that still work."""
    some = clients(mlp(), (7, 4))
    check("compiled", Local(cross_entropy, project=halved), FULL, some)


def halved(gradients: Params, message: Any) -> Params:
    return {name: 0.5 * value for name, value in gradients.items()}
