"""What a run needs where all rows lie with the clients alone, and what cannot work there."""

from __future__ import annotations

from collections.abc import Iterator

from fedcl.config import Experiment
from fedcl.core.channel import hides_replies, mechanism
from fedcl.core.data.stream import Stream
from fedcl.core.errors import ConfigError


def check_elsewhere(experiment: Experiment) -> None:
    """Refuses what must know rows, where none are known.

    Raises:
        ConfigError: It names what cannot work, why, and what to do.
    """
    if experiment.stream.elsewhere:
        for what, why in _refused(experiment):
            raise ConfigError(f"{what}, but with [stream] {experiment.names['stream']!r} {why}")


def check_reach(experiment: Experiment, stream: Stream) -> None:
    """Raises ConfigError where neither folders nor devices are there in which data could arrive."""
    source = stream.dataset.source
    if source is not None and not source.here and not hasattr(experiment.engine, "ready"):
        raise ConfigError(
            "[dataset] root is empty, so that nothing can arrive here: set it to a folder that "
            "holds one for each client, or run as a Flower app, whose devices have their own"
        )


def _refused(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Yields what the config asks for, and why that cannot be."""
    nowhere = "all data lie with the clients"
    settings, method = experiment.evaluation, experiment.names["method"]
    protection = mechanism(experiment.channel)
    protected = protection or experiment.promise or hides_replies(experiment.channel)
    if settings.where == "server" and not protected:  # else nobody evaluates: nobody may tell
        yield (
            '[evaluation] where = "server" evaluates on the server',
            f'{nowhere}: set evaluation.where = "clients"',
        )
    if settings.splits != ("test",):
        yield (
            f"[evaluation] splits = {list(settings.splits)}",
            'arrivals hold out test rows alone: set splits = ["test"]',
        )
    if settings.reference:
        yield "[evaluation] reference compares with a joint run", "there is none: leave it out"
    if experiment.method.family == "reference":
        yield (
            f"method {method!r} is a reference, for which clients keep every example",
            "clients are real or stand for real ones: take another method",
        )
    if experiment.audit:
        yield "[[audit]] looks at clients' rows", f"{nowhere}: leave audits out"
    if experiment.adversary.lies or experiment.adversary.poisons:
        yield (
            "[adversary] simulates attackers",
            f"{nowhere}, and nobody but they can change them: leave it out",
        )
    if experiment.promise is not None:
        yield (
            "[training.local] protects single records, whose accounting must know in how many "
            "stages each of them comes",
            "nobody knows which arrivals hold the same record, so that no epsilon is proven: take "
            'the trainer "sgd", with [[channel]] name = "central_dp" to protect clients',
        )
    if protection is not None and experiment.resolved["stream"].get("arrivals"):
        yield (
            "[[channel]] protects clients",
            "[stream] arrivals lets their data decide when a stage begins, which is part of no "
            "proof: set stream.arrivals = 0, and stream.patience to the seconds before a stage",
        )
    if experiment.resolved["engine"].get("tune"):
        yield "[engine] tune trains the first clients to choose a path", f"{nowhere}: leave it out"
