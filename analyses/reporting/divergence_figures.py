"""Figures of the divergence of predictions: its phases between seeds, and by frequency band."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.reporting import figures, pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASE_COLORS = ("#F2F2F2", "#DCEAF4", "#FBE3D6", "#E3F1E6")
REFERENCES = {
    "from_uniform": ("#8A8A8A", "from the uniform distribution"),
    "from_unigram": ("#8C564B", "from the unigram distribution"),
}
_MARKS = {"seen": "", "seen in these runs": "*"}


def draw_phases(result: xr.Dataset) -> "Figure":
    """KL between the seeds of each arm over training, its phases, and what models are close to.

    Parameters
    ----------
    result : of `distribution_divergence` along `step`, with a curve of an arm.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    curves = result["curve"].values[result["curve_group"].values == "arms"]
    references = [name for name in REFERENCES if f"arms_{name}" in result]
    with figures.style():
        figure = figures.new_figure(width=1.0 + 2.3 * len(curves), height=4.9)
        axes = figure.subplots(
            2, len(curves), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 2)
        )
        for (top, bottom), curve in zip(axes.T, curves, strict=True):
            at = result.sel(curve=curve)
            _phases(top, at)
            _curve(top, at, "kl", figures.arm_color(str(curve)), runs=True)
            for name in references:
                _curve(bottom, at, name, REFERENCES[name][0], runs=False)
            n_pairs = int(result["arms_n_pairs"].sel(arms=at["curve_label"].item()))
            figures.panel_title(top, str(curve), f"{n_pairs} pair{'s' if n_pairs > 1 else ''}")
            figures.step_axis(bottom, result["step"].values.tolist())
        axes[0, 0].set_ylabel("KL between seeds (nat)")
        axes[1, 0].set_ylabel("KL (nat)")
        phases = zip(PHASE_COLORS, result["phase"].values, strict=True)
        handles = [
            *(Patch(color=c, label=f"{i} {name}") for i, (c, name) in enumerate(phases, 1)),
            *(
                Line2D([], [], color=c, label=text)
                for c, text in (REFERENCES[n] for n in references)
            ),
            *pairs.interval_handles(result["unit"].attrs["long_name"], runs=True),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _phases(ax: "Axes", at: xr.Dataset) -> None:
    """Phases that have steps, as spans with their number, marked where they are not certain."""
    top = ax.get_xaxis_transform()
    for i, color in enumerate(PHASE_COLORS):
        phase = at.isel(phase=i)
        start, end = float(phase["phase_start"]), float(phase["phase_end"])
        verdict = str(phase["phase_verdict"].item())
        if start == end:
            continue
        if verdict.startswith("seen"):
            ax.axvspan(start, end, color=color, lw=0, zorder=0)
        middle = np.expm1((np.log1p(start) + np.log1p(end)) / 2)
        text = f"{i + 1}{_MARKS.get(verdict, '?')}"
        ax.text(middle, 0.985, text, transform=top, ha="center", va="top", fontsize=8.5)
        ax.axvline(end, color="#BBBBBB", lw=0.7, zorder=0.5)


def _curve(ax: "Axes", at: xr.Dataset, name: str, color: str, *, runs: bool) -> None:
    mean = at.sel(arms=at["curve_label"].item()).dropna("step", subset=[f"arms_{name}"])
    low, high = mean[f"arms_{name}_ci"].transpose("ci_bound", "step")
    ax.fill_between(mean["step"], low, high, color=color, alpha=0.2, lw=0)
    if runs:
        low, high = mean[f"arms_{name}_run_ci"].transpose("ci_bound", "step")
        ax.vlines(mean["step"], low, high, color=color, lw=0.8)
    ax.plot(mean["step"], mean[f"arms_{name}"], color=color, lw=1.2, marker="o", markersize=2.6)
    ax.set_ylim(bottom=0)


def draw_by_frequency(result: xr.Dataset, name: str) -> "Figure":
    """A divergence over training in each band of frequency, one panel a kind of pair."""
    import matplotlib

    dim, kinds, bands = pairs.place_dim(result), result["kind"].values, result["frequency"].values
    colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.8, len(bands)))
    variable = f"kind_{name}_by_frequency"
    with figures.style():
        figure = figures.new_figure(width=1.0 + 2.9 * len(kinds), height=3.6)
        axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for ax, kind in zip(axes, kinds, strict=True):
            for band, color in zip(bands, colors, strict=True):
                at = result.sel(kind=kind, frequency=band).dropna(dim, subset=[variable])
                low, high = at[f"{variable}_ci"].transpose("ci_bound", dim)
                ax.fill_between(at[dim], low, high, color=color, alpha=0.18, lw=0)
                label = f"{band} ({int(at['band_n_tokens']):,} tokens)"
                ax.plot(at[dim], at[variable], color=color, lw=1.2, marker="o", markersize=2.6,
                        label=label)  # fmt: skip
            figures.panel_title(ax, str(kind))
            figures.place_axis(ax, result[dim])
            ax.set_ylim(bottom=0)
        axes[0].set_ylabel(figures.axis_label(result[variable]))
        handles, shown = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, shown, loc="outside lower center", ncols=len(bands),
            title="the target's share of the training text",
        )  # fmt: skip
    return figure
