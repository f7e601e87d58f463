from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from analyses import cka_over_time as analysis
from analyses.cka_over_time import cka_over_time
from analyses.comparison.unanswerable import Unanswerable
from analyses.reporting.cka_tables import finding, most_changed, tables, unusable
from analyses.reporting.cli import UNANSWERABLE
from store.run import Run

N_UNITS, N_POS, DEPTHS, STEPS = 160, 1, 4, [0, 2, 8]
ARMS = {"dense": 3, "switch": 3}
SHARED, OF_ARM = 8, 4
OWN = {"dense": 4, "switch": 12}


def _dataset(values: NDArray, arm: str, seed: int) -> xr.Dataset:
    """A run from an array (step, depth, sequence, pos, d_model), depths mid and post by turns."""
    dims = ("step", "layer", "sequence", "pos", "d_model")
    return xr.Dataset(
        {"resid_mid": (dims, values[:, 0::2]), "resid_post": (dims, values[:, 1::2])},
        {
            "step": STEPS[: len(values)],
            "layer": np.arange(values.shape[1] // 2),
            "sequence": np.arange(values.shape[2]),
            "pos": np.arange(values.shape[3]),
            "arm": arm,
            "architecture": "moe" if arm == "switch" else "dense",
            "seed": seed,
        },
    )


def _runs(n_units: int = N_UNITS) -> dict[str, xr.Dataset]:
    """Runs share nothing at step 0; from then on features, some with all and some in their arm.

    A run rotates its features, and has a mean and a scale of its own. Depth 3 is depth 2 again.
    """
    rng = np.random.default_rng(0)
    shape = (len(STEPS), DEPTHS, n_units, N_POS)
    common = rng.standard_normal((*shape, SHARED))
    found = {}
    for arm, n in ARMS.items():
        of_arm = rng.standard_normal((*shape, OF_ARM))
        for seed in range(n):
            own = rng.standard_normal((*shape, OWN[arm]))
            values = np.concatenate([common, of_arm, own], axis=-1)
            values[0] = rng.standard_normal(values[0].shape)
            values[:, 3] = values[:, 2]
            rotation = stats.ortho_group.rvs(values.shape[-1], random_state=seed)
            found[f"{arm}-seed{seed}"] = _dataset(3 * (values @ rotation), arm, seed)
    return found


def _units(n_units: int = N_UNITS) -> xr.DataArray:
    names = [f"work {i:03d}" for i in range(n_units)]
    return xr.DataArray(names, dims="sequence", attrs={"unit": "work"})


@pytest.fixture(scope="module")
def runs() -> dict[str, xr.Dataset]:
    return _runs()


@pytest.fixture(scope="module")
def result(runs: dict[str, xr.Dataset]) -> xr.Dataset:
    return cka_over_time(runs, _units())


def _true(a: str, b: str, *, same_arm: bool) -> float:
    """||Sigma_ab||² / (||Sigma_a|| ||Sigma_b||) of independent features of variance 1."""
    together = SHARED + OF_ARM * same_arm
    return together / np.sqrt((SHARED + OF_ARM + OWN[a]) * (SHARED + OF_ARM + OWN[b]))


@pytest.mark.parametrize("preparation", ["rows", "raw", "z"])
def test_kinds_of_pair_have_their_closed_form(result: xr.Dataset, preparation: str) -> None:
    at = result["kind_cka"].sel(preparation=preparation, step=[2, 8]).mean(("step", "depth"))
    expected = {
        "dense-dense": _true("dense", "dense", same_arm=True),
        "dense-MoE": _true("dense", "switch", same_arm=False),
        "MoE-MoE": _true("switch", "switch", same_arm=True),
    }
    for kind, value in expected.items():
        # features are rotated, so that scaling each by its variance or tokens by length is mild
        assert float(at.sel(kind=kind)) == pytest.approx(value, abs=0.03)


def test_rho2_is_what_arms_share_whatever_the_noise_of_single_runs(result: xr.Dataset) -> None:
    at = result.sel(contrast="dense against switch", step=8)
    assert float(at["rho2_mean"]) == pytest.approx(SHARED / (SHARED + OF_ARM), abs=0.03)
    low, high = at["rho2_mean_ci"].values
    assert low < SHARED / (SHARED + OF_ARM) < high < 0.8
    assert at["rho2_mean_run_ci"][1] < 1


def test_ceiling_is_the_geometric_mean_of_the_kinds(result: xr.Dataset) -> None:
    within = result["kind_cka_mean"].sel(kind=["dense-dense", "MoE-MoE"], step=8)
    assert float(result["ceiling"].sel(step=8)) == pytest.approx(np.sqrt(within.prod()))
    at = result["kind_cka"].sel(kind=["dense-dense", "MoE-MoE"], step=8, preparation="rows")
    np.testing.assert_allclose(result["depth_ceiling"].sel(step=8), np.sqrt(at.prod("kind")))


def test_runs_that_share_nothing_have_no_cka_and_nor_have_exchanged_units(
    result: xr.Dataset,
) -> None:
    at = result.sel(step=0)
    assert float(np.abs(at["pair_cka"]).max()) < 0.05
    covered = (at["pair_cka_ci"][..., 0] < 0) & (at["pair_cka_ci"][..., 1] > 0)
    # where nothing is shared, the jackknife is cautious rather than too bold
    assert float(covered.mean()) > 0.95
    assert float(np.abs(result["shuffled"]).max()) < 0.02
    assert float(result["largest_shuffled"].max()) < 0.06


def test_intervals_over_runs_need_three_runs_of_an_arm(runs: dict[str, xr.Dataset]) -> None:
    two = {name: at.isel(step=[2], layer=[0]) for name, at in runs.items() if "seed2" not in name}
    few = cka_over_time(two, _units())
    assert few["arms_cka_run_ci"].sel(arms="dense \N{MULTIPLICATION SIGN} dense").isnull().all()
    assert few["rho2_mean_run_ci"].isnull().all()
    assert few["rho2_mean"].notnull().all()


def test_a_run_is_like_its_own_last_step_there_and_unlike_it_before(result: xr.Dataset) -> None:
    np.testing.assert_allclose(result["run_with_last"].isel(step=-1), 1)
    np.testing.assert_allclose(result["arm_with_last_ci"].isel(step=-1), 1)
    assert float(np.abs(result["run_with_last"].sel(step=[0, 2])).max()) < 0.15


def test_what_changes_nothing_has_change_0_and_what_changes_all_has_1(result: xr.Dataset) -> None:
    np.testing.assert_allclose(result["arm_change"].sel(depth="1 post"), 0, atol=1e-6)
    np.testing.assert_allclose(result["arm_change"].sel(depth="1 mid"), 1, atol=0.15)
    assert result["arm_change"].sel(depth="0 mid").isnull().all()


def test_heat_is_the_curve_on_its_diagonal(result: xr.Dataset) -> None:
    for kind in result["heat_kind"].values:
        at = result.sel(heat_kind=kind)
        pair = " \N{MULTIPLICATION SIGN} ".join([at["heat_a"].item(), at["heat_b"].item()])
        of_pair = result.sel(pair=pair, preparation="rows").isel(step=-1)
        assert str(of_pair["pair_kind"].item()) == kind
        np.testing.assert_allclose(np.diag(at["heat"]), of_pair["pair_cka"], rtol=1e-6)
        np.testing.assert_allclose(
            np.diagonal(at["heat_ci"].values).T, of_pair["pair_cka_ci"], atol=1e-6
        )


def test_scale_and_rotation_of_a_run_change_nothing_and_order_of_runs_neither(
    runs: dict[str, xr.Dataset], result: xr.Dataset
) -> None:
    few = ["switch-seed1", "dense-seed1", "dense-seed0"]
    moved = {name: runs[name].isel(step=[-1]) for name in few}
    first = moved["dense-seed0"]
    rotation = stats.ortho_group.rvs(first.sizes["d_model"], random_state=9)
    moved["dense-seed0"] = first.copy(
        data={name: 0.1 * at.values @ rotation for name, at in first.data_vars.items()}
    )
    again = cka_over_time(moved, _units())
    assert again["run"].values.tolist() == few[::-1]
    for how in ("rows", "raw"):
        np.testing.assert_allclose(
            again["pair_cka"].sel(preparation=how).isel(step=0),
            result["pair_cka"].sel(preparation=how, pair=again["pair"]).isel(step=-1),
            atol=1e-6,
        )


def test_outliers_fool_the_raw_form_alone_and_the_page_shows_it() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((3, 1, 2, 60, 2, 12))
    tokens, feature = values.copy(), values.copy()
    # the same few tokens are long, in a direction of each run; one feature is shared and large
    tokens[:, :, :, ::12] += 30 * rng.standard_normal((3, 1, 2, 1, 1, 12))
    feature[..., 0] = 6 * rng.standard_normal((60, 2))
    for changed, fooled, sound in ((tokens, "raw", "rows"), (feature, "rows", "z")):
        runs = {f"dense-{i}": _dataset(at, "dense", i) for i, at in enumerate(changed)}
        at = cka_over_time(runs, _units(60))["kind_cka"].mean("depth").squeeze(("kind", "step"))
        assert float(at.sel(preparation=fooled)) > 0.4
        assert abs(float(at.sel(preparation=sound))) < 0.2


def test_tokens_of_one_text_fool_cka_over_all_tokens_and_not_the_minibatch_form() -> None:
    rng = np.random.default_rng(2)
    shape = (3, 1, 2, 20, 16, 24)
    values = rng.standard_normal((*shape[:4], 1, 24)) + rng.standard_normal(shape)
    runs = {f"dense-{i}": _dataset(at, "dense", i) for i, at in enumerate(values)}
    result = cka_over_time(runs, _units(20))
    measured = result["kind_measured"].squeeze("kind")
    assert abs(float(measured.sel(measure="minibatch CKA, row-normalised"))) < 0.1
    inflated = measured.sel(measure="CKA over all tokens, debiased")
    assert float(inflated) > 0.2
    exchanged = result["measured_exchanged"].sel(measure="CKA over all tokens, debiased")
    assert float(exchanged) == pytest.approx(float(inflated), abs=0.1)


def test_a_layer_without_cka_is_named_and_leaves_the_others(runs: dict[str, xr.Dataset]) -> None:
    wrong = {name: at.isel(sequence=slice(40)).copy(deep=True) for name, at in runs.items()}
    wrong["switch-seed1"]["resid_mid"][1, 1] = 7.0
    wrong["dense-seed0"]["resid_post"][2, 0, 0, 0, 0] = np.inf
    result = cka_over_time(wrong, _units(40))
    (text,) = unusable(result)
    assert "dense-seed0 at depth 0 post (1 of 3 steps); switch-seed1 at depth 1 mid" in text
    kinds = result["kind_cka"].sel(preparation="rows")
    assert kinds.sel(kind="MoE-MoE", step=2, depth="1 mid").isnull()
    assert kinds.sel(kind="dense-dense", step=2).notnull().all()
    assert kinds.sel(kind="dense-dense", step=8, depth="0 post").isnull()
    assert "averaged over 3 of 4 depths (1 left out, where a run has no CKA)" in finding(result)
    left = kinds.sel(step=8).drop_sel(depth="0 post").transpose("kind", "depth").values
    assert np.isfinite(left).all()
    np.testing.assert_allclose(
        result["kind_cka_mean"].sel(step=8), np.tanh(np.arctanh(left).mean(axis=1)), atol=0.02
    )
    assert "averaged over 4 depths" in finding(result.isel(step=[0]))
    assert list(unusable(result.isel(step=[0]))) == []
    assert all(table.rows for table in tables(result))
    measured = result["kind_measured"]
    assert measured.sel(kind="dense-dense").isnull().all()
    assert measured.sel(kind="MoE-MoE").notnull().all()


def test_one_run_has_nothing_to_be_compared_with(runs: dict[str, xr.Dataset]) -> None:
    with pytest.raises(Unanswerable, match="at least 2"):
        cka_over_time({"dense-seed0": runs["dense-seed0"]}, _units())


@pytest.fixture(scope="module")
def write(probe_set: xr.Dataset) -> Callable[..., Path]:
    """Write a study of three runs whose activations are of one layer and twelve documents."""

    def written(folder: Path, *, recorded: int = 3, more_places: bool = False) -> Path:
        folder.mkdir(parents=True)
        rng, n = np.random.default_rng(3), 24
        common = rng.standard_normal((2, 1, n, 2, 4))
        losses = {"losses": xr.Dataset({"loss": (("sequence", "pos"), rng.random((28, 24)))})}
        for i, arm in enumerate(("dense", "switch", "switch")):
            own = rng.standard_normal((2, 1, n, 2, 3 + i))
            mid, post = np.concatenate([common, own], axis=-1)
            dims = ("layer", "sequence", "pos", "d_model")
            sites = xr.Dataset(
                {"resid_mid": (dims, mid), "resid_post": (dims, post)},
                {"layer": [1], "sequence": np.arange(n), "pos": [3, 11]},
            )
            if more_places and i == 0:
                sites = sites.assign(resid_pre=sites["resid_mid"])
                sites = xr.concat([sites, sites.assign_coords(pos=[5, 7])], dim="pos")
            observed = losses | ({"activations": sites} if i < recorded else {})
            labels = {
                "arm": arm,
                "architecture": "dense" if arm == "dense" else "moe",
                "router": "none" if arm == "dense" else arm,
                "seed": i,
                "n_experts": 0,
            }
            run = Run.create(
                folder / f"{arm}-seed{i}.zarr", probe_set, observed,
                steps=[0, 4], training_steps=4, attrs={}, coordinates=labels,
            )  # fmt: skip
            for step in (0, 4):
                run.write(step, observed)
                run.commit(step)
        return folder

    return written


def test_the_report_of_a_study_has_all_its_parts(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write(tmp_path / "studies" / "small")
    assert analysis.main([str(folder), "--report", str(tmp_path)]) == 0
    page = (tmp_path / "cka_over_time" / "index.md").read_text(encoding="utf-8")
    assert "averaged over 2 depths, is" in page
    assert "What is added before depth 1 post of" in page
    assert "CKA over all tokens, debiased" in page
    assert "48 of 48 recorded tokens are in batches" in page
    assert "width of the residual stream: 7 (dense) and 8 and 9 (switch)" in page
    names = {path.stem for path in (tmp_path / "cka_over_time").glob("*.svg")}
    assert names == {
        "cka_over_time", "cka_by_pair", "cka_depths", "cka_steps", "cka_with_last", "cka_change",
        "cka_preparations",
    }  # fmt: skip


def test_a_last_step_where_no_change_is_known_is_passed_over() -> None:
    unknown = xr.Dataset({"arm_change": (("each_arm", "depth"), np.full((2, 3), np.nan))})
    assert most_changed(unknown) == ""


def test_places_that_not_all_runs_recorded_are_named(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write(tmp_path / "studies" / "more", recorded=2, more_places=True)
    assert analysis.main([str(folder), "--report", str(tmp_path)]) == 0
    page = (tmp_path / "cka_over_time" / "index.md").read_text(encoding="utf-8")
    assert "switch-seed2 recorded no activations and take no part." in page
    assert (
        "Only what all runs recorded is compared. Left out: 1 of 3 sites (resid_pre); 2 of 4 "
        "positions (5 and 7)." in page
    )


def test_a_study_with_too_few_recorded_runs_is_refused_with_a_remedy(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "studies" / "few", recorded=1)
    assert analysis.main([str(folder), "--report", str(tmp_path)]) == UNANSWERABLE
    assert "train.activation_sites" in capsys.readouterr().err
