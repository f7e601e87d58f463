"""What `linear_probe` found, and what it does not say."""

from collections.abc import Iterator

import xarray as xr

from analyses.reporting.cohort import bracketed, runs_sentence
from analyses.reporting.text import interval, listed, number
from analyses.representation.probe_targets import EXPERT, NEXT, PREVIOUS
from analyses.routing.observed import router_notes

_TOLD = (NEXT, PREVIOUS)


def finding(result: xr.Dataset) -> str:
    """The accuracy of each arm for one target, and where arms differ, at the last step."""
    last = result.isel(step=-1)
    target = next((t for t in _TOLD if t in last["target"]), str(last["target"].values[0]))
    at = last.sel(target=target)
    of_arms = [
        f"{number(of_arm['arm_accuracy_mean'])} "
        f"({interval(*of_arm['arm_accuracy_mean_ci'].values)}) in {arm}"
        for arm in at["each_arm"].values
        for of_arm in [at.sel(each_arm=arm)]
    ]
    counted = f"{int(at['target_tokens']):,} tokens"
    base = number(at["arm_lookup_mean"].isel(each_arm=0))
    return (
        f"At step {int(last['step']):,}, averaged over layers and sites, a linear probe reads the "
        f"{target} with an accuracy of {listed(of_arms)}, where a lookup by token id has {base}, "
        f"with {bracketed(result, counted, over_runs=False)}. {_apart(last)}"
        f"{runs_sentence(result['arm'].values)}"
    )


def _apart(last: xr.Dataset) -> str:
    """How often an arm differs from the first one by both intervals."""
    known = int(last["accuracy_difference"].notnull().sum())
    if not known:
        return ""
    low, high = (
        [last[f"accuracy_difference{suffix}"].sel(ci_bound=end) for suffix in ("_ci", "_run_ci")]
        for end in ("lower", "upper")
    )
    apart = ((low[0] > 0) & (low[1] > 0)) | ((high[0] < 0) & (high[1] < 0))
    return (
        f"Arms differ by the intervals over text and over runs, uncorrected, in {int(apart.sum())} "
        f"of {known} comparisons. "
    )


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
