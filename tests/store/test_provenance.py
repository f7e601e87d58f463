import hashlib
import importlib.util
import json
import platform
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import store.provenance
from store.provenance import hash_dataset, provenance


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
