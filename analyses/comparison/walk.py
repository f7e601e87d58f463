"""The walk over training: read what is needed at one place, compare all runs there, go on.

A study may be larger than memory: no more than the observations of one place are held at a time.
With dask, places are walked by as many workers as there are, each reading for itself.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.along import Along
from analyses.comparison.units import token_units
from analyses.reporting.text import labels
from analyses.statistics.pairs import pair_indices

Item = TypeVar("Item")
Progress = Callable[[Sequence[Any]], Iterable[Any]]


class Compared(NamedTuple):
    """A statistic of models i and j, and its value without each unit of text.

    Attributes
    ----------
    estimate : (..., model, model)
    deleted : (unit, ..., model, model)
    """

    estimate: NDArray[np.float64]
    deleted: NDArray[np.float64]


Measure = Callable[[NDArray, NDArray[np.intp]], Mapping[str, Compared]]


def mean_loss(
    loss: xr.DataArray, *, progress: Progress = iter, dask: str | None = None
) -> xr.DataArray:
    """Mean loss of each run at each step, (run, step); NaN where a loss is not finite.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats.
    progress : wraps the list of steps, to show how far the work is.
    dask : None, "local" for a cluster on this machine, or the address of a scheduler.
    """
    columns = mapped(partial(_mean_loss_at, loss), range(loss.sizes["step"]), progress, dask)
    coords = {n: c.variable for n, c in loss.coords.items() if c.dims in (("run",), ("step",))}
    attrs = {"long_name": "mean loss", "units": "nat"}
    return xr.DataArray(
        np.stack(list(columns), axis=1), dims=("run", "step"), coords=coords, attrs=attrs
    )


def walk(
    values: xr.DataArray,
    unit: xr.DataArray,
    along: Along,
    measure: Measure,
    *,
    progress: Progress = iter,
    dask: str | None = None,
) -> dict[str, tuple[xr.DataArray, xr.DataArray]]:
    """Compare every pair of runs at every place.

    Parameters
    ----------
    values : DataArray (run, step, sequence, pos, ...), read lazily.
    unit : DataArray (sequence), name of each sequence's unit of text.
    along : where.
    measure : from values (model, token, ...) and the unit of each token, numbered from 0, to what
        it compares, by name; a model whose values are not all finite must come out as NaN.
    progress : wraps the list of places, to show how far the work is.
    dask : None, "local" for a cluster on this machine, or the address of a scheduler.

    Returns
    -------
    dict
        For each name of `measure` the estimate (place, ..., pair) and the estimate without each
        unit (unit, place, ..., pair), pairs as in `pair_indices`.
    """
    names, token_unit = token_units(unit, n_pos=values.sizes["pos"])
    values = values.transpose("run", "step", "sequence", "pos", ...)
    places = mapped(
        partial(_compared_at, values, token_unit, along, measure),
        range(along.place.size), progress, dask,
    )  # fmt: skip
    collected = list(places)
    tokens = np.bincount(token_unit)
    coords: dict[str, Any] = {
        along.dim: along.place,
        "unit": ("unit", names, labels(str(unit.attrs.get("unit", "unit")))),
        "n_tokens": ("unit", tokens, labels("tokens in the unit")),
    }
    result = {}
    for name in list(collected[0]):
        # taken out, so that what has been stacked is not held twice
        compared = [at.pop(name) for at in collected]
        estimate = np.stack([at.estimate for at in compared])
        deleted = np.stack([at.deleted for at in compared], axis=1)
        extra = [f"{name}_{i}" for i in range(estimate.ndim - 2)]
        dims = (along.dim, *extra, "pair")
        result[name] = (
            xr.DataArray(estimate, dims=dims, coords={along.dim: along.place}),
            xr.DataArray(deleted, dims=("unit", *dims), coords=coords),
        )
    return result


def mapped(
    function: Callable[[Item], Any],
    items: Sequence[Item],
    progress: Progress = iter,
    dask: str | None = None,
) -> Iterator[Any]:
    """`function` of each item, in order: here, or on the workers of a dask cluster.

    Raises
    ------
    ValueError
        If dask is asked for and not installed, or the scheduler cannot be reached.
    """
    if dask is None:
        for item in progress(items):
            yield function(item)
        return
    with _client(dask) as client:
        # Sent once, with all that is bound to it, and not with every item; as the result of a task,
        # which is run again if the worker that holds it is lost.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            shared = client.submit(_itself, function, pure=False)
        for future in progress(client.map(_called, items, function=shared, pure=False)):
            yield future.result()
            future.release()


@contextmanager
def cluster(dask: str | None) -> Iterator[str | None]:
    """One place to compute for all that a command does: "local" becomes a cluster's address.

    Raises
    ------
    ValueError
        If dask is asked for and not installed.
    """
    if dask != "local":
        yield dask
        return
    _require_distributed()
    from distributed import LocalCluster

    with LocalCluster(threads_per_worker=1, dashboard_address="127.0.0.1:0") as local:
        yield local.scheduler_address


def _itself(function: Callable[[Item], Any]) -> Callable[[Item], Any]:
    return function


def _called(item: Item, *, function: Callable[[Item], Any]) -> Any:
    return function(item)


@contextmanager
def _client(dask: str) -> Iterator[Any]:
    _require_distributed()
    from distributed import Client

    with cluster(dask) as address:
        try:
            # as the default, a client that fails would stay the scheduler of all later dask
            client = Client(address, timeout=10, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no dask scheduler answers at {dask!r} ({error}); start one with `dask "
                "scheduler`, or use --dask local"
            ) from None
        with client:
            yield client


def _require_distributed() -> None:
    if find_spec("distributed") is None:
        raise ValueError(
            '--dask needs the package distributed; install it with pip install "twinlens[dask]"'
        )


def _mean_loss_at(loss: xr.DataArray, step: int) -> NDArray[np.float64]:
    values = loss.isel(step=step).transpose("run", ...).values
    values = values.reshape(len(values), -1)
    mean = values.mean(axis=-1, dtype=np.float64)
    return np.where(np.isfinite(values).all(axis=-1), mean, np.nan)


def _compared_at(
    values: xr.DataArray, unit: NDArray[np.intp], along: Along, measure: Measure, place: int
) -> dict[str, Compared]:
    """All pairs at one place, from the observations on either side of it."""
    step = along.step[place]
    n_sides, n_runs = step.shape
    read = [
        values.isel(run=run, step=int(step[side, run])).values
        for side in range(n_sides)
        for run in range(n_runs)
    ]
    models = np.stack(read).reshape(len(read), len(unit), *values.shape[4:])
    first, second = pair_indices(n_runs)
    weight = along.joint_weight(place, first, second)

    def interpolated(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        return sum(
            weight[a, b] * theta[..., a * n_runs + first, b * n_runs + second]
            for a in range(n_sides)
            for b in range(n_sides)
        )  # fmt: skip

    compared = measure(models, unit)
    return {
        name: Compared(interpolated(at.estimate), interpolated(at.deleted))
        for name, at in compared.items()
    }
