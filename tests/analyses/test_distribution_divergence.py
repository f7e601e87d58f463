"""Divergence of predictions: a small planted study, its bands, phases and report."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.stats import entropy

from analyses import distribution_divergence as analysis
from analyses.comparison.divergence.token_divergence import Bands, frequency_bands, token_divergence
from analyses.distribution_divergence import distribution_divergence
from analyses.reporting.cli import UNANSWERABLE
from analyses.statistics.divergence import js_divergence, kl_divergence
from store.run import Run
from store.study import Study

TIMES = "\N{MULTIPLICATION SIGN}"
N_SEQUENCES, POSITIONS, N_IDS = 36, [1, 3, 5, 7], 40
STEPS = [0, 1, 2, 4, 8, 16, 32, 64]
# what single runs add to the logits at each step, and what they share beyond the unigrams
NOISE = [0.7, 0.7, 0.7, 0.5, 0.2, 0.4, 0.8, 0.6]
CONTEXT = [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.5]
ARMS = {"dense": 3, "switch": 3}


@pytest.fixture(scope="module")
def probe_set() -> xr.Dataset:
    rng = np.random.default_rng(0)
    frequency = np.array([2000] * 20 + [100] * 20)
    return xr.Dataset(
        {
            "target": (("sequence", "pos"), rng.integers(0, N_IDS, (N_SEQUENCES, 8))),
            "token_frequency": ("d_vocab", frequency),
        },
        {"pos": np.arange(8)},
    )


@pytest.fixture(scope="module")
def unit() -> xr.DataArray:
    return xr.DataArray(
        [f"w{i // 2:02d}" for i in range(N_SEQUENCES)], dims="sequence", attrs={"unit": "work"}
    )


@pytest.fixture(scope="module")
def log_prob(probe_set: xr.Dataset) -> xr.DataArray:
    """Uniform with noise at first, then the unigrams, then a context that each run reads its way.

    Arms differ by a part of the logits that grows with the context.
    """
    rng = np.random.default_rng(1)
    shape = (N_SEQUENCES, len(POSITIONS), N_IDS)
    unigram = np.log(probe_set["token_frequency"].values)
    shared, own = (
        rng.standard_normal(shape),
        dict(zip(ARMS, rng.standard_normal((2, *shape)), strict=True)),
    )
    arm = [a for a, n in ARMS.items() for _ in range(n)]
    reading = rng.standard_normal((len(arm), *shape))
    values = [
        [
            (i >= 3) * unigram + context * (shared + 0.3 * own[a]) + noise * mine
            for i, (noise, context) in enumerate(zip(NOISE, CONTEXT, strict=True))
        ]
        for a, mine in zip(arm, reading, strict=True)
    ]
    logits = np.array(values)
    return xr.DataArray(
        (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype("float16"),
        dims=("run", "step", "sequence", "pos", "d_vocab"),
        coords={
            "run": [f"{a}-seed{i % 3}" for i, a in enumerate(arm)],
            "step": STEPS,
            "pos": POSITIONS,
            "arm": ("run", arm),
            "architecture": ("run", ["dense" if a == "dense" else "moe" for a in arm]),
        },
    )


@pytest.fixture(scope="module")
def result(log_prob: xr.DataArray, probe_set: xr.Dataset, unit: xr.DataArray) -> xr.Dataset:
    return distribution_divergence(log_prob, probe_set, unit, n_resamples=200)


def test_a_pair_has_the_mean_of_both_directions_over_all_positions(
    result: xr.Dataset, log_prob: xr.DataArray
) -> None:
    p, q = (
        log_prob.sel(run=run, step=16).values.reshape(-1, N_IDS)
        for run in ("dense-seed1", "switch-seed2")
    )
    at = result.sel(pair=f"dense-seed1 {TIMES} switch-seed2", step=16)
    kl = (kl_divergence(p, q) + kl_divergence(q, p)).mean() / 2
    assert float(at["pair_kl"]) == pytest.approx(kl, rel=1e-10)
    assert float(at["pair_js"]) == pytest.approx(js_divergence(p, q).mean(), rel=1e-10)


def test_bands_are_of_the_targets_at_the_stored_positions(
    result: xr.Dataset, log_prob: xr.DataArray, probe_set: xr.Dataset
) -> None:
    assert result["frequency"].values.tolist() == ["1% or more", "0.1 to 1%"]
    target = probe_set["target"].sel(pos=POSITIONS).values.ravel()
    frequent = target < 20
    assert result["band_n_tokens"].values.tolist() == [frequent.sum(), (~frequent).sum()]
    p, q = (log_prob.isel(run=run, step=-1).values.reshape(-1, N_IDS) for run in (0, 1))
    each = (kl_divergence(p, q) + kl_divergence(q, p)) / 2
    at = result["pair_kl_by_frequency"].isel(pair=0, step=-1)
    np.testing.assert_allclose(at, [each[frequent].mean(), each[~frequent].mean()])


def test_bands_of_few_tokens_are_left_out(probe_set: xr.Dataset) -> None:
    rare = int((probe_set["target"] >= 20).sum())
    bands = frequency_bands(probe_set, fewest=rare)
    assert rare > 4 * N_SEQUENCES
    assert bands.names == ("0.1 to 1%",)
    assert (bands.label == -1).sum() == 8 * N_SEQUENCES - rare
    assert frequency_bands(probe_set.drop_vars("token_frequency")).names == ()


def test_models_are_uniform_first_and_close_to_the_unigrams_when_kl_is_lowest(
    result: xr.Dataset, log_prob: xr.DataArray, probe_set: xr.Dataset
) -> None:
    arms = f"dense {TIMES} dense"
    kl = result["arms_kl"].sel(arms=arms)
    assert int(result["step"][kl.argmin("step")]) == 8
    unigram = result["arms_from_unigram"].sel(arms=arms)
    assert int(result["step"][unigram.argmin("step")]) == 8
    assert float(unigram.sel(step=0)) > float(result["arms_from_uniform"].sel(arms=arms, step=0))
    p = np.exp(log_prob.sel(step=0).isel(run=slice(3)).values.astype(float))
    q = probe_set["token_frequency"].values + 1.0
    expected = entropy(p, np.broadcast_to(q, p.shape), axis=-1).mean()
    assert float(unigram.sel(step=0)) == pytest.approx(expected, rel=1e-6)


def test_planted_phases_are_found_between_the_seeds_of_both_arms(result: xr.Dataset) -> None:
    kinds = ["dense-dense", "dense-MoE", "MoE-MoE"]
    assert result["curve"].values.tolist() == ["dense", "switch", *kinds]
    for arm in ARMS:
        at = result.sel(curve=arm)
        assert at["phase_start"].values.tolist() == [0, 2, 8, 32]
        assert at["phase_end"].values.tolist() == [2, 8, 32, 64]
        assert (at["phase_verdict"] == "seen").all()
        low, high = at["phase_ci"].transpose("ci_bound", "phase")
        assert (np.sign(low) == np.sign(high))[1:].all()
        curve = result["arms_kl"].sel(arms=f"{arm} {TIMES} {arm}")
        rise = float(curve.sel(step=32) - curve.sel(step=8))
        assert float(at["phase_change"][2]) == pytest.approx(rise)
        assert float(at["phase_rate"][2]) == pytest.approx(rise / np.log2(33 / 9))


def test_without_step_0_the_uniform_phase_cannot_be_told(
    log_prob: xr.DataArray, probe_set: xr.Dataset, unit: xr.DataArray
) -> None:
    later = log_prob.isel(step=slice(1, None), run=slice(2))
    at = distribution_divergence(later, probe_set, unit, n_resamples=50).sel(curve="dense")
    assert at["phase_verdict"].values.tolist() == [
        "cannot be told", *["seen in these runs"] * 3,
    ]  # fmt: skip
    assert at["phase_run_ci"].isnull().all()


def test_arms_that_read_the_context_differently_are_further_apart_than_seeds(
    result: xr.Dataset,
) -> None:
    for name in ("kl", "js"):
        excess = result[f"excess_{name}"].isel(contrast=0)
        low, high = result[f"excess_{name}_run_ci"].isel(contrast=0).transpose("ci_bound", "step")
        assert low.sel(step=64) > 0
        assert low.sel(step=0) < 0 < high.sel(step=0)
        assert excess.sel(step=64) > 5 * abs(excess.sel(step=0))


def test_at_equal_loss_there_are_levels_instead_of_steps_and_no_phases(
    log_prob: xr.DataArray, probe_set: xr.Dataset, unit: xr.DataArray, result: xr.Dataset
) -> None:
    curve = np.linspace(8, 1, len(STEPS))
    loss_mean = xr.DataArray(
        np.tile(curve, (6, 1)), {"run": log_prob["run"], "step": STEPS}, ("run", "step")
    )
    at = distribution_divergence(log_prob, probe_set, unit, loss_mean=loss_mean)
    assert at["pair_kl"].dims == ("pair", "loss_level")
    assert "curve" not in at.dims
    between = np.interp(at["loss_level"], curve[::-1], result["pair_kl"].values[0, ::-1])
    np.testing.assert_allclose(at["pair_kl"][0], between, rtol=1e-5)


def test_order_of_runs_and_of_units_does_not_matter(
    log_prob: xr.DataArray, probe_set: xr.Dataset, unit: xr.DataArray, result: xr.Dataset
) -> None:
    order = np.random.default_rng(0).permutation(N_SEQUENCES)
    shuffled = log_prob.isel(run=[4, 2, 0, 3, 5, 1], sequence=order)
    again = distribution_divergence(
        shuffled, probe_set.isel(sequence=order), unit.isel(sequence=order), n_resamples=200
    )
    for name in ("pair_kl", "kind_js", "kind_kl_ci", "kind_kl_run_ci", "excess_kl_ci"):
        np.testing.assert_allclose(again[name], result[name], rtol=1e-9)


def test_deleted_values_are_those_of_the_data_without_the_unit(log_prob: xr.DataArray) -> None:
    values = log_prob.isel(step=3).values.reshape(6, -1, N_IDS)
    unit = np.repeat(np.arange(18), 8)
    label = np.random.default_rng(0).integers(-1, 2, len(unit))
    reference = {"from_uniform": np.zeros(N_IDS)}
    whole, part = (
        token_divergence(
            values[:, kept], unit[kept], bands=Bands(("a", "b"), label[kept]), reference=reference
        )
        for kept in (unit >= 0, unit != 17)
    )
    assert set(whole) == {"kl", "js", "kl_by_frequency", "js_by_frequency", "from_uniform"}
    for name in whole:
        np.testing.assert_allclose(whole[name].deleted[17], part[name].estimate, rtol=1e-9)


def test_a_run_that_lacks_a_step_is_missing_there_alone(
    log_prob: xr.DataArray, probe_set: xr.Dataset, unit: xr.DataArray, result: xr.Dataset
) -> None:
    short = log_prob.copy(deep=True)
    short[5, -1] = np.nan
    at = distribution_divergence(short, probe_set, unit, n_resamples=50)
    assert int(at["pair_kl"].isnull().sum()) == 5
    assert at["kind_kl"].sel(kind="dense-dense").notnull().all()
    xr.testing.assert_allclose(at["pair_kl"].isel(step=0), result["pair_kl"].isel(step=0))
    assert int(at["phase_end"].sel(curve="switch")[3]) == 32


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory, log_prob: xr.DataArray, probe_set: xr.Dataset
) -> Path:
    """The planted predictions in a store, with losses that fall."""
    folder = tmp_path_factory.mktemp("studies") / "planted"
    folder.mkdir()
    names = np.array(
        [f"{'<b>' if i < 2 else 'w'}{i // 2}" for i in range(N_SEQUENCES)], dtype=object
    )
    shown = probe_set.drop_vars("pos").assign(
        token=probe_set["target"].astype("int32"),
        target=probe_set["target"].astype("int32"),
        **dict.fromkeys(("document", "work", "domain"), ("sequence", names)),
    )
    for i, run in enumerate(log_prob["run"].values):
        own = log_prob.sel(run=run, drop=True)
        loss = np.random.default_rng(i).random((N_SEQUENCES, 8))

        def seen(
            at: int, own: xr.DataArray = own, loss: np.ndarray = loss
        ) -> dict[str, xr.Dataset]:
            return {
                "losses": xr.Dataset({"loss": (("sequence", "pos"), 9 - at + loss)}),
                "predictions": own.isel(step=at, drop=True).to_dataset(name="log_prob"),
            }

        arm = str(log_prob["arm"].values[i])
        store = Run.create(
            folder / f"{run}.zarr", shown, seen(0), steps=STEPS, training_steps=64, attrs={},
            coordinates={"arm": arm, "architecture": "dense" if arm == "dense" else "moe"},
        )  # fmt: skip
        for at, step in enumerate(STEPS):
            store.write(step, seen(at))
            store.commit(step)
    return folder


@pytest.mark.parametrize("match", ["step", "loss"])
def test_the_report_of_a_store_says_kl_and_phases(
    stored: Path, match: str, tmp_path: Path, result: xr.Dataset
) -> None:
    command = [str(stored), "--match", match, "--n-resamples", "50", "--report", str(tmp_path)]
    assert analysis.main(command) == 0
    folder = tmp_path / "distribution_divergence"
    page = (folder / "index.md").read_text(encoding="utf-8")
    if match == "step":
        kl = float(result["kind_kl"].sel(kind="dense-dense", step=64))
        assert (
            f"At step 64, the KL divergence of what two runs predict is, in nats, {kl:.3f}" in page
        )
    assert "over 18 works (144 positions)" in page
    assert (folder / "kl_by_frequency.svg").exists()
    assert (folder / "phases.svg").exists() == (match == "step")
    assert "1 of 1 pairs of arms are further apart than their seeds" in page
    assert "largest for dense against switch, " in page
    sharp = "; sharp divergence seen in dense and switch; "
    assert (sharp in page) == (match == "step")


def test_dask_gives_the_same_numbers(stored: Path, unit: xr.DataArray, result: xr.Dataset) -> None:
    study = Study.open(stored)
    log_prob = study.dataset("predictions")["log_prob"].isel(step=slice(2), run=slice(3))
    there = distribution_divergence(log_prob, study.probe_set.load(), unit, dask="local")
    pairs = there["pair"].values
    np.testing.assert_allclose(there["pair_kl"], result["pair_kl"].sel(pair=pairs)[:, :2])


def test_a_study_without_predictions_is_told_what_to_do(
    tmp_path: Path, probe_set: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = probe_set.drop_vars("pos").assign(
        token=probe_set["target"],
        **{n: ("sequence", ["a"] * N_SEQUENCES) for n in ("document", "work", "domain")},
    )
    losses = {"losses": xr.Dataset({"loss": (("sequence", "pos"), np.ones((N_SEQUENCES, 8)))})}
    run = Run.create(
        tmp_path / "old" / "dense-seed0.zarr", shown, losses, steps=[0], training_steps=1,
        attrs={}, coordinates={"arm": "dense", "architecture": "dense"},
    )  # fmt: skip
    run.write(0, losses)
    run.commit(0)
    assert analysis.main([str(tmp_path / "old"), "--report", str(tmp_path)]) == UNANSWERABLE
    assert "--set train.prediction_positions=4" in capsys.readouterr().err
