"""Where a study has the outputs of all experts, and of dense MLPs at the same tokens."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from analyses.comparison.unanswerable import Unanswerable
from analyses.representation.recorded import unshared
from store.run import Run
from store.study import Study


class Outputs(NamedTuple):
    """Outputs, read lazily, all at the same sequences and positions.

    Attributes
    ----------
    experts : for each MoE run, by arm and name, (step, layer, expert, sequence, pos, d_model), with
        the run's labels (`arm`, ...) as scalar coordinates.
    chosen : for each of them (step, layer, sequence, pos, top_k).
    dense : for each dense run that recorded it, `mlp_out (step, layer, sequence, pos, d_model)`, or
        `resid_mid` and `resid_post`, whose difference it is.
    lacking : dense runs that did not, or elsewhere.
    subtracted : dense runs of which it is that difference.
    unshared : what some of the MoE runs have and others do not, in a sentence, if anything.
    """

    experts: dict[str, xr.DataArray]
    chosen: dict[str, xr.DataArray]
    dense: dict[str, xr.Dataset]
    lacking: tuple[str, ...]
    subtracted: tuple[str, ...]
    unshared: tuple[str, ...]


def recorded_outputs(study: Study) -> Outputs:
    """Outputs of the runs whose experts were all run, and of dense runs at the same places.

    Raises
    ------
    Unanswerable
        If there is no such run, or these share no sequence, position or layer.
    """
    runs = sorted(study.runs, key=lambda run: (str(run.coordinates.get("arm")), run.name))
    measured = [run for run in runs if "expert_outputs" in run.groups]
    measured = [run for run in measured if len(run.committed_in("expert_outputs"))]
    if not measured:
        moe = [run for run in runs if run.coordinates.get("architecture") == "moe"]
        example = moe[0].path if moe else "RUN"
        raise Unanswerable(
            f"the experts of study {study.name!r} were not all run on the same tokens yet "
            f"({len(moe)} of {len(runs)} runs have experts); run `python -m models.expert_outputs "
            f"{example} --steps all`, which needs the weights that `python -m models.train ... "
            "--keep-weights` keeps"
        )
    experts = {run.name: run.dataset("expert_outputs")["output"] for run in measured}
    common = {
        dim: np.array(
            sorted(set.intersection(*(set(x[dim].values.tolist()) for x in experts.values())))
        )
        for dim in ("layer", "sequence", "pos")
    }
    if empty := [dim for dim, values in common.items() if not len(values)]:
        raise Unanswerable(
            f"the experts of runs {', '.join(experts)} were run nowhere in common: no {empty[0]} "
            "is shared; give the paths of runs that were measured alike"
        )
    recorded = {
        what: [set(x[dim].values.tolist()) for x in experts.values()]
        for what, dim in (("layers", "layer"), ("sequences", "sequence"), ("positions", "pos"))
    }
    experts = {name: x.sel(common) for name, x in experts.items()}
    chosen = {run.name: run.dataset("routing")["expert_index"].sel(common) for run in measured}
    dense, lacking, subtracted = {}, [], []
    for run in runs:
        if run.coordinates.get("architecture") == "dense":
            found = _mlp_sites(run)
            if found is None or not _covers(found, common):
                lacking.append(run.name)
                continue
            dense[run.name] = found.sel(sequence=common["sequence"], pos=common["pos"])
            if "mlp_out" not in found:
                subtracted.append(run.name)
    return Outputs(
        experts, chosen, dense, tuple(lacking), tuple(subtracted), tuple(unshared(recorded))
    )


def _mlp_sites(run: Run) -> xr.Dataset | None:
    """What tells the output of a run's MLPs: recorded, or the residual stream around them."""
    if "activations" not in run.groups or not len(run.committed):
        return None
    sites = run.dataset("activations")
    for names in (["mlp_out"], ["resid_mid", "resid_post"]):
        if all(name in sites for name in names):
            return sites[names]
    return None


def _covers(found: xr.Dataset, common: dict[str, np.ndarray]) -> bool:
    """Whether it has all of these sequences and positions, and one of the layers."""
    places = all(np.isin(common[dim], found[dim].values).all() for dim in ("sequence", "pos"))
    return bool(places and np.isin(common["layer"], found["layer"].values).any())
