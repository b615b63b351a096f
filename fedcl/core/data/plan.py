"""Plans of streams: what a file in `streams/` offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.stream import Stream


class StreamPlan(ABC):
    """What a file in `streams/` offers: a frozen dataclass of options that makes a stream.

    Attributes:
        borders: Whether methods are told where a stage begins and ends.
        public: Share of the training rows that everybody may use and nobody owns.
        validation: Share of the training rows held out for tuning.
        elsewhere: Whether all rows lie with the clients alone.
    """

    borders: bool = True
    public: float = 0.0
    validation: float = 0.0
    elsewhere: ClassVar[bool] = False

    @abstractmethod
    def build(self, dataset: Dataset, seed: int, name: str) -> Stream:
        """Returns the stream of a data set.

        Args:
            dataset: The data.
            seed: Seed of the experiment: the same stream for every method.
            name: Name of the plug-in.

        Raises:
            ConfigError: The data set, the tasks and the clients do not go together.
        """
