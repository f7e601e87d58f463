r"""Do experts share the work evenly, and how sure is the router of each token?

Of T tokens, each choosing k of N experts, n_i chose expert i, and f_i = n_i / (T k) is its load.
For each MoE run, layer and step, how even load is:

    fair index = (H(f) - ln k) / (ln N - ln k)        MaxVio = max_i N f_i - 1 [1]_

with H(f) = -sum_i f_i ln f_i. The fair index is 1 if all experts get as many tokens, 0 if k get
all. Beside them stand exp H(f), the effective number of experts, and the Gini coefficient of f. An
expert is dead if no token chose it, starved if its load is below 0.1 / N.

With r_t the router's distribution over the experts at token t, before the choice,

    H(mean_t r_t) = mean_t H(r_t) + I(token; expert) [2]_

in nats. Even use of experts is either indecision, if the router is unsure of each token (second
term), or division of labour, if it is sure of different experts at different tokens (third term,
the mean Kullback-Leibler divergence of r_t from the mean). The margin is the difference of the two
largest probabilities of r_t. H(f) counts choices, H(mean r) averages probabilities: they differ.

Is a router unsure where the model is? H(r_t) is correlated over tokens with the loss of the
prediction at the same place: Pearson's r, Spearman's rho, and Pearson's partial r with what makes a
token hard for any model held fixed: n-gram surprisal of orders 1 to 5, the target's frequency in
the training text, and its position, each with its square.

Load has a null: in every unit of text the experts exchange their names at random. Units stay as
concentrated as they are, but no expert is preferred by the text as a whole; p = (1 + #{null at
least as uneven}) / (B + 1) for B draws [3]_. If tokens were independent and routing even, H(f)
would lie (N - k) / (2 T k) below ln N [4]_. I(token; expert) needs no null: a router that does not
look at the token has exactly 0.

Two intervals, never pooled. Over units of text (works, or documents): one unit is deleted at a
time [5]_, correlations on Fisher's z. Over runs: one run of an arm is deleted at a time. Layers are
averaged last.

    python -m analyses.routing_entropy studies/quick

References
----------
.. [1] Wang et al. (2024), arXiv:2408.15664 (MaxVio).
.. [2] Lin (1991), doi:10.1109/18.61115 (entropy of a mixture, and Jensen-Shannon divergence).
.. [3] Phipson and Smyth (2010), doi:10.2202/1544-6115.1585.
.. [4] Paninski (2003), doi:10.1162/089976603321780272 (bias of estimated entropy).
.. [5] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.controls import Controls, difficulty
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress
from analyses.reporting import cli
from analyses.reporting.cohort import works_sentence
from analyses.reporting.entropy_figures import plot_decomposition, plot_load, plot_relation
from analyses.reporting.entropy_tables import tables
from analyses.reporting.entropy_text import caveats, finding, held_fixed
from analyses.reporting.layer_panels import shown_layers
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import labels, listed
from analyses.routing.load import load_and_entropy
from analyses.routing.observed import observed_routing
from analyses.statistics.load import even_entropy
from store.study import Study


def routing_entropy(
    routing: xr.Dataset,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    loss: xr.DataArray | None = None,
    level: float = 0.95,
    n_resamples: int = 500,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Load, uncertainty, and the relation of uncertainty to loss, of every MoE run.

    One layer of one run and step is read at a time.

    Parameters
    ----------
    routing : Dataset with `expert_index (run, step, layer, sequence, pos, top_k)` and `router_prob
        (run, step, layer, sequence, pos, expert)`, with the coordinate `arm` on `run`; where any
        choice is -1, that run, step and layer was not observed.
    probe_set : Dataset with `target (sequence, pos)`, and if known `ngram_surprisal (order,
        sequence, pos)` and `token_frequency (d_vocab)`.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    loss : DataArray (run, step, sequence, pos), nats, of at least the same runs and steps; without,
        the relation to the loss is left out.
    level : coverage of the intervals and of the bands of the null.
    n_resamples : draws of the null of load.
    progress : wraps the list of runs and steps, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : draws the null.

    Returns
    -------
    Dataset
        For each measure x of `routing.load.MEASURES`: `x (run, step, layer)` with `x_ci (ci_bound)`
        over units; the mean over the runs of an arm, `arm_x (each_arm, step, layer)`, with
        `arm_x_ci` and `arm_x_run_ci` over runs; and the same averaged over layers, `arm_x_mean`.
        For the fair index, MaxVio and Gini also `x_null (resample)`, `x_null_mean`, `x_null_band`
        and `x_p`. `load (expert)` and `load_ci`; `dead_experts`, `starved_experts` and
        `starved_experts_ci`; `entropy_limit`, ln N; `even_entropy`, mean load entropy of even
        routing of independent tokens. Attributes `level`, `top_k`, `controls`.

    Raises
    ------
    ValueError
        With fewer than two units of text, or without a resample.
    """
    controls = difficulty(probe_set)
    result = load_and_entropy(
        routing, unit, loss=loss, controls=controls, n_resamples=n_resamples, level=level,
        progress=progress, dask=dask, rng=rng,
    )  # fmt: skip
    n_experts, top_k = routing.sizes["expert"], routing.sizes["top_k"]
    n_tokens = routing.sizes["sequence"] * routing.sizes["pos"]
    even = even_entropy(n_tokens, n_experts=n_experts, top_k=top_k)
    result["entropy_limit"] = (), np.log(n_experts), labels("ln N", "nat")
    result["even_entropy"] = (), even, labels("load entropy of even routing", "nat")
    return result.assign_attrs(level=level, top_k=top_k, controls=_rungs(controls))


def _rungs(controls: Controls) -> str:
    return listed(name.removeprefix("+ ") for name in controls.rungs)


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    routing, probe_set = observed_routing(study), study.probe_set.load()
    result = routing_entropy(
        routing,
        probe_set,
        unit_labels(probe_set, options.unit),
        loss=study.dataset("losses")["loss"],
        n_resamples=options.n_resamples,
        progress=partial(cli.track, description="runs and steps"),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    return Report(
        analysis="routing_entropy",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=finding(result),
        tables=tuple(tables(result)),
        drawings=tuple(_drawings(result, options)),
        reading="Load is uneven beyond the accident of this text where a line leaves the grey "
        "band. In the figure of entropies the whole height is how evenly probability is spread "
        "over experts, and its upper part how much of that the router decides token by token: a "
        "thin upper part under the dashed line means a router that treats all tokens much alike. A "
        "correlation above 0 means that the router is unsure where the model's loss is high; what "
        "is left with difficulty held fixed is not explained by some tokens being hard for any "
        "model.",
        caveats=(*caveats(result, probe_set), *filter(None, [works_sentence(probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance
        | {"draws of the null": f"{options.n_resamples}, seed {options.seed}"},
    )


def _drawings(result: xr.Dataset, options: cli.Options) -> Iterator[Drawing]:
    unit = result["unit"].attrs["long_name"]
    layers = f"Shown are layers {listed(shown_layers(result))}."
    names = ["fair_index", "max_violation", "gini"]
    suffixes = ("", "_ci", "_null_mean", "_null_band", "_p")
    yield Drawing(
        name="load",
        title="How even load is, over training",
        caption=f"A line is a run, its band the interval over {unit}s. Grey is even routing of "
        f"this text: experts exchange names in each {unit} ({options.n_resamples} draws for each "
        f"run). {layers}",
        figure=plot_load(result),
        data={
            "load_balance": result[[f"{n}{s}" for n in names for s in suffixes]],
            "load": result[["load", "load_ci"]],
        },
    )
    names = ["router_entropy", "token_entropy", "token_information", "margin"]
    yield Drawing(
        name="entropy",
        title="Entropy of the router: indecision and division of labour",
        caption="Mean over the runs of an arm. The lower part is the entropy at a token, mean H(r);"
        " the upper part is I(token; expert); together they are the entropy of the mean "
        f"distribution. Dashed: ln N, the most there can be. Bars are 95% intervals over {unit}s "
        f"of both edges. {layers}",
        figure=plot_decomposition(result),
        data={
            "entropy": result[[f"{n}{s}" for n in names for s in ("", "_ci")]],
            "entropy_by_arm": result[[f"arm_{n}{s}" for n in names for s in _BY_ARM]],
        },
    )
    if "arm_entropy_loss_r" in result:
        names = ["entropy_loss_r", "entropy_loss_rho", "entropy_loss_partial_r"]
        yield Drawing(
            name="entropy_and_loss",
            title="Router entropy and loss of the same tokens",
            caption="Correlation over tokens of the router's entropy with the loss of the "
            "prediction at the same place; mean over the runs of an arm. Below, "
            f"{held_fixed(result)} are held fixed. An arm whose router has no entropy has no line. "
            f"{layers}",
            figure=plot_relation(result),
            data={"entropy_and_loss": result[[f"arm_{n}{s}" for n in names for s in _BY_ARM]]},
        )


_BY_ARM = ("", "_ci", "_run_ci")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"random", "unit", "dask"})
    return cli.run(cli.Analysis("routing_entropy", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
