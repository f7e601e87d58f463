"""Figures of `expert_representations`: what experts share, their ranks and norms, every pair."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures, heatmap
from analyses.reporting.layer_panels import arm_handles, arm_line, shown_layers, step_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHED: dict[str, Any] = {"ls": "--", "lw": 1, "marker": None}
_WITH_DENSE: dict[str, Any] = {"ls": "-.", "lw": 1.2, "marker": None}
_NUMBERED = 10


def plot_common(result: xr.Dataset) -> "Figure":
    """CKA and cosine of two experts over training: a column a layer."""
    from matplotlib.lines import Line2D

    drawn = {
        "cka": (("cka", {}), ("cka_either", _DASHED), ("cka_dense", _WITH_DENSE)),
        "cosine": (("cosine", {}),),
    }

    arms = known_arms(result, "cosine")
    dense = [arm for arm in known_arms(result, "cka_dense") if arm not in arms]

    def draw(ax: "Axes", of_layer: xr.Dataset, name: str) -> None:
        for arm in arms:
            of_arm = of_layer.sel(each_arm=arm)
            runs = of_layer["arm"].values.astype(str) == arm
            chance = of_layer[f"{name}_chance"].isel(run=runs).mean("run")
            ax.plot(of_layer["step"], chance, color=figures.NULL, lw=1)
            for measure, style in drawn[name]:
                arm_line(ax, of_arm, measure, **style)
        for arm in dense if name == "cka" else []:
            arm_line(ax, of_layer.sel(each_arm=arm), "cka_dense", **_WITH_DENSE)

    line: dict[str, Any] = {"color": figures.INK}
    handles = [
        *arm_handles(result.sel(each_arm=[*dense, *arms])),
        Line2D([], [], **line, **_key(_DASHED), label="tokens that chose either"),
        Line2D([], [], color=figures.NULL, lw=1, label="units exchanged"),
    ]
    if known_arms(result, "cka_dense"):
        handles.insert(-1, Line2D([], [], **line, **_key(_WITH_DENSE), label="with a dense MLP"))
    return step_grid(
        result, ("cka", "cosine"), draw, row_labels=("CKA", "cosine, same token"), handles=handles
    )


def plot_sizes(result: xr.Dataset) -> "Figure":
    """Ranks, norms and their ratios over training: a column a layer."""
    from matplotlib.lines import Line2D

    drawn = {
        "effective_rank": ("effective_rank", "participation"),
        "norm": ("norm",),
        "own_contrast": ("own_contrast", "own_ratio"),
    }

    def draw(ax: "Axes", of_layer: xr.Dataset, name: str) -> None:
        solid, *dashed = drawn[name]
        for arm in known_arms(result, solid):
            of_arm = of_layer.sel(each_arm=arm)
            arm_line(ax, of_arm, solid)
            for other in dashed:
                arm_line(ax, of_arm, other, **_DASHED)
        if name == "norm":
            ax.set_yscale("log")
        if name == "own_contrast":
            ax.axhline(1, color=figures.NULL, lw=1)

    label = "participation ratio; ratio as it is"
    return step_grid(
        result,
        tuple(drawn),
        draw,
        row_labels=("effective rank", "norm (rms)", "own over other norm"),
        handles=[
            *arm_handles(result),
            Line2D([], [], color=figures.INK, **_key(_DASHED), label=label),
            Line2D([], [], color=figures.NULL, lw=1, label="no relation"),
        ],
    )


def plot_experts(result: xr.Dataset) -> "Figure":
    """CKA of every two experts at the last step: a row an arm, a column a layer."""
    from matplotlib.colors import TwoSlopeNorm

    arms, layers = known_arms(result, "cosine"), shown_layers(result)
    start = float(result["cka_of_experts"].isel(step=0).where(_different(result)).mean())
    norm = TwoSlopeNorm(float(np.clip(start if start == start else 0.5, 0.02, 0.98)), 0, 1)
    n = result.sizes["expert"]
    side = min(3.6, 0.9 + 0.28 * n)
    with figures.style():
        figure = figures.new_figure(
            width=1.6 + side * len(layers), height=0.4 + (side + 0.3) * len(arms)
        )
        axes = figure.subplots(len(arms), len(layers), squeeze=False)
        for arm, row in zip(arms, axes, strict=True):
            run = int(np.flatnonzero(result["arm"].values.astype(str) == arm)[0])
            of_run = result["cka_of_experts"].isel(run=run, step=-1)
            for layer, ax in zip(layers, row, strict=True):
                table = of_run.sel(layer=layer).transpose("expert", "other_expert").values
                names = [str(i) for i in range(n)]
                heatmap.draw_percent(
                    ax, [table], norm, rows=names, columns=names, numbered=n <= _NUMBERED
                )
                figures.panel_title(ax, str(of_run["run"].item()), f"layer {layer}")
            row[0].set_ylabel("expert")
        heatmap.colorbar(figure, norm, centre=f"{start:.2f}", title="CKA of two experts")
    return figure


def known_arms(result: xr.Dataset, name: str) -> list[str]:
    """Arms for which a measure is known anywhere."""
    there = result[f"arm_{name}"].notnull().any(["step", "layer"])
    return [str(arm) for arm in result["each_arm"].values[there.values]]


def _different(result: xr.Dataset) -> xr.DataArray:
    n = result.sizes["expert"]
    return xr.DataArray(~np.eye(n, dtype=bool), dims=("expert", "other_expert"))


def _key(style: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in style.items() if name in ("ls", "lw")}
