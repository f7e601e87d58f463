"""Coverage of intervals over units of text: these models, other text."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from simulation import text_world
from simulation.cells import Cell, Task, covered

from analyses.statistics.bands import simultaneous
from analyses.statistics.correlation import (
    average_ranks,
    fisher_z,
    mean_squared_difference,
    partial_r,
    pearson_r,
)
from analyses.statistics.ensemble import ensemble_gain
from analyses.statistics.resampling import (
    Jackknife,
    Method,
    bootstrap,
    bootstrap_weights,
    jackknife,
    leave_one_out,
)
from analyses.statistics.runs import log_r_contrast

SIZES = (20, 50, 200, 1000)
BAND_SIZES = (20, 38, 80)
LAWS, LENGTHS = ("gamma", "lognormal"), ("equal", "ragged")
UNITS_A_BLOCK = 10_000
N_RESAMPLES = 999
T_REPLICATES = {20: 2000, 50: 800, 200: 800}  # it costs units x resamples a replicate
Z95 = 1.959963984540054

Interval = NDArray[np.float64]
Statistic = Callable[[NDArray], NDArray[np.float64]]


def tasks(replicates: int) -> Iterator[Task]:
    """Every world over text, each with a seed of its own."""
    for law in LAWS:
        for lengths in LENGTHS:
            for size in SIZES:
                name = f"over text: {law}, {lengths}, {size} units"
                yield Task(name, of_world, (law, lengths, size, replicates))
    for size in BAND_SIZES:
        yield Task(f"bands: {size} units", of_curves, (size, replicates))


def of_world(law: str, lengths: str, size: int, replicates: int) -> Iterator[Cell]:
    """All intervals in one world, over `size` units of text."""
    seed = [1, LAWS.index(law), LENGTHS.index(lengths), size]
    rng = np.random.default_rng(seed)
    truth = text_world.closed_form() | truth_by_draw(law)
    found: dict[tuple[str, str], list[Interval]] = {}
    replicates //= 1 + (size == max(SIZES))
    done, block = 0, max(1, UNITS_A_BLOCK // size)
    while done < replicates:
        n = min(block, replicates - done)
        text = text_world.draw(law, lengths, n * size, rng)
        with_t = done < T_REPLICATES.get(size, 0)
        for key, ci in _intervals(text, n, with_t=with_t, rng=rng):
            found.setdefault(key, []).append(ci)
        done += n
    world = f"{law}, {lengths}"
    for (method, target), parts in found.items():
        yield covered("text", world, str(size), method, np.concatenate(parts), truth[target])


@cache
def truth_by_draw(law: str) -> dict[str, float]:
    """Population values without a closed form."""
    rng = np.random.default_rng([2, LAWS.index(law)])
    return text_world.by_large_draw(law, rng, n_units=200_000)


def _intervals(
    text: text_world.Text, n: int, *, with_t: bool, rng: np.random.Generator
) -> Iterator[tuple[tuple[str, str], Interval]]:
    """Intervals (replicate, ci_bound) by method, and the name of the truth that they must cover."""
    i, j = text_world.PAIR
    pair = [0, 1 + i, 1 + j]
    centred = text.loss - np.float32(text_world.MEAN_LOSS)
    moments = _by_replicate(
        text_world.unit_moments(np.stack([*centred, text.control - 1]), text.start), n
    )
    of_losses = moments[..., :5, :5]
    for name, found in jackknives(text, moments, of_losses, n).items():
        yield (f"jackknife, {name}", name), found.ci
    of_pair = of_losses[..., pair, :][..., pair]
    z = _z(of_pair.sum(axis=0))
    tokens = of_pair[..., 0, 0].sum(axis=0)
    margin = Z95 / np.sqrt(tokens - 3)
    yield ("Fisher's z, n = tokens", "r"), np.stack([z - margin, z + margin], axis=-1)
    methods: tuple[Method, ...] = ("percentile", "bca", "t") if with_t else ("percentile", "bca")
    weights = bootstrap_weights(len(of_pair), n_resamples=N_RESAMPLES, rng=rng)
    for method in methods:
        for start in range(0, n, 20):
            some = of_pair[:, start : start + 20]
            ci = bootstrap(some, _z, weights=weights, method=method).ci
            yield (f"bootstrap {method}, r", "r"), ci
    equal = (tokens == tokens[0]).all()
    if equal and len(of_pair) == 50:
        yield ("bootstrap percentile of tokens, r", "r"), _token_bootstrap(centred, n, rng)


def jackknives(
    text: text_world.Text, moments: NDArray, of_losses: NDArray, n: int
) -> dict[str, Jackknife]:
    """Jackknife of every statistic offered, each of (replicate)."""
    i, j = text_world.PAIR
    first, second = text_world.BETWEEN
    mean = np.full(4, text_world.MEAN_LOSS)
    two = text.loss[[i, j]]
    size = len(text.start) // n
    bounds = [*text.start[::size].tolist(), two.shape[1]]
    ranks = np.concatenate(
        [average_ranks(two[:, a:b]) / (b - a) - 0.5 for a, b in pairwise(bounds)], axis=1
    )
    gain = np.stack([np.ones(two.shape[1]), ensemble_gain(*two)])
    gain = _by_replicate(np.add.reduceat(gain, text.start, axis=1).T, n)

    def moments_of(values: NDArray) -> NDArray[np.float64]:
        return _by_replicate(text_world.unit_moments(values, text.start), n)

    r = _with_deleted(of_losses, pearson_r)
    own = [0, 1 + i, 1 + j, 5]
    partial = _with_deleted(
        moments[..., own, :][..., own], lambda s: partial_r(s, n_controls=1)[..., 0, 1]
    )
    difference = _with_deleted(of_losses, lambda s: mean_squared_difference(s, mean)[..., i, j])
    gain = _with_deleted(gain, lambda s: s[..., 1] / s[..., 0])
    return {
        "r": jackknife(*(fisher_z(a[..., i, j]) for a in r)),
        "Spearman": jackknife(*_with_deleted(moments_of(ranks), _z)),
        "r of exp(-loss)": jackknife(
            *_with_deleted(moments_of(np.exp(-two, dtype=np.float64)), _z)
        ),
        "partial r": jackknife(*map(fisher_z, partial)),
        "mean of pairs": jackknife(*(fisher_z(a[..., first, second]).mean(axis=-1) for a in r)),
        "delta": jackknife(*(log_r_contrast(a, text_world.ARM) for a in r)),
        "squared difference": jackknife(*difference),
        "log squared difference": jackknife(*map(np.log, difference)),
        "ensemble gain": jackknife(*gain),
        "log ensemble gain": jackknife(*map(np.log, gain)),
    }


def _with_deleted(sums: NDArray, statistic: Statistic) -> tuple[NDArray, NDArray]:
    """A statistic of (unit, replicate, ...), and the same without each unit."""
    return statistic(sums.sum(axis=0)), statistic(leave_one_out(sums))


def of_curves(size: int, replicates: int) -> Iterator[Cell]:
    """Curves of r at 18 places: noise of the models falls, and is correlated between places."""
    rng = np.random.default_rng([3, size])
    places, persistence = 18, 0.9
    noise = np.linspace(1.2, 0.4, places).astype(np.float32)
    unit, token = np.float32(0.5), np.float32(0.8)
    common = unit**2 + token**2
    truth = np.arctanh(common / (common + noise.astype(float) ** 2))
    hits: dict[str, list[NDArray[np.bool_]]] = {"simultaneous band": [], "pointwise intervals": []}
    block = max(1, 2000 // size)
    for start in range(0, replicates, block):
        n = min(block, replicates - start)
        shape = (n * size, text_world.MEAN_TOKENS)
        # log losses: a lognormal would leave r a function of the noise's variance as well
        shared = unit * rng.standard_normal((shape[0], 1), dtype=np.float32)
        shared = (shared + token * rng.standard_normal(shape, dtype=np.float32)).ravel()
        state = rng.standard_normal((2, shared.size), dtype=np.float32)
        moments = []
        for scale in noise:
            moments.append(
                text_world.unit_moments(shared + scale * state, np.arange(0, shared.size, shape[1]))
            )
            fresh = rng.standard_normal(state.shape, dtype=np.float32)
            state = persistence * state + np.float32(np.sqrt(1 - persistence**2)) * fresh
        sums = np.stack([_by_replicate(m, n) for m in moments], axis=2)
        total = sums.sum(axis=0)
        found = jackknife(_z(total), _z(total - sums))
        band, _ = simultaneous(found, n_resamples=N_RESAMPLES, rng=rng)
        for name, ci in (("simultaneous band", band), ("pointwise intervals", found.ci)):
            inside = (ci[..., 0] <= truth) & (truth <= ci[..., 1])
            hits[name].append(inside.all(axis=-1))
    for name, parts in hits.items():
        inside = np.concatenate(parts)
        yield Cell("bands", "18 places", str(size), name, float(inside.mean()), np.nan, np.nan,
                   len(inside))  # fmt: skip


def _z(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    return fisher_z(pearson_r(moments)[..., 0, 1])


def _by_replicate(sums: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """(replicate x unit, ...) -> (unit, replicate, ...)."""
    return np.swapaxes(sums.reshape(n, -1, *sums.shape[1:]), 0, 1)


def _token_bootstrap(centred: NDArray, n: int, rng: np.random.Generator) -> Interval:
    """The bootstrap as if each token were a unit of its own."""
    two = centred[list(text_world.PAIR)]
    moments = _by_replicate(text_world.unit_moments(two, np.arange(two.shape[1])), n)
    weights = bootstrap_weights(len(moments), n_resamples=199, rng=rng)
    return np.concatenate(
        [bootstrap(moments[:, s : s + 20], _z, weights=weights).ci for s in range(0, n, 20)]
    )
