"""How every figure looks: one style, one colour an arm, one step axis, one way to save.

Colours are those of Okabe and Ito, which stay apart for the colour-blind [1]_, and belong to the
arm, so that an arm has the same colour in every figure of every study.

References
----------
.. [1] Okabe and Ito (2008), "Color universal design", https://jfly.uni-koeln.de/color/;
   Wong (2011), doi:10.1038/nmeth.1618.
"""

import io
import warnings
import zlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

INK = "#222222"
NULL = "#8A8A8A"
CEILING = "#7B3294"
ARM_COLORS = {"dense": "#0072B2", "switch": "#D55E00", "ungated": "#E69F00", "hash": "#009E73"}
KIND_COLORS = {"dense-dense": "#0072B2", "dense-MoE": "#7B3294", "MoE-MoE": "#D55E00"}
_OTHER_DENSE = "#56B4E9"
_OTHER_ARMS = ("#CC79A7", "#A6A04B", "#7F7F7F")

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "twinlens",
}


def style() -> AbstractContextManager[None]:
    """The style of every figure, in force inside a `with` block; touches nothing outside it."""
    import matplotlib

    return matplotlib.rc_context(dict(_STYLE))  # type: ignore[arg-type]


def new_figure(*, width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches, that owes nothing to pyplot; a notebook shows it."""
    from analyses.reporting.shown import ShownFigure

    return ShownFigure(figsize=(width, height), layout="constrained")


def arm_color(arm: str) -> str:
    """Colour of an arm, the same wherever it appears."""
    if arm in ARM_COLORS:
        return ARM_COLORS[arm]
    if arm.startswith("dense"):
        return _OTHER_DENSE
    return _OTHER_ARMS[zlib.crc32(arm.encode()) % len(_OTHER_ARMS)]


def label(text: object) -> str:
    """Text of the data (a run, a domain) as matplotlib draws it: no mathtext, no control codes."""
    shown = printable(str(text)).replace("$", r"\$")
    # matplotlib leaves labels that start with an underscore out of a legend
    return " " + shown if shown.startswith("_") else shown


def axis_label(variable: xr.DataArray) -> str:
    """`long_name (units)` of a variable."""
    units = variable.attrs.get("units", "1")
    name = variable.attrs.get("long_name", str(variable.name))
    return name if units == "1" else f"{name} ({units})"


def step_axis(ax: "Axes", steps: Iterable[int]) -> None:
    """A symlog axis of optimizer steps on which step 0 is shown."""
    last = max(steps, default=1)
    ax.set_xscale("symlog", linthresh=1, linscale=0.45)
    powers = [10**i for i in range(int(np.log10(max(last, 1))) + 1)]
    ax.set_xticks([0, *powers], ["0", *(f"{power:,}" for power in powers)])
    ax.set_xticks([], minor=True)
    # room on the right for the value at the end of a line
    ax.set_xlim(-0.25, max(last, 1) * 2.4)
    ax.set_xlabel("step")


def place_axis(ax: "Axes", place: xr.DataArray) -> None:
    """The axis along which runs are compared: steps, or mean losses from high to low."""
    if place.name == "step":
        return step_axis(ax, place.values.tolist())
    high, low = float(place.max()), float(place.min())
    room = 0.18 * (high - low)
    ax.set_xlim(high + 0.02 * (high - low), low - room)
    ax.set_xlabel("mean loss of the runs compared (nat)")


def fisher_axis(ax: "Axes", *, largest: float) -> None:
    """An axis of r² on which equal lengths are equal differences of Fisher's z = artanh r.

    Parameters
    ----------
    largest : r² that it must show.
    """
    ticks = [0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999]
    top = next((tick for tick in ticks[2:] if tick > largest), 1 - 1e-6)
    ax.set_yscale(
        "function",
        functions=(
            lambda r2: np.arctanh(np.sqrt(np.clip(r2, 0, 1 - 1e-9))),
            lambda z: np.tanh(np.maximum(z, 0)) ** 2,
        ),
    )
    shown = [tick for tick in ticks if tick <= top]
    ax.set_yticks(shown, [f"{tick:g}" for tick in shown])
    ax.set_ylim(0, top)


def panel_title(ax: "Axes", title: str, detail: str = "") -> None:
    """What a panel shows, and of how much."""
    ax.set_title(label(title))
    ax.set_title(label(detail), loc="right", fontweight="normal", fontsize=8.5, color="#666666")


def end_label(ax: "Axes", x: float, y: float, text: str, color: str = INK) -> None:
    """The value at the end of a line, beside it."""
    ax.annotate(
        text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5,
        color=color,
    )  # fmt: skip


def arm_handles(arms: Iterable[str]) -> list["Line2D"]:
    """Legend entries, one dot an arm."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=arm_color(arm), marker="o", markersize=6, lw=0, label=label(arm))
        for arm in arms
    ]


def rendered(figure: "Figure", *, suffix: str, within: tuple[int, int] | None = None) -> bytes:
    """The figure as an SVG or PNG file; the same figure gives the same bytes.

    Parameters
    ----------
    suffix : "svg" or "png".
    within : width and height in pixels that a PNG must not exceed.
    """
    dpi = 160.0
    if within is not None:
        dpi = min(
            pixels / inches for pixels, inches in zip(within, figure.get_size_inches(), strict=True)
        )
    buffer = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    with style(), warnings.catch_warnings():
        # corpus text may be in a script that the font lacks: boxes are drawn, nothing is lost
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        if figure.get_layout_engine() is not None:
            # each drawing moves the layout a little further; the first one is kept
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(buffer, format=suffix, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
