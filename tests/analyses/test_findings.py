"""What every report says first, and what it cites."""

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import analyses.__main__ as everything
from analyses.reporting.report import definition_of
from analyses.reporting.text import first_sentence
from store.run import Run

NAMES = everything.names()
LONGEST = 500
INTERVAL = re.compile(r"-?\d+(\.\d+)? to -?\d+(\.\d+)?[);, ]")
FINDABLE = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\S+/\S+|https://\S+")


@pytest.fixture(scope="module")
def recorded(
    write_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Runs an analysis on a study with activations, outputs of experts and sets of two experts."""
    root = tmp_path_factory.mktemp("recorded")
    names = {f"{arm}-seed{seed}": arm for arm in ("dense", "switch") for seed in range(2)}
    study = write_study(root / "small", names, top_k=2, recorded=True)
    rng = np.random.default_rng(7)
    for name in names:
        if not name.startswith("dense"):
            dims = ("layer", "expert", "sequence", "pos", "d_model")
            at = {"layer": [1, 3], "sequence": range(28), "pos": [3, 11]}
            values = rng.standard_normal((2, 4, 28, 2, 5)).astype("float16")
            outputs = {"expert_outputs": xr.Dataset({"output": (dims, values)}, at)}
            run = Run.open(study / f"{name}.zarr")
            run = run.add_group("expert_outputs", outputs["expert_outputs"], attrs={})
            for step in (0, 4):
                run.write(step, outputs)
                run.commit(step, group="expert_outputs")

    def finding(name: str) -> str:
        analysis = importlib.import_module(f"analyses.{name}")
        assert analysis.main([str(study), "--report", str(root), "--n-resamples", "19"]) == 0
        return json.loads((root / name / "results.json").read_text("utf-8"))["finding"]

    return finding


@pytest.mark.parametrize("name", NAMES)
def test_a_finding_is_short_and_begins_with_the_answer_and_its_interval(
    name: str, reports: SimpleNamespace, recorded: Callable[[str], str]
) -> None:
    if reports.statuses[name] == 0:
        text = (reports.folder / name / "results.json").read_text("utf-8")
        found = json.loads(text)["finding"]
    else:
        found = recorded(name)
    answer = first_sentence(found)
    assert INTERVAL.search(answer), answer
    assert "95%" in answer
    assert answer != found
    assert len(found) <= LONGEST, found


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_is_cited_and_can_be_found(name: str) -> None:
    module = importlib.import_module(f"analyses.{name}")
    definition = definition_of(str(module.__doc__))
    text = " ".join([definition.question, *definition.body])
    cited = {int(n) for n in re.findall(r"\[(\d+)\]_", text)}
    assert definition.references
    assert cited == set(range(1, 1 + len(definition.references)))
    for reference in definition.references:
        assert FINDABLE.search(reference), reference
