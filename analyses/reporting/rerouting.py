"""Router against representation, on the page of `router_saturation`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures
from analyses.reporting.layer_panels import arm_handles, arm_line, shown_layers, step_grid
from analyses.reporting.report import Drawing, Table
from analyses.reporting.text import interval, listed, number
from analyses.routing.rerouting import AGAINST_LAST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES: dict[str, dict[str, Any]] = {
    "as_it_was": {},
    "representation_alone": {"ls": "--", "lw": 1.2, "marker": None},
    "router_alone": {"ls": (0, (1, 1.2)), "lw": 1.6, "marker": None},
}
_CALLED = {
    "as_it_was": "as it was",
    "representation_alone": "last router",
    "router_alone": "last representation",
}


def plot_rerouting(anew: xr.Dataset) -> "Figure":
    """Share of the last choices over training: a row an arm, a column a layer."""
    from matplotlib.lines import Line2D

    arms = [str(arm) for arm in anew["each_arm"].values]

    def draw(ax: "Axes", of_layer: xr.Dataset, arm: str) -> None:
        ax.axhline(float(anew["even_chance"]), color=figures.NULL, lw=1)
        for name, style in _STYLES.items():
            arm_line(ax, of_layer.sel(each_arm=arm), name, **style)
        ax.set_ylim(-0.03, 1.05)

    keys = [
        Line2D([], [], color=figures.INK, label=_CALLED[name],
               **{k: v for k, v in style.items() if k != "marker"})
        for name, style in _STYLES.items()
    ]  # fmt: skip
    keys.append(Line2D([], [], color=figures.NULL, lw=1, label="chance of even loads"))
    return step_grid(
        anew, arms, draw,
        row_labels=[f"{arm}: same as last" for arm in arms],
        handles=[*arm_handles(anew), *keys],
    )  # fmt: skip


def rerouting_drawing(anew: xr.Dataset) -> Drawing:
    """The figure with its caption and data."""
    unit, suffixes = anew["unit"].attrs["long_name"], ("", "_ci", "_run_ci")
    return Drawing(
        name="rerouting",
        title="Changes of the route through the representation, and through the router",
        caption="Share of a token's choices that are those of the last step: with router and "
        "representation of the step (solid), with the last router (dashed: the representation "
        "alone differs), with the last representation (dotted: the router alone differs). Means "
        f"over the runs of an arm. Bands are intervals over {unit}s, thin dotted lines the ends of "
        f"those over runs. Layers {listed(shown_layers(anew))}. {rerouting_sentence(anew)}",
        figure=plot_rerouting(anew),
        data={"rerouting": anew[[f"arm_{n}{end}" for n in AGAINST_LAST for end in suffixes]]},
    )


def rerouting_sentence(anew: xr.Dataset) -> str:
    """How much each of the two alone changes, half-way through the steps."""
    at = _half_way(anew)
    parts = []
    for arm in anew["each_arm"].values:
        of_arm = at.sel(each_arm=arm)
        shares = [
            f"{number(of_arm[mean])} ({interval(*of_arm[f'{mean}_ci'].values)})"
            for mean in (f"arm_{name}_mean" for name in AGAINST_LAST)
        ]
        parts.append(f"{shares[0]}, {shares[1]} and {shares[2]} in {arm} runs")
    return (
        f"The share of the last choices that a route makes at step {int(at['step']):,} as it is, "
        "then with the last router, so that the representation alone differs, and with the last "
        f"representation, so that the router alone differs, is {'; '.join(parts)}."
    )


def rerouting_table(anew: xr.Dataset) -> Table:
    """Averaged over layers, at four steps before the last, with both intervals."""
    unit, n, rows = anew["unit"].attrs["long_name"], anew.sizes["step"], []
    steps = np.unique(np.linspace(0, n - 1, min(5, n)).round().astype(int))[:-1]
    for arm in anew["each_arm"].values:
        for step in steps:
            at = anew.isel(step=step).sel(each_arm=arm)
            cells: list[str] = []
            for name in AGAINST_LAST:
                mean = f"arm_{name}_mean"
                over_text, over_runs = (
                    interval(*at[f"{mean}{suffix}"].values) for suffix in ("_ci", "_run_ci")
                )
                cells += [number(at[mean]), f"{over_text}; {over_runs}"]
            rows.append((str(arm), f"{int(at['step']):,}", *cells))
    head = [part for name in AGAINST_LAST
            for part in (_CALLED[name], f"95% over {unit}s; over runs")]  # fmt: skip
    title = f"Share of the choices of step {int(anew['step'][-1]):,}, averaged over layers and runs"
    return Table(title, ("arm", "step", *head), tuple(rows))


def rerouting_caveats(anew: xr.Dataset | None, runs: Sequence[str]) -> Iterator[str]:
    """What is not said, or how to have it said.

    Parameters
    ----------
    anew : of `against_last`; None if no run was routed anew.
    runs : all that have experts.
    """
    if anew is None:
        yield (
            "How much of a change of route comes from the router, and how much from the "
            "representation that it reads, needs the weights, if they were kept: `python -m "
            f"models.reroute {runs[0]}.zarr --steps all` stores it."
        )
        return
    yield (
        "What the router alone and the representation alone change need not add up to the whole: "
        "they are trained together, so that a router of one step on the representation of another "
        "is a pair that never was, and both changed at once may undo or repeat one another. The "
        "representation is what the router reads, normalised, with the scales of its own step; it "
        "holds what routers and experts of the layers below changed."
    )
    if lacking := sorted(set(runs) - set(anew["run"].values.tolist())):
        yield (
            "Not routed anew, and so not in the comparison of router and representation: "
            f"{listed(lacking)}."
        )


def _half_way(anew: xr.Dataset) -> xr.Dataset:
    return anew.isel(step=anew.sizes["step"] // 2)
