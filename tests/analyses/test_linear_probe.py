import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyses import linear_probe as analysis
from analyses.comparison.units import unit_labels
from analyses.linear_probe import linear_probe
from analyses.representation.probe_targets import CURRENT, DOMAIN, EXPERT, POSITION, PREVIOUS
from store.run import Run

N_DOCUMENTS, N_POS, N_IDS, WIDTH = 24, 20, 12, 24
POS = np.arange(1, N_POS, 2)
STEPS = [0, 1, 2, 4, 8]
RUNS = {"dense-seed0": "dense", "dense-seed1": "dense", "switch-seed0": "switch",
        "switch-seed1": "switch"}  # fmt: skip
RULES = {"min_tokens": 10, "n_controls": 4}


@pytest.fixture(scope="module")
def text() -> xr.Dataset:
    """24 documents of two sequences, in two domains, of twelve ids evenly used."""
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(N_DOCUMENTS), 2)
    ids = rng.integers(N_IDS, size=(len(document), N_POS + 1)).astype("int32")
    names = np.array([f"document {i:02d}" for i in document], dtype=object)
    return xr.Dataset(
        {
            "token": (("sequence", "pos"), ids[:, :-1]),
            "target": (("sequence", "pos"), ids[:, 1:]),
            "document": ("sequence", names),
            "work": ("sequence", names),
            "domain": ("sequence", np.array(["prose", "verse"], dtype=object)[document % 2]),
        },
        {"pos": np.arange(N_POS), "sequence": np.arange(len(document))},
    )


@pytest.fixture(scope="module")
def activations(text: xr.Dataset) -> dict[str, xr.Dataset]:
    """At step 0 noise. Later dense runs hold the token id alone, switch runs also the domain."""
    found = {}
    token = np.eye(N_IDS)[text["token"].values[:, POS]]
    verse = (text["domain"].values == "verse")[:, None, None]
    for i, (run, arm) in enumerate(RUNS.items()):
        rng = np.random.default_rng([1, i])
        shape = (len(STEPS), 2, *token.shape[:2], WIDTH)
        values = rng.standard_normal(shape)
        # the first layer never holds anything
        values[1:, 1, ..., :N_IDS] += 9 * token
        if arm == "switch":
            values[1:, 1, ..., -1:] += 9 * verse
        coords = {"step": STEPS, "layer": [0, 1], "sequence": text["sequence"], "pos": POS,
                  "arm": arm, "architecture": "moe" if arm == "switch" else "dense",
                  "router": arm if arm == "switch" else "none", "n_experts": 4}  # fmt: skip
        dims = ("step", "layer", "sequence", "pos", "d_model")
        site = xr.DataArray(values.astype("float16"), dims=dims, coords=coords)
        found[run] = xr.Dataset({"resid_mid": site, "resid_post": site})
    return found


@pytest.fixture(scope="module")
def choices(text: xr.Dataset) -> dict[str, xr.DataArray]:
    """A router in layer 1 that goes by the token id."""
    expert = (text["token"].values[:, POS] % 4).astype("int16")
    coords = {"step": STEPS, "layer": [1], "sequence": text["sequence"], "pos": POS}
    dims = ("step", "layer", "sequence", "pos")
    values = np.broadcast_to(expert, (len(STEPS), 1, *expert.shape))
    one = xr.DataArray(values, dims=dims, coords=coords)
    return {run: one for run, arm in RUNS.items() if arm == "switch"}


def _probed(
    activations: dict[str, xr.Dataset],
    choices: dict[str, xr.DataArray],
    text: xr.Dataset,
    **options,
) -> xr.Dataset:
    options = {"n_steps": 2, **RULES, "rng": np.random.default_rng(0)} | options
    unit = unit_labels(text, "document")
    return linear_probe(activations, choices, text, unit, **options)


@pytest.fixture(scope="module")
def result(
    activations: dict[str, xr.Dataset], choices: dict[str, xr.DataArray], text: xr.Dataset
) -> xr.Dataset:
    return _probed(activations, choices, text)


def test_random_features_give_chance_and_no_selectivity(result: xr.Dataset) -> None:
    at = result.isel(step=0).sel(layer=0)
    for target, commonest in ((CURRENT, 1 / N_IDS), (PREVIOUS, 1 / N_IDS), (POSITION, 1 / 5),
                              (DOMAIN, 1 / 2)):  # fmt: skip
        of_target = at.sel(target=target)
        np.testing.assert_allclose(of_target["arm_accuracy"], commonest, atol=0.05)
        np.testing.assert_allclose(of_target["arm_selectivity"], 0, atol=0.05)
    low, high = at["run_selectivity_ci"].sel(target=DOMAIN).transpose("ci_bound", ...)
    assert ((low <= 0) & (high >= 0)).all()


def test_planted_code_is_read_and_nothing_else(result: xr.Dataset) -> None:
    at = result.isel(step=-1).sel(layer=1, site="resid_post")
    assert (at["run_accuracy"].sel(target=CURRENT) > 0.99).all()
    domain = at["arm_accuracy"].sel(target=DOMAIN)
    assert float(domain.sel(each_arm="switch")) > 0.99
    assert float(domain.sel(each_arm="dense")) == pytest.approx(0.5, abs=0.07)
    np.testing.assert_allclose(at["arm_accuracy"].sel(target=PREVIOUS), 1 / N_IDS, atol=0.05)


def test_what_only_the_token_id_tells_has_no_selectivity(result: xr.Dataset) -> None:
    at = result.isel(step=-1).sel(layer=1, site="resid_mid", each_arm="switch")
    for target in (CURRENT, EXPERT):
        of_target = at.sel(target=target)
        assert float(of_target["arm_accuracy"]) > 0.99
        assert float(of_target["arm_control"]) > 0.99
        assert float(of_target["arm_selectivity"]) == pytest.approx(0, abs=0.01)
        assert float(of_target["arm_lookup"]) == 1
        assert float(of_target["arm_beyond_lookup"]) == pytest.approx(0, abs=0.01)
    domain = at.sel(target=DOMAIN)
    assert float(domain["arm_beyond_lookup"]) > 0.4
    assert float(domain["arm_lookup"]) == pytest.approx(0.5, abs=0.08)


def test_expert_is_that_of_the_next_router_and_of_moe_runs_alone(result: xr.Dataset) -> None:
    accuracy = result["run_accuracy"].sel(target=EXPERT).isel(step=-1)
    assert accuracy.sel(run=["dense-seed0", "dense-seed1"]).isnull().all()
    switch = accuracy.sel(run="switch-seed1")
    assert float(switch.sel(layer=1, site="resid_mid")) > 0.99
    assert np.isnan(float(switch.sel(layer=1, site="resid_post")))
    for site in ("resid_mid", "resid_post"):
        assert float(switch.sel(layer=0, site=site)) == pytest.approx(1 / 4, abs=0.08)


def test_accuracy_is_hits_over_tokens_with_a_jackknife_over_units(
    result: xr.Dataset, activations: dict[str, xr.Dataset], text: xr.Dataset
) -> None:
    from scipy import stats

    from analyses.statistics.probing import predicted, unit_folds

    unit = np.repeat(np.unique(text["document"].values, return_inverse=True)[1], len(POS))
    label = np.repeat((text["domain"].values == "verse").astype(int), len(POS))
    x = activations["switch-seed0"]["resid_mid"].isel(step=-1, layer=1).values
    fold = unit_folds(unit, n_folds=5)
    right = predicted(x.reshape(-1, WIDTH), [label[None]], fold)[0][0] == label
    # all units have as many tokens, so that the interval is that of a mean of units
    of_units = np.bincount(unit, right) / np.bincount(unit)
    found = result.sel(run="switch-seed0", layer=1, site="resid_mid", target=DOMAIN)
    found = found.isel(step=-1)
    assert float(found["run_accuracy"]) == pytest.approx(of_units.mean())
    margin = stats.t.ppf(0.975, len(of_units) - 1) * stats.sem(of_units)
    assert float(found["run_accuracy_ci"][0]) == pytest.approx(of_units.mean() - margin)


def test_differences_of_arms_are_those_of_their_means(result: xr.Dataset) -> None:
    from analyses.statistics.two_arms import welch

    mean = result["run_accuracy"].mean(("layer", "site")).isel(step=-1).sel(target=DOMAIN).values
    expected = welch(mean[2:], mean[:2])
    at = result.sel(target=DOMAIN, each_arm="switch")
    assert at["first_arm"].item() == "dense"
    assert float(at["accuracy_difference"]) == pytest.approx(float(expected.difference))
    np.testing.assert_allclose(at["accuracy_difference_run_ci"], expected.ci, rtol=1e-6)
    assert (at["accuracy_difference_ci"] > 0).all()
    assert result["accuracy_difference"].sel(target=EXPERT).isnull().all()  # one arm has it


def test_baselines_are_the_same_for_all_representations(result: xr.Dataset) -> None:
    for name in ("lookup", "majority"):
        values = result[f"run_{name}"].drop_sel(target=EXPERT)
        assert float((values.max(("run", "step", "layer", "site")) - values).max()) == 0


def test_steps_are_first_last_and_between_and_the_others_named(result: xr.Dataset) -> None:
    assert result["step"].values.tolist() == [0, 8]
    assert result["skipped_step"].values.tolist() == [1, 2, 4]


def test_dask_and_order_of_dimensions_give_the_same_numbers(
    result: xr.Dataset,
    activations: dict[str, xr.Dataset],
    choices: dict[str, xr.DataArray],
    text: xr.Dataset,
) -> None:
    turned = {run: d.transpose("d_model", "pos", ...) for run, d in activations.items()}
    again = _probed(turned, choices, text.transpose("pos", ...), dask="local")
    xr.testing.assert_identical(again, result)


def test_representation_that_is_not_finite_is_refused(
    activations: dict[str, xr.Dataset], choices: dict[str, xr.DataArray], text: xr.Dataset
) -> None:
    broken = {run: d.copy(deep=True) for run, d in activations.items()}
    broken["switch-seed0"]["resid_post"][-1, 1, 3, 2, 0] = np.nan
    with pytest.raises(ValueError, match="resid_post of layer 1 of run 'switch-seed0' is not"):
        _probed(broken, choices, text)


def test_text_that_no_class_is_frequent_enough_in_is_refused(
    activations: dict[str, xr.Dataset], text: xr.Dataset
) -> None:
    with pytest.raises(ValueError, match="no target has two classes with 1000 tokens in 5 units"):
        _probed(activations, {}, text, min_tokens=1000)


@pytest.fixture(scope="module")
def written(
    activations: dict[str, xr.Dataset], text: xr.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same runs on disk, switch runs with a router by token id; a folder of a study."""
    folder = tmp_path_factory.mktemp("studies") / "small"
    folder.mkdir()
    for run, of_run in activations.items():
        _write(folder, run, of_run, text)
    return folder


def _write(folder: Path, run: str, of_run: xr.Dataset, text: xr.Dataset) -> None:
    """A run of two steps."""
    index = np.broadcast_to((text["token"].values % 4)[None, ..., None], (1, 48, N_POS, 1))
    arm = RUNS.get(run, "dense")
    known = {"arm": arm, "architecture": "moe" if arm == "switch" else "dense",
             "router": arm if arm == "switch" else "none", "seed": int(run[-1]),
             "n_experts": 4}  # fmt: skip
    observed = [
        {
            "losses": xr.Dataset({"loss": (("sequence", "pos"), np.ones((48, N_POS)))}),
            "activations": of_run.sel(step=step, drop=True).drop_vars(
                ["arm", "architecture", "router", "n_experts"]
            ),
        }
        for step in (0, 8)
    ]
    for at in observed:
        if arm == "switch":
            dims = ("layer", "sequence", "pos", "top_k")
            at["routing"] = xr.Dataset({"expert_index": (dims, index)}, {"layer": [1]})
    made = Run.create(folder / f"{run}.zarr", text.drop_vars(["pos", "sequence"]), observed[0],
                      steps=[0, 8], training_steps=8, attrs={}, coordinates=known)  # fmt: skip
    for step, at in zip((0, 8), observed, strict=True):
        made.write(step, at)
        made.commit(step)


def test_command_writes_a_page_of_what_was_planted(written: Path, tmp_path: Path) -> None:
    assert analysis.main([str(written), "--report", str(tmp_path)]) == 0
    folder = tmp_path / "linear_probe"
    found = xr.Dataset.from_dict(json.loads((folder / "results.json").read_text("utf-8")))
    at = {"target": CURRENT, "each_arm": "switch", "step": 8, "layer": 1, "site": "resid_mid"}
    assert float(found["arm_accuracy"].sel(at)) > 0.99
    page = (folder / "index.md").read_text(encoding="utf-8")
    assert "The expert is that of the first router that comes after the site" in page
    assert "A class counts with 20 tokens in 5 works" in page
    assert "switch less dense" in page
    rows = (folder / "accuracy_by_depth.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 2 * 2 * 2 * found.sizes["target"]


def test_places_that_not_all_runs_recorded_are_named(
    written: Path, activations: dict[str, xr.Dataset], text: xr.Dataset, tmp_path: Path
) -> None:
    folder = shutil.copytree(written, tmp_path / "studies" / "more")
    _write(folder, "dense-seed9", activations["dense-seed0"].isel(pos=slice(1, None)), text)
    assert analysis.main([str(folder), "--report", str(tmp_path)]) == 0
    page = (tmp_path / "linear_probe" / "index.md").read_text(encoding="utf-8")
    assert f"Left out: 1 of {len(POS)} positions (1)." in page


def test_study_without_activations_cannot_answer(
    write_study: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    folder = write_study(tmp_path / "s", {"dense-seed0": "dense"})
    assert analysis.main([str(folder), "--report", str(tmp_path)]) == 3
    assert "--set train.activation_sites" in capsys.readouterr().err
