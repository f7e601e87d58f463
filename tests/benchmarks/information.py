"""Mutual information of token ids and experts under document permutations: ours beside sklearn's.

    python tests/benchmarks/information.py [--tokens 200000] [--ids 2048] [--layers 4]

Whole documents exchange their runs of expert choices, a thousand times in every layer, and each
time the information that the token id has about the expert is measured. With scikit-learn one
would call `mutual_info_score` in a loop over the same permutations; it is timed on a few of them,
from which its time for all follows, and must give the same information. Seconds are processor time
on one thread. Exits with 1 if ours takes more than 20 s, or if the two differ.
"""

import os

# on one thread, processor time is what a quiet machine would take, also when this one is busy
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import time

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.metrics import mutual_info_score

from analyses.statistics import routing
from analyses.statistics.documents import document_slices
from analyses.statistics.moved_choices import exchanged, moved_sums
from analyses.statistics.permutation import document_permutations

MOST_SECONDS = 20.0
N_TIMED = 5


def routed_text(
    n_tokens: int, n_ids: int, n_experts: int, n_layers: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int16]]:
    """Token ids of Zipf's frequencies, document of each token, and choices (layer, token, 1)."""
    share = 1 / np.arange(1, n_ids + 1)
    token = rng.choice(n_ids, n_tokens, p=share / share.sum())
    document = np.unique(np.sort(rng.integers(0, 500, n_tokens)), return_inverse=True)[1]
    lookup = rng.integers(0, n_experts, (n_layers, n_ids))[:, token]
    free = rng.integers(0, n_experts, lookup.shape)
    choice = np.where(rng.random(lookup.shape) < 0.5, lookup, free).astype(np.int16)
    return token, document, choice[..., None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--ids", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--permutations", type=int, default=1000)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    token, document, choice = routed_text(args.tokens, args.ids, args.experts, args.layers, rng)
    _, slices = document_slices(document, n_tokens=args.tokens)
    permutations = document_permutations(len(slices), n_resamples=args.permutations, rng=rng)

    start = time.process_time()
    at = routing.labelled(token, document, n_labels=args.ids)
    nulls = [
        moved_sums(of_layer, at, exchanged(slices, permutations), n_experts=args.experts)
        for of_layer in choice
    ]
    ours = np.stack([routing.label_information(null) for null in nulls])
    our_seconds = time.process_time() - start

    start = time.process_time()
    theirs = np.array(
        [
            [
                mutual_info_score(token, np.concatenate([of_layer[piece, 0] for piece in pieces]))
                for pieces in exchanged(slices, permutations[:N_TIMED])
            ]
            for of_layer in choice
        ]
    )
    their_seconds = (time.process_time() - start) * args.permutations / theirs.shape[1]

    table = Table(
        title=f"{args.permutations:,} permutations of {len(slices)} documents, {args.tokens:,} "
        f"tokens, {args.ids:,} ids, {args.experts} experts, {args.layers} layers"
    )
    for column in ("", "seconds", "times as fast"):
        table.add_column(column, justify="right" if column else "left")
    ratio = their_seconds / our_seconds
    table.add_row("ours", f"{our_seconds:.2f}", f"{ratio:.1f}")
    table.add_row(f"scikit-learn, from {theirs.size} calls", f"{their_seconds:.1f}", "1.0")
    Console(width=110).print(table)

    failures = []
    if not np.allclose(ours[:, : theirs.shape[1]], theirs, rtol=1e-9):
        failures.append("ours and scikit-learn's information differ")
    if our_seconds > MOST_SECONDS:
        failures.append(f"ours takes {our_seconds:.1f} s, more than {MOST_SECONDS:.0f}")
    for failure in failures:
        print(failure)
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
