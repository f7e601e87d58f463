import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests

from analyses import significance as analysis
from analyses.comparison.claims.evidence import evidence, verdict
from analyses.comparison.claims.hypotheses import (
    CLOSE,
    OTHER,
    Claim,
    claims_about_dense,
    claims_about_moe,
    mean_z,
    z_matrix,
)
from analyses.comparison.claims.stages import SHARE, Stages, stages
from analyses.r2_over_time import r2_over_time
from analyses.reporting.claim_figures import draw_curves
from analyses.significance import plot, significance, similarity_of_losses

STEPS = (0, 40, 100, 200, 300, 400)
LEVEL = (8.0, 6.0, 5.0, 4.5, 4.0, 3.8)
UNIGRAM = 7.0
N_UNITS, N_POS = 40, 80
UNKNOWN = "cannot be told with these seeds"
TIMES = "\N{MULTIPLICATION SIGN}"
STILL = (1.0,) * len(STEPS)


def _world(
    noise: dict[str, tuple[float, ...]], *, n_runs: int = 4, part: float = 0.0, seed: int = 0
) -> tuple[xr.DataArray, xr.DataArray]:
    """Losses level + T + A_arm + e_run; `noise` is the spread of e at each step, by arm."""
    rng = np.random.default_rng(seed)
    shape = (N_UNITS, N_POS)
    shared = rng.standard_normal(shape)
    values, runs, arms = [], [], []
    for arm, spread in noise.items():
        own = part * rng.standard_normal(shape)
        for i in range(n_runs):
            of_run = 1 + 0.02 * rng.standard_normal()
            values.append(
                [
                    level + shared + own + of_run * sd * rng.standard_normal(shape)
                    for level, sd in zip(LEVEL, spread, strict=True)
                ]
            )
            runs.append(f"{arm}-seed{i}")
            arms.append(arm)
    coords = {
        "run": runs,
        "step": list(STEPS),
        "arm": ("run", arms),
        "architecture": ("run", ["dense" if a.startswith("dense") else "moe" for a in arms]),
    }
    loss = xr.DataArray(np.array(values), dims=("run", "step", "sequence", "pos"), coords=coords)
    names = [f"work {i:02d}" for i in range(N_UNITS)]
    return loss, xr.DataArray(names, dims="sequence", attrs={"unit": "work"})


def _weighed(noise: dict[str, tuple[float, ...]], **world) -> xr.Dataset:
    return significance(similarity_of_losses(*_world(noise, **world)), unigram=UNIGRAM)


def _scaled(spread: float, by: tuple[float, ...] = STILL) -> tuple[float, ...]:
    return tuple(spread * factor for factor in by)


@pytest.fixture(scope="module")
def one_factor() -> xr.Dataset:
    """Nothing but how hard tokens are is shared; MoE seeds are noisier."""
    return _weighed({"dense": _scaled(0.4), "switch": _scaled(0.6)})


@pytest.fixture(scope="module")
def arm_effect() -> xr.Dataset:
    """The same noise, and something that runs share within their arm alone."""
    return _weighed({"dense": _scaled(0.4), "switch": _scaled(0.4)}, n_runs=5, part=0.3)


def test_noisier_moe_alone_puts_moe_moe_below_and_leaves_delta_unrefuted(
    one_factor: xr.Dataset,
) -> None:
    told = one_factor["verdict"]
    for claim in (
        f"switch {TIMES} switch is below dense {TIMES} switch",
        f"dense {TIMES} dense stays above dense {TIMES} switch",
    ):
        assert told.sel(hypothesis=claim) == "supported"
    delta = one_factor.sel(hypothesis="delta of dense and switch is 0")
    assert delta["verdict"] == UNKNOWN
    assert abs(float(delta["estimate"])) < CLOSE
    assert float(delta["p"]) > 0.05


def test_arm_effect_refutes_that_nothing_systematic_differs(arm_effect: xr.Dataset) -> None:
    for claim in ("delta of dense and switch is 0", "rho2 of dense and switch is within 1% of 1"):
        assert arm_effect["verdict"].sel(hypothesis=claim) == "refuted"
    # rho2 = (T² / (T² + A²))² with T = 1, A = .3
    expected = 1 / (1 + 0.3**2) ** 2 - 1
    rho2 = arm_effect["estimate"].sel(hypothesis="delta of dense and switch is 0")
    assert float(rho2) == pytest.approx(expected, abs=0.02)


def test_equal_arms_without_noise_of_runs_are_told_to_be_within_a_percent() -> None:
    result = _weighed({"dense": _scaled(0.15), "switch": _scaled(0.2)})
    close = result.sel(hypothesis="rho2 of dense and switch is within 1% of 1")
    assert close["verdict"] == "supported"
    assert float(close["low"]) == pytest.approx(-CLOSE)
    assert float(close["high"]) == pytest.approx(CLOSE)


def test_u_shape_with_equal_ends_is_found_at_its_place() -> None:
    result = _weighed(
        {"dense": _scaled(0.4, (1, 1, 1.2, 1.6, 1.2, 1)), "switch": _scaled(0.4)}
    ).sel(
        hypothesis=[
            f"dense {TIMES} dense is U-shaped",
            f"dense {TIMES} dense ends as high as it starts",
        ]
    )
    assert result["verdict"].values.tolist() == ["supported", "supported"]
    assert float(result["lowest"][0]) == 200
    assert np.isnan(result["lowest"][1])
    assert float(result["run_smallest_p"][0]) == pytest.approx(2 / 501)


@pytest.mark.parametrize(
    ("curve", "rises", "flat", "trough"),
    [
        ((2, 2, 1.7, 1.4, 1.2, 1), "supported", "refuted", "refuted"),
        ((1, 1, 1.2, 1.4, 1.7, 2), "refuted", "refuted", "refuted"),
        (STILL, UNKNOWN, "supported", UNKNOWN),
        ((1, 1.3, 1.15, 1, 1.15, 1.3), UNKNOWN, "supported", "refuted"),
    ],
    ids=["rise", "fall", "flat", "inverted U"],
)
def test_shape_of_the_curve_decides(
    curve: tuple[float, ...], rises: str, flat: str, trough: str
) -> None:
    noise = _scaled(0.4, curve)
    told = _weighed({"dense": noise, "switch": noise})["verdict"]
    claims = [f"dense {TIMES} {rest}" for rest in (
        "switch rises", "dense ends as high as it starts", "dense is U-shaped")]  # fmt: skip
    assert told.sel(hypothesis=claims).values.tolist() == [rises, flat, trough]


def test_estimates_agree_with_a_slow_loop(one_factor: xr.Dataset) -> None:
    loss, _ = _world({"dense": _scaled(0.4), "switch": _scaled(0.6)})

    def z(a: str, b: str, step: int) -> float:
        values = loss.sel(step=step).values.reshape(8, -1)
        return float(
            np.mean(
                [
                    np.arctanh(np.corrcoef(values[i], values[j])[0, 1])
                    for i in range(8)
                    for j in range(i)
                    if {str(loss["arm"][i].item()), str(loss["arm"][j].item())} == {a, b}
                ]
            )
        )

    expected = {
        f"dense {TIMES} switch rises": z("dense", "switch", 400) - z("dense", "switch", 40),
        f"switch {TIMES} switch is below dense {TIMES} switch": np.mean(
            [z("dense", "switch", s) - z("switch", "switch", s) for s in (200, 300, 400)]
        ),
        f"dense {TIMES} dense ends as high as it starts": np.tanh(z("dense", "dense", 400)) ** 2
        - np.tanh(z("dense", "dense", 40)) ** 2,
        f"dense {TIMES} switch rises from 2.2% of training": z("dense", "switch", 400)
        - z("dense", "switch", 0),
        f"dense {TIMES} switch rises in the second half": np.polyfit(
            np.log2([200, 300, 400]), [z("dense", "switch", s) for s in (200, 300, 400)], 1
        )[0],
    }
    for claim, value in expected.items():
        found = one_factor["estimate"].sel(hypothesis=claim)
        assert float(found) == pytest.approx(value, abs=1e-12), claim


def test_similarity_is_that_of_r2_over_time() -> None:
    loss, unit = _world({"dense": _scaled(0.4), "switch": _scaled(0.6)}, n_runs=2)
    quick, full = similarity_of_losses(loss, unit), r2_over_time(loss, unit, n_resamples=9)
    for name in quick.data_vars:
        xr.testing.assert_allclose(quick[name], full[name])
    xr.testing.assert_equal(
        significance(quick, unigram=UNIGRAM)["verdict"],
        significance(full, unigram=UNIGRAM)["verdict"],
    )


def test_order_of_runs_does_not_matter(one_factor: xr.Dataset) -> None:
    loss, unit = _world({"dense": _scaled(0.4), "switch": _scaled(0.6)})
    order = np.random.default_rng(0).permutation(8)
    other = significance(similarity_of_losses(loss.isel(run=order), unit), unigram=UNIGRAM)
    xr.testing.assert_allclose(other["estimate"], one_factor["estimate"])
    xr.testing.assert_allclose(other["run_ci"], one_factor["run_ci"])


def test_p_over_text_of_a_mean_is_that_of_the_t_test() -> None:
    rng = np.random.default_rng(0)
    x = 0.2 + rng.standard_normal(25)
    without = (x.sum() - x) / 24
    z = np.broadcast_to(x.mean(), (1, 6, 6))
    deleted = np.broadcast_to(without[:, None, None, None], (25, 1, 6, 6))
    at = Stages(None, 0, np.array([0]), 0, np.array([], dtype=int))
    arm = np.repeat(["dense", "switch"], 3)

    def mean(z: np.ndarray, arm: np.ndarray) -> np.ndarray:
        return mean_z(z, arm, "dense", "switch")

    for sign in (1, -1):
        claim = Claim("", "", "", ("dense", "switch"), at, lambda z, arm, s=sign: s * mean(z, arm))
        found = evidence(claim, z, deleted, arm, level=0.95, n_resamples=9, rng=rng)
        assert found.favours == (sign > 0)
        assert found.p == pytest.approx(ttest_1samp(x, 0).pvalue)


def test_p_is_below_five_percent_where_the_interval_excludes_what_p_speaks_against(
    one_factor: xr.Dataset, arm_effect: xr.Dataset
) -> None:
    seen = set()
    for result in (one_factor, arm_effect):
        one_sided = result["hypothesis"].str.contains("rises")
        for row in (result.isel(hypothesis=i) for i in np.flatnonzero(one_sided)):
            for p, ci in (("p", "ci"), ("run_p", "run_ci")):
                low, high = row[ci].values
                assert bool(row[p] < 0.05) == bool(low > 0 or high < 0)
                seen.add(bool(row[p] < 0.05))
    assert False in seen


def test_holm_corrects_inside_each_family(arm_effect: xr.Dataset) -> None:
    families = arm_effect["family"].values
    assert [int((families == f).sum()) for f in ("dense", "switch", OTHER)] == [2, 5, 3]
    for family in ("dense", "switch", OTHER):
        own = families == family
        for p in ("p", "run_p"):
            expected = multipletests(arm_effect[p].values[own], method="holm")[1]
            np.testing.assert_allclose(arm_effect[f"{p}_holm"].values[own], expected)


@pytest.mark.parametrize(("n_runs", "smallest"), [(3, 2 / 20), (4, 2 / 70), (5, 2 / 252)])
def test_smallest_p_of_delta_is_that_of_dealing_out_the_arms(n_runs: int, smallest: float) -> None:
    result = _weighed({"dense": _scaled(0.4), "switch": _scaled(0.4)}, n_runs=n_runs, part=0.3)
    delta = result.sel(hypothesis="delta of dense and switch is 0")
    assert float(delta["run_smallest_p"]) == pytest.approx(smallest)
    assert float(delta["run_p"]) == pytest.approx(smallest)
    assert delta["verdict"] == ("refuted" if n_runs == 5 else UNKNOWN)
    assert ("seeds are too few" in str(delta["reason"].item())) == (n_runs < 5)


@pytest.mark.parametrize("n_runs", [1, 2])
def test_too_few_seeds_never_tell(n_runs: int) -> None:
    result = _weighed(
        {"dense": _scaled(0.4), "switch": _scaled(0.4, (2, 2, 1.5, 1.3, 1.1, 1))}, n_runs=n_runs
    )
    assert set(result["verdict"].values) == {UNKNOWN}
    assert result["run_ci"].isnull().all()
    rises = result.sel(hypothesis=f"dense {TIMES} switch rises")
    assert rises["reason"] == "text speaks for it; too few runs of dense and switch"
    assert bool(result["estimate"].isel(hypothesis=0).isnull()) == (n_runs == 1)
    plot(result)


def test_run_that_stopped_early_moves_the_end_of_its_arm_alone() -> None:
    loss, unit = _world({"dense": _scaled(0.4), "switch": _scaled(0.6)})
    loss.loc[{"run": "switch-seed2", "step": 400}] = np.nan
    result = significance(similarity_of_losses(loss, unit), unigram=UNIGRAM)
    ends = dict(zip(result["hypothesis"].values, result["end"].values, strict=True))
    assert ends[f"dense {TIMES} dense is U-shaped"] == 400
    assert ends[f"dense {TIMES} switch rises"] == 300
    # from step 200 to 300 there is no trend to be seen in two places
    missing = result["hypothesis"].values[result["estimate"].isnull().values]
    assert missing.tolist() == [f"dense {TIMES} switch rises in the second half"]


def test_one_place_leaves_claims_about_curves_without_an_estimate() -> None:
    loss, unit = _world({"dense": _scaled(0.4), "switch": _scaled(0.6)})
    result = significance(similarity_of_losses(loss.sel(step=[400]), unit), unigram=UNIGRAM)
    known = result["estimate"].notnull().values
    assert result["hypothesis"].values[known].tolist() == [
        f"switch {TIMES} switch is below dense {TIMES} switch",
        "delta of dense and switch is 0",
        "rho2 of dense and switch is within 1% of 1",
        f"dense {TIMES} switch rises from 2.2% of training",
        "delta of dense and switch is 0 from early on",
    ]
    curves = result.sel(hypothesis=f"dense {TIMES} switch rises")
    assert (curves["verdict"], curves["reason"]) == (UNKNOWN, "there is nothing to compare")


def test_runs_that_know_no_more_than_frequencies_have_no_early_place() -> None:
    loss, unit = _world({"dense": _scaled(0.4), "switch": _scaled(0.6)})
    similarity = similarity_of_losses(loss, unit)
    result = significance(similarity, unigram=1.0)
    assert result["early"].isnull().all()
    assert result["estimate"].sel(hypothesis=f"dense {TIMES} switch rises").isnull()
    draw_curves(result, similarity)


def test_levels_of_loss_are_places_too() -> None:
    noise = _scaled(0.4, (2, 2, 1.7, 1.4, 1.2, 1))
    loss, unit = _world({"dense": noise, "switch": noise})
    similarity = similarity_of_losses(loss, unit, match="loss")
    result = significance(similarity, unigram=UNIGRAM)
    rises = result.sel(hypothesis=f"dense {TIMES} switch rises")
    assert rises["verdict"] == "supported"
    assert float(rises["early"]) == max(x for x in similarity["loss_level"].values if x < UNIGRAM)
    assert "at mean loss 3.78 less that at mean loss 6.85" in str(rises["looked_at"].item())
    draw_curves(result, similarity)


def test_stages_are_where_the_losses_say() -> None:
    loss = np.stack([LEVEL, np.add(LEVEL, 0.5)], axis=1)
    step, seen = np.array(STEPS), np.array([True] * 5 + [False])
    at = stages(seen, loss, step, levels=None, unigram=5.6)
    assert (at.early, at.share, at.end) == (2, 0, 4)
    assert at.late.tolist() == [3, 4]
    assert at.between.tolist() == [3]
    levels = np.linspace(8, 4, 9)
    at = stages(np.ones(9, dtype=bool), loss, step, levels=levels, unigram=6.2)
    assert levels[[at.early, at.share, at.end]].tolist() == [6.0, 8.0, 4.0]
    assert levels[at.late].tolist() == [5.0, 4.5, 4.0]
    long = np.array([0, 1_000, 2_000, 89_286])
    at = stages(np.ones(4, dtype=bool), loss[:4], long, levels=None, unigram=None)
    assert long[at.share] == long[at.early] == round(SHARE * 89_286)
    with pytest.raises(ValueError, match="no step that all runs of the arms compared observed"):
        stages(~np.ones(6, dtype=bool), loss, step, levels=None, unigram=None)


@pytest.mark.parametrize(
    ("favours", "p", "run_p", "run_smallest", "few", "word", "reason"),
    [
        (True, 0.01, 0.02, 0.0, "", "supported", "text and seeds speak for it"),
        (False, 0.01, 0.02, 0.0, "", "refuted", "text and seeds speak against it"),
        (True, 0.01, 0.2, 0.0, "", UNKNOWN, "text speaks for it; seeds do not tell"),
        (False, 0.01, 0.2, 0.1, "", UNKNOWN, "text speaks against it; seeds are too few for any p"),
        (True, 0.2, 0.01, 0.0, "", UNKNOWN, "text does not tell; seeds speak for it"),
        (True, 0.2, 0.2, 0.0, "", UNKNOWN, "neither text nor seeds tell"),
        (True, 0.01, np.nan, 0.0, "hash", UNKNOWN, "text speaks for it; too few runs of hash"),
        (True, 0.01, 0.01, 0.0, "hash", UNKNOWN, "text speaks for it; too few runs of hash"),
        (False, np.nan, np.nan, np.nan, "hash", UNKNOWN, "too few runs of hash"),
        (False, np.nan, np.nan, np.nan, "", UNKNOWN, "there is nothing to compare"),
    ],
)
def test_verdict_takes_both_text_and_seeds(
    favours: bool, p: float, run_p: float, run_smallest: float, few: str, word: str, reason: str
) -> None:
    told = verdict(
        favours=favours, p=p, run_p=run_p, run_smallest_p=run_smallest, few=few, level=0.95
    )
    assert told[0] == word
    assert told[1].startswith(reason)


def test_delta_holds_its_level_under_seed_noise_where_the_raw_contrast_does_not() -> None:
    rng = np.random.default_rng(0)
    where, at = ["end"], Stages(None, 0, np.array([0]), 0, np.array([], dtype=int))
    claims = claims_about_moe("dense", "switch", at, where, x=np.zeros(1))
    raw, delta = claims[1], claims[3]
    arm = np.repeat(["dense", "switch"], 4)
    spread = np.where(arm == "dense", 0.4, 0.6)
    rejected = np.zeros(2, dtype=int)
    for _ in range(120):
        shared = rng.standard_normal(500)
        own = spread * (1 + 0.02 * rng.standard_normal(8))
        losses = shared + own[:, None] * rng.standard_normal((8, 500))
        z = np.arctanh(np.corrcoef(losses) - 1e-9 * np.eye(8))[None]
        deleted = np.broadcast_to(z, (3, *z.shape))
        for i, claim in enumerate((delta, raw)):
            found = evidence(claim, z, deleted, arm, level=0.95, n_resamples=99, rng=rng)
            rejected[i] += found.run_p < 0.05
    assert rejected[0] <= 8  # .05 of 120 and a bit more than one standard error
    assert rejected[1] > 0.9 * 120


def test_u_shape_over_runs_holds_its_level_on_a_curve_that_only_rises_at_its_end() -> None:
    rng, n_places, n_runs = np.random.default_rng(0), 8, 4
    at = Stages(0, 0, np.arange(4, n_places), n_places - 1, np.arange(1, n_places - 1))
    claim = claims_about_dense(("d", "d"), at, ["s"] * n_places, family="d")[1]
    first, second = np.triu_indices(n_runs, k=1)
    curve = np.zeros((n_places, 1))
    curve[-1] = 1.0
    arm, wrong = np.array(["d"] * n_runs), 0
    for _ in range(120):
        of_run = np.cumsum(rng.standard_normal((n_places, n_runs)), axis=0)
        pairs = 2 + curve + 0.05 * (of_run[:, first] + of_run[:, second])
        z = z_matrix(pairs + 0.02 * rng.standard_normal(pairs.shape), n_runs)
        deleted = z + 0.001 * rng.standard_normal((5, *z.shape))
        found = evidence(claim, z, deleted, arm, level=0.95, n_resamples=99, rng=rng)
        wrong += bool(found.favours and found.run_p < 0.05)
    assert wrong <= 8


def test_study_without_moe_or_dense_is_refused() -> None:
    loss, unit = _world({"dense": _scaled(0.4), "switch": _scaled(0.6)}, n_runs=2)
    for arm in ("dense", "switch"):
        alone = similarity_of_losses(loss.isel(run=loss["arm"].values == arm), unit)
        with pytest.raises(ValueError, match=f"all runs are of {arm}; give a study"):
            significance(alone)


def test_dense_of_another_width_is_another_reading() -> None:
    result = _weighed({"dense": _scaled(0.4), "dense_20": _scaled(0.4), "switch": _scaled(0.6)})
    other = result["hypothesis"].values[result["family"].values == OTHER]
    assert f"dense {TIMES} dense_20 is U-shaped" in other
    above = result.sel(hypothesis=f"dense {TIMES} dense_20 stays above dense {TIMES} switch")
    assert above["verdict"] == "supported"
    assert above["n_runs"] == "4 + 4 + 4"


def test_command_writes_what_the_figure_shows(reports: SimpleNamespace) -> None:
    folder: Path = reports.folder / "significance"
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    result = xr.Dataset.from_dict(stored)
    table = io.StringIO((folder / "claims.csv").read_text(encoding="utf-8"))
    for row in csv.DictReader(table):
        at = result.sel(hypothesis=row["hypothesis"])
        if row["estimate"]:
            assert float(row["estimate"]) == pytest.approx(float(at["estimate"]), rel=1e-7)
            low, high = (float(row[f"ci_{bound}"]) for bound in ("lower", "upper"))
            assert low < float(row["estimate"]) < high
        assert row["verdict"] == UNKNOWN
    page = (folder / "index.md").read_text(encoding="utf-8")
    assert "fewer than 3 allow no claim about arms" in page
    assert "Of 7 claims these runs support 0, refute 0 and leave 7 open" in page
    assert "The probe set has no n-gram surprisal" in page
    assert "no evidence that architectures agree or differ" in page
    assert {p.name for p in folder.glob("*.svg")} == {
        "claims.svg", "curves.svg", "other_readings.svg",
    }  # fmt: skip


def test_the_figure_has_a_row_and_a_verdict_for_each_claim(arm_effect: xr.Dataset) -> None:
    main = arm_effect.isel(hypothesis=np.flatnonzero(arm_effect["family"] != OTHER))
    ax = plot(arm_effect).axes[0]
    assert [label.get_text().rsplit(" (", 1)[0] for label in ax.get_yticklabels()] == main[
        "hypothesis"
    ].values.tolist()
    assert [text.get_text() for text in ax.texts] == main["verdict"].values.tolist()


def test_command_compares_at_equal_loss(study_folder: Path, tmp_path: Path) -> None:
    arguments = [str(study_folder), "--report", str(tmp_path), "--match", "loss"]
    assert analysis.main([*arguments, "--unit", "document", "--n-resamples", "19"]) == 0
    page = (tmp_path / "significance/index.md").read_text(encoding="utf-8")
    assert "95% over documents" in page
    assert "at mean loss " in page
