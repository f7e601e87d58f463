r"""Which claims of the reference study do these runs support, refute, or leave open?

The reference study [1]_ compared two MoE and two dense models, without error bars: r² of per-token
losses between MoE and dense rises over training; that between two MoEs follows a little lower; that
between two dense models starts high and stays high, with a small U-shape; so MoE and dense differ
in nothing systematic. Each is tested here, for an arm D of dense and an arm M of MoE, on

    z_AB(s) = mean of artanh r_ij over runs i of A and j of B,    at place s of training

with r_ij the correlation of the losses of runs i and j. The claims are

    rises        z_DM(end) - z_DM(early) > 0
    below        mean over the second half of z_DM - z_MM > 0
    high         z_DD - z_DM > 0 both early and at the end
    flat         r²_DD(end) - r²_DD(early) within ±0.02
    U-shape      z_DD(early) > z_DD(s) and z_DD(end) > z_DD(s) at some place s between
    delta = 0    delta = mean log r_DM - (mean log r_DD + mean log r_MM) / 2 at the end
    within 1%    rho2 = exp(2 delta) within 1 ± 0.01 at the end

Early is the first place at which all runs compared predict better than token frequencies do (mean
loss below 1-gram surprisal). Up to there agreement grows because all models learn the same
frequencies. The reference study first looked at 2.2% of a much longer training, by when that was
over. Claims from 2.2% of this training on stand among the other readings, as do the trend in the
second half, delta from early on, and pairs of dense models of two widths. The margin of flat is
twice the .01 between kinds of pair at the end of the reference study; the other is 1% of r².

Below and high are what noisier MoE seeds alone would give: if runs share nothing but how hard
tokens are, r_ij = a_i a_j, and r_DM lies between r_DD and r_MM. They are no evidence about
architectures. Delta is, since there the noise a_i cancels; it falls below 0 if arms share more
within themselves than with each other.

Each claim is weighed twice, never pooled: over units of text (would other text, with these models,
show the same?) by deleting a unit at a time, and over runs (would other seeds, on this text?) by
deleting a run at a time, or for delta = 0 by dealing out the arms anew. Pairs of runs never count
as a sample. p-values are two-sided (that of delta over runs is for below 0), and corrected by Holm
[2]_ inside families stated beforehand: claims about dense alone, claims about each arm of MoE, and
all other readings. A claim of several parts holds if each part does [3]_; within a margin means
above its lower and below its upper end [4]_; a U-shape is corrected for the search for its place
[5]_. Supported means p < .05 for the claim over text and over runs, refuted p < .05 against it over
both; all else cannot be told with these seeds. Fewer than three runs of an arm never tell.

    python -m analyses.significance studies/quick
    python -m analyses.significance studies/seeds --match loss

References
----------
.. [1] 1a3orn (2024), "MoE and Dense Transformers Maybe Learn the Same Thing",
   https://1a3orn.com/sub/machine-learning-moe-v-dense-two.html.
.. [2] Holm (1979), Scandinavian Journal of Statistics 6, 65-70,
   https://www.jstor.org/stable/4615733.
.. [3] Berger (1982), doi:10.1080/00401706.1982.10487790 (intersection-union tests).
.. [4] Schuirmann (1987), doi:10.1007/BF01068419 (two one-sided tests of equivalence).
.. [5] Lind and Mehlum (2010), doi:10.1111/j.1468-0084.2009.00569.x (tests of a U-shape).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.along import Match, along
from analyses.comparison.claims.evidence import FEWEST_RUNS, evidence, verdict
from analyses.comparison.claims.hypotheses import OTHER, z_matrix
from analyses.comparison.claims.study_claims import claim_dataset, study_claims
from analyses.comparison.contrasts import arm_contrasts
from analyses.comparison.loss_similarity import MEASURES, r2_of_losses
from analyses.comparison.runs import run_coordinates, sorted_by_arm
from analyses.comparison.summary import summarize
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress, mean_loss, walk
from analyses.reporting import cli, pairs
from analyses.reporting.claim_figures import draw_claims, draw_curves
from analyses.reporting.claim_tables import caveats, finding, tables
from analyses.reporting.cohort import stream_doubt, stream_sentence
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import labels, listed
from analyses.statistics.permutation import adjusted_p
from store.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def similarity_of_losses(
    loss: xr.DataArray,
    unit: xr.DataArray,
    *,
    match: Match = "step",
    level: float = 0.95,
    progress: Callable[[str], Progress] = lambda description: iter,
    dask: str | None = None,
) -> xr.Dataset:
    """What `r2_over_time` says of r² alone, in a fraction of its time; parameters are the same."""
    loss = sorted_by_arm(loss)
    runs = run_coordinates(loss)
    loss_mean = mean_loss(loss, progress=progress("mean losses"), dask=dask)
    compared = walk(
        loss, unit, along(loss_mean, match), r2_of_losses,
        progress=progress("comparing runs"), dask=dask,
    )["r2"]  # fmt: skip
    scale, long_name, units = MEASURES["r2"]
    by_pair = summarize(
        "r2", *compared, runs, scale=scale, long_name=long_name, units=units, level=level
    )
    result = xr.Dataset({"loss_mean": loss_mean}, attrs={"level": level, "match": match})
    return result.merge(by_pair).merge(arm_contrasts(*compared, runs, level=level))


def significance(
    similarity: xr.Dataset,
    *,
    unigram: float | None = None,
    n_resamples: int = 500,
    rng: np.random.Generator | None = None,
) -> xr.Dataset:
    """Each claim with its estimate, two intervals, two p-values and a verdict.

    Parameters
    ----------
    similarity : what `similarity_of_losses`, or `r2_over_time`, returns.
    unigram : mean loss of a unigram model on the probe set, nats; without, early is as far into
        training as the first observation of the reference study.
    n_resamples : draws for a U-shape; the most relabellings of runs that are tried.
    rng : for both; `default_rng(0)` if None.

    Returns
    -------
    Dataset
        By `hypothesis`, the claim in words: `estimate`, with `ci` over units of text and `run_ci`
        over runs, of what `contrast` says, in `scale` ("z", "r²" or "rho2 - 1"), and of its weakest
        part if it has several; `low` and `high`, what the claim allows; `favours`, whether
        estimates are as claimed; over units and, with `run_` before them, over runs: `p`,
        `smallest_p` (the smallest that could come out; 0 if there is no such bound), and corrected
        by Holm `p_holm` and `smallest_p_holm`; `verdict` and `reason`; `estimate_deleted (unit,
        hypothesis)`; and coordinates `family`, `claim_arms`, `n_runs`, and the labels of the places
        `early`, `lowest` and `end`, NaN where there is none.

    Raises
    ------
    ValueError
        Without a dense and an MoE run, or if runs compared have no place in common.
    """
    level = float(similarity.attrs["level"])
    dim, n_runs = pairs.place_dim(similarity), similarity.sizes["run"]
    z = z_matrix(similarity["pair_r2_inner"].transpose(dim, "pair").values, n_runs)
    draws = similarity["pair_r2_deleted"].transpose("unit", dim, "pair").values
    claims = study_claims(similarity, z, unigram=unigram)
    weigh = partial(
        evidence, z=z, deleted=z_matrix(draws, n_runs), arm=similarity["arm"].values.astype(str),
        level=level, n_resamples=n_resamples, rng=rng or np.random.default_rng(0),
    )  # fmt: skip
    result = claim_dataset(claims, [weigh(claim) for claim in claims], similarity)
    return _judged(_corrected(result))


def _corrected(result: xr.Dataset) -> xr.Dataset:
    """p-values corrected by Holm inside each family added."""
    family = result["family"].values
    for over in ("", "run_"):
        p, smallest = result[f"{over}p"].values, result[f"{over}smallest_p"].values
        corrected = np.full((2, len(p)), np.nan)
        for own in (family == name for name in dict.fromkeys(family)):
            corrected[0, own] = adjusted_p(p[own])
            corrected[1, own] = _smallest_adjusted(p[own], smallest[own])
        for name, values in zip((f"{over}p", f"{over}smallest_p"), corrected, strict=True):
            title = f"{result[name].attrs['long_name']}, corrected by Holm"
            result[f"{name}_holm"] = "hypothesis", values, labels(title)
    return result


def _smallest_adjusted(p: NDArray, smallest: NDArray) -> NDArray[np.float64]:
    """What Holm would make of the smallest p that tests can give, where there is one."""
    bounded = smallest > 0
    if not bounded.any():
        return smallest
    return np.where(bounded, adjusted_p(np.where(bounded, smallest, p)), smallest)


def _judged(result: xr.Dataset) -> xr.Dataset:
    """The verdicts added."""
    words = []
    for i, arms in enumerate(result["claim_arms"].values):
        counts = str(result["n_runs"].values[i]).split(" + ")
        few = [a for a, n in zip(arms.split(", "), counts, strict=True) if int(n) < FEWEST_RUNS]
        words.append(
            verdict(
                favours=bool(result["favours"].values[i]),
                p=float(result["p_holm"].values[i]),
                run_p=float(result["run_p_holm"].values[i]),
                run_smallest_p=float(result["run_smallest_p_holm"].values[i]),
                few=listed(few) if few else "",
                level=float(result.attrs["level"]),
            )
        )
    result["verdict"] = "hypothesis", [word for word, _ in words], labels("verdict")
    result["reason"] = "hypothesis", [reason for _, reason in words], labels("why")
    return result


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    observed = [run.name for run in study.runs if len(run.committed)]
    loss, probe_set = study.dataset("losses")["loss"].sel(run=observed), study.probe_set.load()
    rng = np.random.default_rng(options.seed)
    similarity = similarity_of_losses(
        loss,
        unit_labels(probe_set, options.unit),
        match=options.match,
        progress=lambda description: partial(cli.track, description=description),
        dask=options.dask,
    )
    unigram = _unigram_loss(probe_set)
    result = significance(similarity, unigram=unigram, n_resamples=options.n_resamples, rng=rng)
    hashes = study.dataset("training")["stream_hash"].sel(run=observed)
    same_stream, stream = stream_sentence(hashes)
    return Report(
        analysis="significance",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=finding(result, similarity) + stream_doubt(same_stream, stream),
        tables=tuple(tables(result)),
        drawings=tuple(_drawings(result, similarity)),
        reading="A claim is supported where both intervals lie within what it says, also after the "
        "correction for the number of claims. The wide bar is what other text could have given "
        "with these models, the thin one what other seeds could have given on this text. Where the "
        "thin bar is missing, an arm has too few runs. p speaks for a claim if the estimate is as "
        "claimed, else against it; delta = 0 can only be spoken against, and rho2 within 1% of 1 "
        "is what speaks for it.",
        caveats=(stream, *caveats(result, similarity, unigram)),
        result=result.merge(_curves(similarity)),
        command=options.command,
        provenance=options.provenance,
    )


def plot(result: xr.Dataset) -> "Figure":
    """The claims of the reference study, each beside its estimate, and the verdict."""
    return draw_claims(result.isel(hypothesis=np.flatnonzero(result["family"] != OTHER)))


def _drawings(result: xr.Dataset, similarity: xr.Dataset) -> Iterator[Drawing]:
    unit = result["unit"].attrs["long_name"]
    caption = (
        "The shaded part of a row, or the line at 0, is what the claim says; of a claim of several "
        f"parts the weakest is shown. Wide bars are 95% intervals over {unit}s, thin ones over "
        "runs; those of a U-shape allow for the search for its place."
    )
    claims = result[["estimate", "ci", "run_ci", "low", "high", "verdict"]]
    yield Drawing(
        name="claims",
        title="What is claimed, and what these runs say",
        caption=caption,
        figure=plot(result),
        data={"claims": claims.drop_vars(["unit", "n_tokens"], errors="ignore")},
    )
    yield Drawing(
        name="curves",
        title="The curves that the claims are about",
        caption="Above, r² within and between dense and one arm of MoE, on an axis even in "
        "Fisher's z; below, rho2, the same corrected for noise of single runs, from early on; "
        "shaded is 1 ± 0.01. Dotted lines are the places that claims speak of; lowest is that of "
        f"dense-dense. Bands are 95% intervals over {unit}s, bars over runs.",
        figure=draw_curves(result, similarity),
        data={"curves": _curves(similarity).drop_dims(["contrast", "run"], errors="ignore")},
    )
    others = result.isel(hypothesis=np.flatnonzero(result["family"] == OTHER))
    yield Drawing(
        name="other_readings",
        title="Other readings of the claims",
        caption=caption,
        figure=draw_claims(others),
        data={"other_readings": claims.sel(hypothesis=others["hypothesis"])},
    )


def _unigram_loss(probe_set: xr.Dataset) -> float | None:
    """Mean 1-gram surprisal of the probe set, nats; None where it is not known."""
    if "ngram_surprisal" not in probe_set or 1 not in probe_set["order"]:
        return None
    return float(probe_set["ngram_surprisal"].sel(order=1).mean(dtype=np.float64))


def _curves(similarity: xr.Dataset) -> xr.Dataset:
    """What the figure of curves shows."""
    names = [f"{x}{suffix}" for x in ("arms_r2", "rho2") for suffix in ("", "_ci", "_run_ci")]
    return similarity[[*names, "loss_mean"]]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"random", "unit", "match", "dask"})
    return cli.run(cli.Analysis("significance", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
