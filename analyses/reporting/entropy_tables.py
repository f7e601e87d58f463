"""Tables of `routing_entropy`, all at the last step."""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from analyses.reporting.report import Table
from analyses.reporting.text import interval, number, p_value
from analyses.statistics.permutation import adjusted_p


def tables(result: xr.Dataset) -> Iterator[Table]:
    """Load by run and layer; entropies, and their tie to the loss, by arm and layer."""
    at = result.isel(step=-1)
    where = f"at step {int(at['step']):,}"
    yield _load(at, where, n_resamples=result.sizes["resample"])
    names = {
        "router_entropy": "H(mean r)", "token_entropy": "mean H(r)",
        "token_information": "I(token; expert)", "margin": "margin",
    }  # fmt: skip
    yield by_arm(at, names, title=f"Entropies {where}, nats, and the margin")
    if "arm_entropy_loss_r" in result:
        names = {
            "entropy_loss_r": "Pearson", "entropy_loss_rho": "Spearman",
            "entropy_loss_partial_r": "partial",
        }  # fmt: skip
        yield by_arm(at, names, title=f"Correlation of router entropy with loss {where}")


def by_arm(at: xr.Dataset, names: dict[str, str], *, title: str) -> Table:
    """Measures of every arm and layer, then averaged over layers, with both intervals.

    Parameters
    ----------
    at : with `arm_x (each_arm, layer)` and `arm_x_mean (each_arm)`, and their intervals.
    names : from x to what its column is called.
    """
    unit, rows = at["unit"].attrs["long_name"], []
    for arm in at["each_arm"].values:
        for layer in [*at["layer"].values, "mean"]:
            cells: list[str] = []
            for name in names:
                stem = f"arm_{name}_mean" if layer == "mean" else f"arm_{name}"
                of_arm = at[[stem, f"{stem}_ci", f"{stem}_run_ci"]].sel(each_arm=arm)
                value = of_arm if layer == "mean" else of_arm.sel(layer=layer)
                cells += [
                    number(value[stem]),
                    f"{interval(*value[f'{stem}_ci'].values)}; "
                    f"{interval(*value[f'{stem}_run_ci'].values)}",
                ]
            rows.append((str(arm), str(layer), *cells))
    head = [column for name in names.values() for column in (name, f"95% over {unit}s; over runs")]
    return Table(title, ("arm", "layer", *head), tuple(rows))


def _load(at: xr.Dataset, where: str, *, n_resamples: int) -> Table:
    """Measures of load, each with its interval over units, and p as one family."""
    stacked = at.stack(row=("run", "layer")).dropna("row", subset=["gini"])
    p = adjusted_p(stacked["fair_index_p"].values)
    smallest = min(1.0, stacked.sizes["row"] / (n_resamples + 1))
    rows = []
    for i, (run, layer) in enumerate(stacked["row"].values):
        row = stacked.isel(row=i)
        rows.append(
            (
                str(run), str(layer),
                _cell(row, "fair_index", digits=4), number(row["fair_index_null_mean"], digits=4),
                p_value(p[i], smallest=smallest),
                _cell(row, "effective_experts", digits=2), _cell(row, "max_violation", digits=2),
                number(row["max_violation_null_mean"], digits=2), _cell(row, "gini"),
                str(int(row["dead_experts"])), _count(row["starved_experts"],
                                                      row["starved_experts_ci"].values),
            )
        )  # fmt: skip
    head = ("run", "layer", "fair index (95%)", "if even", "p (Holm)", "effective experts",
            "MaxVio", "if even", "Gini", "dead", "starved")  # fmt: skip
    return Table(f"Load {where}", head, tuple(rows))


def _cell(row: xr.Dataset, name: str, *, digits: int = 3) -> str:
    ends = interval(*row[f"{name}_ci"].values, digits=digits)
    return f"{number(row[name], digits=digits)} ({ends})"


def _count(value: xr.DataArray, ends: Sequence[float] | np.ndarray) -> str:
    low, high = (int(end) for end in ends)
    return str(int(value)) if low == high else f"{int(value)} ({low} to {high})"
