"""Tables of `expert_matching`: agreement by pair of arms, and measures that need no matching."""

from collections.abc import Iterator, Sequence

import xarray as xr

from analyses.reporting.report import Table
from analyses.reporting.text import interval, number


def tables(at: xr.Dataset) -> Iterator[Table]:
    """Agreement, then what needs no matching, of every pair of arms at one step.

    Parameters
    ----------
    at : result of `expert_matching` at a step.
    """
    where = f"at step {int(at['step']):,}"
    yield _agreement(at, where)
    plain = {
        "ami": "AMI", "routing_cka": "routing CKA", "hidden_cka": "hidden CKA, unit rows",
        "hidden_cka_raw": "hidden CKA", "first_kappa": "kappa, first choices",
    }  # fmt: skip
    shown = {name: title for name, title in plain.items() if f"arms_{name}" in at}
    yield _by_layer(at, {"kappa": "kappa"} | shown, title=f"By layer {where}")


def estimate(at: xr.Dataset, name: str) -> str:
    """A measure of two arms with both intervals: `0.185 (0.170 to 0.200; 0.150 to 0.220)`."""
    ends = [interval(*at[f"{name}{suffix}"].values) for suffix in ("_ci", "_run_ci")]
    return f"{number(at[name])} ({'; '.join(ends)})"


def _agreement(at: xr.Dataset, where: str) -> Table:
    unit, rows = at["unit"].attrs["long_name"], []
    smallest = 1 / (at.sizes["resample"] + 1)
    names = ("kappa", "floor_kappa", "beyond_floor")
    for arms in at["arms"].values:
        of_arms = at.sel(arms=arms)
        p = at["pair_chance_p"].isel(pair=(at["pair_arms"] == arms).values)
        above = int((p <= smallest * (1 + 1e-9)).sum())
        rows.append(
            (
                str(arms), str(int(of_arms["arms_n_pairs"])),
                number(of_arms["arms_agreement_mean"]), number(of_arms["arms_chance_mean"]),
                number(of_arms["arms_lookup_mean"]),
                *(estimate(of_arms, f"arms_{name}_mean") for name in names),
                f"{above} of {int(p.notnull().sum())}",
            )
        )  # fmt: skip
    both = f"(95% over {unit}s; over runs)"
    head = ("arms", "pairs", "agreement", "chance", "usual experts", f"kappa {both}",
            f"kappa of token ids alone {both}", f"beyond token ids {both}",
            "pairs and layers above all draws")  # fmt: skip
    return Table(f"Agreement of matched experts {where}, averaged over layers", head, tuple(rows))


def _by_layer(at: xr.Dataset, names: dict[str, str], *, title: str) -> Table:
    unit, rows = at["unit"].attrs["long_name"], []
    for arms in at["arms"].values:
        layers: Sequence[object] = [*at["layer"].values, "mean"]
        for layer in layers:
            stems = [f"arms_{name}_mean" if layer == "mean" else f"arms_{name}" for name in names]
            of_arms = at.sel(arms=arms) if layer == "mean" else at.sel(arms=arms, layer=layer)
            rows.append((str(arms), str(layer), *(estimate(of_arms, stem) for stem in stems)))
    head = [f"{name} (95% over {unit}s; over runs)" for name in names.values()]
    return Table(title, ("arms", "layer", *head), tuple(rows))
