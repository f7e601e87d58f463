"""Several commands that train one study share its runs, and none is trained twice."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.claims import claimed
from models.train import main
from store.run import Run

SETTINGS = [
    "data.source=folder", "data.d_vocab=300", "data.n_ctx=16", "data.probe_documents=6",
    "data.sequences_per_document=1", "model.d_model=16", "model.n_heads=4", "model.n_layers=2",
    "model.moe_layers=1", "train.n_steps=4", "train.batch_size=4", "train.warmup_steps=1",
    "train.activation_positions=0", "train.prediction_positions=0", "train.precision=float32",
]  # fmt: skip
NAMES = ["dense-seed0", "dense-seed1", "dense_120-seed0", "switch-seed0", "switch-seed1"]


def command(text: Path, out: Path, *more: str) -> list[str]:
    settings = [f"--set={setting}" for setting in (*SETTINGS, f"data.path={text}")]
    return ["quick", "--out", str(out), "--jobs", "1", *settings, *more]


def trained(output: str) -> list[str]:
    """Runs that a command has trained, by what it printed."""
    return re.findall(r"^(\S+): 4 steps, loss .* tokens/s$", output, flags=re.MULTILINE)


def stores(out: Path) -> list[str]:
    return sorted(path.stem for path in (out / "quick").glob("*.zarr") if Run.open(path).finished)


def test_two_commands_at_once_train_every_run_once(text, tmp_path):
    arguments = [sys.executable, "-m", "models.train", *command(text, tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    commands = [subprocess.Popen(arguments, **pipes) for _ in range(2)]
    outputs = [command.communicate() for command in commands]
    assert [command.returncode for command in commands] == [0, 0], outputs
    assert sorted(trained("".join(out for out, _ in outputs))) == NAMES
    assert stores(tmp_path) == NAMES
    left = {path.name for path in (tmp_path / "quick").iterdir() if path.suffix != ".zarr"}
    assert left == {"data", "study.json"}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_another_command_trains_is_left_to_it(jobs, text, tmp_path, capsys):
    (tmp_path / "quick").mkdir()
    arguments = command(text, tmp_path, "--part", "1/2", "--jobs", jobs)
    with claimed(tmp_path / "quick/dense_120-seed0.claim"):
        assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "dense_120-seed0: another command is training it" in output
    # two at once end in any order
    assert sorted(trained(output)) == ["dense-seed0", "switch-seed1"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert trained(output) == ["dense_120-seed0"]
    assert output.count("already finished") == 2


def test_parts_divide_the_runs_of_a_study(text, tmp_path, capsys):
    for part in ("1/3", "2/3", "3/3"):
        assert main(command(text, tmp_path, "--part", part)) == 0
    assert trained(capsys.readouterr().out) == [NAMES[i] for i in (0, 3, 1, 4, 2)]


@pytest.mark.parametrize("part", ["0/2", "3/2", "6/6", "2"])
def test_a_part_that_no_run_falls_to_is_refused(part, text, tmp_path, capsys):
    try:
        code = main(command(text, tmp_path, "--part", part))
    except SystemExit as refused:  # by the parser
        code = refused.code
    assert code == 2
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_a_killed_preparation_left_is_removed(text, tmp_path):
    left = tmp_path / "quick/data.1.partial"
    left.mkdir(parents=True)
    (left / "train.bin").write_bytes(b"half")
    assert main(command(text, tmp_path, "--run", "dense-seed0")) == 0
    assert not left.exists()
