"""From runs to arms: shares beyond chance over training, and all measures at the last step."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_means
from analyses.comparison.runs import run_coordinates
from analyses.comparison.summary import Scale
from analyses.reporting.text import labels
from analyses.routing.text_labels import TextLabels
from analyses.statistics.information import share_beyond_chance
from analyses.statistics.permutation import permutation_p

AT_MOST_1 = Scale(np.asarray, lambda ci: np.minimum(ci, 1.0))
UNIT = Scale(np.asarray, lambda ci: np.clip(ci, 0.0, 1.0))
SCORES = ("token_specialization", "type_specialization")
_TITLES = {
    "information": ("information about the choice", "nat"),
    "information_limit": ("most that could be known about the choice", "nat"),
    "information_miller_madow": ("information about the choice, Miller-Madow", "nat"),
    "share": ("share of the choice that is settled, beyond chance", "1"),
    "token_specialization": ("vocabulary specialization, mean over tokens", "1"),
    "type_specialization": ("vocabulary specialization, mean over token ids", "1"),
    "ami": ("adjusted mutual information", "1"),
    "load": ("load: share of choices", "1"),
    "domain_specialization": ("share of the domain's tokens", "1"),
    "loss_eta2": ("partial eta² of the loss by expert within token id", "1"),
    "loss_omega2": ("partial omega² of the loss by expert within token id", "1"),
    "top_token": ("token id", "1"),
    "top_share_chosen": ("share of the token that chose the expert, where it was picked", "1"),
    "top_share_held_out": ("share of the token that chose the expert, on the other half", "1"),
    "first_choice": ("first choice", "1"),
}
_INNER = {
    **dict.fromkeys(("information", "information_limit", "information_miller_madow"), ("label",)),
    "ami": ("label",),
    "load": ("expert",),
    "domain_specialization": ("expert", "domain"),
    **dict.fromkeys(("top_token", "top_share_chosen", "top_share_held_out"), ("expert", "rank")),
    "first_choice": ("sequence", "pos"),
}
_SUFFIXES = {"_deleted": ("unit",), "_null": ("resample",)}
_BY_STEP = ("information", *SCORES)


def described(
    arrays: Mapping[str, NDArray],
    expert_index: xr.DataArray,
    text: TextLabels,
    last: NDArray[np.intp],
    *,
    n_early: int,
    level: float,
) -> xr.Dataset:
    """The measures of all runs with their labels, what they have beyond chance, and arms.

    Parameters
    ----------
    arrays, last : of `measured`.
    n_early : draws of each null before the last step.
    """
    coords = {n: expert_index[n].variable for n in ("run", "step", "layer", "sequence", "pos")}
    runs = run_coordinates(expert_index)
    result = xr.Dataset(
        coords=dict(runs.coords) | coords | dict(text.units.coords)
        | {"label": text.names, "domain": text.domains, "ci_bound": ["lower", "upper"]},
        attrs={"level": level},
    )  # fmt: skip
    for name, values in arrays.items():
        stem, suffix = _split(name)
        outer = ("run", "step", "layer") if stem.startswith(_BY_STEP) else ("run", "layer")
        dims = (*outer, *_INNER.get(stem, ()), *_SUFFIXES.get(suffix, ()))
        long_name, units = _TITLES[stem]
        result[name] = dims, values, labels(long_name, units)
    result["last_step"] = "run", result["step"].values[last], labels("last observed step")
    for name in _BY_STEP:
        result = result.merge(_chance(result, name, n_early=n_early, level=level))
    result = result.merge(_shares(result))
    for name, scale in (("share", AT_MOST_1), *((score, UNIT) for score in SCORES)):
        long_name, units = _TITLES[name]
        of_arms = arm_means(
            name, result[name], result[f"{name}_deleted"], runs, scale=scale,
            long_name=long_name, units=units, level=level,
        )  # fmt: skip
        result = result.merge(of_arms.drop_vars(f"run_{name}"), compat="equals")
    return result.merge(_at_last(result, runs, level=level), compat="equals")


def _split(name: str) -> tuple[str, str]:
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def _chance(result: xr.Dataset, name: str, *, n_early: int, level: float) -> xr.Dataset:
    """Mean and band of a null of which only the first draws were made before the last step."""
    null = result[f"{name}_null"].values
    tails = [(1 - level) / 2, (1 + level) / 2]
    mean, band = null.mean(axis=-1), np.quantile(null, tails, axis=-1)
    few = null[..., :n_early]
    mean = np.where(np.isnan(mean), few.mean(axis=-1), mean)
    band = np.where(np.isnan(band), np.quantile(few, tails, axis=-1), band)
    attrs = {**result[name].attrs, "long_name": f"{result[name].attrs['long_name']}, by chance"}
    dims = result[name].dims
    return xr.Dataset(
        {
            f"{name}_null_mean": (dims, mean, attrs),
            f"{name}_null_band": ((*dims, "ci_bound"), np.moveaxis(band, 0, -1), attrs),
            f"{name}_adjusted": (dims, result[name].values - mean, result[name].attrs),
        }
    )


def _shares(result: xr.Dataset) -> xr.Dataset:
    """Information beyond chance as a share of what is possible, and its null on that scale."""
    chance, limit = result["information_null_mean"], result["information_limit"]

    def share(name: str, limit: xr.DataArray) -> xr.DataArray:
        return xr.apply_ufunc(share_beyond_chance, result[name], chance, limit).assign_attrs(
            labels(*_TITLES["share"])
        )

    deleted = share("information_deleted", result["information_limit_deleted"])
    return xr.Dataset(
        {
            "share": share("information", limit),
            "share_deleted": deleted,
            "share_null_band": share("information_null_band", limit),
        }
    )


def _at_last(result: xr.Dataset, runs: xr.Dataset, *, level: float) -> xr.Dataset:
    """Arms at the last step of each run, layer by layer and then averaged over layers (`place`)."""
    at = result.sel(step=result["last_step"])
    arms = list(dict.fromkeys(runs["arm"].values.astype(str)))
    of_arm = runs["arm"].values.astype(str)

    def places(values: xr.DataArray) -> xr.DataArray:
        mean = values.mean("layer", skipna=False).expand_dims("layer")
        both = xr.concat([values.drop_vars("layer"), mean], "layer", coords="minimal",
                         compat="override")  # fmt: skip
        return both.rename(layer="place").reset_coords(drop=True)

    def averaged(values: xr.DataArray) -> xr.DataArray:
        of_arms = [places(values).isel(run=np.flatnonzero(of_arm == a)).mean("run", skipna=False)
                   for a in arms]  # fmt: skip
        return xr.concat(of_arms, "each_arm", coords="minimal", compat="override")

    names = [str(layer) for layer in result["layer"].values]
    found = xr.Dataset(coords={"place": [*names, "mean"], "each_arm": arms})
    with_interval = {"share": AT_MOST_1} | dict.fromkeys(SCORES, UNIT)
    with_interval |= {"loss_omega2": AT_MOST_1} if "loss_omega2" in result else {}
    for name, scale in with_interval.items():
        long_name, units = _TITLES[name]
        means = arm_means(
            f"last_{name}", places(at[name]), places(at[f"{name}_deleted"]), runs, scale=scale,
            long_name=long_name, units=units, level=level,
        )  # fmt: skip
        found = found.merge(means.drop_vars(["arm_n_runs"]), compat="equals")
        if name != "share":
            found = found.merge(_tested(name, averaged(at[name]), averaged(at[f"{name}_null"])))
    name = "information"
    found = found.merge(_tested(name, averaged(at[name]), averaged(at[f"{name}_null"])))
    for name in ("information", "information_miller_madow", "information_adjusted",
                 "information_limit", "ami", "loss_eta2"):  # fmt: skip
        if name in at:
            found[f"arm_last_{name}"] = averaged(at[name]).assign_attrs(result[name].attrs)
    if "loss_eta2" in at:
        found["arm_last_loss_eta2_null_mean"] = averaged(at["loss_eta2_null"].mean("resample"))
    return found


def _tested(name: str, observed: xr.DataArray, null: xr.DataArray) -> xr.Dataset:
    """Mean over the runs of an arm beside the same mean under each draw of the null."""
    null = null.transpose("resample", *observed.dims)
    p = permutation_p(observed.values, null.values)
    title = _TITLES[name][0]
    return xr.Dataset(
        {
            f"arm_last_{name}_null_mean": null.mean("resample").assign_attrs(
                labels(f"{title}, by chance", _TITLES[name][1])
            ),
            f"arm_last_{name}_p": (observed.dims, p, labels(f"permutation p of {title}")),
        }
    )
