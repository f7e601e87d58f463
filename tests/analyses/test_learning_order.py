"""Planted ages: every token has an age of its own, to which arms and runs add what is theirs."""

import csv
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from sklearn.linear_model import LinearRegression

from analyses import learning_order as analysis
from analyses.comparison.learning.acquisition import MEASURES
from analyses.comparison.learning.curve_kinds import typical_ids
from analyses.comparison.units import unit_labels
from analyses.learning_order import learning_order
from analyses.reporting.learning_figures import (
    plot_ages,
    plot_kinds,
    plot_predictors,
    plot_similarity,
)
from analyses.reporting.learning_tables import tables
from analyses.statistics.learning import log_step
from store.run import Run
from store.study import Study

N_SEQUENCES, N_POS, N_IDS, PER_UNIT = 60, 16, 40, 3
STEPS = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256])
X, CHANCE = log_step(STEPS), float(np.log(N_IDS))
ARMS = ("dense", "dense", "dense", "switch", "switch", "switch")
RUNS = [f"{arm}-seed{i % 3}" for i, arm in enumerate(ARMS)]
TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture(scope="module")
def text() -> SimpleNamespace:
    """A probe set whose frequent ids have low surprisal, and the ages that follow from it."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, N_IDS, (N_SEQUENCES, N_POS)).astype("int32")
    frequency = 5000 // (1 + np.arange(N_IDS))
    surprisal = -np.log(frequency / frequency.sum())[target]
    probe_set = xr.Dataset(
        {
            "target": (("sequence", "pos"), target),
            "ngram_surprisal": (
                ("order", "sequence", "pos"),
                np.stack([surprisal, surprisal + rng.standard_normal(target.shape)]),
            ),
            "token_frequency": ("d_vocab", frequency),
            "vocabulary": ("d_vocab", np.array([f" {i}" for i in range(N_IDS)], dtype=object)),
        },
        {"order": [1, 2]},
    )
    age = 1.5 + 0.6 * surprisal + 0.7 * rng.standard_normal(target.shape)
    unit = xr.DataArray(
        [f"work {i // PER_UNIT:02d}" for i in range(N_SEQUENCES)],
        dims="sequence",
        attrs={"unit": "work"},
    )
    return SimpleNamespace(probe_set=probe_set, age=age, unit=unit)


def _losses(age: np.ndarray, *, arm_part: float, seed: int = 1) -> xr.DataArray:
    """Losses (run, step, sequence, pos) that fall by 3 nats, half-way at the age of each run."""
    rng = np.random.default_rng(seed)
    part = {arm: arm_part * rng.standard_normal(age.shape) for arm in ("dense", "switch")}
    values = []
    for arm in ARMS:
        of_run = age + part[arm] + 0.5 * rng.standard_normal(age.shape)
        fall = 1 / (1 + np.exp(-2.5 * (X[:, None, None] - of_run)))
        values.append(CHANCE - 3 * fall + 0.05 * rng.standard_normal(fall.shape))
    return xr.DataArray(
        np.array(values, dtype="float32"),
        dims=("run", "step", "sequence", "pos"),
        coords={
            "run": RUNS,
            "step": STEPS,
            "arm": ("run", list(ARMS)),
            "architecture": ("run", ["dense"] * 3 + ["moe"] * 3),
        },
    )


@pytest.fixture(scope="module")
def loss(text: SimpleNamespace) -> xr.DataArray:
    return _losses(text.age, arm_part=0.0)


@pytest.fixture(scope="module")
def study(
    text: SimpleNamespace, loss: xr.DataArray, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The losses as stores; a document is one sequence."""
    folder = tmp_path_factory.mktemp("studies") / "planted"
    probe_set = text.probe_set.assign(
        token=text.probe_set["target"],
        document=("sequence", np.array([f"d{i:02d}" for i in range(N_SEQUENCES)], dtype=object)),
        work=("sequence", text.unit.values.astype(object)),
        domain=("sequence", np.array(["prose"] * N_SEQUENCES, dtype=object)),
    )
    for i, name in enumerate(RUNS):
        of_step = [xr.Dataset({"loss": loss[i, j].drop_vars(loss.coords)}) for j in range(len(X))]
        run = Run.create(
            folder / f"{name}.zarr", probe_set, {"losses": of_step[0]}, steps=STEPS.tolist(),
            training_steps=int(STEPS[-1]), attrs={},
            coordinates={
                "arm": ARMS[i], "architecture": str(loss["architecture"][i].item()), "seed": i % 3,
            },
        )  # fmt: skip
        for step, values in zip(STEPS.tolist(), of_step, strict=True):
            run.write(step, {"losses": values})
            run.commit(step)
    return folder


def _analysed(loss: xr.DataArray, text: SimpleNamespace, **options) -> xr.Dataset:
    probe_set = options.pop("probe_set", text.probe_set)
    unit = options.pop("unit", text.unit)
    rng = np.random.default_rng(0)
    return learning_order(loss, probe_set, unit, n_clusters=3, rng=rng, **options)


@pytest.fixture(scope="module")
def result(loss: xr.DataArray, text: SimpleNamespace) -> xr.Dataset:
    return _analysed(loss, text)


def _compared(result: xr.Dataset) -> np.ndarray:
    """Ages (run, token) of the tokens that all runs learned."""
    age = result["age"].values.reshape(len(RUNS), -1)
    return age[:, np.isfinite(age).all(axis=0)]


def test_ages_follow_the_planted_ones(result: xr.Dataset, text: SimpleNamespace) -> None:
    mean = result["age"].mean("run", skipna=False).values
    learned = np.isfinite(mean)
    assert learned.mean() > 0.9
    assert np.corrcoef(mean[learned], text.age[learned])[0, 1] > 0.9
    assert result.attrs["chance"] == pytest.approx(CHANCE)
    assert "uniform guess among 40" in result.attrs["chance_is"]


def test_similarity_is_scipys_spearman_over_the_tokens_that_all_runs_learned(
    result: xr.Dataset,
) -> None:
    ages = _compared(result)
    assert int(result["n_compared"].sum()) == ages.shape[1]
    rho = stats.spearmanr(ages.T).statistic
    found = result["pair_rho"].sel(control="nothing")
    np.testing.assert_allclose(found, rho[np.triu_indices(len(RUNS), 1)], rtol=1e-9)
    z = np.arctanh(found.values[found["pair_kind"] == "dense-MoE"])
    kind = result["kind_rho"].sel(control="nothing", kind="dense-MoE")
    assert float(kind) == pytest.approx(np.tanh(z.mean()))


def _token_statistics(text: SimpleNamespace, learned: np.ndarray) -> np.ndarray:
    probe_set = text.probe_set
    surprisal = probe_set["ngram_surprisal"].values.reshape(2, -1)
    frequency = probe_set["token_frequency"].values[probe_set["target"].values].ravel()
    position = np.tile(np.arange(N_POS), N_SEQUENCES)
    return np.stack([*surprisal, frequency, position])[:, learned]


def test_token_statistics_are_held_fixed_as_by_least_squares(
    result: xr.Dataset, text: SimpleNamespace
) -> None:
    learned = np.isfinite(result["age"].values.reshape(len(RUNS), -1)).all(axis=0)
    ranks = stats.rankdata(_compared(result), axis=1)
    known = stats.rankdata(_token_statistics(text, learned), axis=1)
    centred = (known - known.mean(axis=1, keepdims=True)) / known.std(axis=1, keepdims=True)
    columns = np.concatenate([centred, centred**2]).T
    fit = LinearRegression().fit(columns, ranks.T)
    r = np.corrcoef((ranks.T - fit.predict(columns)).T)
    found = result["pair_rho"].sel(control="token statistics")
    np.testing.assert_allclose(found, r[np.triu_indices(len(RUNS), 1)], rtol=1e-6)
    for i, explained in enumerate(result["run_explained"].values):
        one = LinearRegression().fit(columns, ranks[i])
        assert explained == pytest.approx(one.score(columns, ranks[i]), rel=1e-6)


def test_predictors_correlate_as_scipy_says(result: xr.Dataset, text: SimpleNamespace) -> None:
    learned = np.isfinite(result["age"].values.reshape(len(RUNS), -1)).all(axis=0)
    known, ages = _token_statistics(text, learned), _compared(result)
    names = ["1-gram surprisal", "2-gram surprisal", "token frequency", "position"]
    assert result["predictor"].values.tolist() == names
    for i, name in enumerate(names):
        expected = [stats.spearmanr(age, known[i]).statistic for age in ages]
        np.testing.assert_allclose(result["run_predictor_rho"].sel(predictor=name), expected)
    assert (result["arm_predictor_rho"].sel(predictor="1-gram surprisal") > 0.4).all()
    assert (abs(result["arm_predictor_rho"].sel(predictor="position")) < 0.15).all()


def test_interval_over_units_is_that_of_deleting_each_in_turn(result: xr.Dataset) -> None:
    age = result["age"].values.reshape(len(RUNS), -1)
    learned = np.isfinite(age).all(axis=0)
    unit = (np.arange(N_SEQUENCES * N_POS) // N_POS // PER_UNIT)[learned]
    a, b = stats.rankdata(age[:2, learned], axis=1)
    deleted = [
        np.arctanh(np.corrcoef(a[unit != u], b[unit != u])[0, 1]) for u in range(unit.max() + 1)
    ]
    n = len(deleted)
    assert n == N_SEQUENCES // PER_UNIT
    margin = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n) * np.std(deleted) * n**0.5
    z = np.arctanh(np.corrcoef(a, b)[0, 1])
    found = result["pair_rho_ci"].sel(pair=f"{RUNS[0]} {TIMES} {RUNS[1]}", control="nothing")
    np.testing.assert_allclose(found, np.tanh([z - margin, z + margin]), rtol=1e-9)


def test_rho2_tells_an_order_of_the_arms_own_from_noise_of_single_runs(
    result: xr.Dataset, text: SimpleNamespace
) -> None:
    own = _analysed(_losses(text.age, arm_part=0.7), text)
    name = "dense against switch"
    without, planted = (r.sel(contrast=name, control="nothing") for r in (result, own))
    assert float(without["rho2"]) == pytest.approx(1, abs=0.02)
    assert float(planted["rho2"]) < 0.8
    assert float(planted["rho2_ci"][1]) < 0.85
    assert "cannot be told from so few runs" in analysis._contrast_caveat(own)
    assert "Furthest apart are dense against switch with" in analysis._contrast_caveat(own)
    assert "orders of their own" not in analysis._finding(own)
    # 3 runs against 3: 20 ways to hand out the arms, and exchanging them changes nothing
    assert float(planted["contrast_p"]) == pytest.approx(2 / 20)
    assert float(planted["contrast_smallest_p"]) == pytest.approx(2 / 20)
    assert float(planted["contrast_holm_p"]) == pytest.approx(2 / 20)
    assert float(without["contrast_p"]) > 0.2


def test_shares_and_mean_ages_are_those_of_the_ages(result: xr.Dataset) -> None:
    learned = np.isfinite(result["age"].values.reshape(len(RUNS), -1))
    np.testing.assert_allclose(result["run_learned"], learned.mean(axis=1))
    mean = 2 ** _compared(result).mean(axis=1) - 1
    np.testing.assert_allclose(result["run_mean_age"], mean)
    for arm, own in (("dense", slice(0, 3)), ("switch", slice(3, 6))):
        of_arm = np.log2(1 + mean[own]).mean()
        assert float(result["arm_mean_age"].sel(each_arm=arm)) == pytest.approx(2**of_arm - 1)
    at = result["arm_acquired"].isel(each_arm=0)
    for edge in (0, 20, 48):
        x = np.log2(1 + at["age_step"].values[edge])
        ages = result["age"].values[:3].reshape(3, -1)
        expected = [(np.nan_to_num(a, nan=np.inf) <= x + 1e-9).mean() for a in ages]
        assert float(at[edge]) == pytest.approx(np.mean(expected), abs=2e-3)


def test_forgetting_is_found_where_it_is_planted(text: SimpleNamespace) -> None:
    steady = CHANCE - 3 / (1 + np.exp(-2 * (X[:, None, None] - text.age)))
    forgets = steady.copy()
    forgets[:, :30] += np.maximum(X - 6, 0)[:, None, None]
    coords = _losses(text.age, arm_part=0.0).coords
    losses = xr.DataArray(
        np.stack([steady] * 3 + [forgets] * 3), dims=("run", "step", "sequence", "pos")
    ).assign_coords(coords)
    found = _analysed(losses, text, penalty=0.0)
    assert float(found["arm_forgotten"].sel(each_arm="dense")) == pytest.approx(0, abs=1e-6)
    lowest, end = forgets.min(axis=0), forgets[-1]
    ever = CHANCE - lowest >= 1
    expected = (end - lowest)[ever].mean()
    assert expected > 0.2
    assert float(found["arm_forgotten"].sel(each_arm="switch")) == pytest.approx(expected, rel=1e-5)
    share = ((end - lowest) / (CHANCE - lowest))[ever].mean()
    found_share = float(found["arm_forgotten_share"].sel(each_arm="switch"))
    assert found_share == pytest.approx(share, rel=1e-5)
    lost = (CHANCE - end[ever] < 1).mean()
    assert lost > 0
    assert float(found["arm_lost"].sel(each_arm="switch")) == pytest.approx(lost)


def test_order_and_names_of_runs_and_sequences_do_not_matter(
    result: xr.Dataset, loss: xr.DataArray, text: SimpleNamespace
) -> None:
    order = np.random.default_rng(3).permutation(N_SEQUENCES)
    other = loss.isel(run=[5, 2, 0, 3, 1, 4], sequence=order)
    changed = _analysed(
        other, text, probe_set=text.probe_set.isel(sequence=order), unit=text.unit[order]
    )
    for name in ("pair_rho", "kind_rho_ci", "rho2_run_ci", "arm_lost_ci", "arm_age_by_surprisal"):
        np.testing.assert_allclose(changed[name], result[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_step_that_one_run_lacks_is_left_out_for_all(
    loss: xr.DataArray, text: SimpleNamespace, value: float
) -> None:
    broken = loss.copy(deep=True)
    broken.loc[{"run": "switch-seed1", "step": 64, "sequence": 3, "pos": 2}] = value
    found = _analysed(broken, text)
    expected = _analysed(loss.drop_sel(step=64), text)
    assert found["common_step"].values.tolist() == [s for s in STEPS.tolist() if s != 64]
    for name in ("age", "kind_rho", "arm_learned_ci"):
        xr.testing.assert_allclose(found[name], expected[name])
    caveats = " ".join(analysis._data_caveats(found, text.probe_set))
    assert "1 of 10 steps are left out, which switch-seed1 did not observe" in caveats


def test_curves_are_read_a_run_at_a_time(study: Path) -> None:
    opened = Study.open(study)
    loss, seen = opened.dataset("losses")["loss"], []

    def progress(description: str):
        def wrapped(items):
            for item in items:
                seen.append((description, item))
                assert not loss.variable._in_memory
                yield item

        return wrapped

    probe_set = opened.probe_set.load()
    rng = np.random.default_rng(0)
    learning_order(loss, probe_set, unit_labels(probe_set, "work"), progress=progress, rng=rng)
    assert [i for name, i in seen if name == "learning curves"] == [0, 1, 2, 3, 4, 5]


def test_without_a_vocabulary_chance_is_the_loss_at_the_first_step(
    loss: xr.DataArray, text: SimpleNamespace
) -> None:
    probe_set = text.probe_set[["target"]]
    found = _analysed(loss, text, probe_set=probe_set)
    assert found.attrs["chance"] == pytest.approx(float(loss.isel(step=0).mean()), rel=1e-5)
    assert "mean loss at step 0" in found.attrs["chance_is"]
    assert found["predictor"].values.tolist() == ["position"]
    assert "arm_age_by_surprisal" not in found
    caveats = " ".join(analysis._data_caveats(found, probe_set))
    assert "no ngram_surprisal and token_frequency" in caveats
    assert plot_predictors(found)
    assert [ids for ids in typical_ids(found, probe_set)[1] if not ids[0].isdigit()] == []


def test_token_without_a_known_surprisal_is_not_compared(
    loss: xr.DataArray, text: SimpleNamespace
) -> None:
    probe_set = text.probe_set.copy(deep=True)
    probe_set["ngram_surprisal"][1, :, 0] = np.nan
    found = _analysed(loss, text, probe_set=probe_set)
    learned = np.isfinite(found["age"]).all("run")
    assert int(found["n_compared"].sum()) == int(learned[:, 1:].sum())
    assert found["kind_rho"].notnull().all()


def test_kinds_of_curves_add_up_and_are_those_of_their_tokens(
    result: xr.Dataset, text: SimpleNamespace
) -> None:
    np.testing.assert_allclose(result["curve_share"].sum("curve_kind"), 1)
    kind = result["of_kind"]
    for number in (1, 2, 3):
        share = (kind == number).mean(("sequence", "pos"))
        np.testing.assert_allclose(result["curve_share"].sel(curve_kind=number), share)
    mean_age = [float(result["age"][:3].where(kind[0] == n).mean()) for n in (1, 2, 3)]
    assert mean_age == sorted(mean_age)
    early = typical_ids(result, text.probe_set)[1]
    shares = [share for _, share in early]
    assert shares == sorted(shares, reverse=True)
    assert early[0][0].startswith("' ")
    frequent = [int(name.strip("' ")) for name, _ in early]
    assert np.median(frequent) < N_IDS / 2


def test_every_estimate_of_the_tables_has_its_interval(
    result: xr.Dataset, text: SimpleNamespace
) -> None:
    shown = {table.title: table for table in tables(result, text.probe_set)}
    arms = shown["Learning and forgetting"]
    assert len(arms.rows) == 2 * (1 + len(MEASURES))
    assert arms.columns[-2:] == ("95% over works", "95% over runs")
    for row in arms.rows:
        low, high = (float(x) for x in row[3].split(" to "))
        assert low <= float(row[2]) <= high
    order = shown["Spearman correlation of ages, by kind of pair"]
    assert [row[1] for row in order.rows] == ["nothing"] * 3 + ["token statistics"] * 3


def test_figures_show_every_pair_arm_and_kind(result: xr.Dataset) -> None:
    dots = [
        float(line.get_ydata()[0])
        for ax in plot_similarity(result).axes
        for line in ax.lines
        if line.get_fillstyle() == "left"
    ]
    shown = result["pair_rho"].transpose("control", "pair").values.ravel()
    np.testing.assert_allclose(sorted(dots), sorted(shown))
    assert len(plot_kinds(result).axes) == 3
    assert plot_ages(result).axes[0].get_ylabel() == "share of tokens acquired"
    assert [ax.get_xlabel() for ax in plot_predictors(result).axes] == [
        "unigram surprisal of the token (nat)",
        "Spearman correlation with age",
    ]


def test_what_cannot_be_compared_is_refused(loss: xr.DataArray, text: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"needs 3 steps .* there are 2; .* observed 2"):
        _analysed(loss.isel(step=[0, 9]), text)
    flat = loss.copy(data=np.full(loss.shape, CHANCE, dtype="float32"))
    with pytest.raises(ValueError, match=r"learned 0 of 960 tokens, .*dense-seed0 learned fewest"):
        _analysed(flat, text)
    with pytest.raises(ValueError, match="at least 2 observed"):
        _analysed(loss.isel(run=[0]), text)
    with pytest.raises(ValueError, match="at least 2"):
        _analysed(loss, text, unit=text.unit.copy(data=["one"] * N_SEQUENCES))


def test_single_runs_of_an_arm_make_no_claim_about_arms(
    loss: xr.DataArray, text: SimpleNamespace
) -> None:
    found = _analysed(loss.isel(run=[0, 3]), text)
    assert found.sizes["contrast"] == 0
    finding = analysis._finding(found)
    assert "cannot be told: that takes two arms of two runs" in analysis._contrast_caveat(found)
    assert "orders of their own" not in finding
    assert "allow no claim about arms" in finding
    assert plot_similarity(found)


def test_command_writes_a_page_that_repeats_it(study: Path, tmp_path: Path) -> None:
    arguments = [str(study), "--unit", "document", "--report", str(tmp_path / "a b")]
    assert analysis.main(arguments) == 0
    folder = tmp_path / "a b" / "learning_order"
    page = (folder / "index.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("python -m analyses"))
    assert set(shlex.split(command)[3:]) == set(arguments)
    assert "over 60 documents" in page
    assert "come from 20 works" in page
    assert "Runs: 3 of dense and 3 of switch." in page
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found = xr.Dataset.from_dict(stored)
    with (folder / "order_by_kind.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            at = found.sel(kind=row["kind"], control=row["control"])
            assert float(row["kind_rho"]) == pytest.approx(float(at["kind_rho"]), rel=1e-7)
            assert float(row["kind_rho_ci_lower"]) < float(row["kind_rho"])


def test_same_seed_gives_the_same_numbers(
    result: xr.Dataset, loss: xr.DataArray, text: SimpleNamespace
) -> None:
    xr.testing.assert_identical(_analysed(loss, text), result)
