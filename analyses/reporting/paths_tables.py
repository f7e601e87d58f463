"""Tables of `expert_paths`, at the last step."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.reporting.entropy_tables import by_arm
from analyses.reporting.report import Table
from analyses.reporting.text import interval, number
from analyses.routing.paths import KINDS

_ARROW = "\N{RIGHTWARDS ARROW}"


def pair_names(result: xr.Dataset) -> list[str]:
    """Each pair of consecutive MoE layers, such as 1 → 3."""
    pairs = zip(result["layer"].values, result["next_layer"].values, strict=True)
    return [f"{first} {_ARROW} {second}" for first, second in pairs]


def first_runs(result: xr.Dataset) -> list[str]:
    """Name of the first run of each arm."""
    arm, runs = result["arm"].values.astype(str), result["run"].values.astype(str)
    return [str(runs[(arm == each).argmax()]) for each in result["each_arm"].values.astype(str)]


def tables(result: xr.Dataset) -> Iterator[Table]:
    """Ties by arm, what they are made of by run, and the commonest paths."""
    at = result.isel(step=-1)
    where = f"at step {int(at['step']):,}"
    names = {"tie": "all, nats", "tie_given_token": "given id, nats", "token_part": "difference"}
    title = "Beyond chance, from the layer named to the next"
    yield by_arm(at, names, title=f"{title}, {where}")
    names = {"tie_share": "all", "tie_share_given_token": "given id"}
    yield by_arm(at, names, title=f"Share of the next layer's choice that is settled, {where}")
    yield _brackets(at, where)
    yield _paths(at, where)


def _brackets(at: xr.Dataset, where: str) -> Table:
    """Plug-in information, its null, and the bracket of both corrections, mean over runs."""
    arm, rows = at["arm"].values.astype(str), []
    for each in at["each_arm"].values.astype(str):
        of_arm = at.isel(run=np.flatnonzero(arm == each)).mean("run", skipna=False)
        for i, name in enumerate(pair_names(at)):
            for kind, label in zip(KINDS, ("nothing", "token id"), strict=True):
                value = of_arm.isel(layer=i)
                information, null = value[f"information{kind}"], value[f"null_mean{kind}"]
                less, corrected = float(information - null), float(value[f"miller_madow{kind}"])
                # for k > 1 there is one correction only
                known = corrected == corrected
                bracket = interval(less, corrected, digits=4) if known else number(less, digits=4)
                rows.append(
                    (each, name, label, number(information, digits=4), number(null, digits=4),
                     bracket, number(value[f"open_entropy{kind}"]))
                )  # fmt: skip
    head = ("arm", "layers", "given", "plug-in", "null", "less null to Miller-Madow", "entropy")
    return Table(f"Information between consecutive layers {where}, nats", head, tuple(rows))


def _paths(at: xr.Dataset, where: str) -> Table:
    """Commonest paths of the first run of each arm, on the half that they were not picked on."""
    unit, rows = at["unit"].attrs["long_name"], []
    for run in first_runs(at):
        for rank in range(at.sizes["rank"]):
            value = at.sel(run=run).isel(rank=rank)
            if int(value["path"][0]) < 0:
                continue
            share, alone = float(value["path_share"]), float(value["path_independent"])
            rows.append(
                (run, f" {_ARROW} ".join(map(str, value["path"].values)),
                 number(100 * value["path_chosen"], digits=2), number(100 * share, digits=2),
                 interval(*(100 * value["path_share_ci"].values), digits=2),
                 number(100 * alone, digits=2),
                 number(share / alone if alone > 0 else np.nan, digits=2))
            )  # fmt: skip
    head = ("run", "path", "where picked", "on the other half", f"95% over {unit}s",
            "loads alone", "ratio")  # fmt: skip
    layers = f" {_ARROW} ".join(map(str, at["moe_layer"].values))
    title = f"Commonest paths through layers {layers} {where}, percent of tokens"
    return Table(title, head, tuple(rows))
