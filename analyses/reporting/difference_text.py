"""What `loss_differences` says in words: its finding, and what its numbers do not say."""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from analyses.reporting.cohort import ENOUGH_SEEDS, runs_sentence, works_sentence
from analyses.reporting.pairs import place_text
from analyses.reporting.text import interval, listed, number, p_value
from analyses.statistics.token_classes import SURPRISING

_QUOTED = "\N{LEFT DOUBLE QUOTATION MARK}{}\N{RIGHT DOUBLE QUOTATION MARK}"


def finding(at: xr.Dataset, shown: Sequence[str], *, rate: float) -> str:
    """The answer: which classes differ, and what is left of the chosen token ids in other text.

    Parameters
    ----------
    at : the result at its last place.
    shown : names of the pairs of arms that are spoken of.
    rate : false discovery rate.
    """
    texts = [_classes(at.sel(arm_pair=pair), rate) for pair in shown]
    kept = _kept(at, shown) if "choice" in at.dims else ""
    return (
        f"At {place_text(at)}, classes of tokens that differ by more than noise of seeds, beyond "
        f"what the arms differ by over all tokens: {'; '.join(texts)}. {kept}"
        f"{runs_sentence(at['arm'].values)}"
    )


def _classes(pair: xr.Dataset, rate: float) -> str:
    """What was found of one pair of arms."""
    name, classes = str(pair["arm_pair"].item()), pair.isel(token_class=slice(None, -1))
    n_a, n_b, n_classes = int(pair["n_runs_a"]), int(pair["n_runs_b"]), len(classes["token_class"])
    if min(n_a, n_b) < 2:
        return f"{name}: not known, as one run of an arm does not tell noise of seeds"
    reached = int((classes["p_adjusted"] <= rate).sum())
    if not reached:
        few = f", but {n_a} and {n_b} runs would show a very large one only"
        return f"{name}: none of {n_classes}{few if min(n_a, n_b) < ENOUGH_SEEDS else ''}"
    most, unit = classes.isel(token_class=int(classes["p"].values.argmin())), pair["unit"]
    return (
        f"{name}: {reached} of {n_classes} (false discovery rate {rate:.0%}), the surest "
        f"{_QUOTED.format(most['token_class'].item())} by {number(most['relative'])} nats (95% "
        f"over runs {interval(*most['relative_run_ci'].values)}; over {unit.attrs['long_name']}s "
        f"{interval(*most['relative_ci'].values)})"
    )


def _kept(at: xr.Dataset, shown: Sequence[str]) -> str:
    """What is left, in other text, of the differences in the token ids chosen for them."""
    texts = []
    for name in shown:
        if name not in at["choice"].values or at["pair_kind"].sel(arm_pair=name) != "MoE and dense":
            continue
        choice = at.sel(choice=name)
        before, after = choice["kept"].values
        p = p_value(float(choice["kept_p"]), smallest=float(choice["kept_smallest_p"]))
        texts.append(
            f"{number(before)} becomes {number(after)} for {name} (with runs exchanged "
            f"{number(choice['kept_chance'])}, p {p})"
        )
    if not texts:
        return ""
    return (
        f"Of the {at.sizes['rank']} token ids that differ most reliably on one half of the "
        f"{at['unit'].attrs['long_name']}s, the mean difference in the other half: "
        f"{'; '.join(texts)}. "
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
