import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec

from store.layout import CHUNK_BYTES, chunking
from store.run import Run
from store.schema import DIMENSIONS, variables_of

EVERYTHING = ("losses", "routing", "activations")


@pytest.mark.parametrize(
    ("shape", "itemsize"),
    [
        ((1, 240, 128), 4),
        ((1, 4, 1024, 1024), 4),
        ((1, 4, 1024, 1025), 4),
        ((1, 4, 2000, 840, 8), 2),
        ((1, 3, 7, 1000, 1100), 2),
        ((1, 9, 240, 1_000_003, 3), 2),
    ],
)
def test_one_step_is_one_file_of_chunks_that_are_small_and_as_large_as_can_be(
    shape: tuple[int, ...], itemsize: int
) -> None:
    chunk, shard = chunking(shape, itemsize)
    bytes_of_chunk = math.prod(chunk) * itemsize
    if math.prod(shape) * itemsize <= CHUNK_BYTES:
        assert (chunk, shard) == (shape, None)
        return
    assert shard is not None
    assert math.prod(shard) < 1.01 * math.prod(shape)
    for whole, part, size in zip(shard, chunk, shape, strict=True):
        assert whole % part == 0
        assert size <= whole < size + part
    assert CHUNK_BYTES / 4 < bytes_of_chunk <= CHUNK_BYTES
    # Leading dimensions are cut to single slices before the next is cut at all.
    cut = [c < n for c, n in zip(chunk, shape, strict=True)]
    last = max(axis for axis, is_cut in enumerate(cut) if is_cut)
    assert all(c == 1 for c in chunk[:last])


def test_plain_xarray_reads_every_group_with_its_labels(make_run, probe_set, observe) -> None:
    run = make_run("moe-0", groups=EVERYTHING, committed=(0, 2))
    for group in EVERYTHING:
        plain = xr.open_zarr(run.path, group=group, chunks=None)
        expected = observe(2)[group]
        for name, variable in expected.data_vars.items():
            schema = variables_of(group)[name]
            assert plain[name].dims == schema.dims
            assert plain[name].dtype == schema.dtype
            assert plain[name].attrs == schema.attrs
            np.testing.assert_array_equal(
                plain[name].sel(step=2), variable.astype(schema.dtype), strict=True
            )
        assert plain.step.values.tolist() == [0, 1, 2, 4, 8]
        assert set(plain.dims) == set(plain.coords)
        assert plain.step.attrs["long_name"] == DIMENSIONS["step"]
    stored = xr.open_zarr(run.path, group="probe_set")
    for name in probe_set.data_vars:
        np.testing.assert_array_equal(
            stored[name], probe_set[name].astype(stored[name].dtype), err_msg=name
        )
    assert stored.order.values.tolist() == [1, 2]


def test_a_group_opens_as_a_store_of_its_own(make_run) -> None:
    run = make_run()
    for group in run.groups:
        alone = xr.open_zarr(run.path / group, chunks=None)
        xr.testing.assert_identical(alone, xr.open_zarr(run.path, group=group, chunks=None))


def test_plain_xarray_reads_the_whole_run_as_a_tree(make_run) -> None:
    run = make_run("moe-0", groups=EVERYTHING, committed=(0,))
    tree = xr.open_datatree(run.path, engine="zarr")
    assert {node.lstrip("/") for node in tree.groups} == {"", *run.groups}
    assert tree.attrs == run.attrs
    assert not tree.coords
    assert tree["training"]["step"].values.tolist() == list(range(1, 11))
    assert tree["observation"]["committed"].values.tolist() == [True] + [False] * 4


def test_unwritten_values_read_as_missing(make_run) -> None:
    run = make_run("moe-0", groups=EVERYTHING, committed=())
    for group in ("training", *EVERYTHING):
        plain = xr.open_zarr(run.path, group=group, chunks=None)
        for name, variable in plain.data_vars.items():
            expected = variables_of(group)[name].fill_value
            np.testing.assert_array_equal(variable, np.full(variable.shape, expected))


def test_names_in_any_script_survive(make_run, probe_set) -> None:
    stored = make_run().dataset("probe_set").work.values.tolist()
    assert stored == probe_set.work.values.tolist()


def test_root_keeps_what_it_was_given(make_run) -> None:
    run = make_run("dense-0", seed=3)
    attrs = json.loads((run.path / "zarr.json").read_text())["attributes"]
    assert attrs["schema_version"] == 1
    assert attrs["study"] == "study"
    assert attrs["coordinates"] == {"arm": "dense", "seed": 3}
    assert len(attrs["probe_set_hash"]) == 64
    assert run.attrs == attrs


def test_every_chunk_ends_in_a_checksum(make_run) -> None:
    root = zarr.open_group(make_run("moe-0", groups=EVERYTHING, committed=()).path, mode="r")
    arrays = [node for _, node in root.members(max_depth=None) if isinstance(node, zarr.Array)]
    assert len(arrays) > 30
    for array in arrays:
        last = array.compressors[-1].to_dict()
        assert last["name"] == "crc32c" or last["configuration"]["checksum"]


def test_runs_of_older_codecs_stay_readable_and_can_be_resumed(
    make_run, observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstd = ZstdCodec(level=1, checksum=True)
    monkeypatch.setattr("store.layout.codecs", lambda dtype, dims: (zstd,))
    # a schedule of its own, so that no run is copied that others made
    path = make_run("old-0", groups=EVERYTHING, steps=(0, 1, 3), committed=(0,)).path
    monkeypatch.undo()
    run = Run.open(path)
    run.write(1, observe(1))
    run.commit(1)
    arrays = [run.arrays(group) for group in EVERYTHING]
    assert {array.compressors for group in arrays for array in group.values()} == {(zstd,)}
    for step in (0, 1):
        for group in EVERYTHING:
            for name, values in observe(step)[group].data_vars.items():
                read = run.dataset(group)[name].sel(step=step).values
                np.testing.assert_array_equal(read, values.values.astype(read.dtype))


def create(path: Path, probe_set: xr.Dataset, templates: dict[str, xr.Dataset], **other) -> Run:
    settings = {"steps": [0, 1], "training_steps": 4, "attrs": {}, "coordinates": {"arm": "dense"}}
    return Run.create(path, probe_set, templates, **(settings | other))


def test_what_a_killed_creation_left_is_replaced(make_run, probe_set, observe) -> None:
    path = make_run().path
    path.rename(path.with_name("dense-0.zarr.partial"))
    run = create(path, probe_set, observe(0))
    assert [other.name for other in path.parent.iterdir()] == ["dense-0.zarr"]
    assert not len(run.committed)
    assert np.isnan(xr.open_zarr(path, group="losses", chunks=None).loss).all()


def test_an_existing_run_is_not_overwritten(make_run, probe_set) -> None:
    path = make_run().path
    with pytest.raises(ValueError, match=r"dense-0\.zarr already exists; resume it with Run\.open"):
        create(path, probe_set, {})


def test_a_folder_with_another_ending_is_refused(tmp_path: Path, probe_set) -> None:
    with pytest.raises(ValueError, match=r"call it NAME\.zarr"):
        create(tmp_path / "run", probe_set, {})


@pytest.mark.parametrize("steps", [[], [0, 0], [2, 1], [-1, 0], [0, 5], [0.5], [[0, 1]]])
def test_a_schedule_that_does_not_ascend_within_training_is_refused(
    tmp_path: Path, probe_set, steps
) -> None:
    with pytest.raises(ValueError, match="ascending integers from 0 to training_steps, 4"):
        create(tmp_path / "run.zarr", probe_set, {}, steps=steps)


def test_nothing_is_left_where_a_template_does_not_fit(tmp_path: Path, probe_set, observe) -> None:
    templates = observe(0)
    templates["losses"] = templates["losses"].transpose("pos", "sequence")
    with pytest.raises(ValueError, match="transpose"):
        create(tmp_path / "run.zarr", probe_set, templates)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("group", ["training", "probe_set", "observation", "logits"])
def test_only_what_probes_observe_has_a_template(tmp_path: Path, probe_set, group: str) -> None:
    with pytest.raises(
        ValueError, match="probes observe losses, predictions, routing, activations"
    ):
        create(tmp_path / "run.zarr", probe_set, {group: xr.Dataset()})


def test_an_empty_template_is_refused(tmp_path: Path, probe_set) -> None:
    with pytest.raises(ValueError, match="template of 'losses' holds no variable"):
        create(tmp_path / "run.zarr", probe_set, {"losses": xr.Dataset()})


def test_a_sequence_outside_the_probe_set_is_refused(tmp_path: Path, probe_set, observe) -> None:
    templates = {"losses": observe(0)["losses"].assign_coords(sequence=range(1, 7))}
    with pytest.raises(ValueError, match="has a sequence that the probe set lacks"):
        create(tmp_path / "run.zarr", probe_set, templates)


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        ({"loss": 1}, "names of the schema"),
        ({"run": "a"}, "names of the schema"),
        ({"router": None}, "coordinate 'router' is None; give text or a number"),
        ({"seed": np.int64(1)}, "give text or a number"),
        ({"rate": math.nan}, "plain JSON"),
    ],
)
def test_a_coordinate_that_cannot_label_a_run_is_refused(
    tmp_path: Path, probe_set, coordinates, message
) -> None:
    with pytest.raises(ValueError, match=message):
        create(tmp_path / "run.zarr", probe_set, {}, coordinates=coordinates)


def test_attributes_that_are_not_json_are_refused(tmp_path: Path, probe_set) -> None:
    with pytest.raises(ValueError, match="plain JSON: Object of type set"):
        create(tmp_path / "run.zarr", probe_set, {}, attrs={"config": {1, 2}})
