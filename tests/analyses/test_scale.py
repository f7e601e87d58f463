"""A study larger than memory: read a place at a time, here or on dask, to the same numbers."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
import xarray as xr

from analyses.comparison.controls import Controls, difficulty
from analyses.comparison.units import unit_labels
from analyses.r2_over_time import r2_over_time
from store.run import Run
from store.study import Study

SHAPE = (80, 250)
N_STEPS = 24


@pytest.fixture(scope="module")
def probe_set() -> xr.Dataset:
    """Twenty works of two documents of two sequences."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, 50, SHAPE, dtype="int32")
    sequence = np.arange(SHAPE[0])
    names = {
        "document": [f"document {i // 2:02d}" for i in sequence],
        "work": [f"work {i // 4:02d}" for i in sequence],
        "domain": ["prose"] * len(sequence),
    }
    return xr.Dataset(
        {
            "token": (("sequence", "pos"), token),
            "target": (("sequence", "pos"), token),
            "ngram_surprisal": (("order", "sequence", "pos"), rng.gamma(2.0, 1.0, (1, *SHAPE))),
            **{name: ("sequence", np.array(of, dtype=object)) for name, of in names.items()},
        },
        {"order": [1]},
    )


@pytest.fixture(scope="module")
def study(probe_set: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Four runs of 24 steps on disk: 7.7 MB of losses, 0.3 MB at a step."""
    folder = tmp_path_factory.mktemp("long")
    rng = np.random.default_rng(1)
    for i, architecture in enumerate(["dense", "dense", "moe", "moe"]):

        def losses() -> dict[str, xr.Dataset]:
            loss = probe_set["ngram_surprisal"][0] + rng.standard_normal(SHAPE)
            return {"losses": loss.drop_vars("order").astype("float32").to_dataset(name="loss")}

        run = Run.create(
            folder / f"{architecture}-seed{i}.zarr", probe_set, losses(), steps=range(N_STEPS),
            training_steps=N_STEPS - 1, attrs={},
            coordinates={"arm": architecture, "architecture": architecture, "seed": i},
        )  # fmt: skip
        for step in range(N_STEPS):
            run.write(step, losses())
            run.commit(step)
    return Study.open(folder)


@pytest.fixture(scope="module")
def controls(probe_set: xr.Dataset) -> Controls:
    return difficulty(probe_set)


def peak_bytes(study: Study, controls: Controls, *, n_steps: int) -> int:
    """Most memory allocated at any time while the first steps are compared."""
    loss = study.dataset("losses")["loss"].isel(step=slice(n_steps))
    unit = unit_labels(study.probe_set, "work")
    tracemalloc.start()
    try:
        r2_over_time(loss, unit, controls=controls)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_with_one_place_and_not_with_their_number(
    study: Study, controls: Controls
) -> None:
    peak_bytes(study, controls, n_steps=1)  # imports and caches
    few, many = (peak_bytes(study, controls, n_steps=n) for n in (N_STEPS // 4, N_STEPS))
    a_step = study.dataset("losses")["loss"].isel(step=0).nbytes
    # all steps held at once would add at least 18 of them; the results of 18 are less than one
    assert many - few < 3 * a_step


def test_a_study_on_disk_gives_the_same_numbers_on_dask(study: Study, controls: Controls) -> None:
    loss = study.dataset("losses")["loss"].isel(step=slice(0, N_STEPS, 8))
    measured = partial(
        r2_over_time, loss, unit_labels(study.probe_set, "document"), controls=controls
    )
    xr.testing.assert_identical(measured(), measured(dask="local"))
