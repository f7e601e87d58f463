"""What is said of claims: the finding, three tables for each group of claims, and caveats."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.comparison.claims.hypotheses import OTHER
from analyses.comparison.claims.stages import SHARE
from analyses.reporting import pairs
from analyses.reporting.cohort import bracketed, runs_sentence
from analyses.reporting.report import Table
from analyses.reporting.text import interval, listed, number

_NAMED = 2
_TESTS = {
    "bounds": "t, a run deleted at a time",
    "trough": "largest t, a run deleted at a time",
    "labels": "arms dealt out anew",
}


def finding(result: xr.Dataset, similarity: xr.Dataset) -> str:
    """How alike MoE and dense are, which claims are told, and how much that rests on.

    Parameters
    ----------
    result : what `significance` returns.
    similarity : what it was made from.
    """
    main = result.isel(hypothesis=np.flatnonzero(result["family"] != OTHER))
    corrected = main.isel(hypothesis=np.flatnonzero(main["test"] == "labels"))
    told = [_of_delta(corrected.isel(hypothesis=i)) for i in range(corrected.sizes["hypothesis"])]
    verdict = main["verdict"].values
    supported, refuted = (int((verdict == word).sum()) for word in ("supported", "refuted"))
    return (
        f"Of {len(verdict)} claims these runs support {supported}, refute {refuted} and leave "
        f"{len(verdict) - supported - refuted} open; rho2, the similarity of MoE and dense "
        "corrected for noise of single runs, 1 if nothing systematic differs, is "
        f"{listed(told)}, with {bracketed(result)}. {_named(main, 'supported')}"
        f"{_named(main, 'refuted')}"
        f"{_runs(main, similarity)}"
    )


def _named(main: xr.Dataset, verdict: str) -> str:
    """The first claims of a verdict, or nothing if there are none."""
    names = main["hypothesis"].values[main["verdict"].values == verdict]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{verdict.capitalize()}: {'; '.join(names[:_NAMED])}{more}. " if len(names) else ""


def _runs(main: xr.Dataset, similarity: xr.Dataset) -> str:
    """How many runs the arms that claims are about have."""
    named = {arm for arms in main["claim_arms"].values for arm in arms.split(", ")}
    return runs_sentence(arm for arm in similarity["arm"].values.astype(str) if arm in named)


def _of_delta(row: xr.Dataset) -> str:
    """rho2 of an arm of MoE and dense, with its intervals."""
    dense, moe = str(row["claim_arms"].item()).split(", ")
    if not np.isfinite(row["estimate"]):
        return f"not known for {moe} (it takes two runs of {moe} and of {dense})"
    ends = [interval(*(1 + row[name].values), digits=4) for name in ("ci", "run_ci")]
    return f"{number(1 + row['estimate'], digits=4)} for {moe} ({'; '.join(ends)})"


def tables(result: xr.Dataset) -> Iterator[Table]:
    """Verdicts, tests and contrasts, of the claims and then of other readings."""
    unit = result["unit"].attrs["long_name"]
    head = ("claim", "estimate", "on", f"95% over {unit}s", "95% over runs", "verdict")
    tests = ("claim", "p speaks", f"p over {unit}s", "by Holm", "p over runs", "by Holm",
             "smallest by Holm", "runs")  # fmt: skip
    for title, is_other in (("Claims of the reference study", False), ("Other readings", True)):
        chosen = np.flatnonzero((result["family"] == OTHER) == is_other)
        rows = [result.isel(hypothesis=int(i)) for i in chosen]
        yield Table(title, head, tuple(map(_claim_row, rows)))
        yield Table(f"{title}: tests", tests, tuple(map(_test_row, rows)))
        looked_at = tuple(
            _contrast_row(row, by_step=result.attrs["match"] == "step") for row in rows
        )
        yield Table(f"{title}: what is looked at", ("claim", "contrast", "over runs"), looked_at)


def _claim_row(row: xr.Dataset) -> tuple[str, ...]:
    return (
        str(row["hypothesis"].item()),
        number(row["estimate"], digits=4),
        str(row["scale"].item()),
        interval(*row["ci"].values, digits=4),
        interval(*row["run_ci"].values, digits=4),
        f"{row['verdict'].item()}: {row['reason'].item()}",
    )


def _test_row(row: xr.Dataset) -> tuple[str, ...]:
    smallest = float(row["run_smallest_p_holm"])
    return (
        str(row["hypothesis"].item()),
        "for" if row["favours"] else "against",
        *(_p(float(row[name])) for name in ("p", "p_holm", "run_p", "run_p_holm")),
        _p(smallest if smallest > 0 else np.nan),
        str(row["n_runs"].item()),
    )


def _contrast_row(row: xr.Dataset, *, by_step: bool) -> tuple[str, ...]:
    looked_at = str(row["looked_at"].item())
    if np.isfinite(lowest := float(row["lowest"])):
        looked_at += f", step {lowest:,.0f}" if by_step else f", mean loss {lowest:.2f}"
    return str(row["hypothesis"].item()), looked_at, _TESTS[str(row["test"].item())]


def _p(value: float) -> str:
    """A p-value with two digits, from 0.0001 up."""
    return "< 0.0001" if value < 1e-4 else "\N{EN DASH}" if np.isnan(value) else f"{value:.2g}"


def caveats(result: xr.Dataset, similarity: xr.Dataset, unigram: float | None) -> Iterator[str]:
    """What the verdicts do not say; parameters as for `significance`."""
    unit = result["unit"].attrs["long_name"]
    yield (
        f"p over {unit}s is about other text for these very models, p over runs about other seeds "
        "on this very text; a verdict takes both, and neither is about other sizes, data or "
        "settings."
    )
    yield (
        "That MoE-MoE is below MoE-dense, or dense-dense above it, is what noisier MoE seeds alone "
        "would give, and no evidence that architectures agree or differ; delta = 0 is the test of "
        "that."
    )
    yield _caveat_of_early(result, similarity, unigram)
    labels_test = result.isel(hypothesis=np.flatnonzero(result["test"] == "labels"))
    out_of_reach = labels_test["run_smallest_p_holm"] >= 1 - result.attrs["level"]
    if out_of_reach.any():
        yield (
            "Dealing out the arms of S and S runs anew gives no p below 2 / C(2S, S): 0.1 with 3 "
            "seeds of each arm, 0.029 with 4, 0.0079 with 5; where Holm's correction lifts that to "
            ".05 or more, delta = 0 cannot be refuted with these seeds."
        )
    yield (
        "That rho2 is within 1% of 1, if supported, says more than delta = 0 that was not refuted, "
        "which may be for want of seeds."
    )
    yield (
        "Holm corrects inside each family: claims about dense alone, claims about each arm of MoE, "
        "and all other readings together; "
        f"here {listed(_families(result))}."
    )


def _families(result: xr.Dataset) -> list[str]:
    names, counts = np.unique(result["family"].values, return_counts=True)
    return [f"{n} of {name}" for name, n in zip(names, counts, strict=True)]


def _caveat_of_early(result: xr.Dataset, similarity: xr.Dataset, unigram: float | None) -> str:
    if unigram is None:
        return (
            "The probe set has no n-gram surprisal, so early is where "
            f"{SHARE:.1%} of the training is done; there, small models may know token frequencies "
            "alone."
        )
    dim = pairs.place_dim(similarity)
    early = result["early"].values[np.isfinite(result["early"].values)]
    if not len(early):
        return (
            f"At no place before the last are all runs below {unigram:.2f} nats, the loss of a "
            "unigram model, so claims from early on have no estimate; train longer."
        )
    first = np.unique(early)
    places = [
        pairs.place_text(similarity.sel({dim: [place]}, method="nearest").isel({dim: 0}))
        for place in first
    ]
    return (
        f"A unigram model has a loss of {unigram:.2f} nats, and runs compared are first all below "
        f"it at {listed(places)}, which is early here. Up to there they agree on token "
        "frequencies, and whether a curve rises may depend on where it is taken to start: see the "
        "other readings."
    )
