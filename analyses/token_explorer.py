r"""Which tokens do models find hard, where do they differ, and which expert takes each?

Curves hide the text [4]_. Beside its report this writes a page, explorer.html, that needs nothing
but a browser: the probe text, every token coloured by its loss, by the difference of two arms or
runs, or by the expert it went to, at any step that was observed.

The report tells how much of what one sees there is noise of seeds. Token by token, arms A and B
are held against each other over runs by Welch's t [1]_,

    t = (mean_A - mean_B) / sqrt(s_A²/n_A + s_B²/n_B)

with Satterthwaite's degrees of freedom [2]_. A token is beyond noise if the 95% interval leaves out
0. If seeds were all that sets A and B apart, some tokens would be beyond it all the same: 5%, or
less with very few runs. Beside each share stands this chance, simulated with normal losses of as
many runs; two halves of the seeds of one arm show it on real losses. The interval of the share is
over units of text (works, or documents), one deleted at a time [3]_.

    python -m analyses.token_explorer studies/quick

References
----------
.. [1] Welch (1947), doi:10.1093/biomet/34.1-2.28.
.. [2] Satterthwaite (1946), doi:10.2307/3002019.
.. [3] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [4] Tenney et al. (2020), arXiv:2008.05122 (reading a model's behaviour text by text).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.classes.arm_pairs import ArmPair, arm_pairs
from analyses.comparison.runs import run_coordinates, sorted_by_arm
from analyses.comparison.units import token_units, unit_labels
from analyses.comparison.walk import Progress
from analyses.reporting import cli, figures
from analyses.reporting.cohort import runs_sentence, works_sentence
from analyses.reporting.explorer.contents import contents, documents
from analyses.reporting.explorer.files import PAGE, explorer_files
from analyses.reporting.report import Drawing, Report, Table, definition_of
from analyses.reporting.text import interval, labels, listed, number
from analyses.routing.observed import observed_routing
from analyses.statistics.resampling import jackknife
from analyses.statistics.seed_noise import beyond_noise, chance_share
from store.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def token_explorer(
    loss: xr.DataArray,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    level: float = 0.95,
    progress: Progress = iter,
) -> xr.Dataset:
    """Share of tokens that two arms differ in beyond noise of seeds, and mean losses of documents.

    Steps are read one at a time: a study may be larger than memory.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats, with coordinates `arm` and `architecture`
        ("dense" or "moe") on `run`, sorted by `sorted_by_arm`.
    probe_set : Dataset with `document` (sequence).
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    level : coverage of the interval that 0 must lie outside of, and of that over units.
    progress : wraps the list of steps, to show how far the work is.

    Returns
    -------
    Dataset
        For each two arms of two runs or more, and two halves of the seeds of one arm:
        `beyond_share (step, arm_pair)` with `beyond_share_ci (ci_bound)` over units, and
        `difference`, of mean losses; NaN where not all of their runs were observed; and
        `chance_share (arm_pair)`, what noise alone gives.
        `document_mean (run, step, document)`, nats; and `high_loss (step)`, which 2% of all losses
        exceed.

    Raises
    ------
    ValueError
        With fewer than two units.
    """
    runs, found = run_coordinates(loss), documents(probe_set)
    loss = loss.transpose("run", "step", "sequence", "pos")
    several = len(set(runs["arm"].values.tolist())) > 1
    pairs = [pair for pair in (arm_pairs(runs) if several else ()) if pair.enough]
    names, of_token = token_units(unit, n_pos=loss.sizes["pos"])
    share, ci, difference, mean, high = [], [], [], [], []
    for step in progress(range(loss.sizes["step"])):
        values = loss.isel(step=step).values.astype(np.float64)
        tokens = values.reshape(len(values), -1)
        beyond = [_beyond(tokens, pair, of_token, level=level) for pair in pairs]
        share.append([at[0] for at in beyond])
        ci.append([at[1] for at in beyond])
        arms = [tokens[p.first].mean() - tokens[p.second].mean() for p in pairs]
        difference.append(arms)
        mean.append([values[:, s].mean(axis=(1, 2)) for s in found.sequences])
        known = tokens[np.isfinite(tokens)]
        high.append(np.quantile(known, 0.98) if known.size else np.nan)
    dims, shape = ("step", "arm_pair"), (loss.sizes["step"], len(pairs))
    result = xr.Dataset(
        {
            "beyond_share": (dims, np.reshape(share, shape), labels("tokens beyond noise")),
            "beyond_share_ci": (
                (*dims, "ci_bound"), np.reshape(ci, (*shape, 2)), labels("interval over units"),
            ),
            "difference": (
                dims, np.reshape(difference, shape), labels("difference of mean losses", "nat"),
            ),
            "chance_share": (
                "arm_pair",
                [chance_share(len(p.first), len(p.second), level=level) for p in pairs],
                labels("tokens beyond noise by chance"),
            ),
            "document_mean": (
                ("run", "step", "document"), np.array(mean).transpose(2, 0, 1),
                labels("mean loss of the document", "nat"),
            ),
            "high_loss": ("step", high, labels("loss that 2% of tokens exceed", "nat")),
        },
        {
            "step": loss["step"].values, "document": found.names, "ci_bound": ["lower", "upper"],
            "arm_pair": [pair.name for pair in pairs],
            "arm_a": ("arm_pair", [pair.arm_a for pair in pairs]),
            "arm_b": ("arm_pair", [pair.arm_b for pair in pairs]),
            "pair_kind": ("arm_pair", [pair.kind for pair in pairs]),
            "n_runs_a": ("arm_pair", [len(pair.first) for pair in pairs]),
            "n_runs_b": ("arm_pair", [len(pair.second) for pair in pairs]),
        },
    )  # fmt: skip
    counts = {"n_units": len(names), "n_tokens": len(of_token), "unit": unit.attrs["unit"]}
    return result.assign_coords(runs.coords).assign_attrs(level=level, **counts)


def _beyond(
    tokens: NDArray[np.float64], pair: ArmPair, of_token: NDArray[np.intp], *, level: float
) -> tuple[float, NDArray[np.float64]]:
    """Share of tokens beyond noise, with its interval over units of text."""
    if not np.isfinite(tokens[np.concatenate([pair.first, pair.second])]).all():
        return np.nan, np.full(2, np.nan)
    beyond = beyond_noise(tokens[pair.first], tokens[pair.second], level=level)
    n, own = np.bincount(of_token), np.bincount(of_token, weights=beyond)
    without = (own.sum() - own) / (n.sum() - n)
    return beyond.mean(), jackknife(beyond.mean(), without, level=level).ci


def plot(result: xr.Dataset) -> "Figure":
    """Share of tokens beyond noise over training: each arm against the first, and chance."""
    shown = result.sel(arm_pair=_shown(result))
    with figures.style():
        figure = figures.new_figure(width=6.4, height=3.4)
        ax = figure.subplots()
        for name in shown["arm_pair"].values:
            pair = shown.sel(arm_pair=name).dropna("step")
            is_null = pair["pair_kind"] == "same arm"
            color = figures.NULL if is_null else figures.arm_color(str(pair["arm_a"].values))
            ax.plot(pair["step"], pair["beyond_share"], color=color, label=figures.label(name))
            ax.fill_between(pair["step"], *pair["beyond_share_ci"].T, color=color, alpha=0.15, lw=0)
            ax.axhline(float(pair["chance_share"]), color=color, ls="--", lw=0.9)
        ax.plot([], [], color=figures.INK, ls="--", lw=0.9, label="chance")
        figures.step_axis(ax, result["step"].values)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("share of tokens beyond noise of seeds")
        figure.legend(loc="outside right upper")
    return figure


def _shown(result: xr.Dataset) -> list[str]:
    """Pairs with the arm that comes first, and two halves of one arm."""
    first = result["arm_b"].values[0]
    kept = (result["arm_b"] == first) | (result["pair_kind"] == "same arm")
    return [str(name) for name in result["arm_pair"].values[kept.values]]


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its page, table and figure."""
    given = [run.name for run in study.runs if len(run.committed)]
    loss = sorted_by_arm(study.dataset("losses")["loss"].sel(run=given))
    probe_set = study.probe_set.load()
    unit = unit_labels(probe_set, options.unit)
    progress = partial(cli.track, description="steps")
    result = token_explorer(loss, probe_set, unit, progress=progress)
    is_moe = (loss["architecture"].values != "dense").any()
    routing = observed_routing(study) if is_moe and _has_routing(study) else None
    page = contents(
        loss,
        None if routing is None else routing["expert_index"],
        probe_set,
        study=study.name,
        n_experts=0 if routing is None else routing.sizes["expert"],
        document_mean=result["document_mean"].values,
        loss_scale=_loss_scale(result, probe_set),
    )
    return Report(
        analysis="token_explorer",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(result),
        tables=tuple(_tables(result)),
        drawings=tuple(_drawings(result)),
        reading="Look for steps at which a line is clear of its chance, then open the page there: "
        "of the tokens that are underlined or overlined, only as many as chance gives are then "
        "luck of the seeds. Where a line lies at chance, the page shows noise. Press ? on the page "
        "for its keys; its address is a link to what is shown.",
        caveats=(*_caveats(result), *filter(None, [works_sentence(probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance,
        opens=PAGE,
        files=explorer_files(page),
    )


def _has_routing(study: Study) -> bool:
    return any("routing" in run.groups and len(run.committed) for run in study.runs)


def _loss_scale(result: xr.Dataset, probe_set: xr.Dataset) -> float:
    """Full colour at a whole number of nats: a uniform guess, or more where losses are higher."""
    ids = probe_set.sizes.get("d_vocab", int(probe_set["target"].max()) + 1)
    high = float(result["high_loss"].isel(step=-1).fillna(0))
    return float(np.ceil(max(np.log(max(ids, 2)), high)))


def _last(result: xr.Dataset) -> xr.Dataset:
    """The last step that every pair was observed at, else the last of all."""
    common = np.flatnonzero(result["beyond_share"].notnull().all("arm_pair"))
    return result.isel(step=common[-1] if len(common) else -1)


def _finding(result: xr.Dataset) -> str:
    if not result.sizes["arm_pair"]:
        return (
            "No two arms have two runs each, so what is noise of seeds is not known. The page "
            f"shows losses and differences as they are. {runs_sentence(result['arm'].values)}"
        )
    at, unit = _last(result), result.attrs["unit"]
    of_text = f"{result.attrs['n_units']} {unit}s ({result.attrs['n_tokens']:,} tokens)"
    shares = [
        f"{number(100 * pair['beyond_share'], digits=1)}% "
        f"({interval(*100 * pair['beyond_share_ci'].values, digits=1)}; chance "
        f"{number(100 * pair['chance_share'], digits=1)}) for {name}"
        for name in _shown(result)
        for pair in [at.sel(arm_pair=name)]
    ]
    return (
        f"At step {int(at['step']):,}, the share of tokens in which two arms differ beyond noise "
        f"of seeds is {listed(shares)}, with 95% intervals over {of_text}. "
        f"{runs_sentence(result['arm'].values)}"
    )


def _tables(result: xr.Dataset) -> Iterator[Table]:
    if not result.sizes["arm_pair"]:
        return
    at = _last(result)
    rows = []
    for name in at["arm_pair"].values:
        pair = at.sel(arm_pair=name)
        rows.append(
            (
                str(name),
                f"{int(pair['n_runs_a'])} and {int(pair['n_runs_b'])}",
                number(100 * pair["beyond_share"], digits=1),
                interval(*100 * pair["beyond_share_ci"].values, digits=1),
                number(100 * pair["chance_share"], digits=1),
                number(pair["difference"]),
            )
        )
    over = f"95% over {result.attrs['unit']}s"
    columns = (
        "arms", "runs", "tokens beyond noise (%)", over, "chance (%)", "difference of means (nat)",
    )  # fmt: skip
    yield Table(f"Tokens beyond noise of seeds at step {int(at['step']):,}", columns, tuple(rows))


def _drawings(result: xr.Dataset) -> Iterator[Drawing]:
    if not result.sizes["arm_pair"]:
        return
    yield Drawing(
        name="beyond_noise",
        title="Share of tokens in which two arms differ beyond noise of seeds",
        caption="Each arm against the first, in its colour; grey, where there is one, two halves "
        "of the seeds of one arm, which nothing but noise sets apart. Bands are 95% intervals over "
        f"{result.attrs['unit']}s. Dashed, in the same colour: the share that chance gives "
        "if losses of seeds are normal.",
        figure=plot(result),
        data={"beyond_noise": result[["beyond_share", "beyond_share_ci", "difference"]]},
    )


def _caveats(result: xr.Dataset) -> Iterator[str]:
    yield (
        "A token that leads a list of thousands leads it by luck in part: of those beyond noise, "
        "about as many as chance gives are noise, and no single one is certain. loss_differences "
        "tests classes of tokens, with correction for how many are looked at."
    )
    yield (
        f"The interval over {result.attrs['unit']}s holds for other text and these very runs. How "
        "the share would change with other seeds is not known: it is itself made of the spread "
        "between seeds, and it grows with the number of runs."
    )
    yield (
        "Losses on the page are rounded to 1/256 nat, so none is off by more than 0.002 nat; the "
        "numbers here are not rounded."
    )
    yield (
        "A token's loss belongs to its prediction from what stands before it; its expert is the "
        "one it went to when it was read itself."
    )
    arms, counts = np.unique(result["arm"].values, return_counts=True)
    single = arms[counts < 2]
    if len(single):
        yield f"With one run, an arm has no noise of seeds to be held against: {listed(single)}."


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(cli.Analysis("token_explorer", str(__doc__), report, frozenset({"unit"})), argv)


if __name__ == "__main__":
    raise SystemExit(main())
