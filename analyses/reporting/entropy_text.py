"""What the page of `routing_entropy` says in words."""

from collections.abc import Iterator

import xarray as xr

from analyses.reporting.cohort import bracketed, runs_sentence
from analyses.reporting.text import interval, listed, number
from analyses.routing.observed import router_notes


def finding(result: xr.Dataset) -> str:
    """What the last step shows, by arm."""
    at = result.isel(step=-1)
    arms = at["each_arm"].values[at["arm_router_entropy_mean"].notnull().values]
    if not len(arms):
        runs = runs_sentence(result["arm"].values)
        return f"No arm was observed in all of its runs at step {int(at['step']):,}. {runs}"
    used, sure = (
        listed(
            f"{number(of_arm[f'arm_{name}_mean'], digits=digits)} "
            f"({interval(*of_arm[f'arm_{name}_mean_ci'].values, digits=digits)}) in {arm} runs"
            for arm in arms
            for of_arm in [at.sel(each_arm=arm)]
        )
        for name, digits in (("effective_experts", 2), ("token_entropy", 3))
    )
    n = result.sizes["expert"]
    return (
        f"At step {int(at['step']):,}, averaged over runs and layers, experts in effective use are "
        f"{used} of {n}, and the router's entropy at a token, of at most ln {n} = "
        f"{number(result['entropy_limit'])} nats, is {sure}, with "
        f"{bracketed(result, over_runs=False)}. {runs_sentence(result['arm'].values)}"
    )


def caveats(result: xr.Dataset, probe_set: xr.Dataset) -> Iterator[str]:
    """What a reader must know of the numbers."""
    unit, n_units = result["unit"].attrs["long_name"], result.sizes["unit"]
    yield from router_notes(
        result["router"].values.astype(str) if "router" in result.coords else (),
        hash_means="Its distribution has no entropy at any token, so its margin is 1, "
        "I(token; expert) is all of the entropy, and there is nothing to correlate with the loss. "
        "Its load follows the frequencies of the token ids alone.",
    )
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other."
    )
    yield (
        "Load entropy, and with it the fair index and the effective experts, comes out low and "
        "MaxVio and Gini come out high in a finite text. If tokens were independent and routing "
        f"even, H(f) would be {float(result['entropy_limit'] - result['even_entropy']):.5f} nats "
        "below ln N here; that tokens of a text resemble each other makes it more, which the grey "
        "band shows."
    )
    yield (
        f"An expert without any choice in {n_units} {unit}s may be chosen in up to "
        f"{100 * (1 - 0.05 ** (1 / n_units)):.1f}% of other {unit}s (95%): it is dead in this "
        f"text. The interval of the number of starved experts follows from pointwise intervals "
        "of their loads."
    )
    yield (
        f"The partial correlation holds {held_fixed(result)} fixed. These measure difficulty with "
        "error, and a straight line and a square may miss some of it, so part of it may be left in "
        "the partial correlation. That is about the part of the loss which they leave, and may be "
        "larger than the plain one where that part is small. Neither tells of a cause."
    )
    if "ngram_surprisal" not in probe_set:
        yield "The probe set has no n-gram surprisal, so difficulty is held fixed in part only."
    missing = result["token_entropy"].isnull().any("layer").sum("step")
    for run, n in zip(result["run"].values, missing.values, strict=True):
        if n:
            yield f"{run} was not observed at {n} of {result.sizes['step']} steps."


def held_fixed(result: xr.Dataset) -> str:
    """What the partial correlation holds fixed, in words."""
    return f"{result.attrs['controls']}, with squares,"
