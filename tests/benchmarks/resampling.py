"""A bootstrap interval of r² of two models' losses: ours beside scipy's, alternating.

    python tests/benchmarks/resampling.py [--tokens 1000000] [--documents 2000] [--rounds 3]

Ours resamples documents, by weights on their moment matrices. scipy's paired bootstrap resamples
tokens, which are not independent, so its interval is too narrow; it is timed because it is what one
would otherwise call. For like with like, scipy also resamples the documents' moment matrices: with
the same seed it draws the same documents, and must give the same interval. Every width is checked
against the delta method for its own unit. Seconds are processor time on one thread. Exits with 1 if
ours, its one pass over the tokens included, is less than 200 times as fast as scipy's over tokens,
or if an interval is wrong.
"""

import os

# on one thread, processor time is what a quiet machine would take, also when this one is busy
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from analyses.statistics.correlation import document_moments, pearson_r
from analyses.statistics.resampling import bootstrap, bootstrap_weights

N_RESAMPLES = 1000
REQUIRED_RATIO = 200
BATCHES = (1, 4, 16)
TOLERANCE = 0.15  # five standard errors of a width from 1,000 draws

Interval = NDArray[np.float64]


def correlated_losses(
    n_tokens: int, n_documents: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Losses (model, token) of two models in float32 and the document of each token.

    How much the models share differs between documents, as their mean loss does.
    """
    document = np.sort(rng.integers(0, n_documents, n_tokens))
    document = np.unique(document, return_inverse=True)[1]
    shared = rng.gamma(2.0, 1.0, n_tokens) * rng.lognormal(0, 0.5, n_documents)[document]
    noise = rng.standard_normal((2, n_tokens)) * rng.lognormal(0, 0.5, n_documents)[document]
    return (shared + noise).astype(np.float32), document


def r2_of_moments(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """r² of the first two rows from summed moment matrices (..., 3, 3)."""
    return pearson_r(moments)[..., 0, 1] ** 2


def r2_of_tokens(x: NDArray, y: NDArray, axis: int = -1) -> NDArray[np.float64]:
    """r² as scipy calls it, with no copy of the resample; x and y are nearly centred."""
    n = x.shape[axis]
    x_mean, y_mean = x.mean(axis=axis), y.mean(axis=axis)
    covariance = np.vecdot(x, y, axis=axis) / n - x_mean * y_mean
    x_variance = np.vecdot(x, x, axis=axis) / n - x_mean**2
    y_variance = np.vecdot(y, y, axis=axis) / n - y_mean**2
    return covariance**2 / (x_variance * y_variance)


def delta_width(losses: NDArray[np.float64], unit: NDArray[np.intp]) -> float:
    """Width of the normal 95% interval of r² when whole units are resampled."""
    x, y = (losses - losses.mean(axis=1, keepdims=True)) / losses.std(axis=1, keepdims=True)
    r = float((x * y).mean())
    influence = np.bincount(unit, weights=x * y - r * (x**2 + y**2) / 2)
    return 2 * 1.96 * 2 * abs(r) * float(np.sqrt((influence**2).sum())) / len(x)


def contenders(
    losses: NDArray[np.float32], document: NDArray[np.intp]
) -> dict[str, Callable[[], Interval]]:
    """What is timed, each from nothing to an interval; scipy's batch is the fastest of a few."""
    centred = losses.astype(np.float64)
    centred -= centred.mean(axis=1, keepdims=True)
    moments = document_moments(losses, document)

    def ours_from(sums: NDArray[np.float64]) -> Interval:
        weights = bootstrap_weights(
            len(sums), n_resamples=N_RESAMPLES, rng=np.random.default_rng(1)
        )
        return bootstrap(sums, r2_of_moments, weights=weights).ci

    def scipys(*data: NDArray, n_resamples: int = N_RESAMPLES, **how: object) -> Interval:
        found = stats.bootstrap(
            data, n_resamples=n_resamples, method="percentile", vectorized=True,
            rng=np.random.default_rng(1), **how,
        )  # fmt: skip
        return np.array(found.confidence_interval)

    def over_tokens(batch: int, n_resamples: int = N_RESAMPLES) -> Interval:
        return scipys(
            *centred, statistic=r2_of_tokens, paired=True, batch=batch, n_resamples=n_resamples
        )

    def of_documents(index: NDArray, axis: int = -1) -> NDArray[np.float64]:
        return r2_of_moments(moments[np.moveaxis(index, axis, -1)].sum(axis=-3))

    batch = min(BATCHES, key=lambda size: seconds_of(lambda: over_tokens(size, n_resamples=32))[0])
    return {
        "ours, documents": lambda: ours_from(document_moments(losses, document)),
        "ours, documents, moments given": lambda: ours_from(moments),
        "scipy, documents, moments given": lambda: scipys(
            np.arange(len(moments)), statistic=of_documents, batch=100
        ),
        f"scipy, tokens, batch {batch}": lambda: over_tokens(batch),
    }


def seconds_of(call: Callable[[], Interval]) -> tuple[float, Interval]:
    start = time.process_time()
    interval = call()
    return time.process_time() - start, interval


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--documents", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    losses, document = correlated_losses(args.tokens, args.documents, np.random.default_rng(0))
    calls = contenders(losses, document)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    intervals = {}
    for _ in range(args.rounds):
        for name, call in calls.items():
            for _ in range(1 if "tokens" in name else 5):
                taken, intervals[name] = seconds_of(call)
                seconds[name].append(taken)

    *_, slowest = calls
    widths = {
        name: delta_width(
            losses.astype(np.float64), np.arange(args.tokens) if name == slowest else document
        )
        for name in calls
    }
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    table = Table(title=f"95% interval of r², {args.tokens:,} tokens, {N_RESAMPLES:,} resamples")
    for column in ("what is resampled", "seconds", "times as fast", "interval", "by delta method"):
        table.add_column(column, justify="left" if column.startswith("what") else "right")
    for name, (low, high) in intervals.items():
        table.add_row(
            name, f"{median[name]:.4f}", f"{median[slowest] / median[name]:,.0f}",
            f"{low:.5f} to {high:.5f}", f"{(high - low) / widths[name]:.2f} of its width",
        )  # fmt: skip
    Console(width=110).print(table)

    ratio = median[slowest] / median["ours, documents"]
    failures = [
        f"the interval of {name!r} is not that of the delta method"
        for name, (low, high) in intervals.items()
        if abs((high - low) / widths[name] - 1) > TOLERANCE
    ]
    ours, given, theirs, _ = intervals.values()
    if not (np.array_equal(ours, given) and np.allclose(ours, theirs, rtol=1e-9)):
        failures.append("the same resamples of documents give other intervals")
    if ratio < REQUIRED_RATIO:
        failures.append(f"ours is {ratio:.0f} times as fast, not {REQUIRED_RATIO}")
    for failure in failures:
        print(failure)
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
