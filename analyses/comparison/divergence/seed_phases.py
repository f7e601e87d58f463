"""Phases of divergence over training: between the seeds of each arm, and in each kind of pair."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.reporting.text import labels
from analyses.statistics.pairs import pair_indices
from analyses.statistics.phases import PHASES, SIGNS, Phases, find_phases
from analyses.statistics.runs import jackknife_runs, mean_without_each_run

IN_THESE_RUNS = "seen in these runs"
FEWEST_STEPS = 4


class Curve(NamedTuple):
    """A mean over pairs of runs along training.

    Attributes
    ----------
    name : the arm, or the kind of pair.
    group : "arms" or "kind", the dimension of a summary that it stands on.
    label : its label there.
    """

    name: str
    group: str
    label: str


class Found(NamedTuple):
    """A curve, its steps and phases, their intervals over runs, and the verdicts."""

    curve: Curve
    steps: NDArray[np.intp]
    phases: Phases
    run_ci: NDArray[np.float64]
    verdicts: list[str]


def seed_phases(
    summary: xr.Dataset,
    name: str,
    runs: xr.Dataset,
    *,
    tolerance: float = 0.1,
    level: float = 0.95,
    n_resamples: int,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Phases of each curve, with an interval over text that allows for the choice of the turns.

    Parameters
    ----------
    summary : what `summarize` made of the divergence `name` along `step`.
    runs : coordinates on `run`, sorted by `sorted_by_arm`.
    tolerance : share of a curve's range within which it counts as flat.

    Returns
    -------
    Dataset
        Along `curve` (each arm with two seeds, then each kind of pair; without those that have
        fewer than four steps) and `phase`: `phase_start` and `phase_end`, steps; `phase_change`,
        and `phase_rate` per doubling of 1 + step; `phase_ci` over units, for any turns;
        `phase_run_ci` over runs, for these turns; `phase_verdict`: "seen" if both intervals say so,
        "seen in these runs" if only that over units does, "not seen" or "cannot be told".
    """
    arm = runs["arm"].values.astype(str)
    rows = []
    for curve in _curves(summary):
        at = summary.sel({curve.group: curve.label})
        at = at.dropna("step", subset=[f"{curve.group}_{name}_inner"])
        if at.sizes["step"] < FEWEST_STEPS:
            continue
        inner = at[f"{curve.group}_{name}_inner"].values
        deleted = at[f"{curve.group}_{name}_deleted"].transpose("unit", "step").values
        phases = find_phases(
            inner, deleted, tolerance=tolerance, level=level, n_resamples=n_resamples, rng=rng
        )
        pairs = at[f"pair_{name}_inner"].transpose("step", "pair").values
        stratum = arm if curve.group == "arms" else runs["architecture"].values.astype(str)
        of_curve = summary[f"pair_{curve.group}"].values == curve.label
        run_ci = _over_runs(pairs, of_curve, stratum, phases, level=level)
        steps, margin = at["step"].values, tolerance * float(np.ptp(inner))
        verdicts = _verdicts(phases, run_ci, steps, margin)
        rows.append(Found(curve, steps, phases, run_ci, verdicts))
    return _dataset(rows, summary[f"kind_{name}"].attrs)


def _curves(summary: xr.Dataset) -> list[Curve]:
    arms = zip(*(summary[n].values for n in ("arm_a", "arm_b", "pair_arms")), strict=True)
    within = dict.fromkeys(Curve(str(a), "arms", str(label)) for a, b, label in arms if a == b)
    return [*within, *(Curve(str(kind), "kind", str(kind)) for kind in summary["kind"].values)]


def _over_runs(
    pairs: NDArray, of_curve: NDArray[np.bool_], stratum: NDArray, phases: Phases, *, level: float
) -> NDArray[np.float64]:
    """Interval over runs of each phase's change, (phase, ci_bound), from pairs (step, pair)."""
    first, second = (runs[of_curve] for runs in pair_indices(len(stratum)))
    taking_part = np.unique([first, second])
    changes = (pairs[phases.end] - pairs[phases.start])[:, of_curve]
    without = mean_without_each_run(changes, first, second, n_runs=len(stratum))[taking_part]
    return jackknife_runs(changes.mean(axis=-1), without, stratum[taking_part], level=level).ci


def _verdicts(
    phases: Phases, run_ci: NDArray[np.float64], steps: NDArray, margin: float
) -> list[str]:
    verdicts = []
    for verdict, sign, (low, high) in zip(phases.verdict, SIGNS, run_ci, strict=True):
        agree = min(low * sign, high * sign) > 0 if sign else max(-low, high) < margin
        verdicts.append(IN_THESE_RUNS if verdict == "seen" and not agree else str(verdict))
    if steps[0] != 0:
        verdicts[0] = "cannot be told"
    return verdicts


def _dataset(rows: list[Found], attrs: dict[str, str]) -> xr.Dataset:
    title, units = f"change of {attrs['long_name']}", attrs["units"]
    dims = ("curve", "phase")

    def stacked(values: list, *tail: int, dtype: type = float) -> NDArray:
        return np.array(values, dtype=dtype).reshape(len(rows), len(PHASES), *tail)

    start = stacked([row.steps[row.phases.start] for row in rows], dtype=int)
    end = stacked([row.steps[row.phases.end] for row in rows], dtype=int)
    change = stacked([row.phases.change for row in rows])
    doublings = np.log2((1 + end) / (1 + start))
    rate = np.divide(change, doublings, out=np.full(change.shape, np.nan), where=doublings > 0)
    over_text = stacked([row.phases.ci for row in rows], 2)
    over_runs = stacked([row.run_ci for row in rows], 2)
    verdict = stacked([row.verdicts for row in rows], dtype=str)
    return xr.Dataset(
        {
            "phase_start": (dims, start, labels("first step")),
            "phase_end": (dims, end, labels("last step")),
            "phase_change": (dims, change, labels(title, units)),
            "phase_rate": (dims, rate, labels(f"{title} per doubling of 1 + step", units)),
            "phase_ci": (
                (*dims, "ci_bound"), over_text,
                labels(f"{title}, interval over units of text for any turns", units),
            ),
            "phase_run_ci": (
                (*dims, "ci_bound"), over_runs,
                labels(f"{title}, interval over runs for these turns", units),
            ),
            "phase_verdict": (dims, verdict, labels("verdict")),
        },
        {
            "curve": np.array([row.curve.name for row in rows], dtype=str),
            "curve_group": ("curve", np.array([row.curve.group for row in rows], dtype=str)),
            "curve_label": ("curve", np.array([row.curve.label for row in rows], dtype=str)),
            "phase": list(PHASES),
            "ci_bound": ["lower", "upper"],
        },
    )  # fmt: skip
