from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from analyses import expert_paths as analysis
from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import unit_labels
from analyses.expert_paths import expert_paths
from analyses.reporting.paths_figures import plot_between, plot_ties, plot_transitions
from analyses.reporting.paths_tables import tables
from analyses.routing.paths import MEASURES

N_EXPERTS, N_DOCUMENTS, N_POS, N_IDS = 4, 24, 40, 12


@pytest.fixture(scope="module")
def text() -> xr.Dataset:
    rng = np.random.default_rng(0)
    token = rng.integers(0, N_IDS, (N_DOCUMENTS, N_POS))
    token[0, 0] = N_IDS  # an id that is too rare
    names = np.array([f"d{i:02d}" for i in range(N_DOCUMENTS)])
    return xr.Dataset({"token": (("sequence", "pos"), token), "document": ("sequence", names)})


@pytest.fixture(scope="module")
def index(text: xr.Dataset) -> xr.DataArray:
    """Lookups, layers that hand on half of their choices, and noise, in three layers."""
    rng, token, shape = np.random.default_rng(1), text["token"].values, text["token"].shape
    values = []
    for _ in range(2):
        values.append([rng.integers(0, N_EXPERTS, N_IDS + 1)[token] for _ in range(3)])
    for _ in range(2):
        layers = [rng.integers(0, N_EXPERTS, shape)]
        for _ in range(2):
            fresh, keep = rng.integers(0, N_EXPERTS, shape), rng.random(shape) < 0.5
            layers.append(np.where(keep, (layers[-1] + 1) % N_EXPERTS, fresh))
        values.append(layers)
    values += [[rng.integers(0, N_EXPERTS, shape) for _ in range(3)] for _ in range(2)]
    return _labelled(np.array(values)[:, None, ..., None])


def _labelled(values: np.ndarray) -> xr.DataArray:
    arm = ["hash"] * 2 + ["switch"] * 2 + ["ungated"] * 2
    return xr.DataArray(
        values.astype("int16"),
        dims=("run", "step", "layer", "sequence", "pos", "top_k"),
        coords={
            "run": [f"{a}-{i}" for i, a in enumerate(arm)],
            "step": list(range(values.shape[1])),
            "layer": [1, 3, 5],
            "arm": ("run", arm),
        },
    )


def _measured(index: xr.DataArray, text: xr.Dataset, **options) -> xr.Dataset:
    options = {"n_resamples": 30, "rng": np.random.default_rng(0), **options}
    return expert_paths(index, text, unit_labels(text, "document"), n_experts=N_EXPERTS, **options)


@pytest.fixture(scope="module")
def result(index: xr.DataArray, text: xr.Dataset) -> xr.Dataset:
    return _measured(index, text)


def test_handed_on_choices_have_their_closed_form_with_and_without_the_id(
    result: xr.Dataset,
) -> None:
    stay, other = 0.5 + 0.5 / N_EXPERTS, 0.5 / N_EXPERTS
    known = np.log(N_EXPERTS) + stay * np.log(stay) + 3 * other * np.log(other)
    at = result.sel(each_arm="switch").isel(step=-1)
    for name in ("tie", "tie_given_token"):
        np.testing.assert_allclose(at[f"arm_{name}"], known, atol=0.06)
    np.testing.assert_allclose(at["arm_token_part"], 0, atol=0.05)
    np.testing.assert_allclose(at["arm_tie_share"], known / np.log(N_EXPERTS), atol=0.05)


def test_hash_routers_are_tied_by_the_id_alone(result: xr.Dataset) -> None:
    at = result.sel(each_arm="hash").isel(step=-1)
    assert (at["arm_tie"] > 0.2).all()
    assert (at["arm_tie_given_token"] == 0).all()
    np.testing.assert_allclose(at["arm_token_part"], at["arm_tie"])
    assert at["arm_tie_share_given_token"].isnull().all()


def test_independent_layers_lie_at_chance(result: xr.Dataset) -> None:
    at = result.sel(each_arm="ungated").isel(step=-1)
    for name in ("tie", "tie_given_token"):
        low, high = at[f"arm_{name}_mean_ci"].values
        assert low < 0.01
        assert high > -0.01
        assert float(at[f"arm_{name}_mean"]) == pytest.approx(0, abs=0.01)
    runs = result.sel(run=["ungated-4", "ungated-5"]).isel(step=-1)
    low, high = runs["null_band"].transpose("ci_bound", ...)
    assert int(((runs["information"] > low) & (runs["information"] < high)).sum()) >= 3


def test_transitions_are_probabilities_and_show_what_is_planted(result: xr.Dataset) -> None:
    at = result.sel(run="switch-2")
    np.testing.assert_allclose(at["transition"].sum("to_rank"), 1)
    np.testing.assert_array_equal(at["to_expert"], (at["from_expert"].values + 1) % N_EXPERTS)
    np.testing.assert_allclose(
        np.diagonal(at["transition"], axis1=1, axis2=2), 0.5 + 0.5 / N_EXPERTS, atol=0.12
    )
    np.testing.assert_allclose(at["next_load"].sum("to_rank"), 1)


def test_commonest_paths_are_those_handed_on(result: xr.Dataset) -> None:
    at = result.sel(run="switch-2").isel(rank=slice(4))
    steps = np.diff(at["path"].values, axis=1) % N_EXPERTS
    assert (steps == 1).all()
    assert (at["path_share"] > 3 * at["path_independent"]).all()
    low, high = at["path_share_ci"].transpose("ci_bound", "rank")
    assert ((low < at["path_share"]) & (at["path_share"] < high)).all()


def test_copied_sets_of_two_have_their_closed_form(text: xr.Dataset) -> None:
    """A copied set of two tells the set, not which of the two."""
    rng = np.random.default_rng(2)
    sets = np.argsort(rng.random((6, 1, 1, *text["token"].shape, N_EXPERTS)), axis=-1)[..., :2]
    both_steps = _measured(_labelled(np.repeat(sets, 3, axis=2).repeat(2, axis=1)), text)
    found = both_steps.isel(step=-1)
    # P(E' = i | E = i) = 1/2, and 1/6 for each of the three others
    known = np.log(4) - 0.5 * np.log(2) - 0.5 * np.log(6)
    np.testing.assert_allclose(found["arm_tie"], known, atol=0.02)
    np.testing.assert_allclose(found["arm_tie_share"], known / np.log(2), atol=0.04)
    for plot in (plot_ties, plot_transitions, plot_between):
        plot(both_steps)


def test_interval_is_the_jackknife_over_texts_that_lack_a_unit(
    index: xr.DataArray, text: xr.Dataset
) -> None:
    """With ids all frequent; chance is held fixed, so it adds nothing to the width."""
    runs, text = index.isel(run=[2], sequence=slice(1, 9)), text.isel(sequence=slice(1, 9))
    without = []
    for i in range(8):
        kept = np.arange(8) != i
        part = _measured(
            runs.isel(sequence=kept), text.isel(sequence=kept), n_resamples=1, min_count=2
        )
        without.append(float(part["information_given_token"].values[0, 0, 0]))
    error = np.sqrt(7 * np.var(without))
    found = _measured(runs, text, n_resamples=1, min_count=2)
    low, high = found["tie_given_token_ci"].values[0, 0, 0]
    assert (high - low) / 2 == pytest.approx(2.3646 * error, rel=1e-4)  # t of 7 degrees of freedom


def test_only_frequent_ids_are_counted(result: xr.Dataset, text: xr.Dataset) -> None:
    assert int(result["n_counted"]) == text["token"].size - 1
    assert int(result["n_tokens"].sum()) == text["token"].size


def test_every_measure_has_both_intervals(result: xr.Dataset) -> None:
    for name in MEASURES:
        value = result[f"arm_{name}"].sel(each_arm="switch")
        for kind in ("ci", "run_ci"):
            ends = result[f"arm_{name}_{kind}"].sel(each_arm="switch")
            low, high = ends.transpose("ci_bound", ...)
            assert (low <= value + 1e-12).all()
            assert (value <= high + 1e-12).all()


def test_a_single_layer_cannot_be_answered(index: xr.DataArray, text: xr.Dataset) -> None:
    with pytest.raises(Unanswerable, match="these runs have 1; train runs with more layers"):
        _measured(index.isel(layer=[0]), text)


def test_bad_input_is_refused_with_the_remedy(index: xr.DataArray, text: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="n_resamples is 0; use 1 or more"):
        _measured(index, text, n_resamples=0)
    with pytest.raises(ValueError, match="no token id occurs 1000 times"):
        _measured(index, text, min_count=1000)
    part = index.copy(deep=True)
    part.loc[{"run": "switch-2", "layer": 3, "sequence": 4}] = -1
    with pytest.raises(ValueError, match="layer 3 of run 'switch-2' lacks choices"):
        _measured(part, text)


def test_tables_bracket_the_information(result: xr.Dataset) -> None:
    *_, brackets, paths = tables(result)
    shown = [dict(zip(brackets.columns, row, strict=True)) for row in brackets.rows]
    switch = [row for row in shown if row["arm"] == "switch" and row["given"] == "token id"]
    assert [row["layers"] for row in switch] == ["1 → 3", "3 → 5"]
    low, high = map(float, switch[0]["less null to Miller-Madow"].split(" to "))
    assert low < high < float(switch[0]["plug-in"])
    assert len(paths.rows) <= 3 * 8


def test_page_says_what_a_hash_router_means(
    write_study: Callable[..., Path], tmp_path: Path, reports: SimpleNamespace
) -> None:
    write_study(tmp_path / "s", {"hash-seed0": "hash", "ungated-seed0": "ungated"})
    arguments = [str(tmp_path / "s"), "--report", str(tmp_path), "--n-resamples", "9"]
    assert analysis.main(arguments) == 0
    page = (tmp_path / "expert_paths" / "index.md").read_text(encoding="utf-8")
    assert "given the id nothing is left, exactly" in page
    assert "about the router, not about the output" in page
    usual = (reports.folder / "expert_paths" / "index.md").read_text(encoding="utf-8")
    assert "hash router" not in usual
