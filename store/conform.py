"""Whether arrays fit the schema, and the form in which it stores them; asked before every write."""

from collections.abc import Iterable, Mapping

import numpy as np
import xarray as xr

from store.schema import GROUPS, Variable, variables_of

OBSERVED: tuple[str, ...] = tuple(
    group for group in GROUPS if group not in ("observation", "probe_set", "training")
)


def conform(dataset: xr.Dataset, group: str) -> dict[str, np.ndarray]:
    """Values of a group's variables as the schema stores them.

    Parameters
    ----------
    dataset : one observation, without `step`, of an observed group; all of another group.
    group : group of the schema.

    Raises
    ------
    ValueError
        If a variable is not in the schema, has other dimensions or another order of them, or
        holds values that its dtype cannot.
    """
    known = variables_of(group)
    # A scalar label of a dimension, as isel(step=3) leaves it behind, is no variable.
    labels = {*dataset.dims, *(name for name, label in dataset.coords.items() if not label.ndim)}
    values = {}
    for name in [str(name) for name in dataset.variables if name not in labels]:
        if name not in known:
            raise ValueError(
                f"variable {name!r} of group {group!r} is not in the schema, which has "
                f"{', '.join(known)}; rename it, or add it to store/schema.py"
            )
        dims = _written_dims(known[name])
        variable = dataset.variables[name]
        if variable.dims != dims:
            raise ValueError(
                f"{group}/{name} has dims {variable.dims}, the schema says {dims}; "
                "transpose or rename them"
            )
        values[name] = _cast(variable.values, known[name])
    return values


def labels_of(dataset: xr.Dataset, group: str) -> dict[str, np.ndarray]:
    """Integer labels of every dimension of a group's variables: the Dataset's own, or 0, 1, 2, ...

    Raises
    ------
    ValueError
        If a dimension has labels that are not integers.
    """
    known = variables_of(group)
    written = [_written_dims(known[str(name)]) for name in dataset.variables if name in known]
    labels = {}
    for dim in dict.fromkeys(dim for dims in written for dim in dims):
        labels[dim] = dataset[dim].values  # xarray numbers a dimension without labels
        if labels[dim].dtype.kind not in "iu":
            raise ValueError(
                f"labels of {dim!r} in group {group!r} are {labels[dim].dtype}, not integers; "
                "store names as a variable of the schema"
            )
    return labels


def require_same(
    one: xr.Dataset, group: str, variables: Iterable[str], labels: Mapping[str, np.ndarray]
) -> None:
    """Check one observation against what was laid out for it.

    Parameters
    ----------
    one : one observation, without `step`; a dimension without labels is compared by its length.
    group : its group.
    variables, labels : those laid out.

    Raises
    ------
    ValueError
        If variables, shapes or labels differ.
    """
    given = {str(name) for name in one.variables if name in variables_of(group)}
    if given != set(variables):
        raise ValueError(
            f"observation of {group!r} has the variables {sorted(given)}, laid out are "
            f"{sorted(variables)}; record the same at every step"
        )
    for dim, values in labels_of(one, group).items():
        unlabelled = dim not in one.coords and len(values) == len(labels[dim])
        if not unlabelled and not np.array_equal(values, labels[dim]):
            raise ValueError(
                f"{dim!r} of an observation of {group!r} is {values.tolist()}, laid out is "
                f"{labels[dim].tolist()}; record the same at every step"
            )


def training_rows(recorded: xr.Dataset, training_steps: int) -> slice:
    """Rows on disk of consecutive training steps; the first step is 1.

    Raises
    ------
    ValueError
        If the steps are unlabelled, not consecutive, or outside 1 ... `training_steps`.
    """
    steps = recorded["step"].values if "step" in recorded.coords else np.zeros(1, dtype="int64")
    if not steps.size:
        return slice(0, 0)
    if steps[0] < 1 or steps[-1] > training_steps or (np.diff(steps) != 1).any():
        raise ValueError(
            f"training steps {steps[0]} ... {steps[-1]} are not consecutive steps from 1 to "
            f"{training_steps}; label `step` with optimizer steps taken, counted from 1"
        )
    return slice(int(steps[0]) - 1, int(steps[-1]))


def _written_dims(variable: Variable) -> tuple[str, ...]:
    """Dimensions of what is written at once: one step of an observed variable, all of another."""
    return variable.dims[1:] if variable.group in OBSERVED else variable.dims


def _cast(values: np.ndarray, variable: Variable) -> np.ndarray:
    """Values in the dtype of the schema, which may cost precision but neither kind nor range."""
    name = f"{variable.group}/{variable.name}"
    if variable.dtype == "str":
        if values.dtype.kind not in "OUT":
            raise ValueError(f"{name} is {values.dtype}, the schema says text; convert it first")
        return values.astype(object)
    dtype = np.dtype(variable.dtype)
    if values.dtype == dtype:
        return values
    if not np.can_cast(values.dtype, dtype, "same_kind"):
        raise ValueError(f"{name} is {values.dtype}, the schema says {dtype}; convert it first")
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    lost = (cast != values) if dtype.kind in "iu" else np.isinf(cast) & np.isfinite(values)
    if lost.any():
        raise ValueError(
            f"{name} holds {values[lost].flat[0]}, out of the range of {dtype}; record it in other "
            "units, or widen its dtype in store/schema.py"
        )
    return cast
