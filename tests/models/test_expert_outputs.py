"""Every expert's output is what its weights give, and the command stores it once."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import zarr

from models import expert_outputs, kept
from models.config import ModelConfig
from models.every_expert import expert_outputs as outputs_of
from models.transformer import Transformer
from store.run import Run

NAME = "switch-seed0"
ROUTERS = [("switch", 1), ("switch", 2), ("ungated", 1), ("hash", 1)]


@pytest.fixture(scope="module")
def measured(trained: Path, tmp_path_factory) -> Path:
    """`switch-seed0` with the outputs of all experts at all steps, without interruption."""
    folder = tmp_path_factory.mktemp("measured") / "quick"
    shutil.copytree(trained, folder)
    assert expert_outputs.main([str(folder / f"{NAME}.zarr"), "--steps", "all"]) == 0
    return folder / f"{NAME}.zarr"


def arrays(path: Path) -> dict[str, bytes]:
    group = zarr.open_group(path, mode="r")["expert_outputs"]
    return {name: array[...].tobytes() for name, array in group.arrays()}


def by_hand(weights: dict[str, np.ndarray], layer: int, expert: int, x: np.ndarray) -> np.ndarray:
    """relu(x W_in + b_in) W_out + b_out of one expert, in float64."""
    e = {
        name: weights[f"blocks.{layer}.mlp.experts.{name}"][expert].astype(float)
        for name in ("w_in", "b_in", "w_out", "b_out")
    }
    return np.maximum(x @ e["w_in"] + e["b_in"], 0) @ e["w_out"] + e["b_out"]


def entering(model: Transformer, token: torch.Tensor, layer: int) -> np.ndarray:
    with torch.no_grad():
        cache = model.run_with_cache(token)[1]
    return cache[f"blocks.{layer}.mlp.hook_in"].double().numpy()


def test_what_is_stored_is_what_the_weights_on_disk_give(measured: Path) -> None:
    run = Run.open(measured)
    assert run.committed_in("expert_outputs").tolist() == [0, 1, 2, 4]
    stored = run.dataset("expert_outputs")["output"]
    assert stored.dims == ("step", "layer", "expert", "sequence", "pos", "d_model")
    assert stored["layer"].values.tolist() == [1, 3]
    assert stored["pos"].values.tolist() == list(range(16))
    token = torch.from_numpy(run.dataset("probe_set")["token"].values).long()
    model = Transformer(kept.model_config(run)).eval()
    for step in (0, 4):
        kept.load_weights(model, run, step)
        weights = safetensors.numpy.load_file(kept.weights_file(run, step))
        for layer in (1, 3):
            x = entering(model, token, layer)
            for expert in range(4):
                found = stored.sel(step=step, layer=layer, expert=expert)
                expected = by_hand(weights, layer, expert, x)
                np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("router", "top_k"), ROUTERS)
def test_chosen_outputs_times_their_weights_are_what_the_layer_gives(
    router: str, top_k: int
) -> None:
    cfg = ModelConfig(
        d_model=16, n_layers=4, n_heads=2, n_ctx=8, d_vocab=30, router=router,
        moe_layers=(1, 3), n_experts=4, top_k=top_k,
    )  # fmt: skip
    model = Transformer(cfg)
    rng = torch.Generator().manual_seed(0)
    token, target = (torch.randint(0, 30, (5, 8), generator=rng) for _ in range(2))
    positions, heard = [1, 4, 6], []
    loss, output = outputs_of(model, token, target, positions, batch_size=2, advance=heard.append)
    assert model.training
    assert output.shape == (2, 4, 5, 3, 16)
    assert heard == [4] * 6
    with torch.no_grad():
        logits, cache = model.eval().run_with_cache(token)
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for i, layer in enumerate(cfg.moe_layers):
        name = f"blocks.{layer}.mlp"
        weight = cache[f"{name}.hook_expert_weights"].view(5, 8, 4)[:, positions].numpy()
        mixed = np.einsum("espd,spe->spd", output[i].astype(float), weight)
        whole = cache[f"{name}.hook_out"][:, positions]
        np.testing.assert_allclose(mixed, whole, rtol=5e-3, atol=5e-4)


def test_fewer_positions_and_documents_are_part_of_the_whole(
    study: Path, measured: Path, capsys
) -> None:
    path = study / f"{NAME}.zarr"
    less = ["--positions", "4", "--documents", "2"]
    assert expert_outputs.main([str(path), *less]) == 0
    assert f"{NAME}: all experts run at step 4" in capsys.readouterr().out
    part = Run.open(path).dataset("expert_outputs")["output"]
    assert part["pos"].values.tolist() == [2, 6, 10, 14]
    assert part.sizes["sequence"] == 4
    whole = Run.open(measured).dataset("expert_outputs")["output"]
    expected = whole.sel(step=[4], sequence=part["sequence"], pos=part["pos"])
    np.testing.assert_allclose(part, expected, rtol=2e-3, atol=1e-4)
    for change, remedy in ((["--documents", "2"], "--positions 4"),
                           (["--positions", "4"], "--documents 2")):  # fmt: skip
        assert expert_outputs.main([str(path), "--steps", "0", *change]) == 2
        assert remedy in capsys.readouterr().err
    assert expert_outputs.main([str(path), "--steps", "0,4", *less]) == 0
    assert Run.open(path).committed_in("expert_outputs").tolist() == [0, 4]


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
from models.expert_outputs import main
sys.exit(main(sys.argv[2:]))
"""


def test_a_command_killed_while_it_writes_resumes_bit_identically(
    study: Path, measured: Path
) -> None:
    path = study / f"{NAME}.zarr"
    arguments = [str(path), "--steps", "all"]
    done = subprocess.run([sys.executable, "-c", WATCHED, "20", *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    run = Run.open(path)
    assert 0 < len(run.committed_in("expert_outputs")) < 4
    assert expert_outputs.main(arguments) == 0
    assert arrays(path) == arrays(measured)


@pytest.mark.parametrize(
    ("name", "message"),
    [("dense-seed0", "is dense and has no experts"), ("switch-seed1", "--keep-weights")],
)
def test_what_cannot_be_measured_is_refused(name: str, message: str, study: Path, capsys) -> None:
    assert expert_outputs.main([str(study / f"{name}.zarr")]) == 2
    assert message in capsys.readouterr().err
    assert "expert_outputs" not in Run.open(study / f"{name}.zarr").groups


def test_an_output_beyond_float16_is_refused() -> None:
    cfg = ModelConfig(
        d_model=8, n_layers=1, n_heads=2, n_ctx=4, d_vocab=30, router="switch",
        moe_layers=(0,), n_experts=2, top_k=1,
    )  # fmt: skip
    model, token = Transformer(cfg), torch.zeros(1, 4, dtype=torch.long)
    with torch.no_grad():
        model.blocks[0].mlp.experts.b_out[1] = 1e6
    with pytest.raises(ValueError, match=r"layer 0 gives 1e\+06, too large for float16"):
        outputs_of(model, token, token, [0])
