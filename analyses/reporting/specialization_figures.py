"""Figures of `expert_specialization`: what labels settle, OLMoE's scores, and domain profiles."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.reporting import figures, heatmap
from analyses.reporting.layer_panels import arm_handles, arm_line, shown_layers, step_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure


def plot_shares(result: xr.Dataset) -> "Figure":
    """Share of the choice that labels settle beyond chance: a row a label, a column a layer."""
    from matplotlib.patches import Patch

    def draw(ax: "Axes", of_layer: xr.Dataset, label: str) -> None:
        at = of_layer.sel(label=label)
        band = at["share_null_band"]
        low, high = band.sel(ci_bound="lower").min("run"), band.sel(ci_bound="upper").max("run")
        ax.fill_between(at["step"], low, high, color=figures.NULL, alpha=0.3, lw=0)
        for arm in at["each_arm"].values:
            arm_line(ax, at.sel(each_arm=arm), "share")

    names = result["label"].values.astype(str).tolist()
    null = Patch(color=figures.NULL, alpha=0.3, lw=0, label="95% of the null")
    return step_grid(
        result,
        names,
        draw,
        row_labels=[name.replace(" given ", "\ngiven ") for name in names],
        handles=[*arm_handles(result), null],
        row_height=1.55,
    )


def plot_scores(result: xr.Dataset) -> "Figure":
    """Vocabulary specialization by tokens and by ids, with its mean by chance in each arm."""
    from matplotlib.lines import Line2D

    uniform = float(result["uniform_share"])

    def draw(ax: "Axes", of_layer: xr.Dataset, name: str) -> None:
        ax.axhline(uniform, color=figures.NULL, lw=1, ls=":")
        arm_of_run = of_layer["arm"].values.astype(str)
        for arm in of_layer["each_arm"].values:
            arm_line(ax, of_layer.sel(each_arm=arm), name)
            chance = of_layer[f"{name}_null_mean"].isel(run=np.flatnonzero(arm_of_run == arm))
            mean = chance.mean("run", skipna=False)
            color = figures.arm_color(str(arm))
            ax.plot(mean["step"], mean, color=color, lw=1, ls="--")
        ax.set_ylim(0, 1.04)

    by_chance = Line2D([], [], color=figures.INK, lw=1, ls="--", label="mean of the null")
    even = Line2D([], [], color=figures.NULL, lw=1, ls=":", label=f"k/N = {uniform:.3g}")
    return step_grid(
        result,
        ("token_specialization", "type_specialization"),
        draw,
        row_labels=("mean over tokens", "mean over token ids"),
        handles=[*arm_handles(result), by_chance, even],
    )


def plot_profile(result: xr.Dataset) -> "Figure":
    """Which domains each expert takes at the last step: a row a run, a column a layer."""
    shown = shown_layers(result)
    n_runs, n_experts, n_domains = (result.sizes[dim] for dim in ("run", "expert", "domain"))
    shares, uniform = result["domain_specialization"], float(result["uniform_share"])
    norm = heatmap.diverging_norm(shares.values, centre=uniform)
    cell = min(0.36, 15.0 / (len(shown) * (n_domains + 1)))
    numbered = cell > 0.25 and n_experts <= 24
    with figures.style():
        figure = figures.new_figure(
            width=1.5 + len(shown) * (0.6 + cell * (n_domains + 1)),
            height=1.6 + n_runs * (0.35 + min(0.24 * n_experts, 6.0)),
        )
        axes = figure.subplots(n_runs, len(shown), sharex=True, squeeze=False)
        for run, row in enumerate(axes):
            for layer, ax in zip(shown, row, strict=True):
                _profile(ax, result.isel(run=run).sel(layer=layer), norm, numbered=numbered)
            row[0].set_ylabel("expert")
        title = figures.axis_label(shares)
        heatmap.colorbar(figure, norm, centre=f"k/N = {uniform:.3g}", title=title)
    return figure


def _profile(ax: "Axes", at: xr.Dataset, norm: "TwoSlopeNorm", *, numbered: bool) -> None:
    """Experts by domains, after a column of all domains together, which is the load times k."""
    figures.panel_title(ax, f"layer {int(at['layer'])}", str(at["run"].item()))
    shares = at["domain_specialization"].transpose("expert", "domain").values
    if np.isnan(shares).any():
        ax.set_axis_off()
        return
    inclusion = at["load"].values * at.attrs["top_k"]
    order = np.lexsort([-shares.max(axis=1), shares.argmax(axis=1)])
    heatmap.draw_percent(
        ax,
        [inclusion[order, None], shares[order]],
        norm,
        rows=[str(i) for i in order],
        columns=["all", *at["domain"].values],
        numbered=numbered,
    )
