"""Which runs of a study have routing, and what a reader must know of their routers."""

from collections.abc import Iterable, Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import token_units
from store.study import Study


def observed_routing(study: Study) -> xr.Dataset:
    """The group `routing` of the runs that have experts, lazily, sorted by arm.

    Returns
    -------
    Dataset (run, step, layer, sequence, pos, ...)

    Raises
    ------
    Unanswerable
        If no run has experts whose routing was observed.
    ValueError
        If runs differ in layers, in experts or in choices a token.
    """
    moe = [run for run in study.runs if run.coordinates.get("architecture") == "moe"]
    observed = [run.name for run in moe if "routing" in run.groups and len(run.committed)]
    if not observed:
        raise Unanswerable(
            f"study {study.name!r} has no run with experts whose routing was observed "
            f"({len(study.runs)} runs, {len(moe)} of them MoE); train one, for instance a switch "
            "run of `python -m models.train quick`"
        )
    routing = study.dataset("routing").sel(run=observed)
    runs, arms = routing["run"].values.astype(str), routing["arm"].values.astype(str)
    return routing.isel(run=np.lexsort([runs, arms]))


def seen_steps(expert_index: xr.DataArray) -> NDArray[np.bool_]:
    """Which steps each run observed, (run, step).

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), -1 where not observed.
    """
    first = expert_index.isel(layer=0, sequence=0, pos=0, top_k=0).transpose("run", "step")
    return first.values >= 0


def router_notes(router: Iterable[str], *, hash_means: str) -> Iterator[str]:
    """Caveats about routers that are no ordinary learned and gated ones.

    Parameters
    ----------
    router : of each run.
    hash_means : what the numbers of a hash router come out as.
    """
    routers = set(router)
    if "hash" in routers:
        yield (
            "A hash router is a fixed random map from token id to expert, a perfect token lookup: "
            f"nothing was learned. {hash_means}"
        )
    if "ungated" in routers:
        yield (
            "In ungated runs these numbers are about the router, not about the output: the chosen "
            "expert's output is not scaled by the router's probability, so the language-model loss "
            "never reached the router. Only the balancing loss trained its choices."
        )


def text_units(unit: xr.DataArray, *, n_pos: int) -> tuple[xr.Dataset, np.ndarray]:
    """The coordinates on `unit`, and the index of each token's unit.

    Parameters
    ----------
    unit : DataArray (sequence), of `unit_labels`.
    """
    names, token_unit = token_units(unit, n_pos=n_pos)
    called = {"long_name": str(unit.attrs.get("unit", "unit"))}
    tokens = {"long_name": "tokens in the unit", "units": "1"}
    coords = {
        "unit": ("unit", names, called),
        "n_tokens": ("unit", np.bincount(token_unit), tokens),
    }
    return xr.Dataset(coords=coords), token_unit
