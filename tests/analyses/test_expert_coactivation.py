import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyses import expert_coactivation as analysis
from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import unit_labels
from analyses.expert_coactivation import expert_coactivation
from analyses.reporting.coactivation_figures import plot_lifts, plot_spread
from analyses.reporting.coactivation_tables import shown_runs, tables
from analyses.statistics.pairs import pair_indices
from store.run import Run

N_EXPERTS, STEPS = 6, [0, 1, 4]
PARTNERS = np.array([[0, 1], [2, 3], [4, 5]])


def _sets(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Two of six experts, drawn evenly."""
    return np.argsort(rng.random((*shape, N_EXPERTS)), axis=-1)[..., :2]


@pytest.fixture(scope="module")
def expert_index(probe_set: xr.Dataset) -> xr.DataArray:
    """Two layers: partners from step 1 on in `switch` runs, a set for each id in the `hash` run."""
    rng, token = np.random.default_rng(0), probe_set["token"].values
    values = _sets((3, 3, 2, *token.shape), rng)
    pair = rng.integers(0, 3, values.shape[2:-1])
    is_partner = rng.random((3, 3, *pair.shape)) < 0.6
    is_partner[:, 0] = False
    values = np.where(is_partner[..., None], PARTNERS[pair], values)
    values[2] = np.array([[0, 3], [1, 4], [2, 5], [0, 1], [2, 3], [4, 5]])[token]
    return xr.DataArray(
        values.astype("int16"),
        dims=("run", "step", "layer", "sequence", "pos", "top_k"),
        coords={
            "run": ["switch-a", "switch-b", "hash-a"],
            "arm": ("run", ["switch", "switch", "hash"]),
            "step": STEPS,
            "layer": [1, 3],
        },
    )


def _measured(index: xr.DataArray, probe_set: xr.Dataset, **options) -> xr.Dataset:
    return expert_coactivation(
        index,
        unit_labels(probe_set, "document"),
        n_experts=N_EXPERTS,
        n_resamples=99,
        rng=np.random.default_rng(1),
        **options,
    )


@pytest.fixture(scope="module")
def result(expert_index: xr.DataArray, probe_set: xr.Dataset) -> xr.Dataset:
    return _measured(expert_index, probe_set)


def test_planted_partners_are_found_with_their_lift(result: xr.Dataset) -> None:
    at = result.sel(run="switch-a", layer=1)
    first, second = pair_indices(N_EXPERTS)
    planted = (second == first + 1) & (first % 2 == 0)
    share = 0.4 / 15 + 0.6 * planted / 3
    np.testing.assert_allclose(at["lift"].sel(step=4), 15 * share, rtol=0.2, atol=0.12)
    assert (at["p"].values[planted] <= 0.01).all()
    assert (at["p_within"].values[planted] <= 0.01).all()
    ci = at["lift_ci"].sel(step=4)
    inside = (ci.sel(ci_bound="lower") <= 15 * share) & (15 * share <= ci.sel(ci_bound="upper"))
    assert inside.mean() > 0.8
    spread = np.sqrt(((15 * share - 1) ** 2).mean())
    assert float(at["spread"].sel(step=4)) == pytest.approx(spread, rel=0.05)


def test_without_partners_pairs_are_at_chance(result: xr.Dataset) -> None:
    at = result.sel(run=["switch-a", "switch-b"], step=0)
    assert (at["spread"] < at["noise"]).all()
    np.testing.assert_allclose(at["lift"], 1, atol=0.35)
    assert np.abs(at["z"]).max() < 4


def test_agreement_tells_when_partners_were_found(result: xr.Dataset) -> None:
    agreement = result["agreement"].sel(run="switch-a", layer=1)
    assert float(agreement.sel(step=4)) == pytest.approx(1)
    assert float(agreement.sel(step=1)) == pytest.approx(1, abs=0.05)
    assert not float(agreement.sel(step=0)) > 0.9


def test_hash_router_has_the_same_pairs_at_all_steps(result: xr.Dataset) -> None:
    at = result.sel(run="hash-a", layer=1)
    np.testing.assert_allclose(at["agreement"], 1)
    assert (at["lift"] == at["lift"].isel(step=-1)).all()
    assert (at["pair_count"] == 0).any()
    assert (at["z"].where(at["pair_count"] == 0) < 0).any()


def test_conditional_shares_sum_to_k_minus_1(result: xr.Dataset) -> None:
    np.testing.assert_allclose(result["conditional"].sum("other_expert"), 1)
    assert float(result["even_chance"]) == pytest.approx(1 / 5)


def test_average_over_layers_is_that_of_mean_squares(result: xr.Dataset) -> None:
    squares = result["arm_spread"].sel(each_arm="switch", step=4) ** 2
    mean = float(result["arm_spread_mean"].sel(each_arm="switch", step=4))
    assert mean == pytest.approx(float(np.sqrt(squares.mean())))
    for kind in ("ci", "run_ci"):
        low, high = result[f"arm_spread_mean_{kind}"].sel(each_arm="switch", step=4).values
        assert low <= mean <= high


def test_order_of_units_and_of_a_tokens_choices_does_not_matter(
    result: xr.Dataset, expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    turned = slice(None, None, -1)
    changed = _measured(
        expert_index.transpose("top_k", "pos", "sequence", ...).isel(sequence=turned, top_k=turned),
        probe_set.isel(sequence=turned),
    )
    # other tokens are shuffled for the ratio of errors
    for name in set(result.data_vars) - {"error_ratio"}:
        np.testing.assert_allclose(changed[name], result[name], atol=1e-7, err_msg=str(name))


def test_renaming_experts_changes_no_summary(
    result: xr.Dataset, expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    renamed = np.array([3, 5, 0, 1, 4, 2])
    changed = _measured(expert_index.copy(data=renamed[expert_index.values]), probe_set)
    for name in ("spread", "spread_within", "agreement", "noise", "arm_spread_mean_run_ci"):
        np.testing.assert_allclose(changed[name], result[name], atol=1e-6, err_msg=name)


def test_dask_gives_the_same_numbers(
    result: xr.Dataset, expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    xr.testing.assert_identical(_measured(expert_index, probe_set, dask="local"), result)


def test_steps_that_a_run_lacks_are_left_out_and_named(
    result: xr.Dataset, expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    part = expert_index.copy(deep=True)
    part.loc[{"run": "switch-b", "step": 4}] = -1
    changed = _measured(part, probe_set)
    assert changed["skipped_step"].values.tolist() == [4]
    np.testing.assert_allclose(changed["lift"], result["lift"].sel(step=[0, 1]))
    part.loc[{"run": "hash-a", "step": [0, 1]}] = -1
    with pytest.raises(ValueError, match="there is none; wait"):
        _measured(part, probe_set)


def test_a_step_that_is_there_in_part_is_refused(
    expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    part = expert_index.copy(deep=True)
    part.loc[{"run": "switch-b", "step": 1, "sequence": 5}] = -1
    with pytest.raises(ValueError, match="run 'switch-b' lacks choices at step 1; pairs"):
        _measured(part, probe_set)


def test_one_choice_a_token_is_unanswerable_and_the_remedy_is_said(
    expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    with pytest.raises(Unanswerable, match=r"--set name=top2 --set model.top_k=2"):
        _measured(expert_index.isel(top_k=[0]), probe_set)


def test_all_experts_chosen_leave_nothing_beyond_chance(
    expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    of_two = (expert_index * 0 + xr.DataArray([0, 1], dims="top_k")).transpose(*expert_index.dims)
    result = expert_coactivation(
        of_two, unit_labels(probe_set, "document"), n_experts=2, n_resamples=19,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    np.testing.assert_allclose(result["lift"], 1)
    np.testing.assert_allclose(result["spread"], 0, atol=1e-9)
    for plot in (plot_lifts, plot_spread):
        plot(result)
    assert list(tables(result))


def test_many_experts_are_drawn_without_numbers(probe_set: xr.Dataset) -> None:
    rng = np.random.default_rng(0)
    shape = (1, 2, 1, *probe_set["token"].shape)
    chosen = np.argsort(rng.random((*shape, 40)), axis=-1)[..., :4]
    coords = {"run": ["a"], "arm": ("run", ["switch"]), "step": [0, 9], "layer": [2]}
    dims = ("run", "step", "layer", "sequence", "pos", "top_k")
    index = xr.DataArray(chosen, coords, dims)
    result = expert_coactivation(
        index, unit_labels(probe_set, "document"), n_experts=40, n_resamples=19, rng=rng
    )
    assert not plot_lifts(result).axes[0].texts
    assert shown_runs(result) == ["a"]
    assert float(result["p"].min()) > 0.05


@pytest.fixture(scope="module")
def page(
    expert_index: xr.DataArray, probe_set: xr.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that the command writes for a study of a run of each arm."""
    folder = tmp_path_factory.mktemp("top2")
    dims = ("layer", "sequence", "pos", "top_k")
    for name in ("switch-a", "hash-a"):
        of_run, arm = expert_index.sel(run=name), name.split("-")[0]

        def observed(step: int, of_run: xr.DataArray = of_run) -> dict[str, xr.Dataset]:
            index = of_run.sel(step=step).transpose(*dims).values
            prob = np.full((*index.shape[:-1], N_EXPERTS), 1 / N_EXPERTS)
            return {
                "losses": xr.Dataset({"loss": (dims[1:3], np.zeros(index.shape[1:3]))}),
                "routing": xr.Dataset(
                    {"expert_index": (dims, index), "router_prob": ((*dims[:3], "expert"), prob)},
                    {"layer": [1, 3]},
                ),
            }

        moe = {"arm": arm, "architecture": "moe", "router": arm, "seed": 0, "n_experts": N_EXPERTS}
        run = Run.create(
            folder / "study" / f"{name}.zarr", probe_set, observed(0), steps=STEPS,
            training_steps=4, attrs={}, coordinates=moe,
        )  # fmt: skip
        for step in STEPS:
            run.write(step, observed(step))
            run.commit(step)
    arguments = [str(folder / "study"), "--report", str(folder), "--n-resamples", "99"]
    assert analysis.main([*arguments, "--unit", "document", "--seed", "1"]) == 0
    return folder / "expert_coactivation"


def test_command_writes_what_the_figures_show(page: Path, result: xr.Dataset) -> None:
    written = xr.Dataset.from_dict(json.loads((page / "results.json").read_text("utf-8")))
    kept = result.sel(run=["hash-a", "switch-a"])
    np.testing.assert_allclose(written["lift"], kept["lift"], rtol=1e-6)
    rows = (page / "lift.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 2 * 2 * 15
    for name in ("lift", "spread"):
        assert (page / f"{name}.png").stat().st_size > 10_000


def test_page_says_what_it_found_and_what_hash_means(page: Path) -> None:
    text = (page / "index.md").read_text(encoding="utf-8")
    assert "in switch runs the lift of a pair is typically" in text
    assert "their lifts tell of the text and of no partnership" in text
    assert "99 draws" in text


def test_study_of_one_choice_a_token_is_skipped_with_a_line(
    study_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analysis.main([str(study_folder), "--report", str(tmp_path)]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "chooses one expert" in error
