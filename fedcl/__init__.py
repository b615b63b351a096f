"""fedcl: a simulator for federated continual learning.

`fedcl.run(fedcl.load_config(path, overrides={...}))` runs an experiment; `fedcl.metrics` holds the
formulas. Names load when they are first used, so that `import fedcl` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcl import decomposition, evaluations, metrics
    from fedcl.config import Experiment, load_config
    from fedcl.core.errors import ClientError, ConfigError, ExposureError, FedclError, ResumeError
    from fedcl.experiment import run
    from fedcl.record import Record

__version__ = "0.1.0"

__all__ = [
    "ClientError",
    "ConfigError",
    "Experiment",
    "ExposureError",
    "FedclError",
    "Record",
    "ResumeError",
    "__version__",
    "decomposition",
    "evaluations",
    "load_config",
    "metrics",
    "run",
]

_PLACES = {
    "ClientError": "core.errors",
    "ConfigError": "core.errors",
    "ExposureError": "core.errors",
    "FedclError": "core.errors",
    "ResumeError": "core.errors",
    "Experiment": "config",
    "load_config": "config",
    "Record": "record",
    "run": "experiment",
}


def __getattr__(name: str) -> Any:
    if name in ("decomposition", "evaluations", "metrics"):
        return import_module(f"fedcl.{name}")
    if name in _PLACES:
        return getattr(import_module(f"fedcl.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'fedcl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
