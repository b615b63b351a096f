"""What is written of each release: its mechanism, who was asked, and where in the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedcl.core.privacy.distributed import Discrete, Shares

Place = tuple[int, int, int, int]  # stage, round, attempt, exchange: as time goes
Sampling = Literal["all", "fixed", "poisson", "round_robin"]


@dataclass(frozen=True)
class Mechanism:
    """What a step of a channel does to protect clients in a sum.

    Attributes:
        noise_multiplier: Standard deviation of the Gaussian noise over `sensitivity`.
        sensitivity: The largest norm by which a client that is added or removed changes the sum.
        delta: The delta for which epsilon is told.
        budget: The largest epsilon that may be spent; 0 for no limit.
        seeded: Whether anybody can repeat the noise: nothing is claimed then.
        bands: Bands of the matrix that correlates the noise of rounds; 1 for independent noise.
        programs: Names of programs that have a bound of their own.
        shares: How clients add the noise themselves, in shares of whole numbers; None where the
            door adds Gaussian noise.
    """

    noise_multiplier: float
    sensitivity: float
    delta: float
    budget: float = 0.0
    seeded: bool = False
    bands: int = 1
    programs: tuple[str, ...] = ()
    shares: Shares | None = None


@dataclass(frozen=True)
class Draw:
    """Who was asked.

    Attributes:
        how: How: `all` members, or a cohort by a rule.
        members: Clients with data at this stage.
        expected: Clients asked on average: a public constant.
        number: Round of the stage whose cohort it is.
        bands: Bands of the matrix that correlates the noise over rounds; 1 for none.
        rounds: Rounds of the stage, where noise is correlated.
    """

    how: Sampling
    members: int
    expected: int
    number: int
    bands: int = 1
    rounds: int = 0


@dataclass(frozen=True)
class Event:
    """One release.

    Attributes:
        stage: Stage.
        round: Round of the stage; -1 and `rounds` begin and end it.
        exchange: Number of the exchange in this round.
        channel: What was sent: the name of the program that made it.
        noise_multiplier: Of its Gaussian noise.
        sensitivity: Norm to which all that each client sent was clipped.
        draw: Who was asked.
        attempt: 0, or how often this round was repeated: a repeated one releases anew.
        discrete: What its noise is, where clients add it as whole numbers: such sums are credited
            no sampling, and are known by their Rényi divergences alone.
    """

    stage: int
    round: int
    exchange: int
    channel: str
    noise_multiplier: float
    sensitivity: float
    draw: Draw
    attempt: int = 0
    discrete: Discrete | None = None

    @property
    def place(self) -> Place:
        """Where in the run; a run that is resumed comes there again, with the same noise."""
        return self.stage, self.round, self.attempt, self.exchange
