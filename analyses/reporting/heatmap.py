"""A matrix as coloured cells, white at the value that means nothing in particular."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyses.reporting import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

_GAP = 0.35
_COLORS = "PuOr_r"
_MOST_ROWS_NAMED = 40


def diverging_norm(values: NDArray[np.float64], *, centre: float) -> "TwoSlopeNorm":
    """Colours from 0 over white at `centre` to the largest value, or to twice the centre."""
    from matplotlib.colors import TwoSlopeNorm

    return TwoSlopeNorm(centre, 0, max(2 * centre, float(np.nanmax(values))))


def draw_percent(
    ax: "Axes",
    blocks: list[NDArray[np.float64]],
    norm: "TwoSlopeNorm",
    *,
    rows: list[str],
    columns: list[str],
    numbered: bool = True,
) -> None:
    """Shares as coloured cells, blocks of columns side by side with a gap between them.

    Parameters
    ----------
    blocks : matrices (row, column) of shares, with the same rows.
    norm : colours of the shares.
    rows, columns : names.
    numbered : whether to write the percentage into each cell.
    """
    edges_of_rows, centres, left = np.arange(len(rows) + 1), [], 0.0
    for block in blocks:
        edges = left + np.arange(block.shape[1] + 1)
        ax.pcolormesh(edges, edges_of_rows, block, norm=norm, cmap=_COLORS, ec="white", lw=0.6)
        centres += [*(edges[:-1] + 0.5)]
        left = edges[-1] + _GAP
        for i, j in np.ndindex(block.shape) if numbered else ():
            share = float(block[i, j])
            ink = "white" if abs(norm(share) - 0.5) > 0.3 else figures.INK
            ax.text(
                float(edges[j]) + 0.5, i + 0.5, f"{100 * share:.0f}", ha="center", va="center",
                fontsize=6.5, color=ink,
            )  # fmt: skip
    ax.set_xticks(
        centres, list(map(figures.label, columns)), rotation=40, ha="right", rotation_mode="anchor"
    )
    named = rows if len(rows) <= _MOST_ROWS_NAMED else []
    ax.set_yticks(edges_of_rows[: len(named)] + 0.5, named)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_ylim(len(rows), 0)


def colorbar(figure: "Figure", norm: "TwoSlopeNorm", *, centre: str, title: str) -> None:
    """The key to the colours, with a name for the white in the middle."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(
        ScalarMappable(norm, _COLORS), ax=figure.axes, shrink=0.6, aspect=25, pad=0.02
    )
    top = norm(1.0) if norm.vmax is None else norm.vmax
    bar.set_ticks([0, norm.vcenter, top], labels=["0", centre, f"{top:.2g}"])
    bar.set_label(title)
    bar.outline.set_visible(False)
