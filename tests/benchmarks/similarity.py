"""CKA of all pairs of layers of a model: ours beside torch_cka and ckatorch, alternating.

    python tests/benchmarks/similarity.py [--tokens 20000] [--features 512] [--rounds 3]

The exact form is timed beside its matrix products alone. The minibatch form takes the same blocks
of 250 tokens as the two packages, which are no dependencies of the project; to time them too, do
`pip install torch_cka ckatorch` in an environment of your own. Each is called as its documentation
says, on a model that gives back the activations. ckatorch keeps the last minibatch alone unless
all blocks come as one, so they do; its default of ten passes is timed as one. Seconds are processor
time on one thread. The packages do the same work for two models as for one, ours twice as much: it
is timed for both, and beside the symmetric products that make its Gram matrices. Exits with 1 if a
promise is broken: the exact form within 1.3 times its products, the minibatch form for layers of
one model in 1/6 and 1/100 of the time of the packages, between two models in 1/6 of the first, and
ours within 1e-5 of the same estimator by its definition in float64.
"""

import os

# on one thread, processor time is what a quiet machine would take, also when this one is busy
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# how fast a kernel hands out huge pages is no property of the code: up to a fifth of the exact form
os.environ["NUMPY_MADVISE_HUGEPAGE"] = "0"

import argparse
import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from analyses.statistics.minibatch_cka import (
    cka_of_all,
    gram_features,
    hsic_table,
    minibatch_cka_table,
)
from analyses.statistics.similarity import linear_cka_table

BLOCK = 250
PROMISED = {
    ("ours, exact", "matrix products alone"): 1.3,
    ("ours, minibatch", "torch_cka"): 1 / 6,
    ("ours, minibatch", "ckatorch"): 1 / 100,
    ("ours, minibatch, between two models", "torch_cka"): 1 / 6,
}
TOLERANCE = 1e-5

Layers = list[NDArray[np.float32]]


def layers_of_a_residual_stream(
    n_layers: int, n_tokens: int, n_features: int, rng: np.random.Generator
) -> Layers:
    """Each layer adds to the last; some features are large, as in trained models."""
    scale = rng.lognormal(0, 1, n_features).astype(np.float32)
    stream = np.zeros((n_tokens, n_features), dtype=np.float32)
    layers = []
    for _ in range(n_layers):
        stream = stream + scale * rng.standard_normal(stream.shape, dtype=np.float32)
        layers.append(stream)
    return layers


class Recorded(torch.nn.Module):
    """A model whose layers give back, for token positions, the activations it holds."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.activations = [torch.from_numpy(layer) for layer in layers]
        self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in layers)

    def forward(self, token: torch.Tensor) -> None:
        for layer, activations in zip(self.layers, self.activations, strict=True):
            layer(activations[token])

    @property
    def names(self) -> list[str]:
        return [f"layers.{i}" for i in range(len(self.layers))]


def blocks_of(layers: Layers) -> list[NDArray[np.intp]]:
    return np.split(np.arange(len(layers[0])), range(BLOCK, len(layers[0]), BLOCK))


def by_minibatches(layers: Layers, others: Layers | None = None) -> NDArray[np.float64]:
    return minibatch_cka_table(layers, others, batches=blocks_of(layers))


def by_kept_grams(layers: Layers) -> NDArray[np.float64]:
    """As analyses do, which read a layer at a time and use its Gram matrices again."""
    grams = [gram_features(x, blocks_of(layers)) for x in layers]
    return cka_of_all(hsic_table(grams).sum(axis=-1))


def gram_products_alone(layers: Layers) -> None:
    for layer in layers:
        for x in np.split(layer, len(layer) // BLOCK):
            _ = x @ x.T


def by_torch_cka(layers: Layers) -> NDArray[np.float64]:
    from torch_cka import CKA

    names = Recorded(layers).names
    compared = CKA(
        Recorded(layers), Recorded(layers), "first", "second", names, names, device="cpu"
    )
    tokens = DataLoader(TensorDataset(torch.arange(len(layers[0]))), batch_size=BLOCK)
    with torch.no_grad():
        compared.compare(tokens, tokens)
    return compared.export()["CKA"].numpy().astype(np.float64)


def by_ckatorch(layers: Layers) -> NDArray[np.float64]:
    from ckatorch import CKA

    compared = CKA(Recorded(layers), Recorded(layers), Recorded(layers).names)
    blocks = torch.arange(len(layers[0])).reshape(-1, BLOCK)
    return compared(DataLoader(TensorDataset(blocks), batch_size=len(blocks)), epochs=1).numpy()


def products_alone(layers: Layers) -> None:
    for a, b in combinations_with_replacement(layers, 2):
        _ = a.T @ b


def by_definition(layers: Layers) -> NDArray[np.float64]:
    """Sums of HSIC1 as Song et al. (2012) write it, in float64."""
    n = BLOCK
    totals = np.zeros((len(layers), len(layers)))
    for start in range(0, len(layers[0]), n):
        blocks = [layer[start : start + n].astype(np.float64) for layer in layers]
        grams = [x @ x.T for x in blocks]
        for gram in grams:
            np.fill_diagonal(gram, 0)
        rows = [gram.sum(axis=1) for gram in grams]
        for (i, j), _ in np.ndenumerate(totals):
            totals[i, j] += (
                np.vdot(grams[i], grams[j])
                + rows[i].sum() * rows[j].sum() / ((n - 1) * (n - 2))
                - 2 / (n - 2) * (rows[i] @ rows[j])
            ) / (n * (n - 3))
    own = np.sqrt(np.diag(totals))
    return totals / own[:, None] / own


def exact_by_definition(layers: Layers) -> NDArray[np.float64]:
    centred = [x - x.mean(axis=0) for x in (layer.astype(np.float64) for layer in layers)]
    totals = np.array([[np.linalg.norm(a.T @ b) ** 2 for b in centred] for a in centred])
    own = np.sqrt(np.diag(totals))
    return totals / own[:, None] / own


def seconds_of(call: Callable[[Layers], object], layers: Layers) -> tuple[float, object]:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        # the packages warn and draw progress bars
        warnings.simplefilter("ignore")
        start = time.process_time()
        result = call(layers)
        return time.process_time() - start, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.tokens % BLOCK:
        parser.error(f"--tokens is {args.tokens}; give a multiple of {BLOCK}")
    torch.set_num_threads(1)

    layers = layers_of_a_residual_stream(
        args.layers, args.tokens, args.features, np.random.default_rng(0)
    )
    others = layers_of_a_residual_stream(
        args.layers, args.tokens, args.features, np.random.default_rng(1)
    )
    calls: dict[str, Callable[[Layers], object]] = {
        "matrix products alone": products_alone,
        "ours, exact": linear_cka_table,
        "ours, exact, debiased": lambda x: linear_cka_table(x, debiased=True),
        "ours, minibatch": by_minibatches,
        "ours, minibatch, Gram matrices kept": by_kept_grams,
        "products of its Gram matrices alone": gram_products_alone,
        "ours, minibatch, between two models": lambda x: by_minibatches(x, others),
    }
    for package, call in (("torch_cka", by_torch_cka), ("ckatorch", by_ckatorch)):
        if find_spec(package) is None:
            print(f"{package} is not installed, so it is not timed: pip install {package}")
        else:
            calls[package] = call

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    found = {}
    for _ in range(args.rounds):
        for name, call in calls.items():
            taken, found[name] = seconds_of(call, layers)
            seconds[name].append(taken)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    reference = {"ours, exact": exact_by_definition(layers)}
    both, n = by_definition([*layers, *others]), len(layers)
    same = ("ours, minibatch", "ours, minibatch, Gram matrices kept", "torch_cka", "ckatorch")
    for name in same:
        if name in calls:
            reference[name] = both[:n, :n]
    reference["ours, minibatch, between two models"] = both[:n, n:]
    error = {name: np.abs(found[name] - by).max() for name, by in reference.items()}

    table = Table(
        title=f"CKA of {args.layers} x {args.layers} layers, {args.tokens:,} tokens x "
        f"{args.features} features"
    )
    for column in ("", "seconds", "of ours, minibatch", "largest error"):
        table.add_column(column, justify="right" if column else "left")
    for name, taken in median.items():
        shown = f"{error[name]:.1e}" if name in error else ""
        table.add_row(name, f"{taken:.2f}", f"{taken / median['ours, minibatch']:.1f}", shown)
    Console(width=110).print(table)

    failures = [
        f"{name} takes {median[name] / median[other]:.4f} of the time of {other}, not {most:.4f}"
        for (name, other), most in PROMISED.items()
        if other in median and median[name] > most * median[other]
    ]
    failures += [
        f"{name} is {error[name]:.1e} away from its definition in float64"
        for name in error
        if name.startswith("ours") and error[name] > TOLERANCE
    ]
    for failure in failures:
        print(failure)
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
