"""Do models that saw the same tokens in the same order find the same tokens hard?

With l_i(t) the loss of run i on token t of the probe set, at one training step, the similarity of
runs i and j is the share of variance that a straight line between their losses explains [1]_,

    r²_ij = corr_t(l_i(t), l_j(t))²

for every pair of runs at every step that both observed. Pairs are of three kinds: dense-dense,
dense-MoE and MoE-MoE. The value of a kind is tanh(mean of artanh r_ij)² over its pairs, at steps
that all its runs observed; likewise for each pair of arms.

Intervals say what other documents would have given with the same trained models: one document is
deleted at a time, on Fisher's z = artanh r [2]_, with Student's t of D - 1 degrees of freedom for D
documents [3]_. Tokens of one document depend on each other and never count as if they did not.

    python -m analyses.r2_over_time studies/quick

References
----------
.. [1] 1a3orn (2024), "MoE and Dense Transformers Maybe Learn the Same Thing".
.. [2] Fisher (1921), "On the 'probable error' of a coefficient of correlation", Metron 1, 3-32.
.. [3] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.reporting import cli, figures
from analyses.reporting.cohort import runs_sentence, stream_sentence, works_sentence
from analyses.reporting.report import Drawing, Report, Table, definition_of
from analyses.reporting.text import interval, labels, listed, number
from analyses.statistics.correlation import document_moments, fisher_z, pearson_r, r2_interval
from analyses.statistics.pairs import KINDS, mean_by_label, pair_indices, pair_kinds
from analyses.statistics.resampling import jackknife, leave_one_out
from store.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAIR = "{} \N{MULTIPLICATION SIGN} {}"


def r2_over_time(
    loss: xr.DataArray,
    document: xr.DataArray,
    *,
    level: float = 0.95,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> xr.Dataset:
    """r² of per-token losses for every pair of runs, kind of pair and pair of arms at every step.

    Steps are read one at a time: a study may be larger than memory.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats, with coordinates `arm` and `architecture`
        ("dense" or "moe") on `run`. A run whose losses at a step are not all finite counts as not
        observed there.
    document : DataArray (sequence), name of each sequence's document.
    level : coverage of the intervals.
    progress : wraps the list of steps, to show how far the work is.

    Returns
    -------
    Dataset
        `loss_mean (run, step)`, and for x in `pair`, `kind`, `arms`: `x_r2 (x, step)` in [0, 1],
        `x_r2_ci (x, step, ci_bound)`, `x_fisher_z (x, step)`, `x_n_pairs (x)` and
        `x_fisher_z_deleted (document, x, step)`, the z without each document, from which any other
        interval or contrast can be made. Runs are sorted: dense first, then by arm and name.

    Raises
    ------
    ValueError
        With fewer than two runs or two documents, or without the coordinates.
    """
    loss = _sorted_by_arm(loss)
    # zarr's text, as plain xarray reads it, turns into numpy's by way of objects only
    names = document.values.astype(object).astype(str)
    documents, sequence_document = np.unique(names, return_inverse=True)
    token_document = np.repeat(sequence_document, loss.sizes["pos"])
    first, second = pair_indices(loss.sizes["run"])
    loss_mean = np.full((loss.sizes["run"], loss.sizes["step"]), np.nan)
    z = np.full((len(first), loss.sizes["step"]), np.nan)
    z_deleted = np.full((len(documents), *z.shape), np.nan)
    for i in progress(range(loss.sizes["step"])):
        values = loss.isel(step=i).transpose("run", "sequence", "pos").values
        values = values.reshape(len(values), -1)
        finite = np.isfinite(values).all(axis=-1)
        loss_mean[finite, i] = values[finite].mean(axis=-1, dtype=np.float64)
        moments = document_moments(values, token_document)
        z[:, i] = fisher_z(pearson_r(moments.sum(axis=0)))[first, second]
        z_deleted[:, :, i] = fisher_z(pearson_r(leave_one_out(moments)))[:, first, second]

    pairs = _pairs(loss)
    result = xr.Dataset(
        {"loss_mean": (("run", "step"), loss_mean, labels("mean loss", "nat"))},
        {name: c.variable for name, c in loss.coords.items() if c.dims in (("run",), ("step",))},
        {"level": level},
    )
    result = result.assign_coords(pairs.coords).assign_coords(
        document=("document", documents, labels("document")),
        n_tokens=("document", np.bincount(token_document), labels("tokens in the document")),
        ci_bound=["lower", "upper"],
    )
    for dim in ("pair", "kind", "arms"):
        label = pairs["pair" if dim == "pair" else f"pair_{dim}"].values
        result = result.merge(_similarity(dim, label, z, z_deleted, level=level))
    return result


def _sorted_by_arm(loss: xr.DataArray) -> xr.DataArray:
    for name in ("arm", "architecture"):
        if name not in loss.coords:
            raise ValueError(
                f"the losses have no coordinate {name!r} on run; read them with "
                'Study.open(...).dataset("losses")["loss"]'
            )
    runs = loss["run"].values.astype(str)
    if len(runs) < 2:
        raise ValueError(
            f"r² compares runs, and {listed(runs) if len(runs) else 'none'} was observed; give a "
            "study, or runs, of at least 2 observed models"
        )
    is_moe = loss["architecture"].values != "dense"
    return loss.isel(run=np.lexsort([runs, loss["arm"].values.astype(str), is_moe]))


def _pairs(loss: xr.DataArray) -> xr.Dataset:
    """Coordinates on `pair`: its two runs, their arms, and what kind of pair they make."""
    run, arm = loss["run"].values.astype(str), loss["arm"].values.astype(str)
    first, second = pair_indices(len(run))

    def joined(names: np.ndarray) -> list[str]:
        return [_PAIR.format(a, b) for a, b in zip(names[first], names[second], strict=True)]

    return xr.Dataset(
        coords={
            "pair": joined(run),
            "arm_a": ("pair", arm[first]),
            "arm_b": ("pair", arm[second]),
            "pair_kind": ("pair", pair_kinds(loss["architecture"].values != "dense")),
            "pair_arms": ("pair", joined(arm)),
        }
    )


def _similarity(
    dim: str, label: np.ndarray, z: np.ndarray, z_deleted: np.ndarray, *, level: float
) -> xr.Dataset:
    """r² with its interval from the mean z of the pairs that share a label.

    Parameters
    ----------
    label : (pair), what the pairs are grouped by.
    z : (pair, step)
    z_deleted : (document, pair, step)
    """
    names, mean = mean_by_label(z, label, axis=0)
    _, deleted = mean_by_label(z_deleted, label, axis=1)
    r2_ci = r2_interval(jackknife(mean, deleted, level=level).ci)
    draws = labels("Fisher z of r without one document")
    return xr.Dataset(
        {
            f"{dim}_r2": ((dim, "step"), np.tanh(mean) ** 2, labels("r² of per-token losses")),
            f"{dim}_r2_ci": ((dim, "step", "ci_bound"), r2_ci, labels("interval of r²")),
            f"{dim}_fisher_z": ((dim, "step"), mean, labels("Fisher z of r")),
            f"{dim}_fisher_z_deleted": (("document", dim, "step"), deleted, draws),
            f"{dim}_n_pairs": (dim, [int((label == name).sum()) for name in names]),
        },
        {dim: names},
    )


def plot(result: xr.Dataset) -> "Figure":
    """One panel a kind of pair: each pair a thin line, its dots in the colours of its two arms."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = result["kind"].values
    with figures.style():
        figure = figures.new_figure(width=1.0 + 2.9 * len(kinds), height=3.7)
        axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for ax, kind in zip(axes, kinds, strict=True):
            _panel(ax, result, str(kind))
        axes[0].set_ylabel(figures.axis_label(result["kind_r2"]))
        figure.legend(
            handles=[
                *figures.arm_handles(dict.fromkeys(result["arm"].values.astype(str))),
                Line2D([], [], color=figures.INK, lw=1.2, label="mean of the kind"),
                Patch(color=figures.INK, alpha=0.15, lw=0, label="95% interval over documents"),
            ],
            loc="outside lower center",
            ncols=7,
        )
    return figure


def _panel(ax: "Axes", result: xr.Dataset, kind: str) -> None:
    pairs = result[["pair_r2"]].isel(pair=np.flatnonzero(result["pair_kind"] == kind))
    n_pairs = pairs.sizes["pair"]
    for i in range(n_pairs):
        pair = pairs.isel(pair=i).dropna("step", subset=["pair_r2"])
        a, b = (figures.arm_color(str(pair[arm].item())) for arm in ("arm_a", "arm_b"))
        ax.plot(pair["step"], pair["pair_r2"], color="#B5B5B5", lw=0.6, zorder=2.0)
        ax.plot(
            pair["step"], pair["pair_r2"], ls="", marker="o", markeredgewidth=0, zorder=2.4,
            markersize=max(2.4, 4.8 / max(1, n_pairs / 8) ** 0.5), fillstyle="left",
            markerfacecolor=a, markerfacecoloralt=b,
        )  # fmt: skip
    mean = result[["kind_r2", "kind_r2_ci"]].sel(kind=kind).dropna("step", subset=["kind_r2"])
    low, high = mean["kind_r2_ci"].transpose("ci_bound", "step")
    ax.fill_between(mean["step"], low, high, color=figures.INK, alpha=0.15, lw=0)
    # many pairs would bury their mean, and a mean on top would bury few
    front = 2.6 if n_pairs > 12 else 2.2
    ax.plot(mean["step"], mean["kind_r2"], color="white", lw=2.6, zorder=front)
    ax.plot(mean["step"], mean["kind_r2"], color=figures.INK, lw=1.2, zorder=front)
    if mean.sizes["step"]:
        end = mean.isel(step=-1)
        figures.end_label(ax, float(end["step"]), float(end["kind_r2"]), number(end["kind_r2"]))
    figures.panel_title(ax, kind, f"{n_pairs} pair{'s' if n_pairs > 1 else ''}")
    figures.step_axis(ax, result["step"].values.tolist())


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figure and caveats."""
    observed = [run.name for run in study.runs if len(run.committed)]
    loss, probe_set = study.dataset("losses")["loss"].sel(run=observed), study.probe_set.load()
    result = r2_over_time(
        loss, probe_set["document"], progress=partial(cli.track, description="steps")
    )
    steps = _steps_with_values(result)
    last = int(steps[-1])
    hashes = study.dataset("training")["stream_hash"].sel(run=observed)
    same_stream, stream = stream_sentence(hashes)
    shown = steps[np.unique(np.linspace(0, len(steps) - 1, 4).round().astype(int))]
    return Report(
        analysis="r2_over_time",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(result.sel(step=last)) + ("" if same_stream else f" {stream}"),
        tables=(
            _similarity_table(result, "kind", steps=shown),
            _similarity_table(result, "arms", steps=steps[-1:]),
            _run_table(result.sel(step=last)),
        ),
        drawings=(
            Drawing(
                name="r2_over_time",
                title="r² of per-token losses over training, by kind of pair",
                caption="A dot is a pair of runs at an observed step, its halves in the colours "
                "of the two arms; the line is the mean of the kind, the band its interval over "
                "documents. Step 0 is initialization; the axis is linear to 1, then logarithmic.",
                figure=plot(result),
                data={
                    "r2_by_pair": result[["pair_r2", "pair_r2_ci"]],
                    "r2_by_kind": result[["kind_r2", "kind_r2_ci"]],
                },
            ),
        ),
        reading="Higher means that two models find the same tokens hard. What all models share, "
        "such as that rare words are hard, puts r² well above 0 for any two trained models, so "
        "compare panels at one step, not one panel with 0. Dots of one panel further apart than "
        "the band is wide differ by more than the choice of documents explains.",
        caveats=(
            stream,
            *_caveats(result, result.sel(step=last)),
            *_works_caveat(loss.sel(step=[last]), probe_set),
        ),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


def _steps_with_values(result: xr.Dataset) -> np.ndarray:
    """Steps at which as many kinds of pair have a value as at any step."""
    n_kinds = result["kind_r2"].notnull().sum("kind").values
    if not n_kinds.any():
        raise ValueError(
            "there is no step that all runs of a kind of pair observed with finite losses; wait "
            "until the runs got further, or give the paths of runs that have steps in common"
        )
    return result["step"].values[n_kinds == n_kinds.max()]


def _finding(at: xr.Dataset) -> str:
    r2 = [
        f"{number(at['kind_r2'][i])} ({interval(*at['kind_r2_ci'].values[i])}) for {kind}"
        for i, kind in enumerate(at["kind"].values)
    ]
    loss = at["loss_mean"].dropna("run")
    return (
        f"At step {int(at['step']):,}, r² of per-token losses is {listed(r2)} pairs, with 95% "
        f"intervals over {at.sizes['document']} documents ({int(at['n_tokens'].sum()):,} tokens). "
        f"The runs' mean losses then lie between {number(loss.min())} and {number(loss.max())} "
        f"nats. {runs_sentence(at['arm'].values)}"
    )


def _caveats(result: xr.Dataset, at: xr.Dataset) -> Iterator[str]:
    yield (
        "The intervals hold for other documents and these very checkpoints. They leave out how far "
        "another seed would have moved the values; for that, look at the spread of the dots. They "
        "hold step by step, not for a whole curve at once."
    )
    ceiling = ""
    if set(KINDS) == set(at["kind"].values):
        r2 = {kind: float(at["kind_r2"].sel(kind=kind)) for kind in KINDS}
        expected = (r2["dense-dense"] * r2["MoE-MoE"]) ** 0.5
        ceiling = f" Here that mean of r² is {number(expected)}, against {number(r2['dense-MoE'])}."
    yield (
        "If two models share nothing but how hard each token is, r between the kinds is the "
        "geometric mean sqrt(r_dd · r_mm) of r within them. So dense-MoE above MoE-MoE is what "
        "noisier MoE seeds alone would give, and no sign that the architectures agree." + ceiling
    )
    yield (
        "r² also moves because losses spread out as models learn, and because one run is ahead of "
        "another at the same step. A rise over training is not by itself growing agreement."
    )
    dense = np.unique(at["arm"].values[at["architecture"].values == "dense"])
    if len(dense) > 1:
        yield (
            f"The kind dense-dense mixes pairs that differ in seed with pairs that differ in size "
            f"({listed(dense)}); the table by arms keeps them apart."
        )
    for run, loss in result["loss_mean"].groupby("run"):
        if missing := int(loss.isnull().sum()):
            yield (
                f"{run} has no finite losses at {missing} of {loss.size} steps; its pairs have no "
                "value there, nor do the kinds and arms that they belong to."
            )


def _works_caveat(loss: xr.DataArray, probe_set: xr.Dataset) -> Iterator[str]:
    """What deleting works instead of documents makes of the intervals, at one step."""
    if (works := works_sentence(probe_set)) is None:
        return
    yield works
    if len(np.unique(probe_set["work"])) > 1:
        at = r2_over_time(loss, probe_set["work"]).isel(step=0)
        wider = [
            f"{interval(*ci)} for {kind}"
            for kind, ci in zip(at["kind"].values, at["kind_r2_ci"].values, strict=True)
        ]
        yield (
            f"With a work deleted at a time in place of a document, the intervals at step "
            f"{int(at['step']):,} are {listed(wider)}."
        )


def _similarity_table(result: xr.Dataset, dim: str, *, steps: Iterable[int]) -> Table:
    rows = []
    for name in result[dim].values:
        for step in map(int, steps):
            at = result.sel({dim: name, "step": step})
            r2, ci = number(at[f"{dim}_r2"]), interval(*at[f"{dim}_r2_ci"].values)
            rows.append((str(name), f"{step:,}", str(int(at[f"{dim}_n_pairs"])), r2, ci))
    title = {"kind": "By kind of pair", "arms": "By arms"}[dim]
    return Table(title, (dim, "step", "pairs", "r²", "95% interval"), tuple(rows))


def _run_table(at: xr.Dataset) -> Table:
    rows = tuple(
        (str(run), str(arm), number(loss, digits=4))
        for run, arm, loss in zip(*(at[x].values for x in ("run", "arm", "loss_mean")), strict=True)
    )
    return Table(f"Mean loss at step {int(at['step']):,}", ("run", "arm", "nats"), rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(cli.Analysis("r2_over_time", str(__doc__), report, random=False), argv)


if __name__ == "__main__":
    raise SystemExit(main())
