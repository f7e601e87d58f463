"""What a report says of the divergence of predictions: finding, tables, caveats."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.comparison.divergence.seed_phases import IN_THESE_RUNS
from analyses.reporting import excess, pairs
from analyses.reporting.cohort import bracketed, runs_sentence
from analyses.reporting.report import Table
from analyses.reporting.text import interval, listed, number

VERDICTS = ("seen", IN_THESE_RUNS, "not seen", "cannot be told")
READING = (
    "0 means that two models predict the same distribution at every position. Near step 0 models "
    "differ by how they were initialized; when KL is lowest they have learned what can be known "
    "without the context, as the lower panels of the phases show; then they learn to use the "
    "context, each in its own way. Compare panels at one place. What two arms differ by beyond "
    "their seeds is the distance of a dot from the bar in its row, which the excess gives over "
    "training."
)


def finding(at: xr.Dataset) -> str:
    """The answer at one place."""
    positions = f"{int(at['n_tokens'].sum()):,} positions"
    return " ".join(
        [
            f"At {pairs.place_text(at)}, the KL divergence of what two runs predict is, in nats, "
            f"{pairs.estimates(at, 'kl')} pairs, with {bracketed(at, positions)}.",
            *excess.sentences(at, "kl"),
            runs_sentence(at["arm"].values),
        ]
    )


def phases_sentence(result: xr.Dataset) -> str:
    """Which phases were seen in which arms."""
    of_arms = result.isel(curve=np.flatnonzero(result["curve_group"] == "arms"))
    phases = [_where_seen(of_arms.sel(phase=phase)) for phase in of_arms["phase"].values]
    return f"Of the phases, {'; '.join(phases)}."


def _where_seen(of_phase: xr.Dataset) -> str:
    """A phase, and in which arms it was seen, was not, or cannot be told."""
    arms: dict[str, list[str]] = {}
    for arm, verdict in zip(
        of_phase["curve"].values, of_phase["phase_verdict"].values, strict=True
    ):
        arms.setdefault(str(verdict), []).append(str(arm))
    told = [f"{verdict} in {listed(arms[verdict])}" for verdict in VERDICTS if verdict in arms]
    name = of_phase["phase"].item()
    return f"{name} {', '.join(told)}".replace("runs in", "runs of")


def tables(result: xr.Dataset, at: xr.Dataset, places: np.ndarray) -> Iterator[Table]:
    """Divergences by kind and arms, excess, phases and bands."""
    last = places[-1:]
    yield pairs.table(result, "kl", "kind", places=places, title="KL by kind of pair, nats")
    yield pairs.table(result, "js", "kind", places=places, title="JS by kind of pair, nats")
    yield pairs.table(result, "kl", "arms", places=last, title="KL by arms, nats")
    if result.sizes["contrast"]:
        yield excess.table(at, "kl")
        yield excess.table(at, "js")
    if result.sizes.get("curve"):
        yield _phases(result)
    if "frequency" in result.dims:
        yield _by_frequency(at)


def _phases(result: xr.Dataset) -> Table:
    rows = []
    for curve in result["curve"].values:
        for phase in result["phase"].values:
            at = result.sel(curve=curve, phase=phase)
            start, end = int(at["phase_start"]), int(at["phase_end"])
            at = at.where(start != end)
            rows.append(
                (
                    str(curve),
                    str(phase),
                    "none" if start == end else f"{start:,} to {end:,}",
                    number(at["phase_change"]),
                    interval(*at["phase_ci"].values),
                    interval(*at["phase_run_ci"].values),
                    str(result["phase_verdict"].sel(curve=curve, phase=phase).item()),
                )
            )
    unit = result["unit"].attrs["long_name"]
    head = ("between", "phase", "steps", "change of KL", f"95% over {unit}s", "95% over runs", "")
    return Table("Phases of KL between seeds of an arm, and in kinds of pair", head, tuple(rows))


def _by_frequency(at: xr.Dataset) -> Table:
    rows = []
    for kind in at["kind"].values:
        for band in at["frequency"].values:
            of_band = at.sel(kind=kind, frequency=band)
            rows.append(
                (
                    str(kind),
                    str(band),
                    f"{int(of_band['band_n_tokens']):,}",
                    *(
                        f"{number(of_band[f'kind_{n}_by_frequency'])} "
                        f"({interval(*of_band[f'kind_{n}_by_frequency_ci'].values)})"
                        for n in ("kl", "js")
                    ),
                )
            )
    unit = at["unit"].attrs["long_name"]
    head = ("kind", "share of the training text", "tokens",
            f"KL (95% over {unit}s)", f"JS (95% over {unit}s)")  # fmt: skip
    return Table(f"By frequency of the right token, {pairs.place_text(at)}", head, tuple(rows))


def caveats(result: xr.Dataset, n_positions: int, without: list[str]) -> Iterator[str]:
    """What the numbers do not say.

    Parameters
    ----------
    n_positions : of a sequence at which predictions were stored.
    without : runs that did not store any.
    """
    unit = result["unit"].attrs["long_name"]
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text, and err on the wide side for the excess. "
        "Neither contains the other; but for the phases, both hold place by place."
    )
    yield (
        f"Predictions were stored at {n_positions} positions of each sequence, as logarithms in "
        "float16, which moves a mean KL by less than 0.0001 nats."
    )
    if result["excess_kl_run_ci"].notnull().any():
        yield "Intervals of the excess are not corrected for the number of pairs of arms."
    if "curve" in result.dims:
        share = f"{100 * result.attrs['tolerance']:g}%"
        yield (
            f"A curve counts as flat within {share} of its range. A turn between two observed "
            "steps is placed on one of them. The first phase of a run with warm-up may be no more "
            "than slow learning. A last phase that is not seen, or cannot be told, may come later. "
            "Intervals over runs do not allow for the choice of the turns."
        )
    if "loss_level" in result.dims:
        yield (
            "Phases are looked for at equal steps only. Between two observations a divergence is "
            "interpolated; where they are sparse and losses fall fast, it comes out too high."
        )
    if without:
        yield f"No predictions were stored by {listed(without)}."
