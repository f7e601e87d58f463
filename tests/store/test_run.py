import gc
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from store.run import Run, StoreError

REPOSITORY = Path(__file__).parents[2]


def test_run_gives_back_what_was_written(make_run, observe) -> None:
    run = make_run("moe-0", groups=("losses", "routing", "activations"))
    for group in ("losses", "routing", "activations"):
        read = run.dataset(group)
        for step in run.steps:
            for name, expected in observe(step)[group].data_vars.items():
                stored = read[name].sel(step=step)
                assert stored.dims == expected.dims
                np.testing.assert_array_equal(stored, expected.astype(stored.dtype))


def test_labels_are_those_of_the_template(make_run) -> None:
    run = make_run("moe-0", groups=("routing", "activations"), committed=())
    routing, activations = run.dataset("routing"), run.dataset("activations")
    assert routing.layer.values.tolist() == [1, 3]
    assert routing.sequence.values.tolist() == list(range(6))
    assert activations.layer.values.tolist() == [0, 2]
    assert activations.sequence.values.tolist() == [1, 4]


def test_reopened_run_is_the_same(make_run) -> None:
    made = make_run("moe-3", seed=3, groups=("losses", "routing"))
    run = Run.open(str(made.path))
    assert run.name == "moe-3"
    assert run.attrs == made.attrs
    assert run.coordinates == {"arm": "moe", "seed": 3}
    assert run.groups == ("observation", "probe_set", "training", "losses", "routing")
    assert run.steps.tolist() == [0, 1, 2, 4, 8]
    xr.testing.assert_identical(run.dataset("losses"), made.dataset("losses"))


def test_changing_the_attributes_read_changes_nothing(make_run) -> None:
    run = make_run()
    run.attrs["coordinates"]["arm"] = run.coordinates["arm"] = "other"
    assert run.coordinates["arm"] == "dense"


def test_writing_twice_is_writing_once(make_run, observe) -> None:
    once, twice = make_run("once"), make_run("twice")
    for step in (2, 0):
        twice.write(step, {"losses": observe(step)["losses"]})
        twice.commit(step)
    for group in ("losses", "observation"):
        left = xr.open_zarr(once.path, group=group, chunks=None)
        xr.testing.assert_identical(left, xr.open_zarr(twice.path, group=group, chunks=None))


def test_rewriting_a_step_replaces_it(make_run, observe) -> None:
    run = make_run()
    run.write(2, {"losses": observe(2, seed=9)["losses"]})
    read = run.dataset("losses").loss
    np.testing.assert_array_equal(read.sel(step=2), observe(2, seed=9)["losses"].loss)
    np.testing.assert_array_equal(read.sel(step=4), observe(4)["losses"].loss)


def test_step_counts_only_once_committed(make_run, observe) -> None:
    run = make_run(committed=(0,))
    run.write(2, {"losses": observe(2)["losses"]})
    assert run.committed.tolist() == [0]
    assert run.dataset("losses").step.values.tolist() == [0]
    run.commit(2)
    assert run.dataset("losses").step.values.tolist() == [0, 2]


def test_step_never_written_is_nan_to_plain_xarray_and_absent_here(make_run) -> None:
    run = make_run(committed=(0, 4))
    plain = xr.open_zarr(run.path, group="losses", chunks=None).loss
    assert np.isnan(plain).all(("sequence", "pos")).values.tolist() == [
        *(False, True, True, False, True)
    ]
    assert run.dataset("losses").step.values.tolist() == [0, 4]


def test_committed_steps_ascend_whatever_their_order(make_run) -> None:
    run = make_run(committed=(8, 0, 2))
    assert run.committed.tolist() == [0, 2, 8]
    assert not run.finished
    run.commit(1)
    run.commit(4)
    assert run.finished


def test_another_reader_sees_a_commit_at_once(make_run) -> None:
    run = make_run(committed=())
    reader = Run.open(run.path)
    assert not len(reader.committed)
    run.commit(1)
    assert reader.committed.tolist() == [1]


@pytest.mark.parametrize("step", [3, -1, 9])
def test_unscheduled_step_is_refused(make_run, observe, step: int) -> None:
    run = make_run(committed=())
    message = f"step {step} is not scheduled in run 'dense-0'; scheduled are 0, 1, 2, 4, 8"
    with pytest.raises(ValueError, match=message):
        run.write(step, {"losses": observe(0)["losses"]})
    with pytest.raises(ValueError, match=message):
        run.commit(step)


def test_nothing_is_written_unless_all_fits(make_run, observe) -> None:
    run = make_run("moe-0", groups=("losses", "routing"), committed=())
    with pytest.raises(ValueError, match="'layer' of an observation of 'routing' is"):
        run.write(0, observe(0) | {"routing": observe(0, layers=(1, 2))["routing"]})
    assert np.isnan(xr.open_zarr(run.path, group="losses", chunks=None).loss).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.assign_coords(layer=[1, 2]), r"'layer' .* is \[1, 2\], laid out is"),
        (lambda one: one.isel(layer=[1, 0]), r"'layer' .* is \[3, 1\], laid out is \[1, 3\]"),
        (lambda one: one.isel(pos=slice(3)), r"'pos' .* is \[0, 1, 2\], laid out is \[0, 1, 2, 3"),
        (lambda one: one.drop_vars("router_prob"), r"variables \['expert_index', 'expert_weight'"),
        (lambda one: one.transpose("pos", ...), "transpose"),
        (lambda one: one.assign(gate=one.router_prob), "'gate' of group 'routing' is not in"),
    ],
    ids=["labels", "order of labels", "shape", "missing", "dims", "unknown"],
)
def test_observation_unlike_the_template_is_refused(make_run, observe, change, message) -> None:
    run = make_run("moe-0", groups=("routing",), committed=())
    with pytest.raises(ValueError, match=message):
        run.write(0, {"routing": change(observe(0)["routing"])})


def test_group_not_laid_out_is_refused(make_run, observe) -> None:
    run = make_run(committed=())
    message = "run 'dense-0' has no group 'routing', only observation, probe_set, training, losses"
    with pytest.raises(StoreError, match=message):
        run.write(0, observe(0))
    with pytest.raises(StoreError, match=message):
        run.dataset("routing")
    with pytest.raises(ValueError, match="'logits' is not in the schema"):
        run.dataset("logits")


@pytest.mark.parametrize("group", ["training", "observation", "probe_set"])
def test_write_takes_only_what_probes_observe(make_run, group: str) -> None:
    with pytest.raises(ValueError, match=f"'{group}' is not observed"):
        make_run(committed=()).write(0, {group: xr.Dataset()})


def training(first: int, last: int) -> xr.Dataset:
    steps = np.arange(first, last + 1)
    return xr.Dataset(
        {"train_loss": ("step", 1 / steps), "tokens_seen": ("step", 100 * steps)}, {"step": steps}
    )


def test_training_is_readable_up_to_the_last_committed_step(make_run) -> None:
    run = make_run(committed=(0,))
    run.write_training(training(1, 3))
    run.write_training(training(4, 6))
    assert run.dataset("training").sizes["step"] == 0
    run.commit(4)
    read = run.dataset("training")
    assert read.step.values.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(read.train_loss, 1 / read.step, rtol=1e-7)
    assert read.tokens_seen.values.tolist() == [100, 200, 300, 400]
    assert np.isnan(read.gradient_norm).all()
    run.commit(8)
    assert run.dataset("training").tokens_seen.values.tolist()[-2:] == [-1, -1]


def test_stream_hash_keeps_all_64_bits(make_run) -> None:
    run = make_run(committed=(1,))
    largest = np.array([2**64 - 1], dtype="uint64")
    run.write_training(xr.Dataset({"stream_hash": ("step", largest)}, {"step": [1]}))
    assert int(run.dataset("training").stream_hash[0]) == 2**64 - 1


@pytest.mark.parametrize("steps", [[0, 1], [10, 11], [1, 3], [2, 1]])
def test_training_steps_out_of_place_are_refused(make_run, steps) -> None:
    recorded = xr.Dataset({"train_loss": ("step", [1.0, 1.0])}, {"step": steps})
    with pytest.raises(ValueError, match="not consecutive steps from 1 to 10"):
        make_run(committed=()).write_training(recorded)


def test_unlabelled_training_steps_are_refused(make_run) -> None:
    with pytest.raises(ValueError, match="label `step`"):
        make_run(committed=()).write_training(xr.Dataset({"train_loss": ("step", [1.0])}))


def test_run_and_labels_are_scalar_coordinates(make_run) -> None:
    read = make_run("moe-2", seed=2).dataset("losses")
    assert {name: read[name].item() for name in ("run", "arm", "seed")} == {
        "run": "moe-2",
        "arm": "moe",
        "seed": 2,
    }
    assert read.loss.dims == ("step", "sequence", "pos")


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run at .*gone\.zarr; make one with"):
        Run.open(tmp_path / "gone.zarr")


@pytest.mark.parametrize("metadata", [None, "", "{", "[]", "{}", '{"attributes": {}}'])
def test_foreign_folder_is_refused(tmp_path: Path, metadata: str | None) -> None:
    folder = tmp_path / "other.zarr"
    folder.mkdir()
    if metadata is not None:
        (folder / "zarr.json").write_text(metadata)
    with pytest.raises(StoreError, match=r"other\.zarr holds no run: no schema_version in zarr"):
        Run.open(folder)


def test_newer_schema_is_refused(make_run) -> None:
    metadata = make_run().path / "zarr.json"
    newer = metadata.read_text().replace('"schema_version": 1', '"schema_version": 7')
    metadata.write_text(newer)
    with pytest.raises(StoreError, match="made by schema version 7, this is 1: upgrade twinlens"):
        Run.open(metadata.parent)


WRITER = """
import sys
import numpy as np, xarray as xr
from store.run import Run

run, step = Run.open(sys.argv[1]), 0
for step in range(int(sys.argv[2]), 1000):
    values = np.full((6, 4), step, dtype="float32")
    run.write(step, {"losses": xr.Dataset({"loss": (("sequence", "pos"), values)})})
    run.commit(step)
    print(step, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.0007, 0.0023])
def test_kill_in_the_middle_of_writes_leaves_committed_steps(make_run, delay: float) -> None:
    run = make_run(steps=range(1000), committed=(), training_steps=1000)
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, run.path, "0"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        reported = [int(child.stdout.readline()) for _ in range(5)][-1]
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
    committed = run.committed
    assert reported < len(committed) < 1000
    assert committed.tolist() == list(range(len(committed)))
    read = run.dataset("losses").loss
    np.testing.assert_array_equal(read.min(("sequence", "pos")), committed)
    np.testing.assert_array_equal(read.max(("sequence", "pos")), committed)
    resumed = len(committed)
    run.write(resumed, {"losses": xr.Dataset({"loss": (("sequence", "pos"), np.ones((6, 4)))})})
    run.commit(resumed)
    assert (run.dataset("losses").loss.sel(step=resumed) == 1).all()


FULL_DISK = """
import resource, sys
import numpy as np, xarray as xr
from store.run import Run

run = Run.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
loss = np.random.default_rng(0).random((6, 4))
try:
    run.write(1, {"losses": xr.Dataset({"loss": (("sequence", "pos"), loss)})})
except OSError as error:
    print("write:", error.strerror)
try:
    Run.create(sys.argv[2], run.dataset("probe_set"), {}, steps=[0], training_steps=1, attrs={},
               coordinates={})
except OSError as error:
    print("create:", error.strerror)
"""


def test_write_that_fails_is_an_oserror_and_leaves_committed_steps(make_run, observe) -> None:
    run = make_run(committed=(0,))
    other = run.path.with_name("other.zarr")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, run.path, other],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["write: File too large", "create: File too large"]
    assert not other.exists()
    read = run.dataset("losses")
    assert read.step.values.tolist() == [0]
    np.testing.assert_array_equal(read.loss[0], observe(0)["losses"].loss)
    assert np.isnan(xr.open_zarr(run.path, group="losses", chunks=None).loss.sel(step=1)).all()


def test_memory_does_not_grow_with_the_steps_written(make_run, observe) -> None:
    steps = tuple(range(26))
    run = make_run(
        groups=("activations",), steps=steps, training_steps=26, committed=(), d_model=4096
    )
    seen = {"activations": observe(0, d_model=4096)["activations"]}
    held = []
    tracemalloc.start()
    try:
        for step in steps:
            run.write(step, seen)
            run.commit(step)
            if step in (5, 25):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    bytes_of_a_step = seen["activations"].resid_post.astype("float16").nbytes
    assert held[1] - held[0] < 2 * bytes_of_a_step  # of the 20 steps written meanwhile
