import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec

import store.provenance
from store.provenance import hash_dataset, hash_run, provenance
from store.run import Run

MakeRun, Observe = Callable[..., Run], Callable[..., dict[str, xr.Dataset]]


def dataset() -> xr.Dataset:
    return xr.Dataset(
        {
            "token": (("sequence", "pos"), np.arange(6, dtype="int32").reshape(2, 3)),
            "domain": (("sequence",), np.array(["ab", "c"])),
        },
        {"order": [1, 2]},
    )


def test_hash_is_that_of_names_dims_dtypes_shapes_and_bytes() -> None:
    one = xr.Dataset({"token": (("sequence",), np.array([1, 256], dtype="<i4"))})
    expected = b"('token', ('sequence',), '<i4', (2,))" + bytes([1, 0, 0, 0, 0, 1, 0, 0])
    assert hash_dataset(one) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        dataset().assign(token=dataset().token + 1),
        dataset().assign(token=dataset().token.astype("int64")),
        dataset().rename(token="target"),
        dataset().rename(pos="layer"),
        dataset().assign(domain=("sequence", ["a", "bc"])),
        dataset().assign_coords(order=[1, 3]),
        dataset().drop_vars("domain"),
        dataset().assign(token=(("sequence", "pos"), np.arange(6, dtype="int32").reshape(3, 2).T)),
    ],
    ids=["value", "dtype", "name", "dim", "text", "coordinate", "missing", "order"],
)
def test_hash_changes_with(changed: xr.Dataset) -> None:
    assert hash_dataset(changed) != hash_dataset(dataset())


@pytest.mark.parametrize(
    "same",
    [
        dataset().assign(token=dataset().token.astype(">i4")),
        dataset().assign(token=dataset().token.copy(data=np.asfortranarray(dataset().token))),
        dataset().assign(domain=dataset().domain.astype(object)),
        dataset().assign(domain=dataset().domain.astype(np.dtypes.StringDType())),
        dataset().assign_attrs(title="other"),
        dataset()[["domain", "token"]].assign_coords(order=[1, 2]),
    ],
    ids=["byte order", "memory layout", "str objects", "variable width", "attrs", "sequence"],
)
def test_hash_does_not_change_with(same: xr.Dataset) -> None:
    assert hash_dataset(same) == hash_dataset(dataset())


def test_provenance_is_plain_json_and_recent() -> None:
    record = provenance()
    assert json.loads(json.dumps(record)) == record
    age = datetime.now(UTC) - datetime.fromisoformat(record["created"])
    assert timedelta(seconds=-1) < age < timedelta(minutes=1)
    assert record["versions"]["numpy"] == np.__version__
    assert record["versions"]["xarray"] == xr.__version__


def test_provenance_does_not_name_the_machine() -> None:
    assert provenance()["machine"] == f"{platform.system()} {platform.machine()}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a copy of the module, not added yet."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    shutil.copy(store.provenance.__file__, tmp_path / "provenance.py")
    return tmp_path


def copied(folder: Path) -> dict[str, object]:
    """provenance() of the copy in a folder."""
    spec = importlib.util.spec_from_file_location("copied", folder / "provenance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.provenance()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_code_that_is_not_tracked_has_no_commit(checkout: Path) -> None:
    (checkout / "other").touch()
    git(checkout, "add", "other")
    git(checkout, "commit", "-q", "-m", "other")
    record = copied(checkout)
    assert record["commit"] is None
    assert record["dirty"] is None


def test_tracked_code_has_the_commit_and_is_dirty_once_changed(checkout: Path) -> None:
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "code")
    clean = copied(checkout)
    assert (clean["commit"], clean["dirty"]) == (git(checkout, "rev-parse", "HEAD"), False)
    with (checkout / "provenance.py").open("a") as code:
        code.write("\n")
    assert copied(checkout)["dirty"] is True


def changed(run: Run, path: Path, change: Callable[[Path], object]) -> bool:
    """Whether a change of a copy of a run changes its hash."""
    shutil.copytree(run.path, path)
    change(path)
    return hash_run(path) != hash_run(run.path)


def test_hash_of_a_run_is_that_of_its_content(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    assert re.fullmatch("[0-9a-f]{64}", hash_run(run.path))

    def touch(path: Path) -> None:
        os.utime(next(path.rglob("losses/loss/c/0/0/0")), (0, 0))

    def date(path: Path) -> None:
        metadata = json.loads((path / "zarr.json").read_text("utf-8"))
        metadata["attributes"]["created"] = "2000-01-01"
        (path / "zarr.json").write_text(json.dumps(metadata, indent=3), "utf-8")

    def write(path: Path) -> None:
        (path / "losses/loss/c/0/0/0.1234.partial").write_bytes(b"x")

    for i, harmless in enumerate((touch, date, write)):
        assert not changed(run, tmp_path / f"same{i}.zarr", harmless)


def test_hash_of_a_run_changes_with_any_value_label_or_commit(
    make_run: MakeRun, observe: Observe, tmp_path: Path
) -> None:
    run = make_run(committed=(0, 1))
    one = {"losses": observe(1)["losses"]}
    # one bit of one value, which does not change the length of the file
    one["losses"]["loss"][0, 0] = np.nextafter(one["losses"]["loss"][0, 0], np.float32(9))

    def arm(path: Path) -> None:
        text = (path / "zarr.json").read_text("utf-8")
        assert "dense" in text
        (path / "zarr.json").write_text(text.replace("dense", "other"), "utf-8")

    for i, change in enumerate(
        (
            lambda path: Run.open(path).write(1, one),
            lambda path: Run.open(path).commit(2),
            lambda path: next(path.rglob("losses/loss/c/0/0/0")).unlink(),
            arm,
        )
    ):
        assert changed(run, tmp_path / f"other{i}.zarr", change), i


def test_hash_of_a_run_sees_every_chunk_of_a_shard(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (1, 4, 8), dtype="uint16")
    for name in ("one", "same", "other"):
        group = zarr.create_group(tmp_path / name)
        array = group.create_array(
            "x", shape=(2, 4, 8), dtype="uint16", chunks=(1, 1, 8), shards=(1, 4, 8),
            compressors=ZstdCodec(level=1, checksum=True),
        )  # fmt: skip
        # not compressible, so that the length stays
        array[:1] = np.where(np.arange(4)[:, None] == 2, values ^ (name == "other"), values)
    assert hash_run(tmp_path / "one") == hash_run(tmp_path / "same")
    assert hash_run(tmp_path / "one") != hash_run(tmp_path / "other")
    shard = next(p for p in (tmp_path / "one/x/c").rglob("*") if p.is_file())
    before = hash_run(tmp_path / "one")
    shard.write_bytes(shard.read_bytes()[:20])
    assert hash_run(tmp_path / "one") != before
