"""Runs in their order, and the pairs that they make."""

from typing import TypeVar

import numpy as np
import xarray as xr

from analyses.comparison.unanswerable import Unanswerable
from analyses.reporting.text import labels, listed
from analyses.statistics.pairs import pair_indices, pair_kinds
from store.schema import DIMENSIONS

Data = TypeVar("Data", xr.DataArray, xr.Dataset)
_PAIR = "{} \N{MULTIPLICATION SIGN} {}"
_LONG_NAMES = {
    "pair": "two runs",
    "arm_a": "arm of the first run of the pair",
    "arm_b": "arm of the second run of the pair",
    "pair_kind": "architectures of the pair",
    "pair_arms": "arms of the pair",
    "kind": "architectures of two runs",
    "arms": "arms of two runs",
    "contrast": "two arms compared",
    "contrast_a": "the one arm",
    "contrast_b": "the other arm",
    "ci_bound": DIMENSIONS["ci_bound"],
}


def sorted_by_arm(data: Data) -> Data:
    """The runs sorted: dense first, then by arm and name.

    Parameters
    ----------
    data : (run, ...), with coordinates `arm` and `architecture` ("dense" or "moe") on `run`.

    Raises
    ------
    Unanswerable
        With fewer than two runs.
    ValueError
        Without the coordinates.
    """
    for name in ("arm", "architecture"):
        if name not in data.coords:
            raise ValueError(
                f"the data have no coordinate {name!r} on run; read them with "
                'Study.open(...).dataset("losses")'
            )
    runs = data["run"].values.astype(str)
    if len(runs) < 2:
        raise Unanswerable(
            f"this compares runs, and {listed(runs) if len(runs) else 'none'} was observed; give "
            "a study, or runs, of at least 2 observed models"
        )
    is_moe = data["architecture"].values != "dense"
    return data.isel(run=np.lexsort([runs, data["arm"].values.astype(str), is_moe]))


def run_coordinates(data: Data) -> xr.Dataset:
    """The coordinates on `run` alone, as a Dataset without variables."""
    return xr.Dataset(coords={n: c.variable for n, c in data.coords.items() if c.dims == ("run",)})


def described(result: xr.Dataset) -> xr.Dataset:
    """The result, with `long_name` and `units` on what it says of pairs, kinds and arms."""
    known = [name for name in result.coords if name in _LONG_NAMES]
    return result.assign_coords(
        {name: result[name].assign_attrs(labels(_LONG_NAMES[str(name)])) for name in known}
    )


def pair_coordinates(runs: xr.Dataset) -> xr.Dataset:
    """Coordinates on `pair`: its two runs, their arms, and what kind of pair they make.

    Parameters
    ----------
    runs : with `run`, `arm` and `architecture` (run), sorted by `sorted_by_arm`.

    Returns
    -------
    Dataset
        `pair`, `arm_a`, `arm_b`, `pair_kind` and `pair_arms`, all (pair).
    """
    run, arm = runs["run"].values.astype(str), runs["arm"].values.astype(str)
    first, second = pair_indices(len(run))

    def joined(names: np.ndarray) -> list[str]:
        return [_PAIR.format(a, b) for a, b in zip(names[first], names[second], strict=True)]

    return xr.Dataset(
        coords={
            "pair": joined(run),
            "arm_a": ("pair", arm[first]),
            "arm_b": ("pair", arm[second]),
            "pair_kind": ("pair", pair_kinds(runs["architecture"].values != "dense")),
            "pair_arms": ("pair", joined(arm)),
        }
    )
