"""Tables of `expert_coactivation`: by arm, over training, by run, and the pairs that stand out."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.reporting.entropy_tables import by_arm
from analyses.reporting.layer_panels import shown_layers
from analyses.reporting.report import Table
from analyses.reporting.text import interval, number, p_value

SIGNIFICANT = 0.05
_PARTNERS, _STRANGERS = 3, 2


def shown_runs(result: xr.Dataset) -> list[str]:
    """The first run of each arm."""
    arm, run = result["arm"].values.astype(str), result["run"].values.astype(str)
    return [str(run[arm == name][0]) for name in dict.fromkeys(arm)]


def tables(result: xr.Dataset) -> Iterator[Table]:
    """How far pairs are from chance, and which."""
    at = result.isel(step=-1)
    where = f"at step {int(at['step']):,}"
    names = {"spread": "beyond loads", "spread_within": "beyond loads within"}
    yield by_arm(at, names, title=f"Typical |lift - 1| {where}")
    yield _over_training(result)
    yield _by_run(at, where, n_resamples=int(at.attrs["n_resamples"]))
    yield _pairs(at, where)


def _over_training(result: xr.Dataset) -> Table:
    unit, n = result["unit"].attrs["long_name"], result.sizes["step"]
    names = {
        "spread": "|lift - 1|", "spread_within": "beyond loads within", "agreement": "agreement",
    }  # fmt: skip
    rows = []
    for arm in result["each_arm"].values:
        for step in np.unique(np.linspace(0, n - 1, min(6, n)).round().astype(int)):
            of_arm = result.isel(step=step).sel(each_arm=arm)
            cells = [_cell(of_arm, f"arm_{name}_mean") for name in names]
            rows.append((str(arm), f"{int(of_arm['step']):,}", *cells,
                         number(of_arm["arm_noise_mean"])))  # fmt: skip
    head = ("arm", "step", *(f"{title} (95% over {unit}s)" for title in names.values()),
            "noise alone")  # fmt: skip
    title = "Over training, averaged over layers and runs; agreement with the last step"
    return Table(title, head, tuple(rows))


def _by_run(at: xr.Dataset, where: str, *, n_resamples: int) -> Table:
    unit, rows = at["unit"].attrs["long_name"], []
    for run in at["run"].values:
        for layer in at["layer"].values:
            of_run = at.sel(run=run, layer=layer)
            found = [
                f"{int((of_run[name] <= SIGNIFICANT).sum())} of {int(of_run[name].notnull().sum())}"
                for name in ("p", "p_within")
            ]
            rows.append((str(run), str(layer), *found, number(of_run["error_ratio"], digits=2)))
    head = ("run", "layer", "pairs beyond loads", f"beyond loads within {unit}s",
            "error, over that of independent tokens")  # fmt: skip
    return Table(f"Pairs with p of .05 or less {where}, {n_resamples} draws", head, tuple(rows))


def _pairs(at: xr.Dataset, where: str) -> Table:
    """Of one run of each arm, those of the largest and of the smallest z."""
    smallest, rows = 1 / (int(at.attrs["n_resamples"]) + 1), []
    for run in shown_runs(at):
        for layer in shown_layers(at):
            of_layer = at.sel(run=run, layer=layer)
            for pair in _standing_out(of_layer["z"].values):
                row = of_layer.isel(expert_pair=pair)
                i, j = int(row["first_expert"]), int(row["second_expert"])
                together = [
                    number(row["conditional"].sel(expert=a, other_expert=b), digits=2)
                    for a, b in ((i, j), (j, i))
                ]
                rows.append(
                    (
                        run, str(layer), f"{i}, {j}", f"{int(row['pair_count']):,}",
                        *together, _cell(row, "lift", digits=2), number(row["z"], digits=1),
                        p_value(float(row["p"]), smallest=smallest),
                        _cell(row, "lift_within", digits=2),
                        p_value(float(row["p_within"]), smallest=smallest),
                    )
                )  # fmt: skip
    head = ("run", "layer", "experts i, j", "tokens", "P(j|i)", "P(i|j)", "lift (95%)", "z",
            "p (of all pairs)", "lift within (95%)", "p within")  # fmt: skip
    title = f"Pairs of the largest and the smallest z {where}; even sets have P(j|i) = " + number(
        at["even_chance"]
    )
    return Table(title, head, tuple(rows))


def _standing_out(z: np.ndarray) -> list[int]:
    order = np.argsort(-z, kind="stable")
    order = order[np.isfinite(z[order])]
    return list(dict.fromkeys([*order[:_PARTNERS].tolist(), *order[-_STRANGERS:].tolist()]))


def _cell(row: xr.Dataset, name: str, *, digits: int = 3) -> str:
    ends = interval(*row[f"{name}_ci"].values, digits=digits)
    return f"{number(row[name], digits=digits)} ({ends})"
