"""A run killed at any moment comes out the same; bad input and a full disk lose nothing."""

import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from safetensors.torch import load_file
from tokenizers import Tokenizer

from models.config import ModelConfig
from models.optimization import Trainer
from models.tokenizer import vocabulary
from models.train import main
from models.transformer import Transformer
from store.run import Run

SETTINGS = [
    "data.source=folder", "data.d_vocab=300", "data.n_ctx=16", "data.probe_documents=6",
    "data.sequences_per_document=2", "model.d_model=16", "model.n_heads=4",
    "train.n_steps=24", "train.observe_every=8", "train.batch_size=4", "train.warmup_steps=4",
    "train.activation_positions=4", "train.precision=float32",
]  # fmt: skip


def command(text: Path, out: Path, *more: str) -> list[str]:
    settings = [f"--set={setting}" for setting in (*SETTINGS, f"data.path={text}")]
    return ["quick", "--out", str(out), *settings, *more]


WATCHED = """
import os, signal, sys
count, fatal = 0, int(sys.argv[1])
def hook(event, args):
    global count
    if event == "os.rename" and "switch-seed0" in str(args[1]):
        count += 1
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from models.tokenizer import vocabulary
from models.train import main
code = main(sys.argv[2:])
print("renames:", count)
sys.exit(code)
"""


def child(arguments: list[str], *, fatal: int = 0, **options) -> subprocess.CompletedProcess[str]:
    """Train in a process that dies with the `fatal`-th file of the run written, unnamed yet."""
    return subprocess.run(
        [sys.executable, "-c", WATCHED, str(fatal), *arguments],
        capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a store, by its name."""
    root = zarr.open_group(path, mode="r")
    found = {}
    for group, members in root.groups():
        found |= {f"{group}/{name}": array[...] for name, array in members.arrays()}
    return found


def assert_same_arrays(one: Path, other: Path) -> None:
    expected, found = arrays(one), arrays(other)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert array.dtype == found[name].dtype
        if array.dtype.kind in "fiub":
            assert array.tobytes() == found[name].tobytes(), name
        else:
            assert np.array_equal(array, found[name]), name


@pytest.fixture(scope="session")
def trained(text, tmp_path_factory) -> tuple[Path, int]:
    """An uninterrupted `switch-seed0` in its study's folder, and how many files it replaced."""
    out = tmp_path_factory.mktemp("finished")
    process = child(command(text, out, "--run", "switch-seed0", "--keep-weights"))
    assert process.returncode == 0, process.stderr
    assert "switch-seed0: 24 steps, loss" in process.stdout
    return out / "quick", int(process.stdout.split("renames:")[1])


@pytest.fixture
def finished(trained) -> Path:
    return trained[0]


def test_a_finished_run_holds_everything_the_schema_promises(finished):
    run = Run.open(finished / "switch-seed0.zarr")
    assert run.finished
    assert run.committed.tolist() == [0, 1, 2, 4, 8, 16, 24]
    shapes = {name: array.shape for name, array in arrays(run.path).items()}
    assert shapes["losses/loss"] == (7, 12, 16)
    assert shapes["routing/expert_index"] == (7, 2, 12, 16, 1)
    assert shapes["routing/router_prob"] == (7, 2, 12, 16, 8)
    assert shapes["predictions/log_prob"] == (7, 12, 4, 300)
    assert shapes["activations/resid_post"] == (7, 4, 12, 4, 16)
    assert shapes["probe_set/ngram_surprisal"] == (5, 12, 16)
    for name, array in arrays(run.path).items():
        if array.dtype.kind == "f":
            assert np.isfinite(array).all(), name
    assert (arrays(run.path)["routing/expert_index"] >= 0).all()
    assert run.coordinates["arm"] == "switch"
    assert run.coordinates["n_active_parameters"] < run.coordinates["n_parameters"]
    assert {"corpus_hash", "tokenizer_hash", "probe_set_hash", "config"} <= run.attrs.keys()
    assert not list(finished.glob("*.resume.pt*"))


def test_the_store_holds_the_text_of_every_token_id(finished):
    stored = Run.open(finished / "switch-seed0.zarr").dataset("probe_set")["vocabulary"].values
    tokenizer = Tokenizer.from_file(str(finished / "data/tokenizer.json"))
    assert stored.tolist() == vocabulary(tokenizer)
    assert "\0" in stored.tolist()


def test_training_lowered_the_recorded_losses(finished):
    with xr.open_zarr(finished / "switch-seed0.zarr", group="losses", chunks=None) as losses:
        mean = losses["loss"].mean(["sequence", "pos"])
    assert float(mean[-1]) < float(mean[0]) - 0.5
    assert float(mean[0]) == pytest.approx(np.log(300), abs=0.6)


def test_recorded_losses_are_those_of_the_kept_weights(finished):
    run = Run.open(finished / "switch-seed0.zarr")
    config = run.attrs["config"]["runs"][0]["model"]
    model = Transformer(ModelConfig(**config | {"moe_layers": tuple(config["moe_layers"])})).eval()
    probe_set = run.dataset("probe_set").load()
    token = torch.from_numpy(probe_set["token"].values).long()
    target = torch.from_numpy(probe_set["target"].values).long()
    loss = run.dataset("losses")["loss"]
    files = sorted((finished / "switch-seed0.weights").glob("*.safetensors"))
    assert len(files) == 7
    for file in files:
        model.load_state_dict(load_file(file))
        with torch.no_grad():
            log_prob = model(token).double().log_softmax(-1)
        expected = -log_prob.gather(-1, target[..., None])[..., 0]
        step = int(file.stem.removeprefix("step_"))
        np.testing.assert_allclose(loss.sel(step=step), expected, atol=1e-5)


def test_runs_trained_side_by_side_are_what_they_are_alone(text, finished, tmp_path):
    process = child(command(text, tmp_path, "--jobs", "2"))
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if "24 steps" in line]
    assert len(lines) == 5
    assert_same_arrays(finished / "switch-seed0.zarr", tmp_path / "quick/switch-seed0.zarr")
    hashes = {
        arrays(store)["training/stream_hash"].tobytes()
        for store in (tmp_path / "quick").glob("*.zarr")
    }
    assert len(hashes) == 1  # every run saw the same tokens in the same order
    (stream,) = hashes
    assert len(set(np.frombuffer(stream, "uint64"))) == 24


def test_a_run_that_fails_beside_others_ends_them_and_says_why(text, tmp_path):
    process = child(command(text, tmp_path, "--jobs", "2", "--set", "train.learning_rate=1e30"))
    assert process.returncode == 2
    assert "lower train.learning_rate" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.51, 0.75, 1.0])
def test_a_run_killed_while_it_writes_resumes_bit_identically(share, text, trained, tmp_path):
    """Killed with a file written and not yet in its place: data, resume state or commit mark."""
    finished, n_renames = trained
    arguments = command(text, tmp_path, "--run", "switch-seed0", "--keep-weights")
    process = child(arguments, fatal=round(share * n_renames))
    assert process.returncode == -signal.SIGKILL
    store = tmp_path / "quick/switch-seed0.zarr"
    assert not store.exists() or not Run.open(store).finished
    assert main(arguments) == 0
    assert_same_arrays(finished / "switch-seed0.zarr", store)
    for file in (finished / "switch-seed0.weights").iterdir():
        again = tmp_path / "quick/switch-seed0.weights" / file.name
        assert again.read_bytes() == file.read_bytes()


def test_a_run_killed_between_writes_resumes_bit_identically(text, finished, tmp_path):
    arguments = command(text, tmp_path, "--run", "switch-seed0")
    process = subprocess.Popen([sys.executable, "-m", "models.train", *arguments])
    mark = tmp_path / "quick/switch-seed0.zarr/observation/committed/c/2"
    deadline = time.monotonic() + 60
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main(arguments) == 0
    assert_same_arrays(finished / "switch-seed0.zarr", tmp_path / "quick/switch-seed0.zarr")


def test_a_study_whose_parent_is_killed_resumes_bit_identically(text, finished, tmp_path):
    arguments = command(text, tmp_path, "--jobs", "2")
    parent = subprocess.Popen([sys.executable, "-m", "models.train", *arguments])
    marks = [tmp_path / f"quick/dense-seed{i}.zarr/observation/committed/c/2" for i in (0, 1)]
    deadline = time.monotonic() + 120
    while not all(mark.exists() for mark in marks) and time.monotonic() < deadline:
        time.sleep(0.001)
    parent.kill()
    parent.wait()
    assert all(mark.exists() for mark in marks)
    time.sleep(3)  # the workers notice at their next report, and end
    stores = {store.name: arrays(store) for store in (tmp_path / "quick").glob("*.zarr")}
    time.sleep(1)
    assert "switch-seed1.zarr" not in stores
    assert stores.keys() == {store.name for store in (tmp_path / "quick").glob("*.zarr")}
    assert main([*arguments, "--run", "switch-seed0"]) == 0
    process = child(arguments)
    assert process.returncode == 0, process.stderr
    assert_same_arrays(finished / "switch-seed0.zarr", tmp_path / "quick/switch-seed0.zarr")
    assert all(Run.open(store).finished for store in (tmp_path / "quick").glob("*.zarr"))


def half_trained(text: Path, out: Path, n_renames: int) -> list[str]:
    """Leave a run behind that was killed half-way; return the command that goes on."""
    arguments = command(text, out, "--run", "switch-seed0")
    assert child(arguments, fatal=round(0.75 * n_renames)).returncode == -signal.SIGKILL
    assert (out / "quick/switch-seed0.resume.pt").exists()
    return arguments


def test_a_run_does_not_go_on_with_another_text(text, trained, tmp_path, capsys):
    other = tmp_path / "text"
    shutil.copytree(text, other)
    arguments = half_trained(other, tmp_path, trained[1])
    shutil.rmtree(tmp_path / "quick/data")
    (other / "prose/0.txt").write_text("something else " * 200, encoding="utf-8")
    assert main(arguments) == 2
    assert "was begun with another corpus" in capsys.readouterr().err


def test_a_damaged_resume_state_is_named_with_its_remedy(text, trained, tmp_path, capsys):
    arguments = half_trained(text, tmp_path, trained[1])
    state = tmp_path / "quick/switch-seed0.resume.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert main(arguments) == 2
    assert "resume.pt is damaged" in capsys.readouterr().err
    state.unlink()
    assert main(arguments) == 0
    assert_same_arrays(trained[0] / "switch-seed0.zarr", tmp_path / "quick/switch-seed0.zarr")


def test_a_step_is_marked_once_what_it_resumes_from_is_on_the_disk(text, tmp_path, monkeypatch):
    state = "dense-seed0.resume.pt.partial"
    kept, fsync = [], os.fsync

    def watched(opened: int) -> None:
        fsync(opened)
        file = Path(os.readlink(f"/proc/self/fd/{opened}"))
        if file.name == state or file.parent.parent.name == "committed":
            kept.append(file.name)

    monkeypatch.setattr(os, "fsync", watched)
    assert main(command(text, tmp_path, "--run", "dense-seed0")) == 0
    assert kept == [name for step in range(6) for name in (state, str(step))] + ["6"]


def test_training_goes_on_while_an_observation_is_written(text, finished, tmp_path, monkeypatch):
    write, advance = Run.write, Trainer.advance
    reached, ahead = [0], []

    def noted(trainer):
        row = advance(trainer)
        reached.append(trainer.step)
        return row

    def slowly(run, step, observed):
        deadline = time.monotonic() + 30
        while reached[-1] <= step < 24 and time.monotonic() < deadline:
            time.sleep(0.001)
        ahead.append(reached[-1] > step)
        write(run, step, observed)

    monkeypatch.setattr(Trainer, "advance", noted)
    monkeypatch.setattr(Run, "write", slowly)
    assert main(command(text, tmp_path, "--run", "switch-seed0")) == 0
    assert ahead == [True] * 6 + [False]
    assert_same_arrays(finished / "switch-seed0.zarr", tmp_path / "quick/switch-seed0.zarr")


# In a process of its own, where shapes are not checked on every call, which cannot be traced. What
# is traced is then run as it is: code for this processor would take minutes and a compiler.
COMPILED = """
import functools, sys, torch
torch.compile = functools.partial(torch.compile, backend="aot_eager")
from models.train import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["dense-seed0", "switch-seed0"])
def test_what_is_trained_compiled_is_the_same_and_watched(name, text, tmp_path):
    more = ["--run", name, "--set", "train.precision=bfloat16"]
    assert main(command(text, tmp_path / "plain", *more)) == 0
    arguments = command(text, tmp_path / "compiled", *more, "--compile")
    process = subprocess.run(
        [sys.executable, "-c", COMPILED, *arguments], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    expected, found = (
        arrays(tmp_path / folder / f"quick/{name}.zarr") for folder in ("plain", "compiled")
    )
    for array in ("training/train_loss", "losses/loss", "activations/resid_post"):
        assert np.isfinite(found[array]).all()
        np.testing.assert_allclose(found[array], expected[array], rtol=2e-2, atol=2e-2)


def test_finished_runs_are_skipped(text, finished, capsys):
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished.rglob("*")}

    before = written()
    assert main(command(text, finished.parent, "--run", "switch-seed0")) == 0
    assert "already finished" in capsys.readouterr().out
    assert written() == before


@pytest.mark.parametrize("largest_file", [3_000, 100_000])  # a chunk of the store, resume state
def test_a_write_that_fails_names_the_remedy_and_leaves_committed_steps(
    largest_file, text, finished, tmp_path
):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    shutil.copytree(finished / "data", tmp_path / "quick/data")
    arguments = command(text, tmp_path, "--run", "switch-seed0")
    process = child(arguments, preexec_fn=small_files)
    assert process.returncode == 1
    assert "File too large" in process.stderr
    assert "give the same command again" in process.stderr
    assert "Traceback" not in process.stderr
    assert main(arguments) == 0
    assert_same_arrays(finished / "switch-seed0.zarr", tmp_path / "quick/switch-seed0.zarr")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--run", "nobody"], "no run 'nobody'; its runs: dense-seed0"),
        (["--set", "train.n_steps=100000"], "set fewer train.n_steps"),
        (["--set", "name=a/b"], "cannot be used"),
        (["--set", "data.path=nowhere"], "nowhere"),
        (["--device", "cuda:7"], "use auto or cpu"),
        (["--compile"], "leave it out, or train in bfloat16"),
        (["--set", "data.probe_documents=50"], "probe set"),
        (["--set", "train.activation_sites=resid"], "known are resid_pre"),
    ],
)
def test_bad_input_is_refused_before_training_starts(more, message, text, tmp_path, capsys):
    assert main(command(text, tmp_path, *more)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("*.zarr"))


def test_a_folder_of_another_configuration_is_refused(text, finished, capsys):
    assert main(command(text, finished.parent, "--set", "train.batch_size=5")) == 2
    assert "train.batch_size 4, now 5" in capsys.readouterr().err


def test_a_diverging_run_stops_and_says_so(text, tmp_path, capsys):
    settings = ["--set", "train.learning_rate=1e30", "--run", "dense-seed0"]
    assert main(command(text, tmp_path, *settings)) == 2
    assert "lower train.learning_rate" in capsys.readouterr().err


PAGES_ASKED_FOR = """
import resource, sys, torch
from models.train import main
def asked_for():
    for repeat in range(20):
        if repeat == 10:  # by now the heap has a place for it, whatever training left there
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = asked_for()
assert main(sys.argv[1:]) == 0
print(before, asked_for())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")
def test_a_process_that_trains_keeps_the_memory_it_frees(text, tmp_path):
    arguments = command(text, tmp_path, "--run", "dense-seed0")
    done = subprocess.run(
        [sys.executable, "-c", PAGES_ASKED_FOR, *arguments],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    before, after = map(int, done.stdout.split()[-2:])
    assert after < before / 10
