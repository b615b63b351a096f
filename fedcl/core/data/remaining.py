"""Shares of a task's rows of which some are left out: nobody else's rows change with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcl.core.data.scenario import Shares
from fedcl.core.data.table import IntArray


@dataclass(frozen=True)
class Remaining:
    """What each client holds once some rows are gone.

    Attributes:
        whole: Who holds what with all rows.
        kept: (n,) which of the task's rows remain.
    """

    whole: Shares
    kept: npt.NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.whole.nbytes + self.kept.nbytes

    def sizes(self, clients: IntArray) -> IntArray:
        """Returns the number of rows that remain of each of these clients."""
        counts = [int(self.kept[self.whole.rows(int(client))].sum()) for client in clients]
        return np.array(counts, dtype=np.int64)

    def rows(self, client: int) -> IntArray:
        """Returns a client's rows that remain, as places among the n, in their old order."""
        rows = self.whole.rows(client)
        return rows[self.kept[rows]]
