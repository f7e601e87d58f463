"""Which runs of a study recorded activations, where all of them did, and how they are read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyses.comparison.unanswerable import Unanswerable
from analyses.reporting.text import listed
from store.run import Run
from store.study import Study

_READ_BYTES = 32 * 2**20
_MOST_NAMED = 6


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


def left_out(study: Study, activations: Mapping[str, xr.Dataset]) -> Iterator[str]:
    """Which runs take no part, and what some of the others recorded that is not compared."""
    silent = [run.name for run in study.runs if run.name not in activations]
    if silent:
        yield f"{listed(silent)} recorded no activations and take no part."
    found = [run.dataset("activations") for run in study.runs if run.name in activations]
    recorded: dict[str, list[set[Any]]] = {"sites": [set(d.data_vars) for d in found]}
    for what, dim in (("steps", "step"), ("sequences", "sequence"), ("positions", "pos")):
        recorded[what] = [set(d[dim].values.tolist()) for d in found]
    yield from unshared(recorded)


def unshared(recorded: Mapping[str, Sequence[set[Any]]]) -> Iterator[str]:
    """That only what all runs recorded is compared, with what is left out, if anything is.

    Parameters
    ----------
    recorded : for each sort of place, in the plural, the places of each run.
    """
    parts = []
    for what, of_runs in recorded.items():
        every = set[Any]().union(*of_runs)
        if lost := sorted(every - set.intersection(*of_runs)):
            named = [f"{place:,}" if what == "steps" else str(place) for place in lost]
            if len(named) > _MOST_NAMED:
                named[_MOST_NAMED:] = [f"{len(named) - _MOST_NAMED} more"]
            parts.append(f"{len(lost)} of {len(every)} {what} ({listed(named)})")
    if parts:
        yield f"Only what all runs recorded is compared. Left out: {'; '.join(parts)}."


def by_layer(site: xr.DataArray) -> Iterator[xr.DataArray]:
    """Each layer (sequence, pos, d_model) of a site (layer, ...) at one step.

    As many layers are read at a time as have 32 MiB together, or one: reading takes three times the
    memory of what is read, and several small layers share a chunk.
    """
    site = site.transpose("layer", "sequence", "pos", "d_model")
    n = max(1, _READ_BYTES * site.sizes["layer"] // site.nbytes)
    for start in range(0, site.sizes["layer"], n):
        yield from site.isel(layer=slice(start, start + n)).compute()


def _recorded(run: Run) -> bool:
    return "activations" in run.groups and len(run.committed) > 0
