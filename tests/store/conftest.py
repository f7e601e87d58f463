"""A tiny probe set, observations that follow from seed and step, and runs made of them."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from store.provenance import hash_dataset
from store.run import Run

SEQUENCES, POSITIONS, VOCABULARY = 6, 4, 10
STEPS = (0, 1, 2, 4, 8)

Observe = Callable[..., dict[str, xr.Dataset]]
MakeRun = Callable[..., Run]


@pytest.fixture(scope="session")
def probe_set() -> xr.Dataset:
    rng = np.random.default_rng(0)
    text, tokens = ("sequence",), ("sequence", "pos")
    document = [f"document {i // 2}" for i in range(SEQUENCES)]
    return xr.Dataset(
        {
            "token": (tokens, rng.integers(VOCABULARY, size=(SEQUENCES, POSITIONS))),
            "target": (tokens, rng.integers(VOCABULARY, size=(SEQUENCES, POSITIONS))),
            "document": (text, document),
            "work": (text, ["Émile", "<script>alert(1)</script>", "", "日本", "a\nb", "🜁"]),
            "domain": (text, ["fiction", "poetry", "drama"] * 2),
            "ngram_surprisal": (("order", *tokens), rng.random((2, SEQUENCES, POSITIONS))),
            "vocabulary": (("d_vocab",), [chr(97 + i) for i in range(VOCABULARY)]),
            "token_frequency": (("d_vocab",), np.arange(VOCABULARY)),
        },
        {"order": [1, 2]},
    )


@pytest.fixture(scope="session")
def observe() -> Observe:
    """observe(step, seed=0, layers=(1, 3), d_model=8) -> {group: what probes would return}."""

    def observe(
        step: int, *, seed: int = 0, layers: Sequence[int] = (1, 3), d_model: int = 8
    ) -> dict[str, xr.Dataset]:
        rng = np.random.default_rng([seed, step])
        dims, shape = ("layer", "sequence", "pos"), (len(layers), SEQUENCES, POSITIONS)
        return {
            "losses": xr.Dataset(
                {"loss": (dims[1:], rng.gamma(2.0, size=shape[1:]).astype("float32"))}
            ),
            "routing": xr.Dataset(
                {
                    "expert_index": ((*dims, "top_k"), rng.integers(4, size=(*shape, 1))),
                    "expert_weight": ((*dims, "top_k"), rng.random((*shape, 1), dtype="float32")),
                    "router_prob": ((*dims, "expert"), rng.random((*shape, 4), dtype="float32")),
                },
                {"layer": list(layers)},
            ),
            "activations": xr.Dataset(
                {"resid_post": ((*dims, "d_model"), rng.random((2, 2, POSITIONS, d_model)))},
                {"layer": [0, 2], "sequence": [1, 4]},
            ),
        }

    return observe


@pytest.fixture(scope="session")
def build(
    tmp_path_factory: pytest.TempPathFactory, probe_set: xr.Dataset, observe: Observe
) -> MakeRun:
    """build(folder, name, ...) -> a run; see `make_run`."""
    built: dict[str, Path] = {}  # by how it was made: a copy takes a tenth of the time

    def build(
        folder: Path,
        name: str = "dense-0",
        *,
        seed: int = 0,
        groups: Sequence[str] = ("losses",),
        committed: Sequence[int] = STEPS,
        steps: Sequence[int] = STEPS,
        training_steps: int = 10,
        probe_set: xr.Dataset = probe_set,
        coordinates: dict[str, str | int | float] | None = None,
        **sizes: object,
    ) -> Run:
        def observed(step: int) -> dict[str, xr.Dataset]:
            everything = observe(step, seed=seed, **sizes)
            return {group: everything[group] for group in groups}

        labels = coordinates or {"arm": name.split("-")[0], "seed": seed}
        path = folder / f"{name}.zarr"
        how = repr((labels, seed, groups, committed, steps, sizes, hash_dataset(probe_set)))
        if how in built:
            shutil.copytree(built[how], path)
            return Run.open(path)
        run = Run.create(
            path,
            probe_set,
            observed(0),
            steps=steps,
            training_steps=training_steps,
            attrs={"study": "study"},
            coordinates=labels,
        )
        for step in committed:
            run.write(step, observed(step))
            run.commit(step)
        built[how] = tmp_path_factory.mktemp("built") / "run.zarr"
        shutil.copytree(path, built[how])
        return run

    return build


@pytest.fixture
def make_run(tmp_path: Path, build: MakeRun) -> MakeRun:
    """make_run(name, seed=0, groups=("losses",), committed=STEPS) -> a run in `tmp_path/study`."""
    return partial(build, tmp_path / "study")
