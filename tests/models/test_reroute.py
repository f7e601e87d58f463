"""Routes made anew differ by the router alone, or by what it reads alone."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from models import kept, reroute
from models.config import ModelConfig
from models.every_expert import rerouted
from models.transformer import Transformer
from store.run import Run

NAME = "switch-seed0"
NAMES = ("expert_index_last_router", "expert_index_last_representation")


@pytest.fixture(scope="module")
def measured(trained: Path, tmp_path_factory) -> Path:
    """`switch-seed0` routed anew at all steps, without interruption."""
    folder = tmp_path_factory.mktemp("rerouted") / "quick"
    shutil.copytree(trained, folder)
    assert reroute.main([str(folder / f"{NAME}.zarr"), "--steps", "all"]) == 0
    return folder / f"{NAME}.zarr"


def arrays(path: Path) -> dict[str, bytes]:
    group = zarr.open_group(path, mode="r")["rerouted"]
    return {name: array[...].tobytes() for name, array in group.arrays()}


def test_at_the_last_step_both_are_the_routes_as_they_were(measured: Path) -> None:
    run = Run.open(measured)
    stored = run.dataset("rerouted")
    assert run.committed_in("rerouted").tolist() == [0, 1, 2, 4]
    last = run.dataset("routing")["expert_index"].sel(step=4)
    for name in NAMES:
        assert stored[name].dims == ("step", "layer", "sequence", "pos", "top_k")
        np.testing.assert_array_equal(stored[name].sel(step=4), last)


def test_one_step_reads_with_the_other_ones_router(measured: Path) -> None:
    run = Run.open(measured)
    stored = run.dataset("rerouted").sel(step=0)
    token = torch.from_numpy(run.dataset("probe_set")["token"].values).long()
    models = {step: Transformer(kept.model_config(run)).eval() for step in (0, 4)}
    caches = {}
    for step, model in models.items():
        kept.load_weights(model, run, step)
        with torch.no_grad():
            caches[step] = model.run_with_cache(token)[1]
    for layer in (1, 3):
        for name, router, read in ((NAMES[0], 4, 0), (NAMES[1], 0, 4)):
            linear = models[router].blocks[layer].mlp.gate.linear
            with torch.no_grad():
                logits = linear(caches[read][f"blocks.{layer}.mlp.hook_in"])
            found = torch.from_numpy(stored[name].sel(layer=layer).values[..., 0]).long()
            chosen = logits.gather(-1, found[..., None])[..., 0]
            torch.testing.assert_close(chosen, logits.max(dim=-1).values)


def test_a_model_whose_router_alone_was_changed_tells_the_two_apart() -> None:
    cfg = ModelConfig(
        d_model=16, n_layers=2, n_heads=2, n_ctx=8, d_vocab=30, router="switch",
        moe_layers=(1,), n_experts=4, top_k=2,
    )  # fmt: skip
    token = torch.randint(0, 30, (6, 8), generator=torch.Generator().manual_seed(0))
    model, other = Transformer(cfg), Transformer(cfg)
    weight = other.blocks[1].mlp.gate.linear.weight
    with torch.no_grad():
        weight.copy_(weight[torch.tensor([1, 2, 3, 0])])  # expert e is called e - 1 from now on
        own = model.eval().run_with_cache(token)[1]["blocks.1.mlp.hook_expert_indices"]
    own = own.view(1, 6, 8, 2).numpy()
    heard: list[int] = []
    _, other_router, other_input = rerouted(
        model, other, token, token, batch_size=4, advance=heard.append
    )
    # the layer reads the same in both, so that only the router's own change shows
    np.testing.assert_array_equal(other_input, own)
    np.testing.assert_array_equal(other_router, (own - 1) % 4)
    assert sum(heard) == 2


WATCHED = """
import os, signal, sys
count, fatal = 0, int(sys.argv[1])
def hook(event, args):
    global count
    if event == "os.rename" and "zarr" in str(args[1]):
        count += 1
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from models.reroute import main
sys.exit(main(sys.argv[2:]))
"""


def test_a_command_killed_while_it_writes_resumes_bit_identically(
    study: Path, measured: Path
) -> None:
    path = study / f"{NAME}.zarr"
    arguments = [str(path), "--steps", "all"]
    done = subprocess.run([sys.executable, "-c", WATCHED, "21", *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert 0 < len(Run.open(path).committed_in("rerouted")) < 4
    assert reroute.main(arguments) == 0
    assert arrays(path) == arrays(measured)


def test_without_the_last_weights_nothing_is_begun(study: Path, capsys) -> None:
    path = study / f"{NAME}.zarr"
    (study / f"{NAME}.weights/step_00000004.safetensors").unlink()
    assert reroute.main([str(path), "--steps", "0"]) == 2
    assert f"run {NAME!r} kept no weights at step 4" in capsys.readouterr().err
    assert "rerouted" not in Run.open(path).groups


def test_a_run_that_is_not_finished_has_no_last_step(study: Path, capsys) -> None:
    path = study / f"{NAME}.zarr"
    mark = sorted(file for file in (path / "observation/committed/c").rglob("*") if file.is_file())
    mark[-1].unlink()
    assert reroute.main([str(path), "--steps", "0"]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert "rerouted" not in Run.open(path).groups
