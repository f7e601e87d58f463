"""Planted differences of arms are found where they are, with intervals that hold their level."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from scipy import optimize, stats

from analyses import loss_differences as analysis
from analyses.comparison.classes.arm_pairs import ArmPair, arm_pairs
from analyses.comparison.classes.class_differences import classified
from analyses.comparison.classes.class_evidence import class_evidence, exchange_tests
from analyses.comparison.classes.reliable_types import reliable_types
from analyses.loss_differences import loss_differences
from analyses.reporting.cli import UNANSWERABLE
from analyses.reporting.difference_tables import in_context, token_texts
from analyses.reporting.text import escape
from analyses.statistics.class_means import class_interval, class_means, class_sums
from analyses.statistics.permutation import adjusted_p
from analyses.statistics.resampling import jackknife
from analyses.statistics.token_classes import token_classes
from analyses.statistics.token_types import halves, kept_difference, reliability, type_means
from analyses.statistics.two_arms import hedges_g, welch

MINUS = "\N{MINUS SIGN}"
N_WORKS, SEQUENCES, POSITIONS, N_IDS = 24, 3, 32, 30
AHEAD, PLANTED = 0.2, 0.3


@pytest.fixture(scope="module")
def texts() -> xr.Dataset:
    """Works of three sequences; a third of the works is verse, and few ids make bigrams repeat."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, N_IDS + 1)
    row = rng.choice(N_IDS, (N_WORKS * SEQUENCES, POSITIONS + 1), p=share / share.sum())
    work = np.repeat(np.arange(N_WORKS), SEQUENCES)
    names = np.array([f"w{i:02d}" for i in work], dtype=object)
    return xr.Dataset(
        {
            "token": (("sequence", "pos"), row[:, :-1]),
            "target": (("sequence", "pos"), row[:, 1:]),
            "document": ("sequence", names),
            "work": ("sequence", names),
            "domain": ("sequence", np.where(work % 3 == 0, "verse", "prose").astype(object)),
        }
    )


@pytest.fixture(scope="module")
def unit(texts: xr.Dataset) -> xr.DataArray:
    return xr.DataArray(texts["work"].values.astype(str), dims="sequence", attrs={"unit": "work"})


def losses(
    effect: np.ndarray, *, seeds: dict[str, int], rng: np.random.Generator, steps: int = 2
) -> xr.DataArray:
    """Losses that all runs share, noise of each run alone, and an effect in the MoE arm."""
    shared = rng.gamma(2.0, 1.0, effect.shape)
    runs = [f"{arm}-seed{seed}" for arm, n in seeds.items() for seed in range(n)]
    arms = [arm for arm, n in seeds.items() for _ in range(n)]
    mean = [shared + 2.0 + (arm == "switch") * effect for arm in arms]
    values = [
        [own - step + 0.1 * rng.standard_normal(shared.shape) for step in range(steps)]
        for own in mean
    ]
    return xr.DataArray(
        np.array(values, dtype="float32"),
        dims=("run", "step", "sequence", "pos"),
        coords={
            "run": runs,
            "step": [0, 4][:steps],
            "arm": ("run", arms),
            "architecture": ("run", ["moe" if arm == "switch" else "dense" for arm in arms]),
        },
    )


@pytest.fixture(scope="module")
def trained(texts: xr.Dataset) -> xr.DataArray:
    """Four runs of each of two arms; switch is behind everywhere, and more so in verse."""
    verse = (texts["domain"].values == "verse")[:, None]
    effect = np.broadcast_to(AHEAD + PLANTED * verse, texts["token"].shape)
    return losses(effect, seeds={"dense": 4, "switch": 4}, rng=np.random.default_rng(1))


@pytest.fixture(scope="module")
def result(trained: xr.DataArray, texts: xr.Dataset, unit: xr.DataArray) -> xr.Dataset:
    return loss_differences(trained, texts, unit)


@pytest.fixture(scope="module")
def at(result: xr.Dataset) -> xr.Dataset:
    return result.isel(step=-1).sel(arm_pair=f"switch {MINUS} dense")


def test_planted_difference_has_its_size_in_its_class(at: xr.Dataset) -> None:
    share = 1 / 3
    verse, prose, everything = (
        at.sel(token_class=name) for name in ("domain: verse", "domain: prose", "all tokens")
    )
    np.testing.assert_allclose(everything["difference"], AHEAD + share * PLANTED, atol=0.01)
    np.testing.assert_allclose(verse["difference"], AHEAD + PLANTED, atol=0.01)
    np.testing.assert_allclose(verse["relative"], (1 - share) * PLANTED, atol=0.01)
    np.testing.assert_allclose(prose["relative"], -share * PLANTED, atol=0.01)


def test_planted_difference_is_told_there_and_nowhere_else(at: xr.Dataset) -> None:
    told = at["token_class"].values[at["p_adjusted"].values <= 0.05].tolist()
    assert told == ["domain: prose", "domain: verse"]
    assert np.isnan(at["p_adjusted"].values[-1])  # all tokens is in no family


def test_arm_that_is_simply_ahead_does_not_differ_in_kind(
    texts: xr.Dataset, unit: xr.DataArray
) -> None:
    effect = np.full(texts["token"].shape, AHEAD)
    trained = losses(effect, seeds={"dense": 3, "switch": 3}, rng=np.random.default_rng(2))
    at = loss_differences(trained, texts, unit).isel(step=-1, arm_pair=0)
    np.testing.assert_allclose(at["difference"], AHEAD, atol=0.05)
    np.testing.assert_allclose(at["relative"], 0.0, atol=0.05)
    assert not (at["p_adjusted"] <= 0.05).any()


def test_class_means_agree_with_numpy(
    at: xr.Dataset, trained: xr.DataArray, texts: xr.Dataset
) -> None:
    classes, label = token_classes(texts)["bigram"]
    values = trained.isel(step=-1).astype("float64")
    inside = label == classes.index("repeated")
    of_run = values.values[:, inside].mean(axis=1)
    np.testing.assert_allclose(at["class_loss"].sel(token_class="bigram: repeated"), of_run)
    np.testing.assert_allclose(
        at["difference"].sel(token_class="bigram: repeated"), of_run[4:].mean() - of_run[:4].mean()
    )
    assert int(at["n_tokens"].sel(token_class="bigram: repeated")) == inside.sum()
    test = stats.ttest_ind(
        *(g - values.values.mean(axis=(1, 2))[s] for g, s in
          ((of_run[4:], slice(4, 8)), (of_run[:4], slice(0, 4)))), equal_var=False,
    )  # fmt: skip
    repeated = at.sel(token_class="bigram: repeated")
    np.testing.assert_allclose(repeated["p"], test.pvalue)
    np.testing.assert_allclose(repeated["relative_run_ci"], test.confidence_interval())
    np.testing.assert_allclose(repeated["relative_dof"], test.df)


def test_interval_over_works_agrees_with_deleting_each_work(
    at: xr.Dataset, trained: xr.DataArray, texts: xr.Dataset
) -> None:
    gap = trained.isel(step=-1).astype("float64").groupby("arm").mean("run")
    gap = (gap.sel(arm="switch") - gap.sel(arm="dense")).values
    verse = (texts["domain"].values == "verse")[:, None] & np.ones(gap.shape, bool)
    work = np.repeat(np.arange(N_WORKS), SEQUENCES)[:, None]
    deleted = np.array(
        [gap[verse & (work != w)].mean() - gap[np.broadcast_to(work != w, gap.shape)].mean()
         for w in range(N_WORKS)]
    )  # fmt: skip
    error = np.sqrt((N_WORKS - 1) / N_WORKS * ((deleted - deleted.mean()) ** 2).sum())
    margin = stats.t.ppf(0.975, N_WORKS / 3 - 1) * error  # a third of the works is verse
    expected = float(at["relative"].sel(token_class="domain: verse")) + margin * np.array([-1, 1])
    np.testing.assert_allclose(at["relative_ci"].sel(token_class="domain: verse"), expected)


def test_exchanging_the_arms_turns_every_sign(
    result: xr.Dataset, trained: xr.DataArray, texts: xr.Dataset, unit: xr.DataArray
) -> None:
    other = {"dense": "switch", "switch": "dense"}
    arms = [other[arm] for arm in trained["arm"].values]
    moe = ["moe" if arm == "switch" else "dense" for arm in arms]
    turned = loss_differences(
        trained.assign_coords(arm=("run", arms), architecture=("run", moe)), texts, unit
    )
    here, there = (r.sel(arm_pair=f"switch {MINUS} dense").isel(step=-1) for r in (result, turned))
    for name in ("difference", "relative", "g", "d"):
        np.testing.assert_allclose(there[name], -here[name], atol=1e-9)
    for name in ("difference_ci", "relative_run_ci", "g_ci"):
        np.testing.assert_allclose(there[name], -here[name].values[..., ::-1], atol=1e-6)
    for name in ("p", "p_adjusted", "p_label", "seed_sd"):
        np.testing.assert_allclose(there[name], here[name])


def test_order_of_runs_and_sequences_does_not_matter(
    result: xr.Dataset, trained: xr.DataArray, texts: xr.Dataset, unit: xr.DataArray
) -> None:
    back = slice(None, None, -1)
    turned = loss_differences(
        trained.isel(run=back, sequence=back), texts.isel(sequence=back), unit[back]
    )
    for name in ("relative", "relative_ci", "relative_run_ci", "p_label"):
        np.testing.assert_allclose(turned[name], result[name], atol=1e-9)


def test_arms_are_paired_with_the_first_and_one_with_itself() -> None:
    arms = ["dense"] * 4 + ["dense_20"] + ["hash"] * 2 + ["switch"] * 2
    runs = xr.Dataset(
        coords={"arm": ("run", arms), "architecture": ("run", ["dense"] * 5 + ["moe"] * 4)}
    )
    pairs = arm_pairs(runs)
    assert [pair.name for pair in pairs] == [
        f"hash {MINUS} dense", f"switch {MINUS} dense", f"hash {MINUS} dense_20",
        f"switch {MINUS} dense_20", f"dense_20 {MINUS} dense",
        f"dense {MINUS} dense, other seeds", f"switch {MINUS} hash",
    ]  # fmt: skip
    itself = next(pair for pair in pairs if pair.kind == "same arm")
    assert (itself.first.tolist(), itself.second.tolist()) == ([1, 3], [0, 2])
    assert [pair.enough for pair in pairs] == [True, True, False, False, False, True, True]


def test_welch_agrees_with_scipy() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(1, 1, (3, 7)), rng.normal(0, 3, (5, 7))
    ours, theirs = welch(first, second, level=0.9), stats.ttest_ind(first, second, equal_var=False)
    np.testing.assert_allclose(ours.p, theirs.pvalue)
    np.testing.assert_allclose(ours.dof, theirs.df)
    np.testing.assert_allclose(ours.ci.T, theirs.confidence_interval(0.9))


def test_without_a_second_run_only_the_difference_is_known() -> None:
    ours = welch(np.array([[1.0]]), np.array([[0.5], [0.7]]))
    assert ours.difference == pytest.approx(0.4)
    assert np.isnan([ours.standard_error, ours.dof, ours.p]).all()
    assert np.isnan(ours.ci).all()
    g, ci = hedges_g(np.array([[1.0]]), np.array([[0.5], [0.7]]))
    assert np.isnan(g).all()
    assert np.isnan(ci).all()


def test_groups_without_spread_give_no_warning_and_no_claim() -> None:
    same = np.full((3, 2), 1.5)
    assert np.isnan(welch(same, same).p).all()
    assert np.isnan(hedges_g(same, same + 1)[0]).all()
    assert (welch(same + 1, same).p == 0).all()


def test_hedges_g_is_the_known_value_and_its_interval_inverts_the_noncentral_t() -> None:
    first, second = np.array([[3.0], [4.0], [5.0]]), np.array([[1.0], [2.0], [3.0], [4.0]])
    g, ci = hedges_g(first, second)
    spread = np.sqrt((2 * 1.0 + 3 * 5 / 3) / 5)
    # J(5) = Gamma(5/2) / (sqrt(5/2) Gamma(2)) = 0.84074...
    np.testing.assert_allclose(g, 1.5 / spread * 0.8407487, rtol=1e-6)
    root = np.sqrt(12 / 7)
    t = root * 1.5 / spread
    for end, tail in zip(ci[0], (0.975, 0.025), strict=True):
        nc = optimize.brentq(lambda nc, tail=tail: stats.nct.cdf(t, 5, nc) - tail, -5, 10)
        assert end == pytest.approx(nc / root, rel=1e-5)


@pytest.mark.parametrize(("n_first", "n_second"), [(2, 2), (3, 3), (4, 2), (8, 5)])
def test_intervals_over_runs_hold_their_level(n_first: int, n_second: int) -> None:
    rng = np.random.default_rng(4)
    delta, replicates = 1.2, 2000
    first = rng.normal(delta, 1, (n_first, replicates))
    second = rng.normal(0, 1, (n_second, replicates))
    low, high = welch(first, second).ci.T
    hits = int(((low < delta) & (delta < high)).sum())
    assert hits == {(2, 2): 1951, (3, 3): 1926, (4, 2): 1912, (8, 5): 1905}[n_first, n_second]
    assert hits >= 1874  # 99% range of a 95% interval: 1874 to 1924; Welch is wide with few runs
    g, ci = hedges_g(first, second)
    covered = int(((ci[:, 0] < delta) & (delta < ci[:, 1])).sum())
    assert 1874 <= covered <= 1924
    # without the correction for few runs, d is too large by 1/J: 1.77 at 2 and 2
    if n_first + n_second >= 6:
        assert g.mean() == pytest.approx(delta, abs=0.06)


@pytest.mark.parametrize(("holding", "naive"), [(3, 0.87), (6, 0.93), (30, 0.97)])
def test_interval_over_units_holds_for_a_class_that_few_units_have(
    holding: int, naive: float
) -> None:
    rng = np.random.default_rng(5)
    n_units, replicates = 30, 1000
    counts = np.zeros((n_units, 2))
    counts[:, 1] = 100
    counts[:holding, 0] = 40
    shift = 0.1 * rng.standard_normal((n_units, replicates))
    own = counts[:, :1] * shift + np.sqrt(counts[:, :1]) * rng.standard_normal(shift.shape)
    rest = (100 - counts[:, :1]) * shift + np.sqrt(100 - counts[:, :1]) * rng.standard_normal(
        shift.shape
    )
    sums = np.stack([own, own + rest], axis=1)
    mean, deleted = class_means(sums, counts)
    low, high = class_interval(mean, deleted, counts)[0].T
    assert ((low < 0) & (high > 0)).mean() >= 0.94
    # the negative control: degrees of freedom of all units, whether they hold the class or not
    low, high = jackknife(mean, deleted).ci[0].T
    assert ((low < 0) & (high > 0)).mean() <= naive


def test_class_in_one_unit_has_no_interval_over_units() -> None:
    counts = np.array([[5.0, 9.0], [0.0, 8.0], [0.0, 7.0]])
    sums = np.array([[0.3, 1.0], [0.0, 2.0], [0.0, 1.5]])[..., None]
    mean, deleted = class_means(sums, counts, overall=1)
    ci = class_interval(mean, deleted, counts)
    assert mean[0, 0] == pytest.approx(0.3 / 5 - 4.5 / 24)
    assert np.isnan(ci[0]).all()


def test_class_sums_agree_with_a_slow_loop() -> None:
    rng = np.random.default_rng(6)
    values, unit = rng.standard_normal((2, 50)), rng.integers(0, 3, 50)
    label = np.stack([rng.integers(-1, 2, 50), rng.integers(2, 4, 50)])
    sums = class_sums(values, unit, label, shape=(3, 4))
    for u in range(3):
        for c in range(4):
            inside = (unit == u) & (label == c).any(axis=0)
            np.testing.assert_allclose(sums[u, c], values[:, inside].sum(axis=1), atol=1e-12)


def test_without_an_arm_effect_false_discoveries_are_rare(
    texts: xr.Dataset, unit: xr.DataArray
) -> None:
    rng = np.random.default_rng(7)
    tokens = classified(token_classes(texts), unit)
    target = texts["target"].values.ravel()
    pair = ArmPair("a", "MoE and dense", "a", "b", np.arange(3), np.arange(3, 6))
    claimed = naive = 0
    for _ in range(200):
        # each run has its own luck with each token id: noise that tokens of a class share
        values = 0.2 * rng.standard_normal((6, N_IDS))[:, target]
        values += 0.1 * rng.standard_normal(values.shape)
        found = class_evidence(values, tokens, [pair], level=0.95, n_resamples=20, rng=rng)
        claimed += bool((found["p_adjusted"] <= 0.05).any())
        gap = values[:3].mean(axis=0) - values[3:].mean(axis=0)
        p = [
            stats.ttest_1samp(gap[of] - gap.mean(), 0).pvalue
            for i in range(len(tokens.classes) - 1)
            if (of := (tokens.label == i).any(axis=0)).any()
        ]
        naive += (adjusted_p(np.array(p), method="fdr_by") <= 0.05).any()
    assert claimed <= 15  # 10 expected at most
    assert naive > 100  # taking tokens for the sample finds arms that are not there


def test_family_is_the_classes_of_a_pair_and_g_is_per_seed_noise(at: xr.Dataset) -> None:
    np.testing.assert_allclose(
        at["p_adjusted"].values[:-1],
        stats.false_discovery_control(at["p"].values[:-1], method="by"),
    )
    expected = at["relative"] / at["seed_sd"]
    ratio = (at["g"] / expected).values[:-1]
    np.testing.assert_allclose(ratio, 0.8687, atol=1e-3)  # J(6)


def test_d_is_per_spread_of_losses_between_tokens(at: xr.Dataset, trained: xr.DataArray) -> None:
    values = trained.isel(step=-1).values.reshape(8, -1).astype(float)
    spread = np.sqrt(values.var(axis=1).mean())
    everything = at.sel(token_class="all tokens")
    np.testing.assert_allclose(everything["d"], everything["difference"] / spread, rtol=1e-5)


def test_exchange_is_exact_and_says_how_small_it_can_get() -> None:
    far, near = np.array([[5.0], [6.0], [7.0]]), np.array([[1.0], [2.0], [3.0]])
    (test,) = exchange_tests(far, near, n_resamples=100, rng=np.random.default_rng(0))
    assert test.exact
    assert (test.p, test.smallest_p) == (pytest.approx(2 / 20), pytest.approx(2 / 20))
    (test,) = exchange_tests(far[:2], near, n_resamples=100, rng=np.random.default_rng(0))
    assert test.p == pytest.approx(1 / 10)


def test_at_equal_loss_arms_do_not_differ_overall_but_in_the_planted_class(
    trained: xr.DataArray, texts: xr.Dataset, unit: xr.DataArray
) -> None:
    matched = loss_differences(trained, texts, unit, match="loss").isel(loss_level=-1, arm_pair=0)
    assert abs(float(matched["difference"].sel(token_class="all tokens"))) < 1e-6
    verse = matched.sel(token_class="domain: verse")
    np.testing.assert_allclose(verse["relative"], PLANTED * 2 / 3, atol=0.02)
    assert verse["p_adjusted"] <= 0.05


def test_one_seed_an_arm_has_no_interval_over_runs(
    trained: xr.DataArray, texts: xr.Dataset, unit: xr.DataArray
) -> None:
    result = loss_differences(trained.isel(run=[0, 4]), texts, unit)
    at = result.isel(step=-1, arm_pair=0)
    for name in ("relative_run_ci", "relative_dof", "p", "p_adjusted", "p_label", "g", "g_ci"):
        assert at[name].isnull().all()
    assert at["relative_ci"].sel(token_class="domain: verse").notnull().all()
    assert at["d"].notnull().all()
    assert "choice" not in result.dims
    assert result["pair_kind"].values.tolist() == ["MoE and dense"]


def test_a_step_that_a_run_lacks_is_not_compared(
    trained: xr.DataArray, texts: xr.Dataset, unit: xr.DataArray, result: xr.Dataset
) -> None:
    for broken in (np.nan, np.inf):
        holed = trained.copy(deep=True)
        holed[{"run": 6, "step": 1, "sequence": 2, "pos": 3}] = broken
        found = loss_differences(holed, texts, unit)
        assert int(found["last"]) == 0
        pair = found.sel(arm_pair=f"switch {MINUS} dense")
        assert pair["relative"].isel(step=1).isnull().all()
        np.testing.assert_allclose(
            pair["relative"].isel(step=0), result["relative"].isel(step=0, arm_pair=0)
        )
        # what the run has no part in is known at every step
        itself = found.sel(arm_pair=f"dense {MINUS} dense, other seeds")
        assert itself["relative"].notnull().all()


def test_a_run_without_finite_losses_is_left_out(
    trained: xr.DataArray, texts: xr.Dataset, unit: xr.DataArray
) -> None:
    holed = trained.copy(deep=True)
    holed[{"run": 6}] = np.nan
    found = loss_differences(holed, texts, unit)
    assert found.sizes["run"] == 7
    assert int(found["n_runs_a"].sel(arm_pair=f"switch {MINUS} dense")) == 3


def test_runs_without_a_step_in_common_are_refused(
    trained: xr.DataArray, texts: xr.Dataset, unit: xr.DataArray
) -> None:
    holed = trained.copy(deep=True)
    holed[{"run": 0, "step": 1}] = np.nan
    holed[{"run": 7, "step": 0}] = np.nan
    with pytest.raises(ValueError, match=r"no step that all runs.*dense-seed0 and switch-seed3"):
        loss_differences(holed, texts, unit)


def test_one_arm_is_refused(trained: xr.DataArray, texts: xr.Dataset, unit: xr.DataArray) -> None:
    with pytest.raises(ValueError, match="all 4 runs are of arm 'dense'"):
        loss_differences(trained.isel(run=slice(4)), texts, unit)


def test_small_classes_and_single_ones_are_left_out(texts: xr.Dataset, unit: xr.DataArray) -> None:
    divisions = token_classes(texts)
    few = divisions["position"].label == 0
    tokens = classified(divisions, unit, fewest=int(few.sum()) + 1)
    assert "position: 1 to 4 tokens" not in tokens.classes
    one = texts.assign(domain=("sequence", np.full(texts.sizes["sequence"], "prose")))
    assert "domain" not in classified(token_classes(one), unit).division


def _text(texts: xr.Dataset, *, min_count: int = 20):
    target = texts["target"].values.ravel()
    work = np.repeat(np.arange(N_WORKS), SEQUENCES * POSITIONS)
    domain = np.repeat(texts["domain"].values.astype(str), POSITIONS)
    rng = np.random.default_rng(0)
    return halves(target, work, domain, min_count=min_count, min_units=4, rng=rng), work, domain


def test_halves_share_no_unit_and_share_out_the_strata(texts: xr.Dataset) -> None:
    text, work, domain = _text(texts)
    assert not set(work[text.second]) & set(work[~text.second])
    for name in ("prose", "verse"):
        n = [len(set(work[(text.second == half) & (domain == name)])) for half in (False, True)]
        assert n[0] == n[1]
    target = texts["target"].values.ravel()
    for i, token in enumerate(text.ids):
        assert (target[text.type_index == i] == token).all()
        counted = [(target[text.second == half] == token).sum() for half in (0, 1)]
        assert text.counts[:, i].tolist() == counted
        assert min(counted) >= 20


def test_type_means_agree_with_a_slow_loop(texts: xr.Dataset) -> None:
    text, *_ = _text(texts)
    values = np.random.default_rng(8).standard_normal((3, len(text.second)))
    means = type_means(values, text)
    for half in (0, 1):
        of = text.second == half
        for i in range(len(text.ids)):
            own = values[:, of & (text.type_index == i)].mean(axis=1)
            np.testing.assert_allclose(means[half, i], own - values[:, of].mean(axis=1))


def test_reliability_is_welch_t_with_the_median_error_added() -> None:
    rng = np.random.default_rng(9)
    first, second = rng.standard_normal((4, 5)), rng.standard_normal((3, 5))
    error = np.sqrt(first.var(0, ddof=1) / 4 + second.var(0, ddof=1) / 3)
    expected = (first.mean(0) - second.mean(0)) / (error + np.median(error))
    np.testing.assert_allclose(reliability(first, second), expected)


def test_planted_ids_are_chosen_and_keep_their_difference(texts: xr.Dataset) -> None:
    text, *_ = _text(texts)
    rng = np.random.default_rng(10)
    planted = text.ids[[2, 5]]
    values = 3 + 0.3 * rng.standard_normal((8, len(text.second)))
    target = texts["target"].values.ravel()
    values[:4] += 0.5 * (target == planted[0]) - 0.5 * (target == planted[1])
    pair = ArmPair("a", "MoE and dense", "a", "b", np.arange(4), np.arange(4, 8))
    found = reliable_types(values, text, [pair], most=2, n_resamples=100, rng=rng).isel(choice=0)
    assert set(found["chosen_id"].values) == set(planted)
    np.testing.assert_allclose(np.abs(found["chosen_difference"]), 0.5, atol=0.12)
    assert (np.sign(found["chosen_difference"][0]) == np.sign(found["chosen_difference"][1])).all()
    np.testing.assert_allclose(found["kept"], 0.5, atol=0.08)
    assert found["kept_p"] == found["kept_smallest_p"] == pytest.approx(2 / 70)
    low, high = found["kept_ci"].values
    assert low < float(found["kept"][1]) < high
    assert high - low < 0.3
    for i in range(2):
        place = int(found["example"][i])
        assert text.second[place]
        assert target[place] == found["chosen_id"][i]
        gap = values[:4].mean(axis=0) - values[4:].mean(axis=0)
        there = text.second & (target == target[place])
        assert abs((gap[there] < gap[place]).mean() - 0.5) < 0.06
        np.testing.assert_allclose(
            found["example_loss"][i], [values[:4, place].mean(), values[4:, place].mean()]
        )


def test_chosen_differences_shrink_to_nothing_where_there_are_none(texts: xr.Dataset) -> None:
    text, *_ = _text(texts, min_count=10)
    rng = np.random.default_rng(11)
    before, after = [], []
    for _ in range(40):
        means = np.moveaxis(type_means(rng.standard_normal((6, len(text.second))), text), -1, 0)
        kept = kept_difference(means[:3], means[3:], n_chosen=5)
        before.append(kept.before)
        after.append(kept.after)
    assert np.mean(before) > 0.1
    assert abs(np.mean(after)) < 0.03


def test_luck_of_seeds_is_kept_and_exchanged_runs_say_so(texts: xr.Dataset) -> None:
    text, *_ = _text(texts, min_count=10)
    rng = np.random.default_rng(12)
    target = texts["target"].values.ravel()
    pair = ArmPair("a", "MoE and dense", "a", "b", np.arange(3), np.arange(3, 6))
    p, after, chance = [], [], []
    for _ in range(40):
        # the same luck with an id in both halves: the other half of the text does not cure it
        luck = 0.3 * rng.standard_normal((6, N_IDS))
        values = luck[:, target] + 0.1 * rng.standard_normal((6, len(target)))
        found = reliable_types(values, text, [pair], most=4, n_resamples=100, rng=rng)
        p.append(float(found["kept_p"][0]))
        after.append(float(found["kept"][0, 1]))
        chance.append(float(found["kept_chance"][0]))
    assert np.mean(after) > 0.2
    assert np.mean(chance) == pytest.approx(np.mean(after), rel=0.15)
    assert np.mean(np.array(p) <= 0.1) <= 0.2  # the test holds its level all the same


def test_text_of_the_corpus_is_only_shown() -> None:
    vocabulary = np.array(["a", " <b>|", "\n", "*x*", "\ufffd"], dtype=object)
    row = np.array([[0, 1, 2, 3, 4]])
    texts = xr.Dataset(
        {
            "token": (("sequence", "pos"), row[:, :-1]),
            "target": (("sequence", "pos"), row[:, 1:]),
            "vocabulary": ("d_vocab", vocabulary),
        }
    )
    shown = in_context(1, texts)
    assert shown == "…a <b>|»↵«*x*\ufffd…"
    assert not set(escape(shown)) & set("<>|*")
    assert token_texts(np.array([1, 2, 4]), texts).tolist() == [
        "␣<b>|",
        "↵ (id 2)",
        "\ufffd (id 4)",
    ]
    assert token_texts(np.array([3]), texts.drop_vars("vocabulary")).tolist() == ["id 3"]


@pytest.fixture(scope="module")
def page(study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("differences")
    status = analysis.main([str(study_folder), "--report", str(folder), "--n-resamples", "19"])
    here = folder / "loss_differences"
    return SimpleNamespace(status=status, folder=here, text=(here / "index.md").read_text("utf-8"))


def test_report_says_that_few_seeds_allow_no_claim(page: SimpleNamespace) -> None:
    assert page.status == 0
    assert "fewer than 3 allow no claim about arms" in page.text
    assert "Not known for dense_20 " in page.text
    assert "for want of runs" in page.text
    assert "are 0 of 7 for switch" in page.text


def test_report_holds_its_figures_numbers_and_draws(page: SimpleNamespace) -> None:
    results = json.loads((page.folder / "results.json").read_text("utf-8"))
    assert {"relative_ci", "relative_run_ci", "g", "p_adjusted", "relative_deleted"} <= set(
        results["data_vars"]
    ) | set(results["draws"])
    for name in ("loss_differences", "differences_over_training", "token_ids"):
        assert (page.folder / f"{name}.png").stat().st_size > 10_000
    header = (page.folder / "loss_differences.csv").read_text("utf-8").splitlines()[0]
    assert "relative_run_ci_lower" in header


def test_runs_of_one_arm_end_with_a_sentence(
    study_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dense = [str(study_folder / f"dense-seed{i}.zarr") for i in (0, 1)]
    assert analysis.main([*dense, "--report", str(tmp_path)]) == UNANSWERABLE
    assert "give runs of at least two arms" in capsys.readouterr().err


def test_unfinished_run_is_named(
    write_study: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = {"dense-seed0": "dense", "dense-seed1": "dense", "switch-seed0": "switch"}
    folder = write_study(tmp_path / "s", runs, unfinished=("switch-seed0",))
    assert analysis.main([str(folder), "--report", str(tmp_path / "r")]) == 0
    text = (tmp_path / "r" / "loss_differences" / "index.md").read_text("utf-8")
    assert "compared at step 1, the last that all runs observed; some went on to step 4" in text
    assert "page:" in capsys.readouterr().out
