"""Studies on a local S3 server that now and then fails."""

import json
import pickle
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr

from store.__main__ import main as look_after
from store.places import place
from store.provenance import hash_run
from store.run import Run, StoreError
from store.study import Study

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("upath")
moto_server = pytest.importorskip("moto.server")
serving = pytest.importorskip("werkzeug.serving")

# of the packages that imitate S3, not ours
pytestmark = pytest.mark.filterwarnings(
    "default:::botocore", "default:::moto", "ignore::ResourceWarning"
)

STEPS = (0, 1, 2)
UNAVAILABLE = r"503|Unavailable"
Failure = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def unavailable(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("503 Service Unavailable", [("Content-Length", "0")])
    return [b""]


def broken(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("500 Internal Server Error", [("Content-Length", "0")])
    return [b""]


def cut(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Promises a reader more than it sends; hangs up on a writer."""
    if environ["REQUEST_METHOD"] != "GET":
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    start_response("200 OK", [("Content-Length", "1000"), ("Connection", "close")])
    return [b"x"]


class Server:
    """S3 in memory; `failure` answers in its place whenever `fails(method, path)`."""

    def __init__(self) -> None:
        self.app = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
        self.fails: Callable[[str, str], bool] = lambda method, path: False
        self.failure: Failure = unavailable
        self.n_failed = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self.fails(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            self.n_failed += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self.failure(environ, start_response)
        return self.app(environ, start_response)

    def fail_now_and_then(self, failure: Failure, share: float) -> None:
        rng, lock = np.random.default_rng(0), threading.Lock()

        def fails(method: str, path: str) -> bool:
            with lock:
                return bool(rng.random() < share)

        self.fails, self.failure = fails, failure


@pytest.fixture(scope="module")
def serving_s3() -> Iterator[Server]:
    server = Server()
    listening = serving.make_server("127.0.0.1", 0, server, threaded=True)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield server
    s3fs.S3FileSystem.clear_instance_cache()
    listening.shutdown()
    thread.join()


@pytest.fixture
def s3(serving_s3: Server) -> Iterator[Server]:
    yield serving_s3
    serving_s3.fails, serving_s3.failure = lambda method, path: False, unavailable
    serving_s3.n_failed = 0


def created(url: str, probe_set: xr.Dataset, observe) -> Run:
    seen = observed(observe, 0)
    return Run.create(
        url, probe_set, seen, steps=STEPS, training_steps=2, attrs={"study": "study"},
        coordinates={"arm": "moe", "seed": 0},
    )  # fmt: skip


def observed(observe, step: int) -> dict[str, xr.Dataset]:
    return {group: one for group, one in observe(step).items() if group in ("losses", "routing")}


def test_a_run_on_s3_reads_as_one_on_disk(s3: Server, make_run, probe_set, observe) -> None:
    run = created("s3://bucket/plain/moe-0.zarr", probe_set, observe)
    here = make_run("moe-0", groups=("losses", "routing"), steps=STEPS, committed=STEPS[:2])
    for step in STEPS[:2]:
        run.write(step, observed(observe, step))
        run.commit(step)
    study = Study.open("s3://bucket/plain")
    assert (study.name, study.runs[0].committed.tolist()) == ("plain", [0, 1])
    sent = pickle.loads(pickle.dumps(study.dataset("losses")))  # as dask sends it to a worker
    xr.testing.assert_equal(sent, study.dataset("losses"))
    for group in ("losses", "routing", "probe_set"):
        xr.testing.assert_equal(Study.open(here.path).dataset(group), study.dataset(group))
    with pytest.raises(StoreError, match="already exists"):
        created("s3://bucket/plain/moe-0.zarr", probe_set, observe)


def test_a_copied_run_is_the_same_run(s3: Server, make_run) -> None:
    run = make_run("dense-0")
    s3fs.S3FileSystem().put(str(run.path), "bucket/copied/dense-0.zarr", recursive=True)
    there = Run.open("s3://bucket/copied/dense-0.zarr")
    xr.testing.assert_identical(there.dataset("losses").load(), run.dataset("losses").load())
    assert hash_run(there.path) == hash_run(run.path)


def test_what_is_not_there_is_said(s3: Server) -> None:
    with pytest.raises(StoreError, match=r"s3://bucket/nothing/run\.zarr holds no run"):
        Run.open("s3://bucket/nothing/run.zarr")
    with pytest.raises(StoreError, match="s3://bucket/nothing does not exist"):
        Study.open("s3://bucket/nothing")


@pytest.mark.slow
@pytest.mark.parametrize("failure", [unavailable, broken, cut])
def test_failures_now_and_then_are_tried_again(
    s3: Server, probe_set, observe, failure: Failure
) -> None:
    url = f"s3://bucket/{failure.__name__}/moe-0.zarr"
    run = created(url, probe_set, observe)
    s3.fail_now_and_then(failure, share=0.1)
    for step in STEPS:
        run.write(step, observed(observe, step))
        run.commit(step)
    seen = Run.open(url).dataset("losses").loss.load()
    assert s3.n_failed > 0
    for step in STEPS:
        np.testing.assert_array_equal(seen.sel(step=step), observe(step)["losses"].loss)


def test_a_write_that_fails_for_good_commits_nothing(
    s3: Server, probe_set, observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    url = "s3://bucket/lost/moe-0.zarr"
    run = created(url, probe_set, observe)
    run.write(0, observed(observe, 0))
    run.commit(0)
    s3.fails = lambda method, path: method == "PUT" and "router_prob" in path
    with pytest.raises(OSError, match=UNAVAILABLE):
        run.write(1, observed(observe, 1))
    s3.fails = lambda method, path: method == "PUT" and "committed" in path
    run.write(2, observed(observe, 2))
    with pytest.raises(OSError, match=UNAVAILABLE):
        run.commit(2)
    s3.fails = lambda method, path: False
    again = Run.open(url)
    assert again.committed.tolist() == [0]
    again.write(1, observed(observe, 1))
    again.commit(1)
    assert again.committed.tolist() == [0, 1]
    np.testing.assert_array_equal(
        again.dataset("losses").loss.sel(step=1), observe(1)["losses"].loss
    )
    s3.fails = lambda method, path: True
    with pytest.raises(OSError, match=UNAVAILABLE):
        Run.open(url)
    with pytest.raises(OSError, match=UNAVAILABLE):
        created(url, probe_set, observe)


def test_a_server_that_asks_for_keys_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(
        ValueError, match=r"s3://private/run\.zarr cannot be read.*AWS_ACCESS_KEY_ID"
    ):
        Run.open("s3://private/run.zarr")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_study_on_s3_is_looked_after_as_one_on_disk(
    s3: Server, make_run, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("dense-0", "dense-1"):
        run = make_run(name, committed=(0, 1))
    folder, url = run.path.parent, "s3://bucket/kept/study"
    (folder / "notes").write_text("x")
    (run.path / "losses/loss/c/9.partial").write_text("x")
    s3fs.S3FileSystem().put(str(folder), "bucket/kept/study", recursive=True)

    def told(*arguments: str) -> tuple[int, dict[str, Any]]:
        status = look_after(["--json", *arguments])
        return status, json.loads(capsys.readouterr().out)

    (status, here), (there_status, there) = told(str(folder)), told(url)
    assert status == there_status == 1
    assert there["problems"] == here["problems"]
    assert there["runs"][0].pop("path") == f"{url}/dense-0.zarr"
    assert there["runs"][0] == {k: v for k, v in here["runs"][0].items() if k != "path"}
    assert there["runs"][0]["disk_bytes"] > 0
    status, sound = told("verify", url)
    assert (status, sound) == told("verify", str(folder))
    assert (status, sound["damage"]) == (0, [])

    place(f"{url}/dense-0.zarr/losses/loss/c/0/0/0").unlink()
    (bad := place(f"{url}/dense-1.zarr/losses/loss/c/1/0/0")).write_bytes(bad.read_bytes()[:-1])
    status, found = told("verify", url)
    assert status == 1
    assert [(d["run"], d["step"], d["what"].split()[0]) for d in found["damage"]] == [
        ("dense-0", 0, "missing"), ("dense-1", 1, "damaged"),
    ]  # fmt: skip
    assert look_after([f"{url}/dense-0.zarr"]) == 1
    assert "dense-0" in capsys.readouterr().out


def test_a_wrong_url_is_2_and_one_line(s3: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert look_after(["s3://bucket/nothing"]) == 2
    s3.fails = lambda method, path: True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        assert look_after(["verify", "s3://bucket/nothing"]) == 2
    absent, refused = capsys.readouterr().err.splitlines()
    assert "s3://bucket/nothing does not exist" in absent
    assert refused.startswith("store: ")


def test_a_lost_chunk_is_damage(s3: Server, probe_set, observe) -> None:
    run = created("s3://bucket/damaged/moe-0.zarr", probe_set, observe)
    run.write(0, observed(observe, 0))
    run.commit(0)
    (place("s3://bucket/damaged/moe-0.zarr") / "losses/loss/c/0/0/0").unlink()
    with pytest.raises(StoreError, match=r"moe-0.*losses/loss, step 0.*s3://.*is missing"):
        run.dataset("losses").loss.load()
