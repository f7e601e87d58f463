"""Tables of `router_saturation`: saturation with the last step, and ages of routes, by arm."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.reporting.entropy_tables import by_arm
from analyses.reporting.report import Table
from analyses.reporting.text import interval, number


def tables(result: xr.Dataset) -> Iterator[Table]:
    """Saturation at a few steps, and ages with what they go with."""
    yield _saturation(result)
    names = {"route_age": "age", "age_frequency_rho": "rho with frequency"}
    if "age_loss_rho" in result:
        names |= {"age_loss_rho": "rho with age of loss", "age_loss_partial_rho": "partial"}
    yield by_arm(result, names, title="Age of routes, log2(1 + step), and what it goes with")


def _saturation(result: xr.Dataset) -> Table:
    """Averaged over layers, with the last step, at four steps before it."""
    unit, n = result["unit"].attrs["long_name"], result.sizes["step"]
    steps = np.unique(np.linspace(0, n - 1, min(5, n)).round().astype(int))[:-1]
    columns = {
        "saturation": "saturation", "chance": "chance", "kappa": "kappa",
        "floor_last": "lookup floor", "beyond_floor_last": "beyond lookup",
    }  # fmt: skip
    rows = []
    for arm in result["each_arm"].values:
        for step in steps:
            at = result.isel(step=step, other_step=-1).sel(each_arm=arm)
            cells = [
                f"{number(at[f'arm_{name}_mean'])} ({interval(*at[f'arm_{name}_mean_ci'].values)})"
                for name in columns
            ]
            over_runs = interval(*at["arm_saturation_mean_run_ci"].values)
            rows.append((str(arm), f"{int(at['step']):,}", *cells, over_runs))
    head = ("arm", "step", *(f"{name} (95% over {unit}s)" for name in columns.values()),
            "saturation, 95% over runs")  # fmt: skip
    title = f"Saturation with step {int(result['step'][-1]):,}, averaged over layers and runs"
    return Table(title, head, tuple(rows))
