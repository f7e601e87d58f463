"""What `linear_probe` found, and what it does not say."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.reporting.cohort import runs_sentence
from analyses.reporting.text import interval, listed, number
from analyses.representation.probe_targets import EXPERT, NEXT, PREVIOUS
from analyses.routing.observed import router_notes

_TOLD = (NEXT, PREVIOUS)


def finding(result: xr.Dataset) -> str:
    """Two targets by arm, and which arms differ in accuracy, at the last step."""
    unit, step = result["unit"].attrs["long_name"], int(result["step"][-1])
    last, parts = result.isel(step=-1), []
    for target in [t for t in _TOLD if t in result["target"]]:
        at = last.sel(target=target)
        of_arms = [
            f"{number(of_arm['arm_accuracy_mean'])} "
            f"({interval(*of_arm['arm_accuracy_mean_ci'].values)}) in {arm}"
            for arm in result["each_arm"].values
            for of_arm in [at.sel(each_arm=arm)]
        ]
        base = number(at["arm_lookup_mean"].isel(each_arm=0))
        parts.append(f"{target} {listed(of_arms)}, with {base} for a lookup by token id")
    differ = list(_apart(result))
    return (
        f"Accuracy at step {step:,}, averaged over layers and sites: {'; '.join(parts)}. "
        f"Intervals are 95% over {result.sizes['unit']} {unit}s. Differences of arms that both "
        "intervals, over text and over runs, keep away from 0, without correction for their "
        f"number: {'; '.join(differ) or 'none'}. {runs_sentence(result['arm'].values)}"
    )


def _apart(result: xr.Dataset) -> Iterator[str]:
    """For each arm, the targets where its accuracy differs by both intervals."""
    low, high = (
        np.stack([result[f"accuracy_difference{suffix}"].transpose("ci_bound", ...).values[end]
                  for suffix in ("_ci", "_run_ci")])
        for end in (0, 1)
    )  # fmt: skip
    base = result["first_arm"].values.astype(str)
    for way, away in (("above", np.all(low > 0, axis=0)), ("below", np.all(high < 0, axis=0))):
        for arm, of_arm in zip(result["each_arm"].values, away, strict=True):
            for first in dict.fromkeys(base[of_arm]):
                where = result["target"].values[of_arm & (base == first)]
                yield f"{arm} {way} {first} in {listed(where)}"


def caveats(result: xr.Dataset) -> Iterator[str]:
    """What the numbers do not say."""
    unit, at = result["unit"].attrs["long_name"], result.attrs
    yield (
        f"A class counts with {at['min_tokens']} tokens in {at['min_units']} {unit}s, at most "
        f"{at['most']} classes a target; tokens of other classes are left out, and no class "
        "stands for them. Accuracies of targets with other numbers of classes do not compare."
    )
    if at["left_out"]:
        yield f"Left out, with fewer than two such classes: {listed(at['left_out'])}."
    if result.sizes["skipped"]:
        yield (
            f"Probed are steps {listed(f'{step:,}' for step in result['step'].values)}; "
            f"{result.sizes['skipped']} more were recorded."
        )
    yield (
        f"Probes are held fixed in all intervals: that they would differ with other {unit}s to "
        "fit to is not in them. An interval over runs is of these seeds, on this text."
    )
    yield (
        "What a probe reads, the model need not use; and what a linear probe cannot read may "
        "still be there. Runs differ in width: wider representations give a probe more to read."
    )
    yield (
        f"Selectivity is the mean over {at['n_controls']} control tasks, the same ones for all "
        "representations; which ones were drawn is not in its interval."
    )
    if EXPERT in result["target"]:
        yield (
            "The expert is that of the first router that comes after the site, first choices only, "
            "and each run's own. Between attention and experts of one layer, a learned router is "
            "itself a linear readout of the normalised stream: what the probe misses there, it "
            "misses for want of tokens to be fitted to."
        )
        routers = result["router"].values.astype(str) if "router" in result.coords else ()
        yield from router_notes(
            routers,
            hash_means="Reading its choice is reading the token id.",
        )
