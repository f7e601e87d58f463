"""Tables and sentences of `expert_representations`."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.reporting.cohort import bracketed, runs_sentence
from analyses.reporting.entropy_tables import by_arm
from analyses.reporting.expert_output_figures import known_arms
from analyses.reporting.report import Table
from analyses.reporting.text import interval, listed, number
from analyses.representation.expert_outputs import MOST_PAIRS
from analyses.representation.recorded_outputs import Outputs
from analyses.routing.observed import router_notes
from analyses.statistics.expert_outputs import largest_participation


def finding(result: xr.Dataset) -> str:
    """The answer at the last step beside step 0, with intervals and n."""
    first, last = result.isel(step=0), result.isel(step=-1)
    parts = []
    for arm in known_arms(result, "cosine"):
        start, end = first.sel(each_arm=arm), _last_of_all(result.sel(each_arm=arm))
        where = ""
        if end["step"] != last["step"]:
            where = f" (at step {int(end['step']):,}, the last that all of them have)"
        parts.append(
            f"in {arm} runs CKA is {_estimate(end, 'cka')}, at step {int(first['step']):,} "
            f"{_number(start['arm_cka_mean'])}, and the cosine {_estimate(end, 'cosine')}"
            f"{where}"
        )
    tokens = f"{result.attrs['n_tokens']:,} tokens"
    return (
        f"Of two experts of one layer at step {int(last['step']):,}, averaged over pairs, layers "
        f"and runs, {'; '.join(parts)}; with {bracketed(result, tokens)}. "
        f"{runs_sentence(result['arm'].values)}"
    )


def _last_of_all(of_arm: xr.Dataset) -> xr.Dataset:
    """The last step at which no run of an arm lacks a value, or the last step if there is none."""
    known = np.flatnonzero((of_arm["arm_cka_mean"] + of_arm["arm_cosine_mean"]).notnull())
    return of_arm.isel(step=known[-1] if len(known) else -1)


def tables(result: xr.Dataset) -> Iterator[Table]:
    """At the last step by arm and layer, then CKA and cosine over training."""
    last = result.isel(step=-1)
    where, arms = f"at step {int(last['step']):,}", known_arms(result, "cosine")
    names = {"cka": "CKA", "cka_raw": "CKA, raw", "cka_either": "CKA, either's tokens"}
    names["cosine"] = "cosine"
    yield by_arm(last.sel(each_arm=arms), names, title=f"What two experts have in common {where}")
    names = {
        "effective_rank": "effective rank", "participation": "participation ratio", "norm": "norm",
        "own_ratio": "norm, own over other tokens", "own_contrast": "beyond other experts",
    }  # fmt: skip
    yield by_arm(last, names, title=f"Ranks and norms of outputs {where}")
    if known_arms(result, "cka_dense"):
        yield _beside_dense(result)
    yield _over_training(result, arms)


def _compared(arm: str, result: xr.Dataset) -> str:
    """What an arm compares with dense MLPs."""
    is_moe = arm in known_arms(result, "cosine")
    return f"an expert of {arm} runs" if is_moe else f"the MLP of another {arm} run"


def _beside_dense(result: xr.Dataset) -> Table:
    """CKA with dense MLPs at the first step and at the last, by arm and layer."""
    first, last = result.isel(step=0), result.isel(step=-1)
    unit, rows = result["unit"].attrs["long_name"], []
    for arm in known_arms(result, "cka_dense"):
        start, end = (at.sel(each_arm=arm) for at in (first, last))
        chance = last["cka_dense_chance"].isel(run=result["arm"].values.astype(str) == arm)
        for layer in [*result["layer"].values, "mean"]:
            stem = "arm_cka_dense_mean" if layer == "mean" else "arm_cka_dense"
            own = {} if layer == "mean" else {"layer": layer}
            rows.append((
                _compared(arm, result), str(layer), _number(start[stem].sel(own)),
                _number(end[stem].sel(own)), interval(*end[f"{stem}_ci"].sel(own).values),
                interval(*end[f"{stem}_run_ci"].sel(own).values),
                _number(chance.sel(own).mean()),
            ))  # fmt: skip
    head = ("of", "layer", f"CKA at step {int(first['step']):,}",
            f"CKA at step {int(last['step']):,}", f"95% over {unit}s", "95% over runs",
            "units exchanged")  # fmt: skip
    return Table("CKA with the MLP of a dense run at the same depth", head, tuple(rows))


def _over_training(result: xr.Dataset, arms: list[str]) -> Table:
    n = result.sizes["step"]
    shown = np.unique(np.linspace(0, n - 1, min(5, n)).round().astype(int))
    unit, names, rows = result["unit"].attrs["long_name"], ("cka", "cka_either", "cosine"), []
    for arm in arms:
        runs = result["arm"].values.astype(str) == arm
        for step in shown:
            at = result.isel(step=step)
            of_arm, chance = at.sel(each_arm=arm), at.isel(run=runs)
            cells = [
                f"{_number(of_arm[f'arm_{name}_mean'])} "
                f"({interval(*of_arm[f'arm_{name}_mean_ci'].values)})"
                for name in names
            ]
            exchanged = (_number(chance[f"{name}_chance"].mean()) for name in ("cka", "cosine"))
            rows.append((arm, f"{int(at['step']):,}", *cells, *exchanged))
    head = ("arm", "step", *(f"{name} (95% over {unit}s)" for name in
            ("CKA", "CKA, either's tokens", "cosine")),
            "CKA, units exchanged", "cosine, units exchanged")  # fmt: skip
    return Table("Two experts over training, averaged over layers and runs", head, tuple(rows))


def caveats(result: xr.Dataset, found: Outputs) -> Iterator[str]:
    """What the numbers do not say, with all that was left out."""
    unit, n_experts = result["unit"].attrs["long_name"], result.attrs["n_experts"]
    routers = set(result["router"].values.astype(str)) if "router" in result.coords else set()
    yield from router_notes(
        routers & {"hash"},
        hash_means="An expert's own tokens are all those of its token ids, so that other outputs "
        "at own tokens are other outputs for these ids.",
    )
    yield (
        "Experts are run at tokens that did not choose them. There they were not trained to give "
        "anything, and what they give never reaches the model. Outputs are those before the gate: "
        "a switch router scales them by its probability, which is below 1."
    )
    yield (
        f"The estimator of CKA is HSIC1 summed over {result.attrs['n_batches']:,} batches of at "
        f"most {result.attrs['largest_batch']} tokens, each of another {unit}. The tokens of two "
        "experts are dealt anew."
    )
    pairs = n_experts * (n_experts - 1) // 2
    if pairs > MOST_PAIRS:
        yield (
            f"CKA over the tokens that chose either expert is of {MOST_PAIRS} of the {pairs:,} "
            "pairs, drawn at random; the other measures are of all pairs."
        )
    n, widths = result.attrs["n_tokens"], np.unique(result["n_features"].values)
    largest = listed(f"{largest_participation(n, int(d)):.1f} of {d}" for d in widths)
    yield (
        f"Of independent features of equal variance, {n:,} independent tokens would show a "
        f"participation ratio of {largest}; tokens of one {unit} depend on each other, which "
        "lowers it further. Ranks are compared at equal tokens, and are too low as numbers by "
        "themselves."
    )
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other. Intervals of "
        "ranks keep the directions and move the variances along them."
    )
    yield from _dense(result, found)
    yield from found.unshared
    measured = result["run_cosine_mean"].transpose("run", "step").notnull()
    is_moe = [str(run) in found.experts for run in result["run"].values]
    missing = [
        f"{run} ({int((~there).sum())} of {len(there)} steps)"
        for run, there in zip(
            result["run"].values[is_moe], measured.values[is_moe], strict=True
        )
        if not there.all()
    ]  # fmt: skip
    if missing:
        yield (
            "At some steps shown, experts were not run or gave values that are not finite, so that "
            f"the arms of these have no value there: {listed(missing)}. `python -m "
            "models.expert_outputs RUN --steps all` runs what was not."
        )


def _dense(result: xr.Dataset, found: Outputs) -> Iterator[str]:
    """Which dense MLPs there are to compare with."""
    if not found.dense:
        yield (
            "There is no dense MLP to compare with: no dense run of the study recorded `mlp_out`, "
            "or the residual stream on both sides of the MLP, at these tokens. "
            "`python -m models.train` records the latter by default."
        )
        return
    yield (
        "A dense MLP reads its own model's residual stream, not that of the experts: CKA with it "
        "holds what the two models differ in below. Its width need not be that of an expert. "
        "Intervals over runs leave out one run at a time of either side."
    )
    if found.subtracted:
        yield (
            f"The MLP outputs of {listed(found.subtracted)} are differences of the residual stream "
            "after and before, recorded in half precision: rounding adds a little noise, which "
            "raises ranks where outputs are small."
        )
    if found.lacking:
        yield f"Left out, as they recorded no MLP output at these tokens: {listed(found.lacking)}."


def _width(result: xr.Dataset, arm: str) -> str:
    widths = np.unique(result["n_features"].values[result["arm"].values.astype(str) == arm])
    return " or ".join(map(str, widths))


def _number(value: xr.DataArray) -> str:
    """A value without the sign of a zero."""
    return number(float(np.round(value, 3)) + 0.0)


def _estimate(at: xr.Dataset, name: str, *, digits: int = 3) -> str:
    value = number(at[f"arm_{name}_mean"], digits=digits)
    ends = (
        interval(*at[f"arm_{name}_mean{suffix}"].values, digits=digits)
        for suffix in ("_ci", "_run_ci")
    )
    return f"{value} ({'; '.join(ends)})"
