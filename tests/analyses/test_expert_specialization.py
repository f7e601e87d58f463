import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from analyses import expert_specialization as analysis
from analyses.expert_specialization import expert_specialization, plot, plot_profile


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def _measured(expert_index: xr.DataArray, probe_set: xr.Dataset) -> xr.Dataset:
    rng = np.random.default_rng(0)
    return expert_specialization(expert_index, probe_set, n_resamples=99, rng=rng)


@pytest.fixture(scope="module")
def result(expert_index: xr.DataArray, probe_set: xr.Dataset) -> xr.Dataset:
    return _measured(expert_index, probe_set)


def test_experts_that_follow_the_domain_are_found_out(result: xr.Dataset) -> None:
    at = result.sel(run="by domain", step=8, layer=1)
    assert float(at["domain_information"]) == pytest.approx(np.log(2))
    assert float(at["domain_entropy"]) == pytest.approx(np.log(2))
    assert float(at["domain_information_p"]) == 0.01
    assert float(at["effective_experts"]) == pytest.approx(2.0)
    expected = [[0, 0], [1, 0], [0, 0], [0, 1]]
    np.testing.assert_array_equal(
        at["domain_specialization"].sel(domain=["prose", "verse"]), expected
    )


def test_token_lookup_has_full_vocabulary_specialization(result: xr.Dataset) -> None:
    at = result.sel(run="by token", step=8, layer=1)
    assert float(at["vocabulary_specialization"]) == 1.0
    assert float(at["vocabulary_specialization_p"]) == 0.01
    assert float(at["vocabulary_specialization_null_mean"]) < 0.5
    assert float(at["domain_information_p"]) > 0.05


def test_random_routing_is_not_beyond_chance(result: xr.Dataset) -> None:
    noise = result.sel(step=0, layer=1)
    for name in analysis.MEASURES:
        assert (noise[name] <= noise[f"{name}_null_band"].sel(ci_bound="upper")).all()
        assert (noise[f"{name}_p"] > 0.02).all()


def test_adjusted_is_observed_less_the_mean_of_the_null(result: xr.Dataset) -> None:
    for name in analysis.MEASURES:
        np.testing.assert_allclose(
            result[f"{name}_adjusted"], result[name] - result[f"{name}_null"].mean("resample")
        )
        low, high = result[f"{name}_adjusted_ci"].transpose("ci_bound", ...)
        assert (low <= result[f"{name}_adjusted"]).all()
        assert (result[f"{name}_adjusted"] <= high).all()


def test_names_of_experts_do_not_matter(
    result: xr.Dataset, expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    renamed = expert_index.copy(data=np.array([2, 0, 3, 1], dtype="int16")[expert_index.values])
    changed = _measured(renamed, probe_set)
    for name in (*analysis.MEASURES, "effective_experts"):
        np.testing.assert_allclose(changed[name], result[name])
        np.testing.assert_allclose(changed[f"{name}_ci"], result[f"{name}_ci"])
    np.testing.assert_allclose(changed["domain_information_p"], result["domain_information_p"])
    np.testing.assert_allclose(changed["load"].isel(expert=[2, 0, 3, 1]), result["load"])


def test_order_of_sequences_does_not_matter(
    result: xr.Dataset, expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    n = expert_index.sizes["sequence"]
    order = np.arange(n).reshape(-1, 2)[::-1].ravel()  # whole documents, last first
    changed = _measured(expert_index.isel(sequence=order), probe_set.isel(sequence=order))
    for name in result.data_vars:
        np.testing.assert_allclose(changed[name], result[name], err_msg=str(name))


def test_unobserved_step_is_missing(
    result: xr.Dataset, expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    part = expert_index.copy(deep=True)
    part.loc[{"run": "by token", "step": 8}] = -1
    changed = _measured(part, probe_set)
    assert changed["load"].sel(run="by token", step=8).isnull().all()
    assert changed["last_step"].values.tolist() == [8, 0, 8]
    xr.testing.assert_equal(changed["load"].sel(step=0), result["load"].sel(step=0))
    plot(changed)
    plot_profile(changed)


def test_two_choices_a_token_are_measured_together(
    expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    pairs = xr.concat([expert_index, (expert_index + 1) % 4], "top_k")
    result = _measured(pairs, probe_set)
    np.testing.assert_allclose(result["load"].sum("expert"), 1)
    np.testing.assert_allclose(result["domain_specialization"].sum("expert"), 2)
    assert (result["effective_experts"] >= 2 - 1e-12).all()
    assert result["uniform_share"].values.tolist() == [0.5] * 3


def test_command_writes_what_the_figures_show(reports: SimpleNamespace) -> None:
    folder = reports.folder / "expert_specialization"
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    result = xr.Dataset.from_dict(stored)
    rows = _rows(folder / "specialization.csv")
    assert len(rows) == 2 * 3 * 2
    for row in rows:
        at = result.sel(run=row["run"], step=int(row["step"]), layer=int(row["layer"]))
        for name in (*analysis.MEASURES, "effective_experts"):
            assert float(row[name]) == pytest.approx(float(at[name]), rel=1e-7)
    assert result.sizes["resample"] == 19
    assert {path.suffix for path in folder.iterdir()} == {".md", ".json", ".csv", ".svg", ".png"}
    page = (folder / "index.md").read_text(encoding="utf-8")
    assert "--n-resamples 19" in page
    assert "19, seed 3" in page
    assert "hash router" not in page


@pytest.fixture(scope="module")
def hostile(write_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report on hash and ungated runs, on a corpus whose domains have hostile names."""
    folder = tmp_path_factory.mktemp("hostile")
    names = {"prose": "<script>alert(1)</script>|`$x$", "verse": "$\\frac"}
    write_study(folder / "s", {"hash-seed0": "hash", "ungated-seed0": "ungated"}, **names)
    arguments = [str(folder / "s"), "--n-resamples", "9", "--report", str(folder)]
    assert analysis.main(arguments) == 0
    return folder / "expert_specialization"


def test_page_says_what_hash_and_ungated_routing_mean(hostile: Path) -> None:
    page = (hostile / "index.md").read_text(encoding="utf-8")
    assert "fixed random map from token id to expert" in page
    assert "language-model loss never reaches the router" in page


def test_corpus_text_is_shown_and_never_acts(hostile: Path) -> None:
    profiles = sorted(hostile.glob("domain_profile_*.svg"))
    assert len(profiles) == 2
    for path in (hostile / "index.md", *profiles):
        assert "<script>" not in path.read_text(encoding="utf-8")
    rows = _rows(hostile / "domain_profile_1.csv")
    assert {row["domain"] for row in rows} == {"<script>alert(1)</script>|`$x$", "$\\frac"}


def test_study_without_experts_is_refused_with_the_remedy(
    write_study: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    write_study(tmp_path / "s", {"dense-seed0": "dense", "dense-seed1": "dense"})
    assert analysis.main([str(tmp_path / "s")]) == 2
    error = capsys.readouterr().err
    assert "routing was observed (2 runs, 0 of them MoE)" in error
    assert "python -m models.train quick" in error
