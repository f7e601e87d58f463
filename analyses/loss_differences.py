r"""Where do two arms differ beyond what seeds differ by themselves?

With L_m(c) the mean loss of run m over the tokens of a class c, and L_m that over all tokens, the
arms A and B differ in class c by

    D(c) = mean_{m in A} L_m(c) - mean_{m in B} L_m(c),    relative: D(c) - D(all tokens)

in nats. An arm that is simply ahead differs in D; one that differs in kind, in D relative to all
tokens, which is what is tested: if experts help to memorize [6]_, it shows in some classes. Classes
are of the token to be predicted: its domain; its frequency in the training text; its position in
context; word-initial or continuation, digits, punctuation, white space; capitalised; whether its
bigram is repeated, that is, was seen earlier in the sequence, or is new; and, to tell copying from
knowing that a bigram is common, whether a 2-gram model of the training text gave a repeated one
less than 5% [1]_.

The difference is given in three units: nats; the spread between seeds of one arm, as Hedges' g
[2]_, which says how reliable it is; and the spread of losses between the tokens of the class, as
Cohen's d [3]_, which says how large. Two intervals, never pooled: over units of text (works, or
documents), one deleted at a time from the ratio of sums that a class mean is; and over runs,
Welch's t [4]_. The p-values are over runs, as the claim is about arms, and the classes of a pair of
arms are one family, in which the false discovery rate is held under any dependence [5]_. Beside p
stands that of exchanging the runs of the two arms, which is exact but with few runs cannot be
small.

The token ids with the most reliable difference are chosen on one half of the units, and their
difference is looked at in the other, where it has shrunk as far as it was luck of the text. Both
halves have the same runs, so the choice is repeated with runs exchanged: what is then left is luck
of the seeds.

    python -m analyses.loss_differences studies/quick
    python -m analyses.loss_differences studies/seeds --match loss

References
----------
.. [1] Arora et al. (2023), arXiv:2312.04927 (copying: repeated bigrams that are rare in training).
.. [2] Hedges (1981), doi:10.3102/10769986006002107.
.. [3] Cohen (1988), doi:10.4324/9780203771587.
.. [4] Welch (1947), doi:10.1093/biomet/34.1-2.28.
.. [5] Benjamini and Yekutieli (2001), doi:10.1214/aos/1013699998.
.. [6] Jelassi et al. (2025), arXiv:2410.19034 (experts help to memorize more than to reason).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.comparison.along import Match, along
from analyses.comparison.classes.arm_pairs import arm_pairs
from analyses.comparison.classes.class_differences import (
    class_differences,
    classified,
    labelled,
    losses_at,
    measured,
)
from analyses.comparison.classes.class_evidence import class_evidence
from analyses.comparison.classes.reliable_types import reliable_types
from analyses.comparison.runs import run_coordinates, sorted_by_arm
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress, mean_loss
from analyses.reporting import cli, difference_figures, difference_tables, difference_text
from analyses.reporting.cohort import stream_doubt, stream_sentence
from analyses.reporting.pairs import place_dim, place_text
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import listed
from analyses.statistics.token_classes import token_classes
from analyses.statistics.token_types import halves
from store.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE = 0.05


def loss_differences(
    loss: xr.DataArray,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    match: Match = "step",
    level: float = 0.95,
    n_resamples: int = 500,
    progress: Callable[[str], Progress] = lambda description: iter,
    dask: str | None = None,
    rng: np.random.Generator | None = None,
) -> xr.Dataset:
    """Difference of every two arms in every class of tokens, and the ids that differ most reliably.

    Places along training are read one at a time: a study may be larger than memory.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats, with coordinates `arm` and `architecture`
        ("dense" or "moe") on `run`. A run whose losses at a step are not all finite counts as not
        observed there; one that is never observed is left out.
    probe_set : Dataset, as for `token_classes`.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    match : "step" or "loss".
    level : coverage of the intervals.
    n_resamples : exchanges of runs, where there are too many to try them all.
    progress : from a description to what wraps a list of places, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : for the halves and the exchanges; `default_rng(0)` if None.

    Returns
    -------
    Dataset
        `loss_mean (run, step)`; along training what `class_differences` gives; at the last place
        that all runs observed, which is the coordinate `last`, the draws `difference_deleted` and
        `relative_deleted (unit, token_class, arm_pair)` and what `class_evidence` and
        `reliable_types` give.

    Raises
    ------
    ValueError
        With fewer than two arms or two units, without the coordinates, if no step was observed by
        all runs, or if losses are to be matched and the runs have none in common.
    """
    rng = rng or np.random.default_rng(0)
    loss = sorted_by_arm(loss)
    loss_mean = mean_loss(loss, progress=progress("mean losses"), dask=dask)
    observed = loss_mean.notnull().any("step").values
    loss, loss_mean = sorted_by_arm(loss[{"run": observed}]), loss_mean[{"run": observed}]
    runs = run_coordinates(loss)
    pairs, places = arm_pairs(runs), along(loss_mean, match)
    last = places.place.size - 1 if match == "loss" else _last_common_step(loss_mean)
    tokens = classified(token_classes(probe_set), unit)
    over_training = class_differences(
        loss, tokens, pairs, places, level=level, progress=progress("comparing arms"), dask=dask
    )
    values = losses_at(loss, places, last)
    draws = measured(values, tokens, pairs, level=level)[["difference_deleted", "relative_deleted"]]
    evidence = class_evidence(values, tokens, pairs, level=level, n_resamples=n_resamples, rng=rng)
    target = probe_set["target"].transpose("sequence", "pos").values
    domain = np.repeat(probe_set["domain"].values.astype(object).astype(str), target.shape[1])
    text = halves(target.ravel(), tokens.unit, domain, rng=rng)
    chosen = reliable_types(values, text, pairs, level=level, n_resamples=n_resamples, rng=rng)
    if "choice" in chosen.dims:
        texts = difference_tables.token_texts(chosen["chosen_id"].values.ravel(), probe_set)
        chosen["chosen_text"] = chosen["chosen_id"].copy(
            data=texts.reshape(chosen["chosen_id"].shape)
        )
    found = xr.merge([over_training, draws, evidence, chosen], compat="equals", join="exact")
    found = labelled(found.assign(loss_mean=loss_mean), tokens, pairs, runs)
    found["unit"].attrs["long_name"] = str(unit.attrs.get("unit", "unit"))
    return found.assign_coords(last=last).assign_attrs(level=level, match=match)


def _last_common_step(loss_mean: xr.DataArray) -> int:
    """Index of the last step that all runs observed with finite losses."""
    common = np.flatnonzero(loss_mean.notnull().all("run"))
    if not len(common):
        n_steps = loss_mean.notnull().sum("step")
        fewest = loss_mean["run"].values[n_steps == n_steps.min()]
        raise ValueError(
            "there is no step that all runs observed with finite losses; the fewest, "
            f"{int(n_steps.min())}, are of {listed(fewest)}: wait until the runs got further, or "
            "give the paths of runs that have steps in common"
        )
    return int(common[-1])


def plot(result: xr.Dataset) -> "Figure":
    """Every class at the last place: a panel a pair of arms, with both intervals."""
    at, shown = _at_last(result), difference_figures.shown_pairs(result)
    return difference_figures.plot_classes(at, shown, rate=RATE)


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    given = [run.name for run in study.runs if len(run.committed)]
    loss, probe_set = study.dataset("losses")["loss"].sel(run=given), study.probe_set.load()
    result = loss_differences(
        loss,
        probe_set,
        unit_labels(probe_set, options.unit),
        match=options.match,
        n_resamples=options.n_resamples,
        progress=lambda description: partial(cli.track, description=description),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    at, shown = _at_last(result), difference_figures.shown_pairs(result)
    same_stream, stream = stream_sentence(study.dataset("training")["stream_hash"].sel(run=given))
    found = difference_text.finding(at, shown, rate=RATE)
    return Report(
        analysis="loss_differences",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=found + stream_doubt(same_stream, stream),
        tables=tuple(difference_tables.tables(at, shown, probe_set, rate=RATE)),
        drawings=tuple(_drawings(result, at, shown)),
        reading="A class to the right of 0 costs the first arm more than its loss over all tokens "
        "would say, one to the left less. Believe a class whose bar over runs stays clear of 0 and "
        "whose dot is filled; the wide bar says how far other text would have moved it. The panel "
        "of one arm against itself shows what seeds do by chance. g says how reliable a difference "
        "is, not how large: where seeds agree, a tiny one has a large g. d says how large.",
        caveats=(stream, *difference_text.caveats(result, at, probe_set, given)),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


def _at_last(result: xr.Dataset) -> xr.Dataset:
    return result.isel({place_dim(result): int(result["last"])})


def _drawings(result: xr.Dataset, at: xr.Dataset, shown: Sequence[str]) -> Iterator[Drawing]:
    unit, where = result["unit"].attrs["long_name"], place_text(at)
    names = [f"relative{suffix}" for suffix in ("", "_ci", "_run_ci")]
    yield Drawing(
        name="loss_differences",
        title=f"Difference of two arms by class of tokens, less that of all tokens, at {where}",
        caption="To the right of 0 the arm that a panel names first does worse. Wide grey bars are "
        f"intervals over {unit}s, thin ones over runs; where an arrow stands, or grey reaches the "
        f"edge, they go on. Filled dots differ at a false discovery rate of {RATE:.0%} over the "
        "classes of a panel. In brackets: tokens of the class.",
        figure=plot(result),
        data={"loss_differences": at[[*names, "g", "g_ci", "d", "p", "p_adjusted"]]},
    )
    matched = "at equal mean loss" if result.attrs["match"] == "loss" else "over training"
    yield Drawing(
        name="differences_over_training",
        title=f"Difference of two arms, less that of all tokens, {matched}",
        caption="Bands are intervals over runs, where both arms have enough.",
        figure=difference_figures.plot_training(result, shown),
        data={"differences_over_training": result[names]},
    )
    if "choice" in result.dims:
        names = ["type_difference", "chosen_id", "chosen_difference"]
        yield Drawing(
            name="token_ids",
            title=f"Difference of two arms in frequent token ids, on two halves of the text, at "
            f"{where}",
            caption=f"A dot is a token id that is frequent in both halves of the {unit}s, its "
            "difference less that of all tokens; the named ones were chosen on the first half "
            "alone. On the dashed line nothing would be lost in other text.",
            figure=difference_figures.plot_types(at, shown),
            data={"token_ids": at[names[:1]], "chosen_ids": at[names[1:]]},
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"random", "unit", "match", "dask"})
    return cli.run(cli.Analysis("loss_differences", str(__doc__), report, uses=uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
