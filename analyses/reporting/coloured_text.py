"""Text of the probe set, every token on the colour of the expert that took it.

The colours are the light ones of Paul Tol, made to be read through [1]_.

References
----------
.. [1] Tol (2021), "Colour schemes", SRON/EPS/TN/09-002, https://personal.sron.nl/~pault/.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.reporting import figures
from analyses.reporting.layer_panels import shown_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00")
_OTHERS = "#DDDDDD"
_SIZE = 7.5  # points
_CHARACTER = 0.602 * _SIZE / 72  # inches, of DejaVu Sans Mono
_LINE = 0.165  # inches
_WIDTH = 54  # characters


def shown_text(run: xr.Dataset, probe_set: xr.Dataset, *, n_stretches: int = 3) -> xr.Dataset:
    """The beginnings of a few sequences, of different domains where there are some.

    Parameters
    ----------
    run : with `first_choice (layer, sequence, pos)`.
    probe_set : Dataset with `token (sequence, pos)`, `domain (sequence)` and, if known, `vocabulary
        (d_vocab)`; without it, token ids stand for the text.

    Returns
    -------
    Dataset
        `text` and `domain` of each token, and the `expert` that took it in each `layer`.
    """
    domain = probe_set["domain"].values.astype(object).astype(str)
    _, first = np.unique(domain, return_index=True)
    spread = np.linspace(0, len(first) - 1, min(n_stretches, len(first))).round().astype(int)
    sequences = np.sort(first[spread])
    at = {"sequence": sequences, "pos": slice(0, 48)}
    token = probe_set["token"].transpose("sequence", "pos").isel(at)
    if "vocabulary" in probe_set:
        text = probe_set["vocabulary"].values.astype(object).astype(str)[token.values]
    else:
        text = np.char.add(token.values.astype(str), " ")
    layers = shown_layers(run)[:3]
    expert = run["first_choice"].sel(layer=layers).transpose("layer", "sequence", "pos").isel(at)
    return xr.Dataset(
        {
            "text": (("sequence", "pos"), text),
            "domain": ("sequence", domain[sequences]),
            "expert": (("layer", "sequence", "pos"), expert.values),
        },
        {"layer": layers, "sequence": sequences, "pos": token["pos"].values},
    )


def plot_text(shown: xr.Dataset) -> "Figure":
    """Tokens on the colour of their expert: a column a layer, the same text in each."""
    lines, places = _laid_out(shown["text"].values)
    n_layers = shown.sizes["layer"]
    width, height = _WIDTH * _CHARACTER, (lines + 2) * _LINE
    gap, margin = 0.35, 0.25
    with figures.style():
        figure = figures.new_figure(
            width=2 * margin + n_layers * width + (n_layers - 1) * gap, height=height + 0.65
        )
        figure.set_layout_engine("none")
        whole_width, whole_height = figure.get_size_inches()
        for i, layer in enumerate(shown["layer"].values):
            left = margin + i * (width + gap)
            box = (left / whole_width, 0.15 / whole_height, width / whole_width,
                   height / whole_height)  # fmt: skip
            ax = figure.add_axes(box)
            ax.set_axis_off()
            ax.set(xlim=(0, _WIDTH), ylim=(lines + 2, 0))
            figures.panel_title(ax, f"layer {int(layer)}")
            _draw(ax, shown.sel(layer=layer), places)
    return figure


def _draw(ax: "Axes", shown: xr.Dataset, places: Sequence[tuple[int, int, str]]) -> None:
    """The experts that take most of the text with their colours, then every sequence."""
    expert = shown["expert"].values
    taken, counts = np.unique(expert[expert >= 0], return_counts=True)
    most = taken[np.argsort(-counts, kind="stable")][: len(_COLORS)]
    # colours in the order of experts' numbers, so that neighbours in the key differ
    color = dict(zip(np.sort(most).tolist(), _COLORS, strict=False))
    column = _cell(ax, 0, 0, "expert ", "none")
    for i in sorted(color):
        column = _cell(ax, column, 0, f" {int(i)} ", color[i])
    if len(taken) > len(most):
        _cell(ax, column, 0, " others ", _OTHERS)
    for of_token, (row, column, text) in zip(expert.ravel().tolist(), places, strict=True):
        _cell(ax, column, row + 2, text, color.get(of_token, _OTHERS))


def _cell(ax: "Axes", column: int, row: int, text: str, color: str) -> int:
    """A token in its cell; the column after it."""
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((column + 0.04, row + 0.04), len(text) - 0.08, 0.92, color=color, lw=0))
    ax.text(
        column, row + 0.5, text, family="DejaVu Sans Mono", fontsize=_SIZE, va="center",
        color=figures.INK, parse_math=False,
    )  # fmt: skip
    return column + len(text)


def _laid_out(texts: np.ndarray) -> tuple[int, list[tuple[int, int, str]]]:
    """How many lines the sequences (sequence, pos) take, and row, column and look of each token."""
    row, places = 0, []
    for sequence in texts:
        column = 0
        for text in map(_visible, sequence.tolist()):
            if column + len(text) > _WIDTH:
                row, column = row + 1, 0
            places.append((row, column, text))
            column += len(text)
        row += 2
    return row - 1, places


def _visible(text: str) -> str:
    """A token as characters of one width each that can be seen; line breaks as ⏎."""
    shown = "".join(
        "⏎" if c == "\n" else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return shown[:_WIDTH] or "\N{REPLACEMENT CHARACTER}"
