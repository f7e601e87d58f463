"""Tables of `learning_order`: each estimate with its interval over text and that over runs."""

from collections.abc import Iterator

import xarray as xr

from analyses.comparison.learning.acquisition import MEASURES
from analyses.comparison.learning.curve_kinds import FEWEST_OCCURRENCES, typical_ids
from analyses.reporting import figures
from analyses.reporting.report import Table
from analyses.reporting.text import interval, number, p_value


def tables(result: xr.Dataset, probe_set: xr.Dataset) -> Iterator[Table]:
    """Similarity of order, learning and forgetting, token statistics, and kinds of curves.

    Parameters
    ----------
    result : what `learning_order` returns.
    probe_set : as for `comparison.curve_kinds.typical_ids`.
    """
    unit = result["unit"].attrs["long_name"]
    both = (f"95% over {unit}s", "95% over runs")
    for group, title in (("kind", "by kind of pair"), ("arms", "by arms")):
        rows: list[tuple[str, ...]] = [
            (
                str(name), str(control), str(int(result[f"{group}_n_pairs"].sel({group: name}))),
                *_cells(result.sel({group: name, "control": control}), f"{group}_rho"),
            )
            for control in result["control"].values
            for name in result[group].values
        ]  # fmt: skip
        yield Table(
            f"Spearman correlation of ages, {title}",
            (group, "held fixed", "pairs", "correlation", *both), tuple(rows),
        )  # fmt: skip
    if result.sizes["contrast"]:
        rows = [
            (str(name), str(control), *_cells(at, "rho2"), *_p_values(at))
            for control in result["control"].values
            for name in result["contrast"].values
            for at in [result.sel(contrast=name, control=control)]
        ]
        head = ("arms", "held fixed", "rho2", *both, "p", "p (Holm)")
        yield Table("Similarity of order corrected for noise of single runs", head, tuple(rows))
    yield _arm_table(result, both)
    arms = result["each_arm"].values.tolist()
    rows = [
        (str(name), *(_with_interval(result.sel(each_arm=a, predictor=name), "predictor_rho")
                      for a in arms))
        for name in result["predictor"].values
    ] + [
        ("all, with squares: variance explained",
         *(_with_interval(result.sel(each_arm=a), "explained") for a in arms))
    ]  # fmt: skip
    head = (f"95% over {unit}s in brackets", *arms)
    yield Table("Spearman correlation of age with token statistics", head, tuple(rows))
    if "of_kind" in result:
        yield from _kind_tables(result, probe_set, unit)


def _cells(at: xr.Dataset, name: str, *, digits: int = 3) -> tuple[str, str, str]:
    """An estimate and its two intervals."""
    ci, run_ci = (interval(*at[f"{name}{s}"].values, digits=digits) for s in ("_ci", "_run_ci"))
    return number(at[name], digits=digits), ci, run_ci


def _p_values(at: xr.Dataset) -> list[str]:
    """p of a contrast, alone and corrected; as a bound where no smaller one is possible."""
    return [
        p_value(float(at[f"contrast_{kind}p"]), smallest=float(at[f"contrast_smallest_{kind}p"]))
        for kind in ("", "holm_")
    ]


def _with_interval(at: xr.Dataset, name: str) -> str:
    ci = interval(*at[f"arm_{name}_ci"].values, digits=2)
    return f"{number(at[f'arm_{name}'], digits=2)} ({ci})"


def _arm_table(result: xr.Dataset, both: tuple[str, str]) -> Table:
    """Learning and forgetting of each arm."""
    names = ["mean_age", *MEASURES]
    rows = [
        (
            figures.axis_label(result[f"arm_{name}"]), str(arm),
            *_cells(result.sel(each_arm=arm), f"arm_{name}", digits=1 if name == "mean_age" else 3),
        )
        for name in names
        for arm in result["each_arm"].values
    ]  # fmt: skip
    return Table("Learning and forgetting", ("measure", "arm", "value", *both), tuple(rows))


def _kind_tables(result: xr.Dataset, probe_set: xr.Dataset, unit: str) -> Iterator[Table]:
    arms = result["each_arm"].values.tolist()
    shares = [
        (str(kind), *(
            f"{number(at['curve_share'])} ({interval(*at['curve_share_ci'].values)})"
            for arm in arms
            for at in [result.sel(each_arm=arm, curve_kind=kind)]
        ))
        for kind in result["curve_kind"].values
    ]  # fmt: skip
    head = (f"kind (95% over {unit}s in brackets)", *arms)
    yield Table("Share of tokens with each kind of curve", head, tuple(shares))
    shown = [
        (str(kind), ", ".join(f"{text} {share:.2f}" for text, share in ids))
        for kind, ids in typical_ids(result, probe_set).items()
    ]
    title = (
        "Token ids that most often have each kind of curve, and how often (ids that occur at least "
        f"{FEWEST_OCCURRENCES} times)"
    )
    yield Table(title, ("kind", "ids"), tuple(shown))
