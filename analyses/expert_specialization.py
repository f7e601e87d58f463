"""What do experts specialize in: domains of text, or token ids, and more than chance would give?

Token t of layer l chooses a set of k of N experts; E is one of them at random, D the domain of the
token's document, V its id. For each MoE run, layer and step, in nats,

    I(D; E) = H(D) + H(E) - H(D, E)

says how much the choice tells about the domain, at most H(D); beside it stands the Miller-Madow
correction [2]_. Vocabulary specialization, that of [1]_ weighted by tokens, says how far the id
alone settles the choice,

    sum_x n_x max_i(n_xi / n_x) / sum_x n_x

with n_x the occurrences of id x and n_xi those that chose expert i, over ids that occur often
enough; it lies between k/N and 1. Load is the share of choices that an expert gets, and exp H(load)
the number of evenly used experts that would be as spread out.

Both are above their lower ends by chance alone, so each stands beside a null in which whole
documents change places: their domain labels for D, their runs of expert choices for V. Beyond
chance is the observed value minus the mean of the null, and p = (1 + #{null >= observed}) / (B + 1)
for B permutations [3]_. Intervals are delete-one-document jackknives of the observed value, the
mean of the null held fixed.

    python -m analyses.expert_specialization studies/quick

References
----------
.. [1] Muennighoff et al. (2024), OLMoE, arXiv:2409.02060.
.. [2] Paninski (2003), doi:10.1162/089976603321780272.
.. [3] Phipson and Smyth (2010), doi:10.2202/1544-6115.1585.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.reporting import cli, figures, heatmap
from analyses.reporting.chance import beyond_chance, draw_line
from analyses.reporting.cohort import runs_sentence, works_sentence
from analyses.reporting.report import Drawing, Report, Table, definition_of
from analyses.reporting.text import interval, labels, listed, number, p_value
from analyses.statistics import information, routing
from analyses.statistics.documents import ProbeText, probe_text
from analyses.statistics.permutation import adjusted_p, document_permutations
from analyses.statistics.resampling import jackknife, leave_one_out
from store.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

MEASURES = ("domain_information", "vocabulary_specialization")


# variables of one run, step and layer: inner dimension, label, unit
_OF_A_LAYER = {
    "load": ("expert", "load: share of choices", "1"),
    "effective_experts": (None, "effective experts", "1"),
    "effective_experts_deleted": ("document", "effective experts without a document", "1"),
    "domain_information": (None, "I(domain; expert)", "nat"),
    "domain_information_null": ("resample", "I(domain; expert), documents permuted", "nat"),
    "domain_information_deleted": ("document", "I(domain; expert) without a document", "nat"),
    "domain_information_miller_madow": (None, "I(domain; expert), Miller-Madow", "nat"),
    "vocabulary_specialization": (None, "vocabulary specialization", "1"),
    "vocabulary_specialization_null": ("resample", "the same, documents permuted", "1"),
    "vocabulary_specialization_deleted": ("document", "the same without a document", "1"),
}


def expert_specialization(
    expert_index: xr.DataArray,
    probe_set: xr.Dataset,
    *,
    min_count: int = 10,
    n_resamples: int = 500,
    level: float = 0.95,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Domain and vocabulary specialization of every MoE run, layer and step, with nulls and load.

    Steps are read one at a time. All runs, layers and steps share the same permutations.

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), with the coordinate
        `n_experts` on `run`; where any choice is -1, that run, step and layer was not observed.
    probe_set : Dataset with `token (sequence, pos)`, `document` and `domain (sequence)`.
    min_count : occurrences that a token id needs to be counted in vocabulary specialization.
    n_resamples : permutations of the documents in each null.
    level : coverage of intervals and of the bands of the nulls.
    progress : wraps the list of steps, to show how far the work is.
    rng : draws the permutations.

    Returns
    -------
    Dataset
        `load (run, step, layer, expert)` and `effective_experts (run, step, layer)`; for x in
        `domain_information` (nats) and `vocabulary_specialization`, each (run, step, layer): `x`,
        `x_null_mean`, `x_null_band (ci_bound)`, `x_adjusted` (beyond chance), `x_adjusted_ci
        (ci_bound)`, `x_p`, and the draws `x_null (resample)` and `x_deleted (document)`;
        `domain_information_miller_madow`; `domain_entropy`, H(D) in nats; and, at each run's
        last observed step `last_step (run)`, `domain_specialization (run, layer, expert, domain)`,
        the share of a domain's tokens that chose an expert, k/N where experts ignore it.

    Raises
    ------
    ValueError
        With fewer than two documents, a document of two domains, or no id that occurs often enough.
    """
    text = probe_text(
        probe_set["token"].transpose("sequence", "pos").values,
        probe_set["document"].values,
        probe_set["domain"].values,
        min_count=min_count,
    )
    permutations = document_permutations(len(text.documents), n_resamples=n_resamples, rng=rng)
    n_experts = expert_index["n_experts"].values.astype(int)
    sizes = {dim: expert_index.sizes[dim] for dim in ("run", "step", "layer")}
    sizes |= {"expert": n_experts.max(), "resample": n_resamples, "document": len(text.documents)}
    sizes["domain"] = len(text.domains)
    dims = {
        name: ("run", "step", "layer", *([inner] if inner else []))
        for name, (inner, *_) in _OF_A_LAYER.items()
    }
    dims["domain_specialization"] = ("run", "layer", "expert", "domain")
    arrays = {name: np.full([sizes[dim] for dim in dims[name]], np.nan) for name in dims}
    last = np.full(sizes["run"], -1)
    for i in progress(range(sizes["step"])):
        index = expert_index.isel(step=i).transpose("run", "layer", "sequence", "pos", "top_k")
        choices = index.values.reshape(sizes["run"], sizes["layer"], -1, index.sizes["top_k"])
        for run, layer in np.ndindex(choices.shape[:2]):
            if (choices[run, layer] < 0).any():
                continue
            n = int(n_experts[run])
            measured, shares = _measure(choices[run, layer], text, permutations, n_experts=n)
            for name, value in measured.items():
                arrays[name][(run, i, layer, *map(slice, np.shape(value)))] = value
            arrays["domain_specialization"][run, layer, :n] = shares
            last[run] = expert_index["step"].values[i]

    result = xr.Dataset(
        {name: (dims[name], values) for name, values in arrays.items()},
        {n: c.variable for n, c in expert_index.coords.items() if n in sizes or c.dims == ("run",)},
        {"level": level, "min_count": min_count},
    ).assign_coords(document=text.documents, domain=text.domains, ci_bound=["lower", "upper"])
    for name, (_, long_name, units) in _OF_A_LAYER.items():
        result[name].attrs = labels(long_name, units)
    result["domain_specialization"].attrs = labels("share of the domain's tokens")
    result["last_step"] = "run", last, labels("last observed step")
    uniform = expert_index.sizes["top_k"] / n_experts
    result["uniform_share"] = "run", uniform, labels("share if all experts were alike, k/N")
    n_domain_tokens = np.bincount(text.domain[text.document])
    result["domain_entropy"] = (), information.entropy(n_domain_tokens), labels("H(D)", "nat")
    result["n_tokens"] = "domain", n_domain_tokens, labels("tokens")
    result["n_frequent_tokens"] = (), (text.vocabulary >= 0).sum(), labels("tokens of frequent ids")
    result["n_frequent_ids"] = (), text.vocabulary.max() + 1, labels("frequent ids")
    deleted = result["effective_experts_deleted"].transpose("document", ...).values
    ci = jackknife(result["effective_experts"].values, deleted, level=level).ci
    result["effective_experts_ci"] = (*dims["effective_experts"], "ci_bound"), ci
    return result.merge(xr.merge([beyond_chance(result, name, level=level) for name in MEASURES]))


def _measure(
    choice: np.ndarray, text: ProbeText, permutations: np.ndarray, *, n_experts: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Everything measured on the choices (token, top_k) of one run, step and layer.

    Returns
    -------
    measured : the variables of `_OF_A_LAYER`.
    profile : (expert, domain), share of the domain's tokens that chose the expert.
    """
    top_k, n_domains = choice.shape[-1], len(text.domains)
    counts = routing.document_choices(choice, text.document, n_experts=n_experts)
    by_domain = routing.domain_table(counts, text.domain, n_domains=n_domains)
    by_id = routing.vocabulary_table(choice, text.vocabulary, n_experts=n_experts)
    exchanged = routing.exchanged_tables(
        choice, text.vocabulary, text.document, permutations, n_experts=n_experts
    )
    specialization = partial(routing.vocabulary_specialization, top_k=top_k)
    measured = {
        "load": routing.load(counts.sum(axis=0)),
        "effective_experts": routing.effective_experts(counts.sum(axis=0)),
        "effective_experts_deleted": routing.effective_experts(leave_one_out(counts)),
        "domain_information": information.mutual_information(by_domain),
        "domain_information_miller_madow": information.miller_madow(by_domain),
        "domain_information_null": routing.domain_null(
            counts, text.domain, permutations, n_domains=n_domains
        ),
        "domain_information_deleted": routing.domain_deleted(
            counts, text.domain, n_domains=n_domains
        ),
        "vocabulary_specialization": specialization(by_id),
        "vocabulary_specialization_null": np.array([*map(specialization, exchanged)]),
        "vocabulary_specialization_deleted": routing.vocabulary_deleted(
            choice, text.vocabulary, text.document, by_id
        ),
    }
    return measured, routing.domain_profile(by_domain, top_k=top_k).T


def plot(result: xr.Dataset) -> "Figure":
    """Specialization and load over training: a column a layer, a line a run, beside the nulls."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown = _shown_layers(result)
    names = (*MEASURES, "effective_experts")
    with figures.style():
        figure = figures.new_figure(width=1.4 + 2.7 * len(shown), height=7.6)
        axes = figure.subplots(len(names), len(shown), sharex=True, sharey="row", squeeze=False)
        for name, row in zip(names, axes, strict=True):
            for layer, ax in zip(shown, row, strict=True):
                for run in range(result.sizes["run"]):
                    draw_line(ax, result.isel(run=run).sel(layer=layer), name)
                figures.step_axis(ax, result["step"].values.tolist())
                ax.label_outer()
            row[0].set_ylabel(figures.axis_label(result[name]))
        for layer, ax in zip(shown, axes[0], strict=True):
            figures.panel_title(ax, f"layer {layer}")
        figure.legend(
            handles=[
                *figures.arm_handles(dict.fromkeys(result["arm"].values.astype(str))),
                Line2D([], [], color=figures.NULL, ls="--", lw=1, label="mean of the null"),
                Patch(color=figures.NULL, alpha=0.25, lw=0, label="95% of the null"),
            ],
            loc="outside lower center",
            ncols=6,
        )
    return figure


def plot_profile(result: xr.Dataset) -> "Figure":
    """Which domains each expert takes at the last step: a row a run, a column a layer."""
    shown = _shown_layers(result)
    n_runs, n_experts, n_domains = (result.sizes[dim] for dim in ("run", "expert", "domain"))
    shares, uniform = result["domain_specialization"], float(result["uniform_share"].min())
    norm = heatmap.diverging_norm(shares.values, centre=uniform)
    cell = min(0.36, 15.0 / (len(shown) * (n_domains + 1)))
    numbered = cell > 0.25 and n_experts <= 24
    with figures.style():
        figure = figures.new_figure(
            width=1.5 + len(shown) * (0.6 + cell * (n_domains + 1)),
            height=1.6 + n_runs * (0.35 + min(0.24 * n_experts, 6.0)),
        )
        axes = figure.subplots(n_runs, len(shown), sharex=True, squeeze=False)
        for run, row in enumerate(axes):
            for layer, ax in zip(shown, row, strict=True):
                _profile(ax, result.isel(run=run).sel(layer=layer), norm, numbered=numbered)
            row[0].set_ylabel("expert")
        title = figures.axis_label(shares)
        heatmap.colorbar(figure, norm, centre=f"k/N = {uniform:.3g}", title=title)
    return figure


def _profile(ax: "Axes", at: xr.Dataset, norm: "TwoSlopeNorm", *, numbered: bool) -> None:
    """Experts by domains, after a column of all domains together, which is the load times k."""
    at = at.isel(expert=np.flatnonzero(at["domain_specialization"].notnull().all("domain")))
    top_k = at["uniform_share"] * at["n_experts"]
    load = (at["load"].sel(step=at["last_step"]) * top_k).values
    shares = at["domain_specialization"].transpose("expert", "domain").values
    order = np.lexsort([-shares.max(axis=1), shares.argmax(axis=1)])
    heatmap.draw_percent(
        ax,
        [load[order, None], shares[order]],
        norm,
        rows=[str(i) for i in at["expert"].values[order]],
        columns=["all", *at["domain"].values],
        numbered=numbered,
    )
    figures.panel_title(ax, f"layer {int(at['layer'])}", str(at["run"].item()))


def _shown_layers(result: xr.Dataset) -> list[int]:
    """At most six layers, evenly spaced from the first to the last."""
    layers = result["layer"].values
    chosen = np.linspace(0, len(layers) - 1, min(6, len(layers))).round().astype(int)
    return [int(layer) for layer in layers[chosen]]


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    result = expert_specialization(
        _expert_index(study),
        study.probe_set,
        n_resamples=options.n_resamples,
        progress=partial(cli.track, description="steps"),
        rng=np.random.default_rng(options.seed),
    )
    profiles = [
        Drawing(
            name=f"domain_profile_{i}",
            title=f"Domains that the experts take at the last step: {arm}",
            caption="Percent of a domain's tokens that chose the expert; in column all, of all "
            "tokens, which is the load. White is k/N, what every cell would be if experts ignored "
            "the text; a row of one colour is a busy or an idle expert, not a specialist. Experts "
            "are sorted by the domain they take most of, which makes a faint diagonal of noise "
            "too; their numbers mean nothing outside their run and layer.",
            figure=plot_profile(of_arm),
            data={f"domain_profile_{i}": of_arm[["domain_specialization"]]},
        )
        for i, (arm, of_arm) in enumerate(result.groupby("arm"), 1)
    ]
    curves = Drawing(
        name="specialization",
        title="Specialization and load over training",
        caption="A line is a run, its band the interval over documents; grey is what permuted "
        f"documents give ({options.n_resamples} permutations). "
        f"Shown are layers {listed(_shown_layers(result))}.",
        figure=plot(result),
        data={
            "specialization": result[_drawn(result)],
            "load": result[["load"]],
        },
    )
    return Report(
        analysis="expert_specialization",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(result),
        tables=(
            _measure_table(result, MEASURES[0], "I(domain; expert), nats (M-M: Miller-Madow)"),
            _measure_table(result, MEASURES[1], "Vocabulary specialization"),
            _load_table(result),
        ),
        drawings=(curves, *profiles),
        reading="A line above the grey band has more specialization than permuted documents give; "
        "how far above, not how high, is what experts learned. Information about the domain is "
        "bounded by the entropy of the domains, and includes what follows from token ids alone, "
        "as domains use different words. Effective experts near N mean even load.",
        caveats=(*_caveats(result), *filter(None, [works_sentence(study.probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance
        | {"permutations": f"{options.n_resamples}, seed {options.seed}"},
    )


def _drawn(result: xr.Dataset) -> list[str]:
    """Variables (run, step, layer), and their intervals."""
    shapes = [("run", "step", "layer"), ("run", "step", "layer", "ci_bound")]
    return [str(name) for name in result if result[name].dims in shapes]


def _expert_index(study: Study) -> xr.DataArray:
    """Choices of the runs that have experts and whose routing was observed."""
    moe = [run for run in study.runs if run.coordinates.get("architecture") == "moe"]
    observed = [run.name for run in moe if "routing" in run.groups and len(run.committed)]
    if not observed:
        raise ValueError(
            f"study {study.name!r} has no run with experts whose routing was observed "
            f"({len(study.runs)} runs, {len(moe)} of them MoE); train one, for instance a switch "
            "run of `python -m models.train quick`"
        )
    return study.dataset("routing")["expert_index"].sel(run=observed)


def _finding(result: xr.Dataset) -> str:
    parts = []
    for arm, of_arm in result.groupby("arm"):
        domain, vocabulary = (_arm_mean(of_arm, name) for name in MEASURES)
        share = domain[0] / float(result["domain_entropy"])
        parts.append(
            f"in {arm} runs, a choice of expert tells {number(domain[0])} nats (95% interval "
            f"{interval(*domain[1])}) about the domain beyond chance, {100 * share:.1f}% of its "
            f"entropy, and a frequent token's id settles {number(vocabulary[0])} "
            f"({interval(*vocabulary[1])}) more of the choices than chance would"
        )
    return (
        f"At the last step, averaged over layers and runs: {'; '.join(parts)}. Intervals are over "
        f"{result.sizes['document']} documents ({int(result['n_tokens'].sum()):,} tokens, "
        f"{result.sizes['domain']} domains). {runs_sentence(result['arm'].values)}"
    )


def _arm_mean(of_arm: xr.Dataset, name: str) -> tuple[float, np.ndarray]:
    """Mean beyond chance over the runs and layers of an arm at their last step, with interval."""
    at = of_arm.sel(step=of_arm["last_step"])
    null = at[f"{name}_null_mean"]
    estimate = (at[name] - null).mean(("run", "layer"))
    deleted = (at[f"{name}_deleted"] - null).mean(("run", "layer"))
    found = jackknife(estimate.values, deleted.values, level=of_arm.attrs["level"])
    return float(estimate), found.ci


def _rows(result: xr.Dataset) -> xr.Dataset:
    """Every run and layer at the run's last step, along `row`."""
    at = result.sel(step=result["last_step"]).stack(row=("run", "layer"))
    return at.dropna("row", subset=["effective_experts"])


def _measure_table(result: xr.Dataset, name: str, title: str) -> Table:
    """A measure beside chance; the p-values of a table are one family."""
    at = _rows(result)
    p, smallest = (
        adjusted_p(at[f"{name}_p"].values),
        at.sizes["row"] / (result.sizes["resample"] + 1),
    )
    corrected = at.get(f"{name}_miller_madow")
    rows = []
    for i, (run, layer) in enumerate(at["row"].values):
        row = at.isel(row=i)
        beyond = (
            f"{number(row[f'{name}_adjusted'])} ({interval(*row[f'{name}_adjusted_ci'].values)})"
        )
        cells = [number(row[name]), number(row[f"{name}_null_mean"]), beyond]
        cells += [p_value(p[i], smallest=min(1.0, smallest))]
        cells += [] if corrected is None else [number(corrected[i])]
        rows.append((run, str(layer), *cells))
    columns = ["run", "layer", "observed", "chance", "beyond (95% interval)", "p (Holm)"]
    columns += [] if corrected is None else ["M-M"]
    return Table(title, tuple(columns), tuple(rows))


def _load_table(result: xr.Dataset) -> Table:
    at = _rows(result)
    rows = []
    for i, (run, layer) in enumerate(at["row"].values):
        row = at.isel(row=i)
        load, ci = row["load"].dropna("expert"), row["effective_experts_ci"].values
        effective = f"{number(row['effective_experts'], digits=2)} ({interval(*ci, digits=2)})"
        least, most = number(load.min()), number(load.max())
        rows.append((run, str(layer), effective, least, most, str(int((load == 0).sum()))))
    columns = ("run", "layer", "effective experts", "least load", "most load", "unused")
    return Table("Load, at the last step", columns, tuple(rows))


def _caveats(result: xr.Dataset) -> Iterator[str]:
    routers = set(result["router"].values.astype(str))
    if "hash" in routers:
        yield (
            "A hash router is a fixed random map from token id to expert: nothing was learned. "
            "Its vocabulary specialization is 1 by construction, and what it tells about the "
            "domain is what the words of a domain tell. It is the yardstick for a routing that is "
            "nothing but a token lookup."
        )
    if "ungated" in routers:
        yield (
            "In ungated runs the expert's output is not scaled by the router's probability, so "
            "the language-model loss never reaches the router: only the balancing loss trained "
            "its choices. Specialization there is not something the model chose because it helps."
        )
    yield (
        "The intervals say how far as many other documents would have moved the value, with these "
        "very checkpoints; they are wide rather than narrow (nominal 95% covered 96 to 100% in "
        "simulations with 30 and 80 documents), and leave out other seeds. Near chance, trust p."
    )
    yield (
        "Taking away the mean of the null corrects too much where specialization is strong (by up "
        "to 8% in simulations), Miller-Madow (M-M) too little, as tokens of a document depend on "
        "each other: the information itself lies between the two."
    )
    yield (
        f"Vocabulary specialization counts input token ids that occur at least "
        f"{result.attrs['min_count']} times: {int(result['n_frequent_ids']):,} ids, "
        f"{100 * float(result['n_frequent_tokens'] / result['n_tokens'].sum()):.0f}% of the tokens."
    )
    yield "Information about the domain is not yet separated from what token ids alone tell."
    if (small := int(result["n_tokens"].min())) < 1000:
        yield f"The smallest domain has {small} tokens; its column of the profile is noisy."
    missing = result["effective_experts"].isnull().any("layer").sum("step")
    for run, n in zip(result["run"].values, missing.values, strict=True):
        if n:
            yield f"{run} was not observed at {n} of {result.sizes['step']} steps."


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    analysis = cli.Analysis(
        "expert_specialization", str(__doc__), report, uses=frozenset({"random"})
    )
    return cli.run(analysis, argv)


if __name__ == "__main__":
    raise SystemExit(main())
