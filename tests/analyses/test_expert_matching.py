from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import analyses.expert_matching as analysis
from analyses.expert_matching import expert_matching
from analyses.reporting.cli import UNANSWERABLE
from analyses.routing.hidden_states import HIDDEN_MEASURES, hidden_states
from store.run import Run
from store.study import Study

N_EXPERTS, N_UNITS, N_IDS = 4, 12, 9
TIMES = "\N{MULTIPLICATION SIGN}"
DIMS = ("run", "step", "layer", "sequence", "pos", "top_k")


@pytest.fixture(scope="module")
def token() -> xr.DataArray:
    """Three sequences of twenty tokens for each of twelve units, units in no order."""
    tokens = np.random.default_rng(0).integers(0, N_IDS, (3 * N_UNITS, 20))
    return xr.DataArray(tokens, dims=("sequence", "pos"), coords={"sequence": range(3 * N_UNITS)})


@pytest.fixture(scope="module")
def unit() -> xr.DataArray:
    names = np.array([f"w{(5 * i) % N_UNITS:02d}" for i in range(3 * N_UNITS)])
    return xr.DataArray(names, dims="sequence", attrs={"unit": "work"})


def _runs(values: np.ndarray, arms: dict[str, str]) -> xr.DataArray:
    routers = list(arms.values())
    coords = {
        "run": list(arms),
        "step": np.arange(values.shape[1]) * 8,
        "layer": np.arange(values.shape[2]) * 2 + 1,
        "arm": ("run", routers),
        "router": ("run", routers),
        "architecture": ("run", ["moe"] * len(arms)),
    }
    return xr.DataArray(values.astype("int16"), coords, DIMS)


ARMS = {"u0": "ungated", "s0": "switch", "s1": "switch", "u1": "ungated"}


@pytest.fixture(scope="module")
def expert_index(token: xr.DataArray) -> xr.DataArray:
    """At step 0 noise; then switch runs share contexts, renamed, with 10% noise, ungated do not."""
    rng = np.random.default_rng(1)
    shape = (2, *token.shape)
    context = rng.integers(0, N_EXPERTS, shape)
    runs = []
    for arm in ARMS.values():
        noise = rng.integers(0, N_EXPERTS, (2, *shape))
        named = rng.permutation(N_EXPERTS)[(context + (rng.random(shape) < 0.1)) % N_EXPERTS]
        noise[1] = named if arm == "switch" else rng.integers(0, N_EXPERTS, shape)
        runs.append(noise[..., None])
    return _runs(np.stack(runs), ARMS)


@pytest.fixture(scope="module")
def hidden(token: xr.DataArray, unit: xr.DataArray) -> dict[str, xr.DataArray]:
    """States of ten sequences: those of s1 are those of s0, turned; u0 has others, u1 none."""
    rng = np.random.default_rng(2)
    of_s0, of_u0 = rng.standard_normal((2, 2, 3, 10, 20, 6))
    turned = of_s0 @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    shown = np.arange(3, 13)
    return {
        name: xr.DataArray(
            values.astype("float16"),
            {"step": [0, 8], "layer": [0, 1, 3], "sequence": shown,
             "unit": ("sequence", unit.values[shown])},
            ("step", "layer", "sequence", "pos", "d_model"),
        )
        for name, values in (("s0", of_s0), ("s1", turned), ("u0", of_u0[..., :4]))
    }  # fmt: skip


@pytest.fixture(scope="module")
def result(
    expert_index: xr.DataArray,
    token: xr.DataArray,
    unit: xr.DataArray,
    hidden: dict[str, xr.DataArray],
) -> xr.Dataset:
    return expert_matching(
        expert_index, token, unit, n_experts=N_EXPERTS, hidden=hidden, n_resamples=19
    )


def test_renamed_experts_with_ten_percent_noise_agree(result: xr.Dataset) -> None:
    at = result.sel(pair=f"s0 {TIMES} s1", step=8)
    # of two tokens with 10% noise each, 82% still agree
    np.testing.assert_allclose(at["pair_agreement"], 0.82, atol=0.04)
    np.testing.assert_allclose(at["pair_kappa"], (0.82 - 0.25) / 0.75, atol=0.06)
    np.testing.assert_allclose(at["pair_beyond_floor"], (0.82 - 0.25) / 0.75, atol=0.06)
    assert (at["pair_chance_p"] == 1 / 20).all()
    assert (at["pair_ami"] > 0.4).all()
    assert (at["pair_routing_cka"] > 0.4).all()


def test_unrelated_runs_are_at_chance_by_every_measure(result: xr.Dataset) -> None:
    at = result.sel(pair=f"u0 {TIMES} u1", step=8)
    for name in ("kappa", "floor_kappa", "beyond_floor", "ami", "routing_cka"):
        np.testing.assert_allclose(at[f"pair_{name}"], 0, atol=0.08)
    low, high = at["pair_kappa_ci"].transpose("ci_bound", "layer").values
    assert ((low < 0.02) & (high > -0.02)).all()


def test_arms_are_means_of_their_pairs_and_layers_are_averaged_last(result: xr.Dataset) -> None:
    pairs = result["pair_kappa"].isel(
        pair=(result["pair_arms"] == f"switch {TIMES} ungated").values
    )
    assert pairs.sizes["pair"] == 4
    of_arms = result["arms_kappa"].sel(arms=f"switch {TIMES} ungated")
    xr.testing.assert_allclose(pairs.mean("pair"), of_arms.drop_vars("arms"))
    mean = result["arms_kappa_mean"].sel(arms=f"switch {TIMES} ungated")
    xr.testing.assert_allclose(of_arms.mean("layer"), mean)


def test_interval_is_that_of_agreement_without_each_unit(
    result: xr.Dataset, unit: xr.DataArray
) -> None:
    assert result["unit"].values.tolist() == sorted(set(unit.values.tolist()))
    assert (result["n_tokens"] == 60).all()
    arms = f"switch {TIMES} switch"
    deleted = result["arms_agreement_deleted"].sel(arms=arms, step=8, layer=1).values
    whole = float(result["arms_agreement"].sel(arms=arms, step=8, layer=1))
    # units of one size: the mean of the values without each is the value itself
    assert deleted.mean() == pytest.approx(whole)
    error = np.sqrt(11 / 12 * ((deleted - deleted.mean()) ** 2).sum())
    low, high = result["arms_agreement_ci"].sel(arms=arms, step=8, layer=1).values
    assert (high - low) / 2 == pytest.approx(2.200985 * error, rel=1e-5)


def test_names_of_experts_and_order_of_text_do_not_matter(
    expert_index: xr.DataArray, token: xr.DataArray, unit: xr.DataArray, result: xr.Dataset
) -> None:
    order = np.random.default_rng(3).permutation(token.sizes["sequence"])
    order = order[np.argsort(unit.values[order], kind="stable")]
    renamed = expert_index.copy(data=np.array([2, 3, 1, 0])[expert_index.values])
    again = expert_matching(
        renamed.isel(sequence=order), token.isel(sequence=order), unit.isel(sequence=order),
        n_experts=N_EXPERTS, n_resamples=2,
    )  # fmt: skip
    for name in ("pair_agreement", "pair_floor", "pair_ami", "pair_routing_cka"):
        np.testing.assert_allclose(again[name], result[name], atol=1e-10)


def test_matched_share_stands_on_the_diagonal(result: xr.Dataset) -> None:
    table = result["matched_share"]
    assert (table.attrs["first_run"], table.attrs["second_run"]) == ("s0", "s1")
    assert table.attrs["step"] == 8
    np.testing.assert_allclose(table.sum("matched_expert"), 1)
    for of_layer in table.values:
        np.testing.assert_allclose(np.diag(of_layer), 0.82, atol=0.1)


def test_cka_of_turned_hidden_states_is_1_and_of_others_near_0(result: xr.Dataset) -> None:
    for name in HIDDEN_MEASURES:
        at = result[f"pair_{name}"]
        np.testing.assert_allclose(at.sel(pair=f"s0 {TIMES} s1"), 1, atol=1e-3)
        assert (np.abs(at.sel(pair=f"s0 {TIMES} u0")) < 0.3).all()
        assert at.sel(pair=f"s0 {TIMES} u1").isnull().all()


def test_a_run_that_was_not_observed_is_missing_in_its_pairs_alone(
    expert_index: xr.DataArray, token: xr.DataArray, unit: xr.DataArray
) -> None:
    lost = expert_index.isel(layer=[0]).copy()
    lost.loc[{"run": "u1", "step": 8}] = -1
    lost.loc[{"run": ["s0", "u0", "u1"], "step": 0}] = -1
    at = expert_matching(lost, token, unit, n_experts=N_EXPERTS, n_resamples=1)
    assert at["pair_kappa"].sel(step=0).isnull().all()
    missing = at["pair_kappa"].sel(step=8).isnull().squeeze("layer")
    np.testing.assert_array_equal(missing, [str(p).endswith("u1") for p in at["pair"].values])


def test_top_2_runs_are_compared_by_sets_and_by_first_choices(
    token: xr.DataArray, unit: xr.DataArray
) -> None:
    rng = np.random.default_rng(4)
    shape = (1, 1, *token.shape, 5)
    first = rng.random(shape).argsort(axis=-1)[..., :2]
    second = np.array([1, 4, 0, 3, 2])[first[..., ::-1]]
    index = _runs(np.stack([first, second]), {"s0": "switch", "s1": "switch"})
    at = expert_matching(index, token, unit, n_experts=5, n_resamples=9).squeeze()
    assert float(at["pair_agreement"]) == 1
    assert float(at["pair_kappa"]) == 1
    assert float(at["pair_routing_cka"]) == pytest.approx(1)
    assert float(at["uniform_chance"]) == 2 / 5
    assert float(at["pair_chance"]) == pytest.approx(2 / 5, abs=0.05)
    # the first of one is the second of the other, which is never the first
    assert float(at["pair_first_agreement"]) < 0.4
    assert float(at["pair_ami"]) < 0.2


def test_without_two_runs_four_units_or_a_common_step_the_error_says_what_to_do(
    expert_index: xr.DataArray, token: xr.DataArray, unit: xr.DataArray
) -> None:
    with pytest.raises(ValueError, match=r"only s0 has experts .* train an MoE of another seed"):
        expert_matching(expert_index.sel(run=["s0"]), token, unit, n_experts=N_EXPERTS)
    few = unit.copy(data=np.array(["a", "b", "c"] * N_UNITS))
    with pytest.raises(ValueError, match="has 3, and 4 are needed"):
        expert_matching(expert_index, token, few, n_experts=N_EXPERTS)
    apart = expert_index.sel(run=["s0", "s1"]).copy()
    apart.loc[{"run": "s0", "step": 0}] = -1
    apart.loc[{"run": "s1", "step": 8}] = -1
    with pytest.raises(ValueError, match="no two runs observed all choices at one step"):
        expert_matching(apart, token, unit, n_experts=N_EXPERTS)


@pytest.fixture(scope="module")
def recorded(probe_set: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of other widths that recorded hidden states on ten and twelve sequences."""
    folder = tmp_path_factory.mktemp("studies") / "recorded"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for seed, (width, n) in enumerate(((3, 10), (4, 12))):
        index = rng.integers(0, N_EXPERTS, (1, *probe_set["token"].shape, 1))
        states = rng.standard_normal((2, n, 5, width))
        observed = {
            "routing": xr.Dataset(
                {
                    "expert_index": (("layer", "sequence", "pos", "top_k"), index),
                    "router_prob": (
                        ("layer", "sequence", "pos", "expert"),
                        np.full((*index.shape[:-1], N_EXPERTS), 1 / N_EXPERTS),
                    ),
                },
                {"layer": [1]},
            ),
            "activations": xr.Dataset(
                {"resid_post": (("layer", "sequence", "pos", "d_model"), states)},
                {"layer": [0, 1], "sequence": np.arange(n), "pos": np.arange(5)},
            ),
        }
        run = Run.create(
            folder / f"hash-seed{seed}.zarr", probe_set, observed,
            steps=[0], training_steps=1, attrs={},
            coordinates={"arm": "hash", "architecture": "moe", "router": "hash", "seed": seed,
                         "n_experts": N_EXPERTS},
        )  # fmt: skip
        run.write(0, observed)
        run.commit(0)
    return folder


def test_hidden_states_are_read_on_the_sequences_that_all_recorded(recorded: Path) -> None:
    study = Study.open(recorded)
    names = study.probe_set["document"].values.astype(object).astype(str)
    unit = xr.DataArray(names, {"sequence": study.probe_set["sequence"].values}, ("sequence",))
    runs = np.array(["hash-seed0", "hash-seed1"])
    read = hidden_states(study, runs, unit)
    assert [dict(x.sizes)["d_model"] for x in read.values()] == [3, 4]
    assert all(x.sizes["sequence"] == 10 for x in read.values())
    assert read["hash-seed0"]["unit"].values.tolist() == names[:10].tolist()
    assert hidden_states(study, runs[:1], unit) == {}
    assert hidden_states(study, runs, unit.copy(data=np.full(len(unit), "one"))) == {}


def test_the_report_shows_hidden_states_and_says_what_a_hash_router_is(
    recorded: Path, tmp_path: Path
) -> None:
    command = [str(recorded), "--unit", "document", "--n-resamples", "3", "--report", str(tmp_path)]
    assert analysis.main(command) == 0
    page = (tmp_path / "expert_matching" / "index.md").read_text(encoding="utf-8")
    assert "matched experts of two runs agree beyond chance" in page
    assert "two hash routers share nothing but that both go by the id" in page
    assert "Hidden-state CKA rests on a small part of the text" in page
    names = {path.stem for path in (tmp_path / "expert_matching").glob("*.svg")}
    assert names == {"agreement", "matched_experts", "routing_against_hidden_states"}


def test_without_hidden_states_the_page_leaves_them_out_and_says_so(
    write_study: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_study(tmp_path / "few", {"switch-seed0": "switch", "ungated-seed0": "ungated"})
    command = [str(folder), "--n-resamples", "3", "--report", str(tmp_path)]
    assert analysis.main(command) == 0
    page = (tmp_path / "expert_matching" / "index.md").read_text(encoding="utf-8")
    assert "CKA of hidden states is left out" in page
    assert "numbers are about the router, not about the output" in page
    names = {path.stem for path in (tmp_path / "expert_matching").glob("*.svg")}
    assert names == {"agreement", "matched_experts"}


def test_a_study_with_one_moe_run_is_refused_with_a_remedy(
    write_study: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "one", {"switch-seed0": "switch", "dense-seed0": "dense"})
    assert analysis.main([str(folder), "--report", str(tmp_path)]) == UNANSWERABLE
    assert "train an MoE of another seed or arm" in capsys.readouterr().err
