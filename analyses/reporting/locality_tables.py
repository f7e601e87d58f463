"""Tables of `routing_locality`, at the last step."""

from collections.abc import Iterator

import xarray as xr

from analyses.reporting.report import Table
from analyses.reporting.text import interval, number
from analyses.routing.locality import ALL, OTHER


def tables(result: xr.Dataset) -> Iterator[Table]:
    """Next tokens as Mixtral reports them beside their chance, and what is beyond it by lag."""
    yield _next_tokens(result.isel(step=-1))
    yield _beyond(result.isel(step=-1))
    yield _by_lag(result)


def _places(of_arm: xr.Dataset, names: list[str]) -> Iterator[tuple[str, xr.Dataset]]:
    """Each layer, then the mean over layers, under the same names."""
    for layer in of_arm["layer"].values:
        yield str(layer), of_arm.sel(layer=layer)
    stems = [f"arm_{name}{suffix}" for name in names for suffix in ("", "_ci", "_run_ci")]
    mean = {stem: of_arm[_mean(stem)] for stem in stems}
    yield "mean", xr.Dataset(mean)


def _mean(stem: str) -> str:
    for suffix in ("_run_ci", "_ci"):
        if stem.endswith(suffix):
            return f"{stem.removesuffix(suffix)}_mean{suffix}"
    return f"{stem}_mean"


def _percent(at: xr.Dataset, name: str) -> str:
    return number(100 * at[f"arm_{name}"], digits=1)


def _ends(at: xr.Dataset, name: str) -> str:
    over_units, over_runs = (
        interval(*(100 * at[f"arm_{name}{suffix}"].values), digits=1)
        for suffix in ("_ci", "_run_ci")
    )
    return f"{over_units}; {over_runs}"


def _next_tokens(at: xr.Dataset) -> Table:
    """Percent of next tokens that repeat an expert, the form of Mixtral's table 5."""
    names, rows = ["repetition", "load_chance", "text_chance"], []
    for arm in at["each_arm"].values:
        for choice in at["choice"].values:
            of_arm = at.sel(each_arm=arm, choice=choice, pairs=ALL)
            even = number(100 * at["uniform_chance"].sel(choice=choice), digits=1)
            for layer, value in _places(of_arm, names):
                cells = [_percent(value, name) for name in names]
                rows.append(
                    (str(arm), layer, str(choice), cells[0], _ends(value, "repetition"), even,
                     *cells[1:])
                )  # fmt: skip
    unit = at["unit"].attrs["long_name"]
    head = ("arm", "layer", "choice", "same expert", f"95% over {unit}s; over runs", "even loads",
            "loads", "sequence")  # fmt: skip
    title = f"Percent of next tokens with the same expert, step {int(at['step']):,}, and chance"
    return Table(title, head, tuple(rows))


def _beyond(at: xr.Dataset) -> Table:
    """What is beyond each chance, in percentage points."""
    rows = []
    for arm in at["each_arm"].values:
        for choice in at["choice"].values:
            of_choice = at.sel(each_arm=arm, choice=choice)
            places = [
                _places(of_choice.sel(pairs=pairs), ["beyond_load", "beyond_text"])
                for pairs in (ALL, OTHER)
            ]
            for (layer, every), (_, other) in zip(*places, strict=True):
                cells = []
                for value, name in (
                    (every, "beyond_load"), (every, "beyond_text"), (other, "beyond_text"),
                ):  # fmt: skip
                    cells += [_percent(value, name), _ends(value, name)]
                rows.append((str(arm), layer, str(choice), *cells))
    unit = at["unit"].attrs["long_name"]
    columns = ("beyond loads", "beyond sequence", "beyond sequence, two ids")
    head = [cell for name in columns for cell in (name, f"95% over {unit}s; over runs")]
    title = (
        f"Repetition at the next token beyond chance, percentage points, step {int(at['step']):,}"
    )
    return Table(title, ("arm", "layer", "choice", *head), tuple(rows))


def _by_lag(result: xr.Dataset) -> Table:
    """Averaged over layers: beyond the sequence at each lag, pairs of two ids."""
    rows = []
    for arm in result["each_arm"].values:
        for choice in result["choice"].values:
            of_arm = result.sel(each_arm=arm, choice=choice, pairs=OTHER)
            cells = []
            for lag in result["lag"].values:
                at = of_arm.sel(lag=lag)
                ends = 100 * at["arm_lag_beyond_text_mean_ci"].values
                value = number(100 * at["arm_lag_beyond_text_mean"], digits=1)
                cells.append(f"{value} ({interval(*ends, digits=1)})")
            rows.append((str(arm), str(choice), *cells))
    unit = result["unit"].attrs["long_name"]
    title = (
        "Repetition beyond the sequence by lag, pairs of two token ids, percentage points (95% "
        f"over {unit}s), averaged over layers"
    )
    return Table(title, ("arm", "choice", *map(str, result["lag"].values)), tuple(rows))
