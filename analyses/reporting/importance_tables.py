"""Tables of `expert_importance`, all at the last step."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.reporting.report import Table
from analyses.reporting.text import interval, number, p_value
from analyses.statistics.permutation import adjusted_p

_REPLACED = {"mean": "mean output", "zero": "zero", "second_choice": "second choice"}


def tables(at: xr.Dataset, names: dict[str, str], *, n_resamples: int) -> Iterator[Table]:
    """Predictors, size of importance, specialists, and classes of tokens.

    Parameters
    ----------
    at : result at one step.
    names : of the metrics.
    n_resamples : draws of the null.
    """
    for tokens, over in (("all", "all tokens"), ("served", "the tokens that an expert serves")):
        yield _predictors(at.sel(tokens=tokens), names, over, n_resamples=n_resamples)
    yield _sizes(at)
    yield _contrasts(at)
    yield _classes(at)


def _predictors(at: xr.Dataset, names: dict[str, str], over: str, *, n_resamples: int) -> Table:
    """Every metric and arm; the p-values of a replacement are one family."""
    unit, rows = at["unit"].attrs["long_name"], []
    p = {}
    for name in _REPLACED:
        values = at["arm_p"].sel(replacement=name).transpose("each_arm", "metric").values
        tested = np.isfinite(values)
        corrected = np.full(values.shape, np.nan)
        corrected[tested] = adjusted_p(values[tested])
        p[name] = corrected, min(1.0, float(tested.sum()) / (n_resamples + 1))
    for a, arm in enumerate(at["each_arm"].values.astype(str)):
        for m, (metric, title) in enumerate(names.items()):
            cells = []
            for name in _REPLACED:
                of = at.sel(each_arm=arm, metric=metric, replacement=name)
                cells.append(number(of["arm_rho_mean"], digits=2))
                if name == "mean":
                    cells += [
                        interval(*of["arm_rho_mean_ci"].values, digits=2),
                        interval(*of["arm_rho_mean_run_ci"].values, digits=2),
                        p_value(p[name][0][a, m], smallest=p[name][1]),
                    ]
            rows.append((arm, title, *cells))
    head = ("arm", "metric", "mean output", f"95% over {unit}s", "95% over runs", "p (Holm)",
            "zero", "second choice")  # fmt: skip
    return Table(f"Rank correlation with importance over {over}", head, tuple(rows))


def _sizes(at: xr.Dataset) -> Table:
    """Mean, least and largest importance of the experts of an arm, by layer and replacement."""
    rows = []
    for arm in at["each_arm"].values.astype(str):
        runs = at["importance"].sel(run=at["arm"].values.astype(str) == arm)
        for layer in at["layer"].values:
            for name, title in _REPLACED.items():
                of = runs.sel(layer=layer, replacement=name)
                whole, own = of.sel(tokens="all"), of.sel(tokens="served")
                rows.append(
                    (
                        arm, str(layer), title, number(whole.mean(), digits=4),
                        number(whole.min(), digits=4), number(whole.max(), digits=4),
                        number(own.mean(), digits=4), number(own.max(), digits=4),
                    )
                )  # fmt: skip
    head = ("arm", "layer", "replaced by", "mean of experts", "least", "largest",
            "mean, tokens served", "largest, tokens served")  # fmt: skip
    return Table("Importance: change of loss without an expert, nats", head, tuple(rows))


def _contrasts(at: xr.Dataset) -> Table:
    unit, rows = at["unit"].attrs["long_name"], []
    for arm in at["each_arm"].values.astype(str):
        for name, title in _REPLACED.items():
            cells = []
            for tokens in ("all", "served"):
                of = at.sel(each_arm=arm, replacement=name, tokens=tokens)
                cells += [
                    number(of["arm_contrast_mean"], digits=4),
                    interval(*of["arm_contrast_mean_ci"].values, digits=4),
                    interval(*of["arm_contrast_mean_run_ci"].values, digits=4),
                ]
            rows.append((arm, title, *cells))
    ends = (f"95% over {unit}s", "95% over runs")
    head = ("arm", "replaced by", "all tokens", *ends, "tokens served", *ends)
    return Table(
        "An expert's top domain against the other domains: change of loss, nats", head, tuple(rows)
    )


def _classes(at: xr.Dataset) -> Table:
    """Change of loss without the token's own first choice, replaced by its mean."""
    unit, rows = at["unit"].attrs["long_name"], []
    arms = at["each_arm"].values.astype(str)
    for label in at["token_class"].values.astype(str):
        cells = []
        for arm in arms:
            of = at.sel(each_arm=arm, token_class=label, replacement="mean")
            ends = interval(*of["arm_own_change_mean_ci"].values)
            cells.append(f"{number(of['arm_own_change_mean'])} ({ends})")
        rows.append((label, *cells))
    head = ("class of the token to be predicted", *(f"{arm} (95% over {unit}s)" for arm in arms))
    return Table(
        "Change of loss where the token's own expert is replaced by its mean, nats",
        head,
        tuple(rows),
    )
