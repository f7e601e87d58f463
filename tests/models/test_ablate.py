"""The command stores what knocking out gives, once, whatever interrupts it."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from models import ablate, kept
from models.knockout import REPLACEMENTS, expert_means, loss_changes
from models.transformer import Transformer
from store.run import Run

NAME = "switch-seed0"


@pytest.fixture(scope="session")
def ablated(trained: Path, tmp_path_factory) -> Path:
    """The study with `switch-seed0` ablated at all steps, without interruption."""
    folder = tmp_path_factory.mktemp("ablated") / "quick"
    shutil.copytree(trained, folder)
    assert ablate.main([str(folder / f"{NAME}.zarr"), "--steps", "all"]) == 0
    return folder


def arrays(path: Path) -> dict[str, bytes]:
    """Every array of the group, by name."""
    group = zarr.open_group(path, mode="r")["ablation"]
    return {name: array[...].tobytes() for name, array in group.arrays()}


def modified(path: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in path.rglob("*")}


def test_what_is_stored_is_what_knocking_out_gives(ablated: Path) -> None:
    run = Run.open(ablated / f"{NAME}.zarr")
    assert run.committed_in("ablation").tolist() == [0, 1, 2, 4]
    stored = run.dataset("ablation")
    assert stored["layer"].values.tolist() == [1, 3]
    assert stored["loss_change_mean"].dims == ("step", "layer", "expert", "sequence", "pos")
    model = Transformer(kept.model_config(run))
    probe_set = run.dataset("probe_set").load()
    token, target = (torch.from_numpy(probe_set[n].values).long() for n in ("token", "target"))
    for step in (0, 4):
        kept.load_weights(model, run, step)
        means = expert_means(model, token)
        loss, change = loss_changes(model, token, target, means=means)
        np.testing.assert_allclose(run.dataset("losses")["loss"].sel(step=step), loss, atol=1e-5)
        for name in REPLACEMENTS:
            found = stored[f"loss_change_{name}"].sel(step=step).values
            np.testing.assert_allclose(found, change[name], rtol=1e-2, atol=1e-5)
    assert np.abs(stored["loss_change_zero"].sel(step=4)).max() > 1e-3


def test_the_last_step_is_the_default_and_others_can_follow(study: Path, ablated: Path, capsys):
    path = study / f"{NAME}.zarr"
    assert ablate.main([str(path)]) == 0
    assert f"{NAME}: ablated at step 4" in capsys.readouterr().out
    assert Run.open(path).committed_in("ablation").tolist() == [4]
    assert ablate.main([str(path), "--steps", "0,4"]) == 0
    assert f"{NAME}: ablated at step 0, " in capsys.readouterr().out
    assert ablate.main([str(path), "--steps", "all"]) == 0
    assert arrays(path) == arrays(ablated / f"{NAME}.zarr")


def test_what_is_there_is_not_done_again(ablated: Path, capsys) -> None:
    path = ablated / f"{NAME}.zarr"
    before = modified(path)
    assert ablate.main([str(path), "--steps", "all"]) == 0
    assert f"{NAME}: already ablated at step 0, 1, 2, 4" in capsys.readouterr().out
    assert modified(path) == before


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
from models.ablate import main
code = main(sys.argv[2:])
print("renames:", count)
sys.exit(code)
"""


@pytest.mark.parametrize("fatal", [9, 17, 24])  # in laying out, at its end, in a later step
def test_an_ablation_killed_while_it_writes_resumes_bit_identically(
    fatal: int, study: Path, ablated: Path
) -> None:
    path = study / f"{NAME}.zarr"
    arguments = [str(path), "--steps", "all"]
    done = subprocess.run([sys.executable, "-c", WATCHED, str(fatal), *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    run = Run.open(path)
    assert "ablation" not in run.groups or len(run.committed_in("ablation")) < 4
    assert run.finished
    assert ablate.main(arguments) == 0
    assert arrays(path) == arrays(ablated / f"{NAME}.zarr")


def test_part_of_the_probe_set_is_what_the_whole_holds_of_it(study: Path, ablated: Path) -> None:
    path = study / f"{NAME}.zarr"
    assert ablate.main([str(path), "--documents", "2"]) == 0
    part = Run.open(path).dataset("ablation")
    whole = Run.open(ablated / f"{NAME}.zarr").dataset("ablation")
    document = Run.open(path).dataset("probe_set")["document"].values
    assert part.sizes["sequence"] == 4
    assert len(set(document[part["sequence"].values])) == 2
    for name in ("loss_change_mean", "loss_change_second_choice"):
        np.testing.assert_allclose(
            part[name], whole[name].sel(step=[4], sequence=part["sequence"]), rtol=1e-2, atol=1e-5
        )


def test_another_part_of_the_probe_set_is_refused(study: Path, capsys) -> None:
    path = str(study / f"{NAME}.zarr")
    assert ablate.main([path, "--documents", "2"]) == 0
    assert ablate.main([path, "--steps", "0"]) == 2
    assert "holds 2 documents, not 6; give --documents 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("dense-seed0", [], "is dense and has no experts"),
        ("switch-seed1", [], "train it again with `python -m models.train ... --run switch-seed1"),
        ("switch-seed1", ["--steps", "all"], "--keep-weights"),
        (NAME, ["--steps", "3"], "has no step 3; it has 0, 1, 2, 4"),
        (NAME, ["--device", "cuda:7"], "use auto or cpu"),
        ("nobody", [], "no run at"),
    ],
)
def test_what_cannot_be_ablated_is_refused_with_the_remedy(
    name: str, more: list[str], message: str, study: Path, capsys
) -> None:
    before = modified(study)
    assert ablate.main([str(study / f"{name}.zarr"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert modified(study) == before


def test_nothing_is_begun_if_one_of_the_runs_cannot_be_ablated(study: Path) -> None:
    before = modified(study)
    runs = [str(study / f"{name}.zarr") for name in (NAME, "switch-seed1")]
    assert ablate.main(runs) == 2
    assert modified(study) == before


def test_damaged_weights_are_named_and_nothing_is_committed(study: Path, capsys) -> None:
    file = study / f"{NAME}.weights/step_00000004.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    assert ablate.main([str(study / f"{NAME}.zarr")]) == 2
    assert "step_00000004.safetensors is damaged or of another model" in capsys.readouterr().err
    assert not len(Run.open(study / f"{NAME}.zarr").committed_in("ablation"))


def test_weights_of_another_model_are_found_out_by_their_losses(study: Path, capsys) -> None:
    weights = study / f"{NAME}.weights"
    shutil.copy(weights / "step_00000000.safetensors", weights / "step_00000004.safetensors")
    assert ablate.main([str(study / f"{NAME}.zarr")]) == 2
    assert "these are weights of another run" in capsys.readouterr().err
    assert not len(Run.open(study / f"{NAME}.zarr").committed_in("ablation"))


@pytest.mark.parametrize("option", ["--batch-size", "--documents"])
def test_sizes_below_one_are_refused(option: str) -> None:
    with pytest.raises(SystemExit):
        ablate.main(["run.zarr", option, "0"])


def test_how_it_was_made_stands_beside_it(ablated: Path) -> None:
    metadata = json.loads((ablated / f"{NAME}.zarr/ablation/zarr.json").read_text())
    assert {"device", "batch_size", "commit", "versions"} <= metadata["attributes"].keys()


def test_progress_counts_every_knock_out(study: Path) -> None:
    run, heard = Run.open(study / f"{NAME}.zarr"), []
    sizes = {"batch_size": 5, "n_documents": 3}
    done = kept.measure(
        run, [4], ablate.ABLATION, device=torch.device("cpu"), advance=heard.append, **sizes
    )
    assert done == [4]
    parts = ablate.n_knockouts(kept.model_config(run), kept.text_of(run, 3), 5)
    assert sum(heard) == parts == 2 * 2 * 4 * 3
