"""What robust rules have in common."""

from __future__ import annotations

from fedcl.core.aggregation import Weights


class Robust:
    """A rule that some replies cannot bend, whatever they hold."""

    @property
    def weights(self) -> Weights:
        """A robust rule cannot believe weights."""
        return "equal"

    @property
    def needs_replies(self) -> bool:
        """It compares single replies."""
        return True
