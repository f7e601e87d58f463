"""What `loss_differences` says in words: its finding, and what its numbers do not say."""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from analyses.reporting.cohort import ENOUGH_SEEDS, runs_sentence, works_sentence
from analyses.reporting.pairs import place_text
from analyses.reporting.text import interval, listed, number
from analyses.statistics.token_classes import SURPRISING

_QUOTED = "\N{LEFT DOUBLE QUOTATION MARK}{}\N{RIGHT DOUBLE QUOTATION MARK}"


def finding(at: xr.Dataset, shown: Sequence[str], *, rate: float) -> str:
    """The answer: in how many classes of tokens arms differ, and the surest of them.

    Parameters
    ----------
    at : the result at its last place.
    shown : names of the pairs, of which those of two arms are spoken of.
    rate : false discovery rate.
    """
    counts, surest, unknown = [], [], []
    for name in shown:
        pair = at.sel(arm_pair=name).isel(token_class=slice(None, -1))
        if pair["pair_kind"] == "same arm":
            continue
        tested = pair.dropna("token_class", subset=["p"])
        if not tested.sizes["token_class"]:
            unknown.append(name)
            continue
        reached = int((tested["p_adjusted"] <= rate).sum())
        counts.append(f"{reached} of {tested.sizes['token_class']} for {name}")
        surest.append(tested.isel(token_class=int(tested["p"].values.argmin())))
    sentences = []
    if surest:
        first = min(surest, key=lambda of_class: float(of_class["p"]))
        sentences.append(
            f"At {place_text(at)}, classes of tokens in which arms differ in kind, beyond noise of "
            f"seeds, are {listed(counts)} (false discovery rate {rate:.0%}), the surest of all "
            f"{_class(first)}."
        )
    if unknown:
        sentences.append(f"Not known for {listed(unknown)}, for want of runs.")
    return " ".join([*sentences, runs_sentence(at["arm"].values)])


def _class(pair: xr.Dataset) -> str:
    """A difference of two arms in one class of tokens, with both intervals."""
    over_runs, over_text = (
        interval(*pair[f"relative{suffix}"].values) for suffix in ("_run_ci", "_ci")
    )
    return (
        f"{_QUOTED.format(pair['token_class'].item())} for {pair['arm_pair'].item()} by "
        f"{number(pair['relative'])} nats (uncorrected 95% over runs {over_runs}; over "
        f"{pair['unit'].attrs['long_name']}s {over_text})"
    )


def caveats(
    result: xr.Dataset, at: xr.Dataset, probe_set: xr.Dataset, given: Sequence[str]
) -> Iterator[str]:
    """What the numbers do not say.

    Parameters
    ----------
    result, at : the result, and at its last place.
    probe_set : Dataset, as for `token_classes`.
    given : names of the runs that were asked for.
    """
    unit, runs = result["unit"].attrs["long_name"], set(result["run"].values.tolist())
    if gone := [run for run in given if run not in runs]:
        yield f"Left out, as no step of them has finite losses: {listed(gone)}."
    if result.attrs["match"] == "step":
        yield from _equal_steps(result, at)
    n_runs = np.minimum(at["n_runs_a"], at["n_runs_b"])
    if ((n_runs > 1) & (n_runs < ENOUGH_SEEDS)).any():
        yield (
            f"With fewer than {ENOUGH_SEEDS} runs of an arm, only a very large difference shows."
        )
    if np.isfinite(smallest := float(at["smallest_p"].min())):
        yield (
            f"Exchanging the runs of two arms can give no p below {smallest:.2g} here, however "
            "large a difference; the p of Welch's test can be smaller because it takes losses of "
            "seeds to be normal."
        )
    yield (
        "Classes overlap: verse has more line breaks, and a repeated bigram is often a frequent "
        "one. A class may differ by another's doing."
    )
    if "copying" in at["division"].values:
        yield (
            "A repeated bigram counts as unexpected, hence as copied, where a 2-gram model of the "
            f"training text gave it less than {SURPRISING:.0%}; the limit is a choice."
        )
    bare = at["relative_ci"].isnull().all(("arm_pair", "ci_bound"))[:-1]
    if len(classes := at["token_class"].values[:-1][bare.values]):
        yield (
            f"Without an interval over {unit}s, as their tokens are so uneven that they stand for "
            f"fewer than two {unit}s: {listed(classes)}."
        )
    if "choice" in result.dims:
        yield (
            "Token ids were chosen and shown with the same runs: the other half cures luck of the "
            "text, not of the seeds. What exchanged runs keep says how much that is."
        )
    if (works := works_sentence(probe_set)) is not None:
        yield works


def _equal_steps(result: xr.Dataset, at: xr.Dataset) -> Iterator[str]:
    observed = result["loss_mean"].notnull().any("run").values
    last = int(result["step"].values[observed][-1])
    if last > int(at["step"]):
        yield (
            f"Arms are compared at step {int(at['step']):,}, the last that all runs observed; some "
            f"went on to step {last:,}."
        )
    yield (
        "At equal steps an arm that is behind differs by class as a younger model does; --match "
        "loss compares arms at the lowest mean loss that all reached."
    )
