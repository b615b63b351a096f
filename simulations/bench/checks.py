"""The measurements beside updates per second that the table of targets needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The smallest settings that still run every line.
_SMOKE: Mapping[str, Any] = {
    "cohort": 4,
    "few": 10,
    "many": 100,
    "rounds": 2,
    "kills": 0,
    "workers": (),
}
_FULL: Mapping[str, Any] = {
    "cohort": 100,
    "few": 1000,
    "many": 1_000_000,
    "rounds": 40,
    "kills": 3,
    "workers": (1, 2, 4),
}


def checks(options: Mapping[str, Any], smoke: bool) -> dict[str, dict[str, Any]]:
    """Returns the measurements by name.

    Args:
        options: `seconds`, `workers` and `device` of the study.
        smoke: Whether any numbers will do.
    """
    size = _SMOKE if smoke else _FULL
    seconds = {"seconds": options["seconds"]}
    ours = {"engine": {"name": "vectorized"}, "device": "cpu"}
    small = {**ours, "model": "mlp"}
    found: dict[str, dict[str, Any]] = {
        "peak": {"measure": "peak", **seconds},
        "parts at 10": {"measure": "parts", **small, "cohort": min(10, size["cohort"]), **seconds},
    }
    found["parts at 100"] = {**found["parts at 10"], "cohort": size["cohort"]}
    found["parts of cnn"] = {**found["parts at 100"], "model": "cnn"}
    registered = {"measure": "registered", "cohort": size["cohort"], **seconds}
    found["registered few"] = {**registered, "clients": size["few"]}
    found["registered many"] = {**registered, "clients": size["many"]}
    found["commit small"] = {"measure": "commit", **small, "cohort": 4}
    found["commit basis"] = {**found["commit small"], "model": "mlp_dropout"}
    found["bits"] = {"measure": "bits", **small, "cohort": 10 if smoke else 40}
    found["bits"] |= {key: size[key] for key in ("rounds", "workers", "kills")}
    if smoke:
        # Each is a process that loads PyTorch: what the full study alone needs is left out.
        kept = ("peak", "parts at 10", "commit small")
        return {name: found[name] for name in kept}
    if options["device"] == "cuda":
        gpu = {"model": "mlp_dropout", "cohort": 64, **seconds, "device": "cuda", "fold": 64}
        found["gpu ours"] = {
            "measure": "fedcl",
            "engine": {"name": "vectorized", "block": 64},
            **gpu,
        }
        found["gpu loop"] = {"measure": "plain loop", **gpu}
    return found
