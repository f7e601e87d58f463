"""Tables and sentences of `cka_over_time`."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.reporting import pairs
from analyses.reporting.cka_figures import PREPARATION_TITLES
from analyses.reporting.cohort import bracketed, runs_sentence, works_sentence
from analyses.reporting.report import Table
from analyses.reporting.text import interval, listed, number
from analyses.representation.cka import HEADLINE, PREPARATIONS, Activations
from analyses.representation.cka_measures import MOST_TOKENS, NEIGHBOURS
from analyses.representation.recorded import left_out
from store.study import Study

_MOST_NAMED = 6


def finding(result: xr.Dataset) -> str:
    """The answer, with intervals and n."""
    last, first = result.isel(step=-1), result.isel(step=0)
    start = listed(number(value) for value in first["kind_cka_mean"].values)
    used = f"{result.attrs['n_tokens_used']:,} tokens"
    sentences = [
        f"At {pairs.place_text(last)}, CKA of representations, averaged over {_averaged(last)}, "
        f"is {pairs.estimates(last, 'cka_mean')} pairs, from "
        f"{start} at {pairs.place_text(first)}, with {bracketed(result, used)}."
    ]
    if "contrast" in result.dims:
        known = pairs.told_over_runs(last, "rho2_mean")
        if known.sizes["contrast"]:
            sentences.append(_least_alike(known))
    return " ".join([*sentences, runs_sentence(result["arm"].values)])


def _averaged(at: xr.Dataset) -> str:
    """How many depths means over depths are of."""
    n, n_averaged = at.sizes["depth"], int(at["averaged"].sum())
    if n_averaged == n:
        return f"{n} depths"
    others = f"{n - n_averaged} left out, where a run has no CKA"
    return f"{n_averaged} of {n} depths ({others})"


def _least_alike(known: xr.Dataset) -> str:
    """How many pairs of arms are less alike than seeds of one arm, and the least alike."""
    n_apart = int((known["rho2_mean_run_ci"].sel(ci_bound="upper") < 1).sum())
    least = known.isel(contrast=int(known["rho2_mean"].values.argmin()))
    return (
        f"{n_apart} of {known.sizes['contrast']} pairs of arms are less alike than seeds of one "
        f"arm, rho2 below 1; it is lowest for {least['contrast'].item()}, "
        f"{number(least['rho2_mean'])} ({interval(*least['rho2_mean_run_ci'].values)} over runs)."
    )


def most_changed(last: xr.Dataset) -> str:
    """The depth that differs most from the one before it, of any arm, or nothing if none is known.

    It begins with a space.
    """
    change = last["arm_change"].transpose("each_arm", "depth")
    if not bool(change.notnull().any()):
        return ""
    at = last.isel(change.argmax(("each_arm", "depth")))
    return (
        f" What is added before depth {at['depth'].item()} of {at['each_arm'].item()} runs "
        f"changes representations most: 1 - CKA {number(at['arm_change'])} "
        f"({interval(*at['arm_change_ci'].values)})."
    )


def tables(result: xr.Dataset) -> Iterator[Table]:
    """By kind and arms, by depth, rho2, and by other measures."""
    last, n_steps = result.isel(step=-1), result.sizes["step"]
    shown = np.unique(np.linspace(0, n_steps - 1, min(4, n_steps)).round().astype(int))
    title = "CKA, row-normalised, averaged over depths"
    yield pairs.table(result, "cka_mean", "kind", places=shown, title=title)
    yield pairs.table(result, "cka_mean", "arms", places=shown[-1:], title=f"{title}, by arms")
    yield _by_depth(last)
    if result.sizes.get("contrast", 0):
        yield _ratios(last)
    yield _measures(last)
    if (last["pair_kind"] == "dense-MoE").any():
        yield _measures_by_arms(last)


def _by_depth(last: xr.Dataset) -> Table:
    kinds = last["kind"].values.tolist()
    rows = []
    for depth in last["depth"].values:
        for name in PREPARATIONS:
            at = last.sel(depth=depth, preparation=name)
            cells = [
                f"{number(at['kind_cka'].sel(kind=k))} "
                f"({interval(*at['kind_cka_ci'].sel(kind=k).values)})"
                for k in kinds
            ]
            null = number(at["shuffled"].mean("kind")) if name == HEADLINE else ""
            rows.append((str(depth), PREPARATION_TITLES[name], *cells, null))
    unit, where = last["unit"].attrs["long_name"], pairs.place_text(last)
    title = f"CKA by depth and preparation, {where}, with 95% intervals over {unit}s"
    return Table(title, ("depth", "preparation", *kinds, "units exchanged"), tuple(rows))


def _ratios(last: xr.Dataset) -> Table:
    rows = [
        (
            str(contrast),
            number(at["rho2_mean"]),
            interval(*at["rho2_mean_ci"].values),
            interval(*at["rho2_mean_run_ci"].values),
            *(number(value) for value in at["rho2"].values),
        )
        for contrast in last["contrast"].values
        for at in [last.sel(contrast=contrast)]
    ]
    unit = last["unit"].attrs["long_name"]
    head = ("arms", "rho2", f"95% over {unit}s", "95% over runs",
            *(f"at {depth}" for depth in last["depth"].values))  # fmt: skip
    return Table(f"CKA between arms over that within them, {pairs.place_text(last)}", head,
                 tuple(rows))  # fmt: skip


def _measures(last: xr.Dataset) -> Table:
    """Of each kind of pair, with both intervals."""
    rows = [
        (
            str(measure),
            str(kind),
            str(int(at["kind_n_pairs"])),
            number(at["kind_measured"]),
            interval(*at["kind_measured_ci"].values),
            interval(*at["kind_measured_run_ci"].values),
            number(at["measured_exchanged"]),
        )
        for measure in last["measure"].values
        for kind in last["kind"].values
        for at in [last.sel(measure=measure, kind=kind)]
    ]
    unit = last["unit"].attrs["long_name"]
    head = ("measure", "kind", "pairs", "similarity", f"95% over {unit}s", "95% over runs",
            "units exchanged")  # fmt: skip
    title = f"All pairs by other measures, {pairs.place_text(last)}, averaged over depths"
    return Table(title, head, tuple(rows))


def _measures_by_arms(last: xr.Dataset) -> Table:
    """Of each dense arm with each MoE arm, with the interval over text, or else that over runs."""
    mixed = last["pair_arms"].values[last["pair_kind"].values == "dense-MoE"].astype(str)
    shown = list(dict.fromkeys(mixed))
    by_arms = last.sel(arms=shown)
    over_text = by_arms["arms_measured_ci"]
    ends = over_text.where(over_text.notnull(), by_arms["arms_measured_run_ci"])
    rows = [
        (
            str(measure),
            *(
                f"{number(by_arms['arms_measured'].sel(at))} ({interval(*ends.sel(at).values)})"
                for arms in shown
                for at in [{"measure": measure, "arms": arms}]
            ),
        )
        for measure in last["measure"].values
    ]
    unit, where = last["unit"].attrs["long_name"], pairs.place_text(last)
    return Table(
        f"Dense-MoE pairs by other measures and arms, {where}, averaged over depths, with 95% "
        f"intervals over {unit}s; of {NEIGHBOURS} over runs",
        ("measure", *shown), tuple(rows),
    )  # fmt: skip


def caveats(result: xr.Dataset, study: Study, activations: Activations) -> Iterator[str]:
    """What the numbers do not say, with everything that was left out."""
    unit = result["unit"].attrs["long_name"]
    yield (
        f"The estimator is CKA of HSIC1 summed over {result.attrs['n_batches']:,} batches of at "
        f"most {result.attrs['largest_batch']} tokens, each of another {unit}; "
        f"{result.attrs['n_tokens_used']:,} of {result.attrs['n_tokens']:,} recorded tokens are in "
        "batches. The others are of the longest units, with too few others to compare them with."
    )
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other, and both hold "
        "place by place."
    )
    yield (
        f"Which tokens of different {unit}s meet in a batch is drawn at random, once for all runs "
        "and steps: another draw moves all values together, within their intervals, and their "
        "differences and rho2 much less."
    )
    yield (
        "Units of text exchanged between two runs leave, for any pair, depth and step, at most "
        f"|CKA| = {number(result['largest_shuffled'].max())}; an interval beside it that is "
        "narrower says how sure the value is, not how large chance can be."
    )
    yield (
        f"The tables of other measures have no interval over {unit}s for {NEIGHBOURS}, which would "
        "have to be found again without each, and none over runs where an arm has too few. "
        f"{_sampled(result)}CKA over all tokens compares tokens of one text with each other; what "
        "it keeps when units are exchanged is what that adds. Procrustes and biased CKA are above "
        "0 for any two representations, and the more so the fewer the tokens."
    )
    if "seed" in result.coords and (shared := _shared_seeds(result)):
        yield shared
    dense = np.unique(result["arm"].values[result["architecture"].values == "dense"])
    if len(dense) > 1:
        yield (
            f"The kind dense-dense mixes pairs that differ in seed with pairs that differ in size "
            f"({listed(dense)}); the table by arms keeps them apart, and so does rho2."
        )
    yield from _widths(result, activations)
    yield from _left_out(result, study, activations)
    if unit == "document" and (works := works_sentence(study.probe_set)) is not None:
        yield f"{works} Use --unit work."


def _sampled(result: xr.Dataset) -> str:
    """How many tokens the measures over all tokens take, if not all."""
    n = result.attrs["n_tokens_used"]
    every = -(-n // MOST_TOKENS)
    return f"What is over all tokens is over every {every}th of {n:,}. " if every > 1 else ""


def _shared_seeds(result: xr.Dataset) -> str:
    """That pairs of one seed are more alike than others before any training, if they are."""
    seed = result["seed"].values
    first, second = np.triu_indices(len(seed), k=1)
    same = seed[first] == seed[second]
    values = result["pair_cka_mean"].isel(step=0).values
    if not same.any() or same.all() or not values[same].mean() > values[~same].mean() + 0.02:
        return ""
    return (
        f"At {pairs.place_text(result.isel(step=0))}, pairs with the same seed have CKA "
        f"{number(values[same].mean())} and other pairs {number(values[~same].mean())}: arms share "
        "parts of their initialization, and runs of one seed are not independent."
    )


def _widths(result: xr.Dataset, activations: Activations) -> Iterator[str]:
    """That arms differ in width, if they do."""
    widths: dict[str, set[int]] = {}
    for run, arm in zip(result["run"].values, result["arm"].values, strict=True):
        widths.setdefault(str(arm), set()).add(int(activations[str(run)].sizes["d_model"]))
    if len({frozenset(of_arm) for of_arm in widths.values()}) > 1:
        each = listed(f"{listed(sorted(of_arm))} ({arm})" for arm, of_arm in widths.items())
        yield (
            f"Arms also differ in the width of the residual stream: {each}. rho2 below 1 may come "
            "from that as well as from the experts."
        )


def _left_out(result: xr.Dataset, study: Study, activations: Activations) -> Iterator[str]:
    yield from left_out(study, activations)
    layers = {int(at) for d in activations.values() for at in d["layer"].values}
    if other := sorted(layers - set(result["layer"].values.tolist())):
        yield f"Layers {listed(other)} are left out, as not all runs have them."
    yield from unusable(result)


def unusable(result: xr.Dataset) -> Iterator[str]:
    """Names the representations that have no CKA."""
    wrong = result["unusable"].transpose("run", "depth", "step")
    named = [
        f"{run} at depth {depth} ({int(at.sum())} of {at.size} steps)"
        for run in wrong["run"].values
        for depth in wrong["depth"].values
        for at in [wrong.sel(run=run, depth=depth)]
        if at.any()
    ]
    if named:
        more = f", and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        yield (
            f"Not finite, or the same for all tokens: {'; '.join(named[:_MOST_NAMED])}{more}. "
            "These have no CKA; nor have their pairs there, the kinds and arms of these, and other "
            "measures of these at the last step. Means over depths leave such a depth out for all "
            "runs, at that step alone: from step to step, they may be of other depths."
        )
