"""One step of every group written and read, beside `numpy.save` and `numpy.load` of the same bytes.

    python tests/benchmarks/store_rates.py [--size quick|reference] [--rounds 15] [--run RUN]

First each codec on each kind of values, then sizes of chunks of the largest array, then the store
as it is. Rounds alternate between all of these and numpy, so that a busy machine slows them alike;
figures are medians over rounds of the ratio to numpy, by the clock and in processor seconds.
Values are drawn at random with the distribution of trained models', or are the last step of RUN.
"""

import argparse
import math
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import zarr
from rich.console import Console
from rich.table import Table
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from store.layout import chunking
from store.run import Run

CHECKSUM = Crc32cCodec()
CODECS: dict[str, list[Any]] = {
    "none": [],
    "crc32c": [CHECKSUM],
    "zstd 1": [ZstdCodec(level=1)],
    "zstd 1, checksum": [ZstdCodec(level=1, checksum=True)],
    "zstd 3, checksum": [ZstdCodec(level=3, checksum=True)],
    "lz4, crc32c": [BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle"), CHECKSUM],
    "shuffle, lz4, crc32c": [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), CHECKSUM],
    "bitshuffle, lz4, crc32c": [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), CHECKSUM],
    "bitshuffle, zstd 1, crc32c": [
        BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"),
        CHECKSUM,
    ],
}
CHUNK_MIB = (1, 4, 16, 64, 1024)


class Sizes(NamedTuple):
    """Of one observation; activations and predictions at a few positions only."""

    sequence: int
    pos: int
    layer: int
    d_model: int
    activation_pos: int
    prediction_pos: int = 4
    expert: int = 8
    d_vocab: int = 2048


SIZES = {
    "quick": Sizes(160, 128, layer=4, d_model=112, activation_pos=16),
    "reference": Sizes(190, 840, layer=9, d_model=792, activation_pos=16),
}


class Timed(NamedTuple):
    """Seconds by the clock and of all processors."""

    wall: float
    processor: float


Times = dict[tuple[str, str], list[Timed]]


def observation(sizes: Sizes, rng: np.random.Generator) -> dict[str, xr.Dataset]:
    """What probes would return: surprisals, softmaxes, normal features of unequal scale."""
    tokens = (sizes.layer // 2, sizes.sequence, sizes.pos)

    def log_softmax(*shape: int, scale: float) -> np.ndarray:
        logits = scale * rng.standard_normal(shape, dtype="float32")
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    router_prob = np.exp(log_softmax(*tokens, sizes.expert, scale=2))
    scale = np.exp(rng.standard_normal(sizes.d_model, dtype="float32"))
    dims = ("layer", "sequence", "pos")

    def features() -> np.ndarray:
        shape = (sizes.layer, sizes.sequence, sizes.activation_pos, sizes.d_model)
        return (scale * rng.standard_normal(shape, dtype="float32")).astype("float16")

    loss = rng.gamma(2.0, 2.0, tokens[1:]).astype("float32")
    log_prob = log_softmax(sizes.sequence, sizes.prediction_pos, sizes.d_vocab, scale=2.5)
    expert_index = router_prob.argmax(-1)[..., None].astype("int16")
    expert_weight = router_prob.max(-1)[..., None].astype("float16")
    return {
        "losses": xr.Dataset({"loss": (dims[1:], loss)}),
        "predictions": xr.Dataset(
            {"log_prob": ((*dims[1:], "d_vocab"), log_prob.astype("float16"))},
            {"pos": np.arange(sizes.prediction_pos)},
        ),
        "routing": xr.Dataset(
            {
                "expert_index": ((*dims, "top_k"), expert_index),
                "expert_weight": ((*dims, "top_k"), expert_weight),
                "router_prob": ((*dims, "expert"), router_prob.astype("float16")),
            }
        ),
        "activations": xr.Dataset(
            {site: ((*dims, "d_model"), features()) for site in ("resid_mid", "resid_post")},
            {"pos": np.arange(sizes.activation_pos)},
        ),
    }


def last_step(run: Run) -> dict[str, xr.Dataset]:
    """What a run observed last."""
    groups = ("losses", "predictions", "routing", "activations")
    return {
        group: run.dataset(group).isel(step=-1).reset_coords(drop=True).load()
        for group in groups
        if group in run.groups
    }


def timed(do: Callable[[], object]) -> Timed:
    wall, processor = time.perf_counter(), time.process_time()
    do()
    return Timed(time.perf_counter() - wall, time.process_time() - processor)


def alternated(
    arrays: Sequence[np.ndarray],
    folder: Path,
    ways: dict[str, tuple[Callable[[int], object], Callable[[int], object]]],
    rounds: int,
) -> Times:
    """Write and read row i by each way, and by numpy, in turn; the last row stays on disk."""
    times: Times = defaultdict(list)
    for i in range(rounds + 1):
        paths = [folder / f"{k}.npy" for k in range(len(arrays))]
        saved = timed(lambda: [np.save(p, a) for p, a in zip(paths, arrays, strict=True)])  # noqa: B023
        loaded = timed(lambda: [np.load(path) for path in paths])  # noqa: B023
        turns = [("numpy", "write", saved), ("numpy", "read", loaded)]
        for name, (write, read) in ways.items():
            turns.append((name, "write", timed(lambda: write(i))))  # noqa: B023
            turns.append((name, "read", timed(lambda: read(i))))  # noqa: B023
        for path in paths:
            path.unlink()
        if i == 0:  # warms up
            continue
        for name, what, taken in turns:
            times[name, what].append(taken)
        for row in rows_on_disk(folder, i) if i < rounds else ():
            shutil.rmtree(row)
    return times


def rows_on_disk(folder: Path, row: int) -> list[Path]:
    """Folders of the chunks of one row of all arrays in a folder."""
    return [path for path in folder.rglob(f"c/{row}") if path.is_dir()]


def ratio(times: Times, name: str, what: str, clock: str) -> float:
    """Median over rounds of the time by a way over that by numpy."""
    pairs = zip(times[name, what], times["numpy", what], strict=True)
    return statistics.median(
        getattr(ours, clock) / getattr(numpys, clock) for ours, numpys in pairs
    )


def disk_share(folder: Path, row: int, n_bytes: int) -> float:
    """Bytes on disk of a row of all arrays in a folder, over those of its values."""
    files = [file for path in rows_on_disk(folder, row) for file in path.rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file()) / n_bytes


def compared(
    values: np.ndarray, settings: dict[str, tuple[list[Any], int]], folder: Path, rounds: int
) -> list[list[str]]:
    """Rows of a table: each setting, a codec and the bytes of a chunk, on one array."""
    ways, arrays = {}, {}
    for name, (codec, chunk_bytes) in settings.items():
        chunk, shard = chunking((1, *values.shape), values.itemsize, chunk_bytes)
        arrays[name] = zarr.create_array(
            folder / name, shape=(rounds + 1, *values.shape), dtype=values.dtype, chunks=chunk,
            shards=shard, compressors=codec, config={"write_empty_chunks": True},
        )  # fmt: skip

        def write(i: int, array: zarr.Array[Any] = arrays[name]) -> None:
            array[i : i + 1] = values[None]

        ways[name] = write, arrays[name].__getitem__
    times = alternated([values], folder, ways, rounds)
    rows = [
        [name, *_ratios(times, name), f"{disk_share(folder / name, rounds, values.nbytes):.3f}"]
        for name in settings
    ]
    shutil.rmtree(folder)
    return rows


def as_it_is(seen: dict[str, xr.Dataset], folder: Path, rounds: int) -> list[str]:
    """Row of a table: the store, all groups of a step at once."""
    steps = np.arange(rounds + 1)
    first = next(iter(seen["losses"].data_vars.values()))
    probe_set = xr.Dataset({"token": (first.dims, np.zeros(first.shape, "int32"))})
    run = Run.create(
        folder / "run.zarr", probe_set, seen, steps=steps, training_steps=rounds, attrs={},
        coordinates={},
    )  # fmt: skip

    for step in steps:
        run.commit(step)
    read = {group: run.dataset(group) for group in seen}  # once, as analyses do
    arrays = [v.values for one in seen.values() for v in one.data_vars.values()]
    way = (
        lambda i: run.write(i, seen),
        lambda i: [one.isel(step=i).load() for one in read.values()],
    )
    times = alternated(arrays, folder, {"store": way}, rounds)
    n_bytes = sum(values.nbytes for values in arrays)
    share = disk_share(run.path, rounds, n_bytes)
    return [f"{n_bytes / 1e6:.1f} MB", *_ratios(times, "store"), f"{share:.3f}"]


def _ratios(times: Times, name: str) -> list[str]:
    return [
        f"{ratio(times, name, what, clock):.1f}"
        for what in ("write", "read")
        for clock in ("wall", "processor")
    ]


def table(title: str, first: str, rows: list[list[str]]) -> Table:
    result = Table(title=title)
    for column in (first, "write", "processor", "read", "processor", "size"):
        result.add_column(column, justify="left" if column == first else "right")
    for row in rows:
        result.add_row(*row)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="quick")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--run", type=Path, help="take the last step of this run instead")
    args = parser.parse_args()
    given = last_step(Run.open(args.run)) if args.run else None
    seen = given or observation(SIZES[args.size], np.random.default_rng(0))
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        console.print(
            table("the store, times numpy", "step", [as_it_is(seen, folder / "s", args.rounds)])
        )
        arrays = {f"{g}/{n}": v.values for g, one in seen.items() for n, v in one.data_vars.items()}
        for variable, values in arrays.items():
            title = f"{variable} {values.dtype}, {values.nbytes / 1e6:.2f} MB, times numpy"
            settings = {codec: (CODECS[codec], 16 * 2**20) for codec in CODECS}
            rows = compared(values, settings, folder / "codecs", args.rounds)
            console.print(table(title, "codec", rows))
        variable, values = max(arrays.items(), key=lambda item: item[1].nbytes)
        chunks = {
            f"{mib} MiB": (CODECS["crc32c"], mib * 2**20)
            for mib in CHUNK_MIB
            if math.ceil(values.nbytes / 2**20) >= mib or mib == CHUNK_MIB[-1]
        }
        title = f"{variable}, {values.nbytes / 1e6:.2f} MB, crc32c, times numpy"
        console.print(
            table(title, "chunk", compared(values, chunks, folder / "chunks", args.rounds))
        )


if __name__ == "__main__":
    main()
