"""What a live federation refuses at its start: options that only a simulator can keep."""

from __future__ import annotations

from fedcl.config import Experiment
from fedcl.core.channel import hides_replies, mechanism
from fedcl.core.errors import ConfigError


def check_live(experiment: Experiment) -> None:
    """Raises ConfigError for an experiment that only a simulator can run.

    Args:
        experiment: A validated experiment.
    """
    for step, table in zip(experiment.channel, experiment.resolved["channel"], strict=True):
        own = mechanism([step])
        if hides_replies([step]) and (own is None or own.shares is not None):
            raise ConfigError(
                f'[[channel]] "{table["name"]}" is the simulator\'s ideal secure sum, by which the '
                "server sees no single reply; no protocol that devices could run is behind it: "
                'take "central_dp" (a server that is trusted) or the trainer "dp_sgd" (devices '
                "that protect their own records), or simulate"
            )
        if own is not None and own.bands > 1:
            raise ConfigError(
                f'[[channel]] "{table["name"]}" has bands = {own.bands}, but a live run that is '
                "resumed asks its round anew, which correlated noise does not allow: set bands = 1"
            )
    training, adversary = experiment.training, experiment.adversary
    for fact, is_so, remedy in (
        (
            "[training] availability below 1 simulates clients who do not answer",
            training.availability < 1,
            "set it to 1",
        ),
        (
            "[adversary] simulates clients who lie",
            adversary.attack != "none",
            "remove it",
        ),
        (
            "[[audit]] looks at what single clients hold",
            bool(experiment.audit),
            "remove it, and audit a simulation",
        ),
        (
            "[evaluation] decompose trains clients once more where their data are not",
            experiment.evaluation.decompose > 0,
            "set it to 0",
        ),
    ):
        if is_so:
            raise ConfigError(f"{fact}; devices are no simulation: {remedy}")
