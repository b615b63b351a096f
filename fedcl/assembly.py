"""Makes of a config what runs: data, stream, model and site; the same on any machine."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fedcl.config import Experiment
from fedcl.core.attacks.lies import Attackers
from fedcl.core.attacks.poison import Poison, poison_of
from fedcl.core.channel import hides_replies, least_of, mechanism, mechanism_at
from fedcl.core.data.arriving import Arriving
from fedcl.core.data.stream import Stream
from fedcl.core.engine import Engine
from fedcl.core.errors import ConfigError
from fedcl.core.guard import Guarded
from fedcl.core.model import check_model
from fedcl.core.population import Population, Simulated
from fedcl.core.sealed import Sealed
from fedcl.core.seeds import seed_of
from fedcl.core.site import Site
from fedcl.core.training.schedule import Pace
from fedcl.elsewhere import check_elsewhere

_MOST = 2.0**31  # examples of a client, where nobody knows them: what weighs more is no share


def build_site(experiment: Experiment, keep: Path | None = None) -> Site:
    """Returns what is needed where clients run: a pure function of the config, on whatever machine.

    Args:
        experiment: A validated experiment.
        keep: Holds a folder for each client that runs here, where it keeps what must outlive this
            process. Only clients whose data arrive need one; None where no client is asked.

    Raises:
        ConfigError: Data, stream and model do not go together.
    """
    check_elsewhere(experiment)
    device = choose_device(experiment.training.device)
    dtype = getattr(torch, experiment.training.dtype)
    dataset = experiment.dataset.load()
    stream = experiment.stream.build(dataset, experiment.seed, experiment.names["stream"])
    adversary = experiment.adversary
    strangers = [id for id in adversary.clients if id >= stream.clients]
    if strangers:
        raise ConfigError(
            f"[adversary] clients names {strangers}, but ids go from 0 to {stream.clients - 1}"
        )
    poison = poison_of(adversary, dataset, stream.clients, experiment.seed)
    try:
        experiment.training.local.check(dataset.shape)
    except ValueError as error:
        raise ConfigError(f"[training.local] {error}") from error
    model = build_model(experiment, dataset.shape, dataset.classes).to(device=device, dtype=dtype)
    return Site(
        population=_population(stream, keep, dtype, device, poison),
        model=model,
        trainer=experiment.training.local,
        channel=experiment.channel,
        seed=experiment.seed,
        fold=experiment.training.fold,
        equal=experiment.aggregation.weights == "equal",
        device=device,
        precision=experiment.training.precision,
        strict=not is_guarded(experiment),
        pace=Pace(experiment.training.schedule, stream.stages, experiment.training.rounds),
    )


def _population(
    stream: Stream,
    keep: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    poison: Poison | None,
) -> Population:
    """Returns who takes part: with the stream's own rows, or with what arrives."""
    if stream.elsewhere and stream.dataset.source is not None:
        return Arriving(stream, stream.dataset.source, keep, dtype, device)
    return Simulated(stream, dtype, device, poison)


def is_live(experiment: Experiment) -> bool:
    """Returns whether clients are devices that come and go, instead of simulated ones."""
    return bool(getattr(experiment.engine, "live", False))


def may_be_late(experiment: Experiment) -> bool:
    """Returns whether a client's answer may come when nobody reads it any more."""
    return is_live(experiment) or getattr(experiment.engine, "timeout", 0.0) > 0


def is_guarded(experiment: Experiment) -> bool:
    """Returns whether replies are judged one by one, behind the engine."""
    return experiment.replies.judged or experiment.adversary.lies


def guarded(experiment: Experiment, site: Site, engine: Engine) -> Engine:
    """Returns an engine whose replies are attacked and judged as the config says."""
    if not is_guarded(experiment):
        return engine
    stream: Stream = site.population.stream  # type: ignore[attr-defined]
    own, replies = experiment.adversary, experiment.replies
    rows = _MOST if stream.elsewhere else float(max(1, len(stream.dataset.train.labels)))
    attackers = Attackers(own, stream.clients, experiment.seed)
    return Guarded(
        engine,
        site,
        attackers if own.lies else None,
        replies.bad == "stop",
        replies.norm,
        replies.weight or rows,
    )


def sealed(experiment: Experiment, engine: Engine) -> Engine:
    """Returns an engine that lets nothing but sums through, where the channel hides replies."""
    channel, protection = experiment.channel, mechanism(experiment.channel)
    if not hides_replies(channel):
        return engine
    shares = None if protection is None else protection.shares
    return Sealed(engine, least_of(channel), 0 if shares is None else shares.bits)


def check_minimum(experiment: Experiment, stream: Stream) -> None:
    """Raises ConfigError when a stage has fewer clients than the replies that a round needs."""
    least, needed = least_of(experiment.channel), experiment.aggregation.least
    minimum = max(experiment.training.minimum, least)
    where = "[channel] least" if minimum == least else "[training] minimum"
    rule, cohort = experiment.names["aggregation"], experiment.training.cohort
    for stage in range(stream.stages if max(minimum, needed) > 1 else 0):
        members = len(stream.members(stage))
        if members < minimum:
            raise ConfigError(
                f"{where} = {minimum} replies cannot come from the {members} clients with data at "
                f"stage {stage}: lower it"
            )
        asked = min(cohort or members, members)
        if 0 < asked < needed:
            raise ConfigError(
                f"[aggregation] {rule!r} needs {needed} replies of a round, but {asked} clients "
                f"are asked at stage {stage}: let it reckon with fewer attackers, ask more clients "
                "(training.cohort), or take another rule"
            )


def check_protection(experiment: Experiment, stream: Stream) -> None:
    """Raises ConfigError when what protects clients cannot work with the cohorts of a stage."""
    states = [step.init() for step in experiment.channel]
    if not any(hasattr(step, "mechanism_at") for step in experiment.channel):
        return
    for size in {len(stream.members(stage)) for stage in range(stream.stages)} - {0}:
        expected = min(experiment.training.cohort or size, size)
        mechanism_at(experiment.channel, states, "", expected)


def build_model(experiment: Experiment, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Returns the freshly initialised model: a function of the experiment's seed.

    Raises:
        ConfigError: The model does not fit the data, or mixes examples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(experiment.seed, "model"))
        try:
            model = experiment.model.build(shape, classes)
            check_model(model)
            with torch.no_grad():
                found = tuple(model(torch.zeros(2, *shape)).shape)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"[model] {error}") from error
    if found != (2, classes):
        raise ConfigError(
            f"[model] two inputs of shape {shape} give an output of shape {found}, not the logits "
            f"of shape {(2, classes)}: end it with a layer over all {classes} classes"
        )
    return model


def choose_device(name: str) -> torch.device:
    """Returns the device of a config's name; raises ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError('training.device = "cuda", but PyTorch finds no GPU: use "auto" or "cpu"')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
