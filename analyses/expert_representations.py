r"""What do the experts of a layer have in common, beyond reading the same tokens?

Every expert of a layer is run on what the layer reads at the same tokens, whatever its router
chose; E_it is the output of expert i at token t, before any gate. Two experts have in common

    CKA      whether they find the same pairs of tokens alike [1]_, whatever direction they write
             in: T(X, Y) / sqrt(T(X, X) T(Y, Y)), T summed over batches with one token of a unit of
             text each [2]_; outputs are first scaled to unit length, and raw beside it
    cosine   of E_it - m_i and E_jt - m_j at the same token, m_i = mean_t E_it: whether they write
             in the same direction

both averaged over the pairs of experts of a layer; cosines were looked at in large models, too
[6]_. CKA is shown over all tokens, and over those
that chose one or the other. Copies of one expert have 1 and 1; a rotated copy has CKA 1 and a
cosine about 0. Random experts have a large CKA too, since they read the same: step 0 says how
large.

How many directions the outputs of one expert take is the participation ratio (sum l)² / sum l² of
the eigenvalues l of their covariance [3]_, and the effective rank exp(-sum p log p) with p the
singular values, divided by their sum [4]_. Both are too low with few tokens, and alike for all
experts and for the MLP of a dense model, which are measured on the same tokens.

Does an expert give another output at the tokens routed to it? Two ratios of norms, geometric means
over tokens: at its own tokens over all others; and the same after dividing by the norm of the other
experts at the same token, so that tokens at which every expert gives much do not count.

Baselines: step 0, units of text exchanged between two experts, and the MLPs of dense runs at the
same depth, if these recorded `mlp_out`, or the residual stream on both sides of it. CKA of an
expert with such an MLP stands beside that of the MLPs of two dense seeds. Dense runs need nothing
but what training records.

Two intervals, never pooled. Over units of text (works, or documents): one is deleted at a time
[5]_; CKA and cosine on Fisher's z, ranks and norms on the logarithm. Over runs: one run of an arm
is deleted at a time, and of CKA with dense MLPs also one dense run. Layers are averaged last.

    python -m models.expert_outputs studies/quick/switch-seed0.zarr --steps all
    python -m analyses.expert_representations studies/quick

References
----------
.. [1] Kornblith et al. (2019), arXiv:1905.00414 (CKA).
.. [2] Nguyen, Raghu and Kornblith (2021), arXiv:2010.15327 (unbiased HSIC summed over batches).
.. [3] Gao et al. (2017), doi:10.1101/214262 (participation ratio).
.. [4] Roy and Vetterli (2007), https://ieeexplore.ieee.org/document/7098875 (effective rank).
.. [5] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [6] Lo et al. (2024), arXiv:2406.18219 (similarity of the experts of trained models).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.units import token_units, unit_labels
from analyses.comparison.walk import Progress
from analyses.reporting import cli
from analyses.reporting.cohort import works_sentence
from analyses.reporting.expert_output_figures import plot_common, plot_experts, plot_sizes
from analyses.reporting.expert_output_tables import caveats, finding, tables
from analyses.reporting.layer_panels import shown_layers
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import labels, listed
from analyses.representation.expert_outputs import compared, dealt
from analyses.representation.recorded_outputs import recorded_outputs
from store.study import Study


def expert_representations(
    outputs: Mapping[str, xr.DataArray],
    chosen: Mapping[str, xr.DataArray],
    unit: xr.DataArray,
    *,
    dense: Mapping[str, xr.Dataset] | None = None,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator | None = None,
) -> xr.Dataset:
    """Similarity, ranks and norms of the outputs of all experts, at every step and layer.

    The outputs of one run at one step and layer are held at a time.

    Parameters
    ----------
    outputs : for each MoE run DataArray (step, layer, expert, sequence, pos, d_model), with the
        scalar coordinate `arm`; sequences and positions are the same in all (`recorded_outputs`).
    chosen : for each of them DataArray (step, layer, sequence, pos, top_k) of chosen experts.
    unit : DataArray (sequence), name of each of these sequences' unit of text (`unit_labels`).
    dense : for each dense run a Dataset with `mlp_out (step, layer, sequence, pos, d_model)`, or
        `resid_mid` and `resid_post`, at the same places.
    level : coverage of the intervals.
    progress : wraps the list of steps and layers, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : deals tokens into batches, and exchanges units; `default_rng(0)` if None.

    Returns
    -------
    Dataset
        For each measure x of `representation.expert_outputs.MEASURES`: `run_x (step, layer, run)`
        with `_ci` over units; the mean over the runs of an arm, `arm_x (each_arm, step, layer)`,
        with `_ci` and `_run_ci` over runs; averaged over layers, `run_x_mean` and `arm_x_mean`.
        Dense runs have ranks, norms and `cka_dense` alone: CKA with the MLPs of (other) dense runs,
        by run and arm as the others are. `cka_chance`, `cosine_chance` and `cka_dense_chance (run,
        step, layer)`, with units exchanged; `cka_of_experts (run, step, layer, expert,
        other_expert)`. What was not measured is NaN. Attributes `level`, `n_tokens`, `n_batches`,
        `largest_batch`.

    Raises
    ------
    ValueError
        With fewer than four units of text.
    """
    rng, dense = rng or np.random.default_rng(0), dense or {}
    some = next(iter(outputs.values()))
    names, of_token = token_units(unit, n_pos=some.sizes["pos"])
    tokens = dealt(of_token, rng)
    step = np.unique(np.concatenate([x["step"].values for x in outputs.values()]))
    runs = _labelled([*dense.values(), *outputs.values()], [*dense, *outputs])
    result = compared(
        outputs, chosen, dense, tokens, runs,
        step=step, layer=some["layer"].values, level=level, progress=progress, dask=dask,
    )  # fmt: skip
    return result.assign_coords(
        unit=("unit", names, {"long_name": str(unit.attrs.get("unit", "unit"))}),
        n_tokens=("unit", np.bincount(of_token), labels("tokens in the unit")),
        n_features=("run", [x.sizes["d_model"] for x in [*dense.values(), *outputs.values()]]),
    ).assign_attrs(
        level=level, n_tokens=len(of_token), n_batches=len(tokens.batches),
        largest_batch=max(map(len, tokens.batches)),
        n_experts=max(x.sizes["expert"] for x in outputs.values()),
        top_k=max(x.sizes["top_k"] for x in chosen.values()),
    )  # fmt: skip


def _labelled(data: Sequence[xr.DataArray | xr.Dataset], names: list[str]) -> xr.Dataset:
    """`arm`, and `router` where all have one, on `run`."""
    shared = [n for n in ("arm", "router") if all(n in of_run.coords for of_run in data)]
    coords = {n: ("run", [str(of_run[n].item()) for of_run in data]) for n in shared}
    return xr.Dataset(coords={"run": names} | coords)


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    found, probe_set = recorded_outputs(study), study.probe_set.load()
    sequences = next(iter(found.experts.values()))["sequence"].values
    result = expert_representations(
        found.experts,
        found.chosen,
        unit_labels(probe_set, options.unit).isel(sequence=sequences),
        dense=found.dense,
        progress=partial(cli.track, description="steps and layers"),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    return Report(
        analysis="expert_representations",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=finding(result),
        tables=tuple(tables(result)),
        drawings=tuple(_drawings(result)),
        reading="Compare CKA with its value at step 0, not with 0: random experts of one layer are "
        "alike, since they read the same tokens. Compare the cosine with 0. CKA that stays high "
        "while the cosine is near 0 means that experts tell tokens apart in the same way and write "
        "it in different directions. Where both rise, experts do more and more the same; where "
        "CKA falls below step 0, they came to attend to different things. Compare CKA with a dense "
        "MLP with that of two dense seeds: an expert that does what a dense MLP does comes as near "
        "as another seed does.",
        caveats=(*caveats(result, found), *filter(None, [works_sentence(probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


def _intervals(*names: str) -> list[str]:
    return [f"arm_{name}{suffix}" for name in names for suffix in ("", "_ci", "_run_ci")]


def _drawings(result: xr.Dataset) -> Iterator[Drawing]:
    unit, layers = result["unit"].attrs["long_name"], listed(shown_layers(result))
    bands = f"Bands are intervals over {unit}s, dotted lines the ends of those over runs."
    common = ("cka", "cka_either", "cka_dense", "cosine")
    yield Drawing(
        name="experts_in_common",
        title="What two experts of a layer have in common",
        caption="Means over pairs of experts and the runs of an arm. Top: CKA over all tokens, "
        "dashed over the tokens that chose either expert, dash-dotted with the MLP of a dense run, "
        "of dense runs with that of another seed. "
        f"Below: cosine at the same token. Grey: units of text exchanged. {bands} Layers {layers}.",
        figure=plot_common(result),
        data={
            "experts_in_common": result[_intervals(*common)],
            "experts_in_common_chance": result[["cka_chance", "cosine_chance", "cka_dense_chance"]],
        },
    )
    yield Drawing(
        name="expert_ranks_and_norms",
        title="How many directions the outputs take, how long they are, and where",
        caption="Geometric means over experts and the runs of an arm. Effective rank (solid) and "
        "participation ratio (dashed); root mean square norm; norm at the tokens that chose the "
        "expert over its norm at others, beyond what other experts do there (solid), and as it is "
        f"(dashed), 1 if routes had nothing to do with it. {bands} Layers {layers}.",
        figure=plot_sizes(result),
        data={
            "expert_ranks_and_norms": result[
                _intervals("effective_rank", "participation", "norm", "own_contrast", "own_ratio")
            ]
        },
    )
    yield Drawing(
        name="experts_by_pair",
        title=f"CKA of every two experts at step {int(result['step'][-1]):,}",
        caption="In percent, over all tokens; of each arm the first run. White is the mean over "
        f"pairs at step {int(result['step'][0]):,}. Expert numbers mean nothing between panels. "
        f"Layers {layers}.",
        figure=plot_experts(result),
        data={"experts_by_pair": result[["cka_of_experts"]].isel(step=-1)},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"unit", "dask"})
    return cli.run(cli.Analysis("expert_representations", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
