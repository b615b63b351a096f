"""The look of all figures: Okabe-Ito colours, one style, and PNG bytes without global state."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

P = ParamSpec("P")

BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
)  # fmt: skip
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = "osD^vPX"
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.5)))
DPI = 160
WIDTH = 9.4  # inches: what the page has room for
GREY, PALE = "#6b7280", "#c9ced6"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": "#1f2937",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.dpi": DPI,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "savefig.facecolor": "white",
    "text.parse_math": False,  # names of methods and options are text, never formulas
    "xtick.color": "#374151",
    "ytick.color": "#374151",
}


def png(draw: Callable[P, Figure]) -> Callable[P, bytes]:
    """Draws and saves under our own style, and leaves matplotlib's settings as they were."""

    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        buffer = io.BytesIO()
        with rc_context():
            rcdefaults()  # the same figure whatever the reader's matplotlibrc says
            rcParams.update(STYLE)
            draw(*args, **kwargs).savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    drawn.__name__, drawn.__doc__ = draw.__name__, draw.__doc__
    return drawn


def page(width: float, height: float) -> Figure:
    """Returns an empty figure, sizes in inches, that makes room for its labels by itself."""
    return Figure((width, height), layout="constrained")


def percent(values: Iterable[float | None]) -> list[float]:
    """Returns fractions as percentages, None as NaN."""
    return [math.nan if value is None else 100 * value for value in values]


def accuracy_axis(axes: Axes) -> None:
    """Makes the vertical axis one of accuracies."""
    axes.set(ylim=(0, 101), ylabel="accuracy [%]")


def whole_ticks(axes: Axes, most: int = 10) -> None:
    """Puts at most that many ticks on round whole numbers of the horizontal axis."""
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]))


def stage_borders(axes: Axes, ends: Sequence[int]) -> None:
    """Marks where stages end, and names the stages above the axes."""
    for end in ends[:-1]:
        axes.axvline(end, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    top = axes.secondary_xaxis("top")
    middles = [(start + end) / 2 for start, end in zip([0, *ends], ends, strict=False)]
    top.set_xticks(middles, [str(stage) for stage in range(len(ends))])
    top.tick_params(length=0)
    top.set_xlabel("stage")
    top.spines["top"].set_visible(False)
