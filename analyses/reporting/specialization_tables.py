"""Tables of `expert_specialization`, all at the last step."""

from collections.abc import Iterator
from typing import SupportsFloat

import numpy as np
import xarray as xr

from analyses.reporting import text
from analyses.reporting.layer_panels import shown_layers
from analyses.reporting.report import Table
from analyses.reporting.text import p_value
from analyses.routing.specialization_summary import SCORES
from analyses.statistics.permutation import adjusted_p

_MOST_EXPERTS = 8
_MEAN = "mean"


def tables(result: xr.Dataset, probe_set: xr.Dataset) -> Iterator[Table]:
    """Information, vocabulary specialization, loss by expert, and the top tokens of experts."""
    yield _information(result)
    yield _scores(result)
    if "arm_last_loss_omega2" in result:
        yield _loss(result)
    yield _top_tokens(result, probe_set)


def _places(result: xr.Dataset) -> Iterator[tuple[str, str, xr.Dataset]]:
    """Every arm, and in it some layers and their mean."""
    for arm in result["each_arm"].values.astype(str):
        for place in [*map(str, shown_layers(result)), _MEAN]:
            yield arm, place, result.sel(each_arm=arm, place=place)


def _family(result: xr.Dataset, names: list[str]) -> tuple[xr.Dataset, float]:
    """p-values of the means over layers, corrected as one family, and the smallest there can be."""
    p = result[names].sel(place=_MEAN, drop=True)
    parts = [p[name].values.ravel() for name in names]
    corrected = adjusted_p(np.concatenate(parts))
    n_tests = int(np.isfinite(corrected).sum())
    split = np.split(corrected, np.cumsum([part.size for part in parts])[:-1])
    for name, part in zip(names, split, strict=True):
        p[name] = p[name].copy(data=part.reshape(p[name].shape))
    return p, min(1.0, n_tests / (result.sizes["resample"] + 1))


def _information(result: xr.Dataset) -> Table:
    name = "arm_last_information"
    p, smallest = _family(result, [f"{name}_p"])
    rows = []
    for arm, place, of_arm in _places(result):
        for label in result["label"].values.astype(str):
            at = of_arm.sel(label=label)
            ends = (at[f"{name}_adjusted"], at[f"{name}_miller_madow"])
            of_family = p[f"{name}_p"].sel(each_arm=arm, label=label)
            rows.append(
                (
                    arm, place, label, _number(at[name]), _number(at[f"{name}_null_mean"]),
                    _interval(*sorted(map(float, ends))),
                    *_with_intervals(at, "arm_last_share"),
                    _number(at["arm_last_ami"]) if "arm_last_ami" in at else "\N{EN DASH}",
                    p_value(float(of_family), smallest=smallest) if place == _MEAN else "",
                )
            )  # fmt: skip
    unit = result["unit"].attrs["long_name"]
    head = ("arm", "layer", "label", "I (nat)", "by chance", "beyond chance to Miller-Madow",
            "share", f"95% over {unit}s; over runs", "AMI", "p (Holm)")  # fmt: skip
    return Table("What labels tell of the choice of expert", head, tuple(rows))


def _scores(result: xr.Dataset) -> Table:
    stems = [f"arm_last_{score}" for score in SCORES]
    p, smallest = _family(result, [f"{stem}_p" for stem in stems])
    rows = []
    for arm, place, at in _places(result):
        cells: list[str] = []
        for stem in stems:
            of_family = p[f"{stem}_p"].sel(each_arm=arm)
            cells += [*_with_intervals(at, stem), _number(at[f"{stem}_null_mean"])]
            cells += [p_value(float(of_family), smallest=smallest) if place == _MEAN else ""]
        rows.append((arm, place, *cells))
    unit = result["unit"].attrs["long_name"]
    head = ["arm", "layer"]
    for mean in ("mean over tokens", "mean over ids"):
        head += [mean, f"95% over {unit}s; over runs", "by chance", "p (Holm)"]
    uniform = _number(result["uniform_share"])
    title = f"Vocabulary specialization; k/N = {uniform}"
    return Table(title, tuple(head), tuple(rows))


def _loss(result: xr.Dataset) -> Table:
    stem = "arm_last_loss_omega2"
    p, smallest = _family(result, [f"{stem}_p"])
    rows = []
    for arm, place, at in _places(result):
        of_family = p[f"{stem}_p"].sel(each_arm=arm)
        rows.append(
            (
                arm, place, _number(at["arm_last_loss_eta2"]),
                _number(at["arm_last_loss_eta2_null_mean"]), *_with_intervals(at, stem),
                p_value(float(of_family), smallest=smallest) if place == _MEAN else "",
            )
        )  # fmt: skip
    unit = result["unit"].attrs["long_name"]
    head = ("arm", "layer", "partial eta²", "by chance", "partial omega²",
            f"95% over {unit}s; over runs", "p (Holm)")  # fmt: skip
    return Table("Loss that the expert explains beyond the token id", head, tuple(rows))


def _top_tokens(result: xr.Dataset, probe_set: xr.Dataset) -> Table:
    """Of the first run of each arm, the busiest experts of the first and last of the layers."""
    arms = result["arm"].values.astype(str)
    layers, rows = shown_layers(result), []
    for run in [int(np.flatnonzero(arms == arm)[0]) for arm in dict.fromkeys(arms)]:
        for layer in dict.fromkeys((layers[0], layers[-1])):
            at = result.isel(run=run).sel(layer=layer)
            if at["load"].isnull().any():
                continue
            busiest = np.sort(np.argsort(-at["load"].values, kind="stable")[:_MOST_EXPERTS])
            rows += [_of_expert(at.isel(expert=int(i)), int(i), probe_set) for i in busiest]
    unit = result["unit"].attrs["long_name"]
    head = ("run", "layer", "expert", "load", f"top tokens (% of them on other {unit}s)",
            "mean share where picked", "on the other half")  # fmt: skip
    title = f"Top tokens of experts, picked on half of the {unit}s and measured on the other half"
    return Table(title, head, tuple(rows))


def _of_expert(at: xr.Dataset, expert: int, probe_set: xr.Dataset) -> tuple[str, ...]:
    known = at["top_token"].notnull().values
    tokens = at["top_token"].values[known].astype(int).tolist()
    held_out = at["top_share_held_out"].values[known]
    shown = ", ".join(
        f"{_quoted(token, probe_set)} {_percent(share)}"
        for token, share in zip(tokens, held_out, strict=True)
    )
    # over tokens that occur in both halves, so that the two means are of the same tokens
    both = np.isfinite(held_out)
    means = [x[both].mean() if both.any() else np.nan
             for x in (at["top_share_chosen"].values[known], held_out)]  # fmt: skip
    return (
        str(at["run"].item()), str(int(at["layer"])), str(expert), _number(at["load"]),
        shown or "\N{EN DASH}", *map(_number, means),
    )  # fmt: skip


def _quoted(token: int, probe_set: xr.Dataset) -> str:
    """The text of a token id between quotation marks, or its number where it is not known."""
    if "vocabulary" not in probe_set:
        return f"#{token}"
    visible = (
        str(probe_set["vocabulary"].values[token]).replace("\n", "⏎").replace(" ", "\N{OPEN BOX}")
    )
    return f"\N{LEFT DOUBLE QUOTATION MARK}{visible}\N{RIGHT DOUBLE QUOTATION MARK}"


def _number(value: SupportsFloat) -> str:
    """Three decimals, and no sign where nothing is left of the value."""
    return text.number(round(float(value), 3) + 0.0)


def _interval(low: float, high: float) -> str:
    return text.interval(round(float(low), 3) + 0.0, round(float(high), 3) + 0.0)


def _percent(share: float) -> str:
    return "\N{EN DASH}" if np.isnan(share) else f"{100 * share:.0f}"


def _with_intervals(at: xr.Dataset, stem: str) -> tuple[str, str]:
    over_units, over_runs = (_interval(*at[f"{stem}{s}"].values) for s in ("_ci", "_run_ci"))
    return _number(at[stem]), f"{over_units}; {over_runs}"
