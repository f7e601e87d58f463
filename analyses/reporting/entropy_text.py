"""What the page of `routing_entropy` says in words."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.reporting.cohort import runs_sentence
from analyses.reporting.text import interval, listed, number
from analyses.routing.observed import router_notes


def finding(result: xr.Dataset) -> str:
    """What the last step shows, by arm."""
    at = result.isel(step=-1)
    unit, parts = result["unit"].attrs["long_name"], []
    for arm in result["each_arm"].values:
        of_arm = at.sel(each_arm=arm)
        if np.isnan(of_arm["arm_router_entropy_mean"]):
            continue
        used, sure, information = (
            f"{number(of_arm[f'arm_{n}_mean'], digits=d)} "
            f"({interval(*of_arm[f'arm_{n}_mean_ci'].values, digits=d)})"
            for n, d in (("effective_experts", 2), ("token_entropy", 3), ("token_information", 3))
        )
        parts.append(
            f"In {arm} runs, {used} effective experts are in use; the router has {sure} nats of "
            f"entropy at a token, and the token tells {information} nats about its choice"
        )
    relation, n = _relation(at), result.sizes["expert"]
    return (
        f"At step {int(at['step']):,}, means over runs and layers are these. "
        f"{'. '.join(parts) or 'No arm has all of its runs there'}. The most there can be is {n} "
        f"experts and ln {n} = {number(result['entropy_limit'])} nats. "
        f"{relation}"
        f"Intervals are 95% over {result.sizes['unit']} {unit}s "
        f"({int(result['n_tokens'].sum()):,} tokens). {runs_sentence(result['arm'].values)}"
    )


def _relation(at: xr.Dataset) -> str:
    if "arm_entropy_loss_rho_mean" not in at:
        return ""
    parts = []
    for arm in at["each_arm"].values:
        rho, partial_r = (
            (of_arm, at[f"arm_{name}_mean_ci"].sel(each_arm=arm).values)
            for name in ("entropy_loss_rho", "entropy_loss_partial_r")
            for of_arm in [float(at[f"arm_{name}_mean"].sel(each_arm=arm))]
        )
        if not np.isnan(rho[0]):
            parts.append(
                f"{number(rho[0])} ({interval(*rho[1])}) in {arm} runs (partial r "
                f"{number(partial_r[0])}, {interval(*partial_r[1])})"
            )
    if not parts:
        return ""
    return (
        "Spearman's rho of router entropy with loss, and Pearson's partial r with difficulty held "
        f"fixed, are {listed(parts)}. "
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
