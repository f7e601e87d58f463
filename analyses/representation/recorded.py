"""Which runs of a study recorded activations, and where all of them did."""

import numpy as np
import xarray as xr

from analyses.comparison.unanswerable import Unanswerable
from store.run import Run
from store.study import Study


def recorded_activations(study: Study, *, at_least: int = 1) -> dict[str, xr.Dataset]:
    """Activations of the runs that recorded some, lazily, where all of these have them.

    Runs of other widths are not joined on `run`.

    Parameters
    ----------
    at_least : runs that the question needs.

    Returns
    -------
    dict
        For each run, dense first, then by arm and name, a Dataset of the sites (step, layer,
        sequence, pos, d_model) with the run's labels (`arm`, `architecture`, ...) as scalar
        coordinates. Sites, steps, sequences and positions are those common to all; layers and
        widths are the run's own.

    Raises
    ------
    Unanswerable
        If fewer runs than that recorded any, or there is no place where all did.
    """
    found = {run.name: run.dataset("activations") for run in study.runs if _recorded(run)}
    if len(found) < at_least:
        raise Unanswerable(
            f"{len(found)} of {len(study.runs)} runs of study {study.name!r} recorded activations, "
            f"and this needs {at_least}; train with --set train.activation_sites=resid_mid,"
            "resid_post --set train.activation_positions=16, as by default"
        )
    sites = [name for name in next(iter(found.values())) if all(name in d for d in found.values())]
    common = {
        dim: np.array(
            sorted(set.intersection(*(set(d[dim].values.tolist()) for d in found.values())))
        )
        for dim in ("step", "sequence", "pos")
    }
    lacking = [name for name, values in common.items() if not len(values)]
    if lacking or not sites:
        raise Unanswerable(
            f"the runs of study {study.name!r} recorded activations nowhere in common: no "
            f"{(lacking or ['site'])[0]} is shared by {', '.join(found)}; give the paths of runs "
            "that were trained with the same settings"
        )
    order = sorted(found, key=lambda name: (
        str(found[name]["architecture"].item()) != "dense", str(found[name]["arm"].item()), name,
    ))  # fmt: skip
    return {name: found[name][sites].sel(common) for name in order}


def _recorded(run: Run) -> bool:
    return "activations" in run.groups and len(run.committed) > 0
