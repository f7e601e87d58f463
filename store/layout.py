"""Lays out an empty run on disk: shapes, chunks, codec, labels, and the probe set in full.

Everything that a run will hold has its place before the first step is taken, and is filled a step
at a time. Appending along `step` would duplicate a step that is written twice; writing to a place
is idempotent.

One step of one variable is one file, so a crash leaves the old or the new one, never half: a chunk
where it is small, else a shard of chunks of at most `CHUNK_BYTES`. Every chunk ends in a checksum,
so a flipped bit is an error and not a number.
"""

import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from store.chunks import StoreError
from store.conform import OBSERVED, conform, labels_of
from store.durable import make_durable
from store.joined import dimension_attrs
from store.places import exists, is_remote, zarr_store
from store.provenance import hash_dataset
from store.schema import ADDED, DIMENSIONS, SCHEMA_VERSION, VARIABLES, Variable, variables_of

CHUNK_BYTES = 16 * 2**20
TRAINING_CHUNK = 4096


def lay_out(
    path: Path,
    probe_set: xr.Dataset,
    templates: Mapping[str, xr.Dataset],
    *,
    steps: Sequence[int] | np.ndarray,
    training_steps: int,
    attrs: Mapping[str, Any],
    coordinates: Mapping[str, str | int | float],
) -> None:
    """Make an empty run, whole or not at all; see `store.run.Run.create`."""
    if path.suffix != ".zarr":
        raise StoreError(f"{path} is no name for a run's folder; call it NAME.zarr")
    if exists(path):
        raise StoreError(
            f"{path} already exists; resume it with Run.open, or delete it to start anew"
        )
    scheduled = _require_schedule(steps, training_steps)
    if added := sorted(set(ADDED) & set(templates)):
        raise ValueError(f"template of {', '.join(added)}: Run.add_group adds it to a run")
    _require_templates(templates, probe_set)
    root_attrs = _plain({**attrs, "probe_set_hash": hash_probe_set(probe_set)}, coordinates)
    # An object store renames nothing; there, a folder is no run until its root has attributes.
    partial = path if is_remote(path) else path.with_name(path.name + ".partial")
    if exists(partial):  # left by a process that was killed right here
        shutil.rmtree(partial)
    root = zarr.create_group(zarr_store(partial, read_only=False), zarr_format=3)
    _fill(root, probe_set, templates, scheduled, training_steps)
    _consolidate(partial, ("observation", "training", "probe_set", *templates))
    root.update_attributes(root_attrs)
    _consolidate(partial, ("",))
    if is_remote(path):
        return
    make_durable((file for file in partial.rglob("*") if file.is_file()), within=partial)
    partial.rename(path)
    make_durable([path / "zarr.json"], within=path.parent)


def lay_out_added(
    path: Path,
    group: str,
    template: xr.Dataset,
    *,
    probe_set: xr.Dataset,
    attrs: Mapping[str, Any],
) -> None:
    """Give a run one more empty group, whole or not at all; see `store.run.Run.add_group`.

    Readers know a run by the copy of all metadata in its root, which is replaced last.

    Parameters
    ----------
    path : of the run.
    probe_set : that of the run.
    """
    if group not in ADDED:
        raise ValueError(
            f"group {group!r} is laid out by Run.create; added later are {', '.join(ADDED)}"
        )
    if group in zarr.open_group(zarr_store(path, read_only=True), mode="r"):
        raise StoreError(
            f"{path} already has the group {group!r}; open the run and go on filling it"
        )
    _require_templates({group: template}, probe_set)
    plain_attrs = _plain_json(attrs)
    for left_behind in path.glob("zarr.*.partial"):  # by a process killed in its last write here
        left_behind.unlink()
    root = zarr.open_group(zarr_store(path, read_only=False), mode="r+", use_consolidated=False)
    steps = np.asarray(root["observation/step"])
    added = root.create_group(group, overwrite=True, attributes=plain_attrs)
    _create(added, variables_of(group)["committed"], steps.shape, (1,))
    _fill_group(added, group, template, steps)
    _consolidate(path, (group, ""))


def hash_probe_set(probe_set: xr.Dataset) -> str:
    """Hash of a probe set in the form it is stored in: the same when it is read back.

    Labels 0, 1, 2, ... of a dimension do not matter, which a Dataset may have or leave out.
    """
    known = variables_of("probe_set")
    values = {
        name: (known[name].dims, value) for name, value in conform(probe_set, "probe_set").items()
    }
    labels = {
        dim: label.astype("int64")
        for dim, label in labels_of(probe_set, "probe_set").items()
        if not np.array_equal(label, np.arange(len(label)))
    }
    return hash_dataset(xr.Dataset(values, labels))


def require_run(path: Path) -> None:
    """Check that `lay_out` made a folder, in this version of the schema or an older one.

    Raises
    ------
    StoreError
        If it did not.
    """
    if not is_remote(path) and not path.is_dir():
        raise StoreError(f"no run at {path}; make one with `python -m models.train`")
    try:
        metadata = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        version = int(metadata["attributes"]["schema_version"])
        metadata["attributes"]["probe_set_hash"], metadata["attributes"]["coordinates"]
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        raise StoreError(
            f"{path} holds no run: no schema_version in zarr.json; give a folder made by "
            "`python -m models.train`"
        ) from None
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was made by schema version {version}, this is {SCHEMA_VERSION}: "
            "upgrade twinlens"
        )


def chunking(
    shape: tuple[int, ...], itemsize: int, chunk_bytes: int = CHUNK_BYTES
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Chunk and shard of an array that is to be one file.

    Returns
    -------
    chunk : the whole shape if it takes at most `chunk_bytes`, else slices along leading dimensions.
    shard : None for a single chunk, else the shape rounded up to whole chunks.
    """
    chunk = list(shape)
    for axis, size in enumerate(shape):
        excess = math.prod(chunk) * itemsize / chunk_bytes
        if excess > 1:
            n_chunks = math.ceil(size / max(1, math.floor(size / excess)))
            chunk[axis] = math.ceil(size / n_chunks)  # alike, so that a shard has little to spare
    if tuple(chunk) == shape:
        return shape, None
    whole = tuple(c * math.ceil(size / c) for c, size in zip(chunk, shape, strict=True))
    return tuple(chunk), whole


def codecs(dtype: str, dims: tuple[str, ...]) -> tuple[Any, ...]:
    """How a chunk of an array is made smaller, and its checksum; `docs/decisions/0014-codecs.md`.

    An array says itself how it was written: this may change, and older runs stay readable.
    """
    if dtype == "str":
        return (ZstdCodec(level=1, checksum=True),)
    if "d_model" in dims:  # nearly random bits: not worth the time
        return (Crc32cCodec(),)
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()


def _require_schedule(steps: Sequence[int] | np.ndarray, training_steps: int) -> np.ndarray:
    scheduled = np.asarray(steps)
    if (
        scheduled.ndim != 1
        or not len(scheduled)
        or scheduled.dtype.kind not in "iu"
        or (np.diff(scheduled) <= 0).any()
        or scheduled[0] < 0
        or scheduled[-1] > training_steps
    ):
        raise ValueError(
            f"steps {list(steps)} must be ascending integers from 0 to training_steps, "
            f"{training_steps}"
        )
    return scheduled.astype("int64")


def _require_templates(templates: Mapping[str, xr.Dataset], probe_set: xr.Dataset) -> None:
    """Check all that is to be laid out against the schema, and its text against the probe set."""
    conform(probe_set, "probe_set")
    probed = labels_of(probe_set, "probe_set")
    for group, template in templates.items():
        if group not in OBSERVED:
            probed_groups = [name for name in OBSERVED if name not in ADDED]
            raise ValueError(f"template of {group!r}; probes observe {', '.join(probed_groups)}")
        if not conform(template, group):
            raise ValueError(f"template of {group!r} holds no variable; leave the group out")
        for dim, labels in labels_of(template, group).items():
            if dim in ("sequence", "pos") and not np.isin(labels, probed.get(dim, labels)).all():
                raise ValueError(
                    f"template of {group!r} has a {dim} that the probe set lacks; label it with "
                    "those of the probe set"
                )


def _plain(attrs: Mapping[str, Any], coordinates: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the root as the JSON they will be."""
    taken = {*DIMENSIONS, *(variable.name for variable in VARIABLES)}
    if clash := sorted(taken & set(coordinates)):
        raise ValueError(f"coordinates {clash} are names of the schema; choose others")
    for name, value in coordinates.items():
        if not isinstance(value, str | int | float):
            raise ValueError(f"coordinate {name!r} is {value!r}; give text or a number")
    return _plain_json(
        {**attrs, "coordinates": dict(coordinates), "schema_version": SCHEMA_VERSION}
    )


def _plain_json(attrs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(attrs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"attrs and coordinates must be plain JSON: {error}") from None


def _fill(
    root: zarr.Group,
    probe_set: xr.Dataset,
    templates: Mapping[str, xr.Dataset],
    steps: np.ndarray,
    training_steps: int,
) -> None:
    observation = root.create_group("observation")
    _create_labels(observation, {"step": steps})
    # One mark a file: a commit is one atomic rename, and a mark that is there is a committed step.
    _create(observation, variables_of("observation")["committed"], steps.shape, (1,))

    training = root.create_group("training")
    _create_labels(training, {"step": np.arange(1, training_steps + 1)})
    for variable in variables_of("training").values():
        chunks = (max(1, min(training_steps, TRAINING_CHUNK)),)
        unwritten = _create(training, variable, (training_steps,), chunks)
        unwritten[:] = variable.fill_value  # from now on, a missing chunk is damage

    static = root.create_group("probe_set")
    _create_labels(static, labels_of(probe_set, "probe_set"))
    for name, values in conform(probe_set, "probe_set").items():
        chunk, shard = chunking(values.shape, values.itemsize)
        array = _create(static, variables_of("probe_set")[name], values.shape, chunk, shard)
        array[:] = values

    for group, template in templates.items():
        _fill_group(root.create_group(group), group, template, steps)


def _fill_group(observed: zarr.Group, group: str, template: xr.Dataset, steps: np.ndarray) -> None:
    """Room for one observation a step."""
    _create_labels(observed, {"step": steps} | labels_of(template, group))
    for name, values in conform(template, group).items():
        chunk, shard = chunking((1, *values.shape), values.itemsize)
        shape = (len(steps), *values.shape)
        _create(observed, variables_of(group)[name], shape, chunk, shard)


def _create(
    group: zarr.Group,
    variable: Variable,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None = None,
) -> zarr.Array[Any]:
    return group.create_array(
        variable.name,
        shape=shape,
        dtype=str if variable.dtype == "str" else variable.dtype,
        chunks=chunks,
        shards=shards,
        fill_value=variable.fill_value,
        dimension_names=variable.dims,
        attributes=dict(variable.attrs),
        compressors=codecs(variable.dtype, variable.dims),
        config={"write_empty_chunks": True},
    )


def _create_labels(group: zarr.Group, labels: Mapping[str, np.ndarray]) -> None:
    for dim, values in labels.items():
        array = group.create_array(
            dim,
            shape=values.shape,
            dtype="int64",
            chunks=values.shape,
            fill_value=-1,
            dimension_names=(dim,),
            attributes=dict(dimension_attrs(dim)),
            compressors=codecs("int64", (dim,)),
            config={"write_empty_chunks": True},
        )
        array[:] = values


def _consolidate(path: Path, groups: Sequence[str]) -> None:
    """Copy the metadata of all arrays into their groups, in this order; the root is ""."""
    with warnings.catch_warnings():
        # zarr says that Zarr v3 has not standardized this; xarray warns where it is absent.
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        for group in groups:
            zarr.consolidate_metadata(zarr_store(path, read_only=False), path=group)
