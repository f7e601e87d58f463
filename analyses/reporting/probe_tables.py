"""Tables of `linear_probe`: targets, arms averaged over layers and sites, and arms compared."""

from collections.abc import Iterator

import xarray as xr

from analyses.reporting.report import Table
from analyses.reporting.text import interval, number


def tables(result: xr.Dataset) -> Iterator[Table]:
    """Everything at the last step."""
    at = result.isel(step=-1)
    yield _targets(at)
    yield _arms(at)
    yield _differences(at)


def _targets(at: xr.Dataset) -> Table:
    rows = []
    for target in at["target"].values:
        of_target = at.sel(target=target)
        baselines = [
            _span(of_target[f"arm_{name}_mean"]) for name in ("majority", "lookup", "control")
        ]
        counts = (f"{int(of_target['n_classes'])}", f"{int(of_target['target_tokens']):,}")
        rows.append((str(target), *counts, *baselines))
    head = ("target", "classes", "tokens", "majority", "lookup by token id", "control")
    title = f"Targets, and what accuracy is compared with, over arms at step {int(at['step']):,}"
    return Table(title, head, tuple(rows))


def _span(of_arms: xr.DataArray) -> str:
    """The value of all arms, or the smallest and the largest."""
    low, high = number(of_arms.min()), number(of_arms.max())
    return low if low == high else f"{low} to {high}"


def _arms(at: xr.Dataset) -> Table:
    unit, rows = at["unit"].attrs["long_name"], []
    names = ("accuracy", "selectivity", "beyond_lookup")
    for target in at["target"].values:
        for arm in at["each_arm"].values:
            of_arm = at.sel(target=target, each_arm=arm)
            if not of_arm["arm_accuracy_mean"].notnull():
                continue
            cells: list[str] = []
            for name in names:
                stem = f"arm_{name}_mean"
                ends = [interval(*of_arm[f"{stem}{end}"].values) for end in ("_ci", "_run_ci")]
                cells += [number(of_arm[stem]), "; ".join(ends)]
            rows.append((str(target), str(arm), *cells))
    over = f"95% over {unit}s; over runs"
    head = ("target", "arm", "accuracy", over, "selectivity", over, "beyond lookup", over)
    title = f"Probes at step {int(at['step']):,}, averaged over layers, sites and runs"
    return Table(title, head, tuple(rows))


def _differences(at: xr.Dataset) -> Table:
    unit, rows = at["unit"].attrs["long_name"], []
    for target in at["target"].values:
        for arm in at["each_arm"].values:
            pair = at.sel(target=target, each_arm=arm)
            if not pair["accuracy_difference"].notnull():
                continue
            cells: list[str] = []
            for name in ("accuracy", "selectivity"):
                stem = f"{name}_difference"
                cells += [number(pair[stem]), interval(*pair[f"{stem}_ci"].values),
                          interval(*pair[f"{stem}_run_ci"].values)]  # fmt: skip
            rows.append((str(target), f"{arm} less {pair['first_arm'].item()}", *cells))
    over = (f"95% over {unit}s", "95% over runs")
    head = ("target", "arms", "accuracy", *over, "selectivity", *over)
    title = f"Differences of arms at step {int(at['step']):,}, averaged over layers and sites"
    return Table(title, head, tuple(rows))
