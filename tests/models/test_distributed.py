"""Two ranks compute what one process does, and a run goes on whatever the number of its ranks."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from models.config import ModelConfig, Precision, RunConfig, TrainConfig
from models.data import TokenStream
from models.distributed import (
    from_first,
    gathered,
    mean_over_ranks,
    n_ranks,
    own_rows,
    sum_before,
    whole,
)
from models.optimization import Trainer
from models.train import main
from models.transformer import Transformer
from store.run import Run

# One process imports torch, and forks the ranks: that is what would take long, twice.
RANKS = """
import os, signal, socket, sys, traceback
import torch
from models import train, training
from models.optimization import Trainer

def on_ranks(n, work):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in map(str, range(n)):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(n),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = 70
            try:
                code = work(int(rank))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
"""
ONE_STEP = """
def work(rank):
    import functools
    import test_distributed as t
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # traced, run as it is
    from models.distributed import joined_ranks
    torch.set_num_threads(1)
    with joined_ranks(torch.device("cpu")):
        found = {name: t.one_step(name) for name in t.MODELS} | {"exchanged": t.exchanged()}
        found |= {("sharded", name): t.one_step(name, sharded=True) for name in t.MODELS}
        for name, sharded in t.COMPILED:
            found["compiled", name, sharded] = t.one_step(
                name, sharded=sharded, compiled=True, precision="bfloat16"
            )
        try:
            training._require_shares(5, 12)
        except ValueError as error:
            found["refused"] = str(error)
    torch.save(found, f"{sys.argv[1]}/{rank}.pt")
    return 0
sys.exit(max(on_ranks(2, work)))
"""
KILLED = """
def work(rank):
    advance = Trainer.advance
    def die(trainer):
        if rank == 1 and trainer.step == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return advance(trainer)
    Trainer.advance = die
    return train.main(sys.argv[1:])
print(on_ranks(2, work))
"""

DENSE = ModelConfig(d_model=16, n_layers=2, n_heads=2, n_ctx=8, d_vocab=300)
SWITCH = dataclasses.replace(DENSE, router="switch", moe_layers=(0, 1), n_experts=4, top_k=1)
MODELS = {
    "dense": DENSE,
    "switch": SWITCH,
    "ungated": dataclasses.replace(SWITCH, router="ungated", router_bias=True),
    "hash": dataclasses.replace(SWITCH, router="hash"),
    "dropping": dataclasses.replace(SWITCH, top_k=2, capacity_factor=0.8),
}


# a hash router draws no noise, which a compiled model would draw otherwise
COMPILED = list(itertools.product(["dense", "hash"], [False, True]))


def one_step(
    name: str, *, sharded: bool = False, compiled: bool = False, precision: Precision = "float32"
) -> dict[str, dict]:
    """Gradients and recorded values of the first step, and how much of them this rank holds."""
    tokens = np.random.default_rng(0).integers(0, 300, 4000).astype(np.uint16)
    stream = TokenStream(tokens, n_ctx=8, batch_size=4, order_seed=0, max_epochs=1)
    cfg = TrainConfig(n_steps=20, batch_size=4, balance_weight=1.0, precision=precision)
    run = RunConfig(name, 0, MODELS[name])
    how = {"device": torch.device("cpu"), "sharded": sharded, "compiled": compiled}
    trainer = Trainer(run, cfg, stream, **how)
    row = trainer.advance()
    held = [of["exp_avg"] for of in trainer.optimizer.state.values()]
    held += [p.grad for p in trainer.model.parameters()]
    n_held = sum((t.to_local() if sharded else t).numel() for t in held)
    gradients = {n: whole(p.grad).clone() for n, p in trainer.model.named_parameters()}
    return {"row": row, "gradients": gradients, "n_held": n_held}


def exchanged() -> dict[str, object]:
    """What the ranks tell each other; the number of a rank is where its rows of two begin."""
    value = torch.tensor([1.0, 2.0]) * (1 + own_rows(n_ranks()).start)
    return {
        "mean": mean_over_ranks(value),
        "before": sum_before(value),
        "first": from_first(value.tolist()),
        "gathered": gathered(value.tolist()),
        "rows": (own_rows(5).start, own_rows(5).stop),
    }


def launch(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    return subprocess.run(
        [sys.executable, "-c", RANKS + script, *map(str, arguments)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    process = launch(ONE_STEP, folder)
    assert process.returncode == 0, process.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_two_ranks_has_the_gradients_of_one_process(name, sharded, two_ranks):
    """Router noise, balancing loss and dropped tokens of the whole batch included."""
    alone = one_step(name)
    for rank in two_ranks:
        found = rank["sharded", name] if sharded else rank[name]
        for parameter, gradient in alone["gradients"].items():
            torch.testing.assert_close(
                found["gradients"][parameter], gradient, rtol=1e-4, atol=1e-7, msg=parameter
            )
        for column, value in alone["row"].items():
            assert found["row"][column] == pytest.approx(float(value), rel=1e-5), column


@pytest.mark.parametrize(("name", "sharded"), COMPILED)
def test_a_compiled_step_of_two_ranks_has_them_too(name, sharded, two_ranks):
    alone = one_step(name, precision="bfloat16")["gradients"]
    for rank in two_ranks:
        found = rank["compiled", name, sharded]["gradients"]
        for parameter, gradient in alone.items():
            error = (found[parameter] - gradient).norm() / gradient.norm().clamp(min=1e-6)
            assert error < 0.03, parameter


@pytest.mark.parametrize("name", MODELS)
def test_ranks_that_share_a_model_hold_half_of_it_each(name, two_ranks):
    shares = [rank["sharded", name]["n_held"] for rank in two_ranks]
    assert sum(shares) == two_ranks[0][name]["n_held"]
    assert max(shares) < 0.51 * sum(shares)


def test_the_compared_steps_drop_tokens_and_balance_load():
    rows = {name: one_step(name) for name in ("switch", "dropping")}
    assert rows["switch"]["row"]["balance_loss"] > 2.01  # two layers; 1 each if all were even
    keeping = dataclasses.replace(MODELS["dropping"], capacity_factor=None)
    tokens = torch.arange(32).view(4, 8)
    outputs = []
    for model in (Transformer(MODELS["dropping"]), Transformer(keeping)):
        torch.manual_seed(0)
        outputs.append(model(tokens))
    assert not torch.equal(*outputs)


def test_ranks_tell_each_other_means_sums_and_values(two_ranks):
    first, second = (rank["exchanged"] for rank in two_ranks)
    assert first["mean"].tolist() == second["mean"].tolist() == [1.5, 3.0]
    assert (first["before"].tolist(), second["before"].tolist()) == ([0, 0], [1, 2])
    assert first["first"] == second["first"] == [1.0, 2.0]
    assert (first["gathered"], second["gathered"]) == ([[1.0, 2.0], [2.0, 4.0]], [])
    assert (first["rows"], second["rows"]) == ((0, 2), (2, 5))


def test_without_torchrun_all_is_one_rank():
    alone = exchanged()
    assert alone["mean"].tolist() == alone["first"] == [1.0, 2.0]
    assert alone["before"].tolist() == [0, 0]
    assert (alone["gathered"], alone["rows"]) == ([[1.0, 2.0]], (0, 5))


def test_ranks_that_cannot_share_a_batch_evenly_are_refused(two_ranks):
    assert "batch_size 5 cannot be divided evenly among 2 ranks" in two_ranks[0]["refused"]


SETTINGS = [
    "data.source=folder", "data.d_vocab=300", "data.n_ctx=16", "data.probe_documents=5",
    "data.sequences_per_document=1", "model.d_model=16", "model.n_heads=4", "model.n_layers=2",
    "model.moe_layers=1", "train.n_steps=24", "train.observe_every=8", "train.batch_size=4",
    "train.warmup_steps=4", "train.activation_positions=4", "train.precision=float32",
]  # fmt: skip


def command(text: Path, out: Path) -> list[str]:
    settings = [f"--set={setting}" for setting in (*SETTINGS, f"data.path={text}")]
    return ["quick", "--out", str(out), "--run", "switch-seed0", "--keep-weights", *settings]


def interrupted_at(step: int, arguments: list[str], monkeypatch) -> None:
    """Train in this process, up to a step."""
    advance = Trainer.advance

    def stop(trainer: Trainer) -> dict:
        if trainer.step == step:
            raise KeyboardInterrupt
        return advance(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", stop)
        assert main(arguments) == 130


def test_a_run_goes_on_with_another_number_of_ranks(text, tmp_path, monkeypatch):
    """One process, two that share the model, of which one is killed, one, two that torchrun starts.

    Shared or not, what is left to go on from is the same.
    """
    assert main(command(text, tmp_path / "alone")) == 0
    arguments = command(text, tmp_path / "changing")
    store = tmp_path / "changing/quick/switch-seed0.zarr"
    interrupted_at(6, arguments, monkeypatch)
    assert Run.open(store).committed.tolist() == [0, 1, 2, 4]

    process = launch(KILLED, *arguments, "--shard")
    assert process.stdout == "[1, -9]\n"
    assert "error: another rank has ended or cannot be reached" in process.stderr
    assert "give the same command again" in process.stderr
    assert Run.open(store).committed.tolist() == [0, 1, 2, 4, 8]
    interrupted_at(20, arguments, monkeypatch)
    assert Run.open(store).committed.tolist() == [0, 1, 2, 4, 8, 16]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", "2", "-m", "--", "models.train"]  # fmt: skip
    process = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("switch-seed0: 24 steps, loss") == 1

    one, other = (Run.open(path) for path in (tmp_path / "alone/quick/switch-seed0.zarr", store))
    assert other.finished
    left = sorted(path.name for path in store.parent.glob("switch-seed0*"))
    assert left == ["switch-seed0.weights", "switch-seed0.zarr"]
    for kept in (tmp_path / "alone/quick/switch-seed0.weights").iterdir():
        weights = safetensors.torch.load_file(kept)
        found = safetensors.torch.load_file(store.with_suffix(".weights") / kept.name)
        assert found.keys() == weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-3, msg=name)
    for group in ("training", "losses", "routing", "activations", "predictions"):
        expected, found = one.dataset(group).load(), other.dataset(group).load()
        for name, values in expected.data_vars.items():
            assert values.dims == found[name].dims
            if values.dtype.kind == "u":
                assert np.array_equal(values, found[name]), name
            else:
                np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-3, err_msg=name)


def test_a_model_is_shared_only_among_ranks(text, tmp_path, capsys):
    assert main([*command(text, tmp_path), "--shard"]) == 2
    assert (
        "--shard: a model is shared among ranks, which torchrun starts" in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())
