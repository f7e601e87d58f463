import csv
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from analyses import r2_over_time as analysis
from analyses.comparison.units import unit_labels
from analyses.r2_over_time import plot, plot_contrasts, r2_over_time
from store.study import Study

TIMES = "\N{MULTIPLICATION SIGN}"


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def result(loss: xr.DataArray, document: xr.DataArray) -> xr.Dataset:
    return r2_over_time(loss, document)


def test_r2_is_that_of_the_planted_parts(
    result: xr.Dataset, true_r: Callable[[str, str], float]
) -> None:
    for i in range(result.sizes["pair"]):
        pair = result.isel(pair=i)
        truth = true_r(str(pair["arm_a"].item()), str(pair["arm_b"].item()))
        np.testing.assert_allclose(pair["pair_r2"], truth**2, atol=0.04)


def test_intervals_of_most_pairs_hold_the_planted_r2(
    result: xr.Dataset, true_r: Callable[[str, str], float]
) -> None:
    truth = [
        true_r(*arms) ** 2 for arms in zip(result.arm_a.values, result.arm_b.values, strict=True)
    ]
    low, high = result["pair_r2_ci"].isel(step=0).transpose("ci_bound", "pair").values
    assert ((low < truth) & (truth < high)).sum() >= 8  # of 10


def test_pair_agrees_with_numpy(result: xr.Dataset, loss: xr.DataArray) -> None:
    runs = [loss.sel(run=name, step=4).values.ravel() for name in ("dense-seed1", "switch-seed0")]
    r2 = result["pair_r2"].sel(pair=f"dense-seed1 {TIMES} switch-seed0", step=4)
    assert float(r2) == pytest.approx(np.corrcoef(runs)[0, 1] ** 2, rel=1e-6)


def test_kind_is_the_mean_of_z_over_its_pairs(result: xr.Dataset) -> None:
    r2 = result["pair_r2"].values[result["pair_kind"] == "dense-MoE"]
    expected = np.tanh(np.arctanh(np.sqrt(r2)).mean(axis=0)) ** 2
    np.testing.assert_allclose(result["kind_r2"].sel(kind="dense-MoE"), expected)
    assert result["kind"].values.tolist() == ["dense-dense", "dense-MoE", "MoE-MoE"]
    assert result["kind_n_pairs"].values.tolist() == [3, 6, 1]
    assert f"dense {TIMES} switch" in result["arms"].values


def test_intervals_are_narrower_for_a_mean_than_for_its_pairs(result: xr.Dataset) -> None:
    width = {x: result[f"{x}_r2_ci"].diff("ci_bound").squeeze() for x in ("pair", "kind")}
    pairs = width["pair"].values[result["pair_kind"] == "dense-MoE"]
    assert (width["kind"].sel(kind="dense-MoE").values < pairs.mean(axis=0)).all()


def test_loss_mean_is_the_mean_loss(result: xr.Dataset, loss: xr.DataArray) -> None:
    expected = loss.astype("float64").mean(("sequence", "pos")).sel(run=result["run"])
    np.testing.assert_allclose(result["loss_mean"], expected)


def test_shift_order_and_names_of_runs_do_not_matter(
    result: xr.Dataset, loss: xr.DataArray, document: xr.DataArray
) -> None:
    other = loss.isel(run=[4, 2, 0, 3, 1]).assign_coords(run=["e", "c", "a", "d", "b"]) + 2
    changed = r2_over_time(other, document)
    np.testing.assert_allclose(changed["pair_r2"], result["pair_r2"], rtol=1e-5)
    np.testing.assert_allclose(changed["kind_r2_ci"], result["kind_r2_ci"], rtol=1e-5)


def test_order_of_sequences_does_not_matter(
    result: xr.Dataset, loss: xr.DataArray, document: xr.DataArray
) -> None:
    order = np.random.default_rng(0).permutation(loss.sizes["sequence"])
    changed = r2_over_time(loss.isel(sequence=order), document.isel(sequence=order))
    xr.testing.assert_allclose(changed["pair_r2_ci"], result["pair_r2_ci"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_step_that_a_run_lacks_is_missing_for_its_pairs_and_kinds(
    result: xr.Dataset, loss: xr.DataArray, document: xr.DataArray, value: float
) -> None:
    broken = loss.copy(deep=True)
    broken.loc[{"run": "switch-seed1", "step": 4, "sequence": 3, "pos": 2}] = value
    changed = r2_over_time(broken, document)
    missing = changed["pair_r2"].sel(step=4).isnull().values
    touched = [("switch-seed1" in name) for name in changed["pair"].values]
    assert missing.tolist() == touched
    assert changed["kind_r2"].sel(step=4).isnull().values.tolist() == [False, True, True]
    xr.testing.assert_equal(changed["pair_r2"].sel(step=1), result["pair_r2"].sel(step=1))
    assert np.isnan(changed["loss_mean"].sel(run="switch-seed1", step=4))
    plot(changed)


def test_steps_are_read_one_at_a_time(study_folder: Path) -> None:
    study = Study.open(study_folder)
    loss = study.dataset("losses")["loss"]
    seen = []

    def progress(description: str):
        def steps(items):
            for item in items:
                seen.append((description, item))
                assert not loss.variable._in_memory
                yield item

        return steps

    result = r2_over_time(loss, study.probe_set["document"], progress=progress)
    expected = [(d, i) for d in ("mean losses", "comparing runs") for i in range(3)]
    assert seen == expected
    assert result["pair_r2"].notnull().all()


def test_at_equal_loss_the_last_level_is_what_the_slowest_run_reached(
    study_folder: Path,
) -> None:
    study = Study.open(study_folder)
    loss = study.dataset("losses")["loss"]
    falling = loss.copy(data=loss.values - 4 * np.arange(3)[:, None, None])
    result = r2_over_time(falling, study.probe_set["document"], match="loss")
    assert result["pair_r2"].dims == ("pair", "loss_level")
    slowest = result["loss_mean"].isel(step=-1).max()
    assert float(result["loss_level"][-1]) == pytest.approx(float(slowest), abs=1e-3)
    assert result["kind_r2"].notnull().all()
    plot(result)
    plot_contrasts(result)


def test_rho2_is_that_of_the_planted_parts(
    loss: xr.DataArray, document: xr.DataArray, true_r: Callable[[str, str], float]
) -> None:
    result = r2_over_time(loss, document)
    assert result["contrast"].values.tolist() == ["dense against switch"]
    r = {(a, b): true_r(a, b) for a in ("dense", "switch") for b in ("dense", "switch")}
    truth = r["dense", "switch"] ** 2 / (r["dense", "dense"] * r["switch", "switch"])
    np.testing.assert_allclose(result["rho2"], truth, atol=0.04)
    low, high = result["rho2_ci"].squeeze("contrast").transpose("ci_bound", "step")
    assert ((low < truth) & (truth < high)).sum() >= 2  # of 3
    assert result["rho2_run_ci"].isnull().all()  # two seeds an arm


def test_band_of_a_whole_curve_is_wider_than_its_intervals(result: xr.Dataset) -> None:
    width = {x: result[f"kind_r2_{x}"].diff("ci_bound").values for x in ("ci", "band")}
    assert (width["band"] > width["ci"]).all()


def test_runs_of_one_kind_are_drawn_in_one_panel(
    loss: xr.DataArray, document: xr.DataArray
) -> None:
    dense = r2_over_time(loss.isel(run=[0, 1]), document)
    assert dense["kind"].values.tolist() == ["dense-dense"]
    assert [ax.get_title(loc="left") for ax in plot(dense).axes] == ["dense-dense"]


def test_too_few_runs_or_documents_are_refused(loss: xr.DataArray, document: xr.DataArray) -> None:
    for runs, named in (([0], "dense-seed0"), ([], "none")):
        with pytest.raises(ValueError, match=f"{named} was observed; .* at least 2 observed"):
            r2_over_time(loss.isel(run=runs), document)
    with pytest.raises(ValueError, match="at least 2, the data have 1"):
        r2_over_time(loss, document.copy(data=["d"] * len(document)))
    with pytest.raises(ValueError, match="no coordinate 'architecture'"):
        r2_over_time(loss.drop_vars("architecture"), document)


def test_command_writes_what_the_figure_shows(reports: SimpleNamespace) -> None:
    folder = reports.folder / "r2_over_time"
    text = (folder / "results.json").read_text(encoding="utf-8")
    stored = json.loads(text.replace("null", "NaN"))
    result = xr.Dataset.from_dict(stored)
    rows = _rows(folder / "r2_by_pair.csv")
    assert len(rows) == 10 * 3
    for row in rows:
        at = result.sel(pair=row["pair"], step=int(row["step"]))
        assert float(row["pair_r2"]) == pytest.approx(float(at["pair_r2"]), rel=1e-7)
        low, high = (float(x) for x in at["pair_r2_ci"].values)
        assert float(row["pair_r2_ci_lower"]) == pytest.approx(low, rel=1e-7)
        assert low < float(row["pair_r2"]) < high
    drawn = {
        tuple(np.round(line.get_ydata(), 6).tolist())
        for ax in plot(result).axes
        for line in ax.lines
    }
    for name in result["pair"].values:
        values = [float(row["pair_r2"]) for row in rows if row["pair"] == name]
        assert tuple(np.round(values, 6).tolist()) in drawn
    page = (folder / "index.md").read_text(encoding="utf-8")
    assert "over 14 works (672 tokens)" in page
    assert "fewer than 3 allow no claim about arms" in page


def test_unfinished_run_and_run_without_steps_are_named(
    write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = {"dense-seed0": "dense", "dense-seed1": "dense", "switch-seed0": "switch"}
    write_study(tmp_path / "part", runs, unfinished=("dense-seed1",))
    assert analysis.main(["part"]) == 0
    page = Path("docs/reports/part/r2_over_time/index.md").read_text(encoding="utf-8")
    assert "dense-seed1 has no finite losses at 1 of 3 steps" in page
    assert "At step 1, r²" in page


def test_every_variable_of_a_result_says_what_it_is_and_in_which_units(study_folder: Path) -> None:
    study = Study.open(study_folder)
    loss = study.dataset("losses")["loss"].isel(step=[-1])
    result = r2_over_time(loss, unit_labels(study.probe_set, "document"), n_resamples=10)
    bare = [
        name for name, v in result.variables.items() if not {"long_name", "units"} <= {*v.attrs}
    ]
    assert bare == []


def test_losses_opened_by_plain_xarray_give_the_same(study_folder: Path) -> None:
    study = Study.open(study_folder)
    joined = study.dataset("losses")["loss"]
    store = study_folder / "dense-seed0.zarr"
    document = xr.open_zarr(store, group="probe_set", chunks=None)["document"]
    plain = r2_over_time(joined, document)
    assert plain.identical(r2_over_time(joined, study.probe_set["document"]))


def test_the_page_repeats_the_command_with_its_report_folder(
    study_folder: Path, tmp_path: Path
) -> None:
    arguments = [str(study_folder), "--report", str(tmp_path / "a b")]
    assert analysis.main(arguments) == 0
    page = (tmp_path / "a b/r2_over_time/index.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("python -m analyses"))
    assert shlex.split(command)[3:] == arguments
