"""The page of experts' outputs: planted likeness, the store, and what a study may lack."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyses import expert_representations as analysis
from analyses.expert_representations import expert_representations
from analyses.representation.expert_outputs import MEASURES
from analyses.representation.recorded_outputs import recorded_outputs
from store.run import Run
from store.study import Study

N_SEQUENCES, N_POS, N_FEATURES, N_EXPERTS = 24, 6, 12, 4
UNIT = xr.DataArray(
    [f"w{i // 2:02d}" for i in range(N_SEQUENCES)], dims="sequence", attrs={"unit": "work"}
)
DIMS = ("step", "layer", "expert", "sequence", "pos", "d_model")


def outputs_of(kind: str, *, seed: int, n_experts: int = N_EXPERTS) -> xr.DataArray:
    """Independent experts at step 0, and at step 8 what is planted."""
    rng = np.random.default_rng(seed)
    shape = (2, 1, n_experts, N_SEQUENCES, N_POS, N_FEATURES)
    values = rng.standard_normal(shape)
    if kind == "copies":
        values[1] = values[1][:, :1]
    if kind == "rotated":
        turned = [np.linalg.qr(rng.standard_normal((N_FEATURES,) * 2))[0] for _ in range(n_experts)]
        values[1] = np.stack([values[1, :, 0] @ q for q in turned], axis=1)
    coords = {"step": [0, 8], "layer": [1], "arm": kind}
    return xr.DataArray(values.astype("float32"), dims=DIMS, coords=coords)


def chosen_of(*, seed: int, top_k: int = 1) -> xr.DataArray:
    rng = np.random.default_rng(seed)
    shape = (2, 1, N_SEQUENCES, N_POS, N_EXPERTS)
    values = rng.random(shape).argsort(axis=-1)[..., :top_k]
    dims = ("step", "layer", "sequence", "pos", "top_k")
    return xr.DataArray(values.astype("int16"), dims=dims, coords={"step": [0, 8], "layer": [1]})


@pytest.fixture(scope="module")
def result() -> xr.Dataset:
    kinds = ("copies", "rotated", "nothing")
    names = [(kind, i) for kind in kinds for i in range(2)]
    outputs = {f"{k}-{i}": outputs_of(k, seed=s) for s, (k, i) in enumerate(names)}
    chosen = {name: chosen_of(seed=i, top_k=1 + i % 2) for i, name in enumerate(outputs)}
    first = outputs["copies-0"].isel(expert=0, drop=True)
    dense = {"dense-0": xr.Dataset({"mlp_out": first}).assign_coords(arm="dense")}
    return expert_representations(outputs, chosen, UNIT, dense=dense)


def test_copies_are_alike_in_everything_and_rotations_in_cka_alone(result: xr.Dataset) -> None:
    last = result.isel(step=-1, layer=0)
    for arm, cosine in (("copies", 1), ("rotated", 0)):
        at = last.sel(each_arm=arm)
        for name in ("cka", "cka_raw", "cka_either"):
            np.testing.assert_allclose(at[f"arm_{name}"], 1, atol=1e-4)
        # of 12 random rotations in 12 dimensions, sd 1/12 each
        np.testing.assert_allclose(at["arm_cosine"], cosine, atol=0.1)


def test_independent_experts_have_nothing_in_common(result: xr.Dataset) -> None:
    start = result.isel(step=0, layer=0).sel(each_arm=["copies", "rotated", "nothing"])
    for name in ("cka", "cka_raw", "cka_either", "cosine"):
        assert np.abs(start[f"arm_{name}"]).max() < 0.08
    chance = result[["cka_chance", "cosine_chance"]].sel(run=result["arm"] != "dense")
    for values in chance.values():
        assert np.abs(values).max() < 0.15  # copies have one pair of representations, not six


def test_a_dense_mlp_is_compared_on_the_same_tokens(result: xr.Dataset) -> None:
    last = result.isel(step=-1, layer=0)
    runs = result["run"].values.tolist()
    cka = result["run_cka_dense"].isel(step=-1, layer=0).values
    np.testing.assert_allclose(cka[runs.index("copies-0")], 1, atol=1e-4)
    assert np.abs(cka[runs.index("nothing-0")]) < 0.1
    # it has no experts, but ranks and norms, here those of each copy
    assert np.isnan(last["arm_cka"].sel(each_arm="dense"))
    for name in ("participation", "effective_rank", "norm"):
        values = result[f"run_{name}"].isel(step=-1, layer=0).values
        np.testing.assert_allclose(values[0], values[runs.index("copies-0")], rtol=1e-5)


def test_a_dense_mlp_may_be_the_difference_of_the_stream_around_it(result: xr.Dataset) -> None:
    outputs = {"copies-0": outputs_of("copies", seed=0)}
    after = outputs["copies-0"].isel(expert=0, drop=True)
    sites = xr.Dataset({"resid_post": 3 * after, "resid_mid": 2 * after}).assign_coords(arm="dense")
    chosen = {"copies-0": chosen_of(seed=0)}
    found = expert_representations(outputs, chosen, UNIT, dense={"dense-0": sites})
    for name in ("cka_dense", "norm", "effective_rank"):
        of_both = found[f"run_{name}"].sel(run=["dense-0", "copies-0"])
        expected = result[f"run_{name}"].sel(run=["dense-0", "copies-0"])
        np.testing.assert_allclose(of_both.isel(step=-1), expected.isel(step=-1), rtol=1e-3)


def test_all_measures_come_by_run_by_arm_and_over_layers(result: xr.Dataset) -> None:
    for name in MEASURES:
        for stem in (f"run_{name}", f"arm_{name}", f"arm_{name}_mean"):
            assert {stem, f"{stem}_ci"} <= set(result)
        assert f"arm_{name}_run_ci" in result
    at = result.isel(step=0, layer=0).sel(each_arm="nothing")
    low, high = at["arm_cka_ci"].values
    assert low < at["arm_cka"] < high
    pairs = result["cka_of_experts"].isel(run=-1, step=0, layer=0).values
    np.testing.assert_allclose(np.diagonal(pairs), 1)
    np.testing.assert_allclose(pairs, pairs.T)


def test_experts_that_are_not_finite_or_not_measured_are_nan_alone() -> None:
    outputs = {"a": outputs_of("x", seed=0), "b": outputs_of("y", seed=1).isel(step=[1])}
    outputs["a"][1, 0, 2, 3, 4, 5] = np.nan
    chosen = {name: chosen_of(seed=0) for name in outputs}
    cka = expert_representations(outputs, chosen, UNIT)["arm_cka"].isel(layer=0)
    np.testing.assert_array_equal(
        np.isfinite(cka.transpose("each_arm", "step")), [[True, False], [False, True]]
    )


def test_an_expert_that_gives_the_same_everywhere_is_no_error() -> None:
    outputs = {"a": outputs_of("x", seed=0)}
    outputs["a"][1, 0, 2] = 0.5
    found = expert_representations(outputs, {"a": chosen_of(seed=0)}, UNIT)
    pairs = found["cka_of_experts"].isel(run=0, step=1, layer=0)
    assert np.isnan(pairs.sel(expert=2)).all()
    assert np.isfinite(found["arm_cka"].isel(step=1)).all()


def test_fewer_than_four_units_are_refused() -> None:
    unit = UNIT.copy(data=[f"w{i % 3}" for i in range(N_SEQUENCES)])
    with pytest.raises(ValueError, match="at least 4"):
        expert_representations({"a": outputs_of("x", seed=0)}, {"a": chosen_of(seed=0)}, unit)


@pytest.fixture(scope="module")
def folder(write_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two switch runs with outputs at two positions of a part of the text."""
    names = {"dense-seed0": "dense", "switch-seed0": "switch", "switch-seed1": "switch"}
    path = write_study(tmp_path_factory.mktemp("outputs") / "small", names)
    for i, name in enumerate(list(names)[1:]):
        run, rng = Run.open(path / f"{name}.zarr"), np.random.default_rng(i)
        values = rng.standard_normal((2, 4, 20, 2, 5)).astype("float16")
        one = xr.Dataset({"output": (DIMS[1:], values)},
                         {"layer": [1, 3], "sequence": range(4, 24), "pos": [3, 9]})  # fmt: skip
        run = run.add_group("expert_outputs", one, attrs={})
        for step in (0, 4)[: 2 - i]:
            run.write(step, {"expert_outputs": one})
            run.commit(step, group="expert_outputs")
    return path


def test_page_names_what_is_missing(folder: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(folder), "--unit", "document", "--report", str(tmp_path)]
    assert analysis.main(arguments) == 0
    page = (tmp_path / "expert_representations/index.md").read_text()
    assert "in switch runs CKA is" in page
    assert "switch-seed1 (1 of 2 steps)" in page
    # the answer is of the last step that both runs have, with its interval
    assert re.search(
        r"and the cosine -?\d\.\d{3} \(-?\d\.\d{3} to [^)]*\) \(at step 0, the last that all of "
        "them have\\)",
        page,
    )
    assert "Only what all runs recorded" not in page
    assert "There is no dense MLP to compare with" in page
    assert not re.search(r"\bnan\b", page)
    for name in ("experts_in_common", "expert_ranks_and_norms", "experts_by_pair"):
        assert (tmp_path / f"expert_representations/{name}.png").stat().st_size > 5000
    capsys.readouterr()


def test_outputs_are_read_where_all_runs_have_them(folder: Path) -> None:
    found = recorded_outputs(Study.open(folder))
    assert list(found.experts) == ["switch-seed0", "switch-seed1"]
    assert found.lacking == ("dense-seed0",)
    for name, outputs in found.experts.items():
        assert outputs["sequence"].values.tolist() == list(range(4, 24))
        assert found.chosen[name]["pos"].values.tolist() == [3, 9]


def test_places_that_not_all_runs_measured_are_named(
    write_study: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    names = ["switch-seed0", "switch-seed1"]
    path = write_study(tmp_path / "studies" / "other", dict.fromkeys(names, "switch"))
    for name, n_pos in zip(names, (3, 2), strict=True):
        values = np.random.default_rng(0).standard_normal((2, 4, 20, n_pos, 5)).astype("float16")
        where = {"layer": [1, 3], "sequence": range(4, 24), "pos": [3, 9, 11][:n_pos]}
        one = xr.Dataset({"output": (DIMS[1:], values)}, where)
        run = Run.open(path / f"{name}.zarr").add_group("expert_outputs", one, attrs={})
        run.write(0, {"expert_outputs": one})
        run.commit(0, group="expert_outputs")
    assert analysis.main([str(path), "--unit", "document", "--report", str(tmp_path)]) == 0
    page = (tmp_path / "expert_representations/index.md").read_text()
    assert "Only what all runs recorded is compared. Left out: 1 of 3 positions (11)." in page
    capsys.readouterr()


def test_a_study_without_outputs_names_the_command(study_folder: Path, capsys) -> None:
    assert analysis.main([str(study_folder)]) == 3
    error = capsys.readouterr().err
    assert f"python -m models.expert_outputs {study_folder / 'switch-seed0.zarr'}" in error
