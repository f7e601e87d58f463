from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.runs import run_coordinates
from analyses.comparison.unanswerable import Unanswerable
from analyses.representation import cka, cka_details, cka_measures
from analyses.statistics.alignment import mutual_knn, procrustes
from analyses.statistics.correlation import fisher_z
from analyses.statistics.minibatch_cka import gram_features, normalised, permuted
from analyses.statistics.similarity import linear_cka

N_UNITS, SITES, STEPS = 10, ("resid_mid", "resid_post"), (0, 3)


def activations(
    values: dict[str, NDArray], *, sites: tuple[str, ...] = SITES, steps: tuple[int, ...] = STEPS
) -> dict[str, xr.Dataset]:
    """Runs of arm "dense" or "switch" from arrays (step, depth, sequence, pos, d_model)."""
    found = {}
    for run, array in values.items():
        arm = run.split("-")[0]
        by_layer = array.reshape(len(steps), -1, len(sites), *array.shape[2:])
        dims = ("step", "layer", "sequence", "pos", "d_model")
        found[run] = xr.Dataset(
            {site: (dims, by_layer[:, :, i]) for i, site in enumerate(sites)},
            {
                "step": list(steps),
                "layer": np.arange(by_layer.shape[1]),
                "sequence": np.arange(array.shape[2]),
                "pos": np.arange(array.shape[3]),
                "arm": arm,
                "architecture": "moe" if arm == "switch" else "dense",
            },
        )
    return found


@pytest.fixture(scope="module")
def few() -> SimpleNamespace:
    """Three runs of three widths, four depths, and ten units of one to four sequences."""
    rng = np.random.default_rng(0)
    of_sequence = np.repeat(np.arange(N_UNITS), [1, 1, 1, 1, 2, 2, 2, 2, 2, 4])
    shape = (2, 4, len(of_sequence), 3)
    shared = rng.standard_normal((*shape, 4))
    widths = {"dense-seed0": 3, "dense-seed1": 4, "switch-seed0": 5}
    runs = activations(
        {
            run: np.concatenate([shared, rng.standard_normal((*shape, width))], axis=-1)
            for run, width in widths.items()
        }
    )
    unit = xr.DataArray([f"unit {i}" for i in of_sequence], dims="sequence")
    return SimpleNamespace(runs=runs, unit=unit, of_sequence=of_sequence)


def _cohort(few: SimpleNamespace, *, most_bytes: int = 2**30) -> cka.Cohort:
    rng = np.random.default_rng(1)
    return cka.cohort(few.runs, few.unit, most_bytes=most_bytes, rng=rng)


def _hsic(x: NDArray, y: NDArray) -> float:
    """n(n-3) HSIC1 by its definition."""
    k, m, n = x @ x.T, y @ y.T, len(x)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    means = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float(np.trace(k @ m) + means - 2 * (k @ m).sum() / (n - 2))


def _cka(x: NDArray, y: NDArray, batches: list[NDArray]) -> float:
    xy, xx, yy = (sum(_hsic(a[b], c[b]) for b in batches) for a, c in ((x, y), (x, x), (y, y)))
    return float(xy / np.sqrt(xx * yy))


def _depth(few: SimpleNamespace, run: str, step: int, depth: int) -> NDArray:
    at = few.runs[run][SITES[depth % 2]].isel(step=step, layer=depth // 2).values
    return at.reshape(-1, at.shape[-1])


def test_a_batch_has_one_token_of_a_unit_and_no_batch_is_much_smaller(few: SimpleNamespace) -> None:
    shared = _cohort(few)
    sizes = [len(batch) for batch in shared.batches]
    assert all(len(set(shared.unit[batch])) == len(batch) for batch in shared.batches)
    assert max(sizes) == N_UNITS
    assert min(sizes) == 6
    # the fourth unit of every position of the longest unit is left out
    assert len(shared.tokens) == sum(sizes) == 3 * 10 + 3 * 6
    of_token = np.repeat(few.of_sequence, 3)
    np.testing.assert_array_equal(of_token[shared.tokens], shared.unit)


def test_less_memory_makes_smaller_batches(few: SimpleNamespace) -> None:
    shared = _cohort(few, most_bytes=1)
    assert max(map(len, shared.batches)) <= 8
    assert min(map(len, shared.batches)) >= 4


def test_similarity_agrees_with_the_definition_for_runs_of_other_widths(
    few: SimpleNamespace,
) -> None:
    shared = _cohort(few)
    last = cka.grams_at(shared, -1, ["rows"])[0]
    found = cka.at_step(shared, last, np.array([np.roll(np.arange(N_UNITS), 1)]), 0)
    for p, how in enumerate(cka.PREPARATIONS):
        x, y = (
            normalised(_depth(few, run, 0, 2)[shared.tokens], how=how)
            for run in ("dense-seed1", "switch-seed0")
        )
        assert found.between.estimate[p, 2, 1, 2] == pytest.approx(_cka(x, y, shared.batches))
        without = [
            np.array([t for t in batch if shared.unit[t] != 3], dtype=int)
            for batch in shared.batches
        ]
        assert found.between.deleted[3, p, 2, 1, 2] == pytest.approx(_cka(x, y, without))


def test_depths_are_compared_with_the_last_step_and_the_depth_before(few: SimpleNamespace) -> None:
    shared = _cohort(few)
    last = cka.grams_at(shared, -1, ["rows"])[0]
    found = cka.at_step(shared, last, np.array([np.arange(N_UNITS)]), 0)

    def rows(step: int, depth: int) -> NDArray:
        return normalised(_depth(few, "dense-seed0", step, depth)[shared.tokens], how="rows")

    expected = _cka(rows(0, 3), rows(1, 3), shared.batches)
    assert found.with_last.estimate[3, 0] == pytest.approx(expected)
    expected = _cka(rows(0, 2), rows(0, 1), shared.batches)
    assert found.with_before.estimate[2, 0] == pytest.approx(expected)
    assert np.isnan(found.with_before.estimate[0]).all()
    # no unit moved: not shuffled at all
    np.testing.assert_allclose(found.shuffled[0], found.between.estimate[0], rtol=1e-6)


def test_exchanged_tokens_are_those_of_exchanged_gram_matrices(few: SimpleNamespace) -> None:
    shared = _cohort(few)
    permutation = np.random.default_rng(2).permutation(N_UNITS)
    moved = cka_measures.moved_tokens(shared, permutation)
    x = next(cka.representations(shared, "dense-seed1", 1))
    expected = permuted(
        gram_features(x, shared.batches), permutation, batches=shared.batches, unit=shared.unit
    )
    for a, b in zip(gram_features(x[moved], shared.batches), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def _runs(few: SimpleNamespace) -> xr.Dataset:
    arms = {name: at["arm"].item() for name, at in few.runs.items()}
    kinds = ["moe" if arm == "switch" else "dense" for arm in arms.values()]
    return run_coordinates(
        xr.Dataset(
            coords={"run": list(arms), "arm": ("run", list(arms.values())),
                    "architecture": ("run", kinds)}
        )
    )  # fmt: skip


def test_one_depth_read_alone_is_that_read_with_all_others(few: SimpleNamespace) -> None:
    shared = _cohort(few)
    for depth, x in enumerate(cka.representations(shared, "dense-seed1", 1)):
        alone = cka.representation(shared, "dense-seed1", 1, depth)
        np.testing.assert_array_equal(alone, x)


def test_every_two_steps_of_a_run_are_compared_at_each_depth(few: SimpleNamespace) -> None:
    shared, step = _cohort(few), xr.DataArray(list(STEPS), dims="step")
    found = cka_details.step_by_step(shared, _runs(few), step, most_bytes=2**30)
    # the first run of each arm
    assert found["within_run"].values.tolist() == ["dense-seed0", "switch-seed0"]
    at = found["within"].sel(within_run="switch-seed0").isel(depth=3)
    x, y = (
        normalised(_depth(few, "switch-seed0", i, 3)[shared.tokens], how="rows") for i in range(2)
    )
    assert float(at.sel(at_step=0, other_step=3)) == pytest.approx(_cka(x, y, shared.batches))
    np.testing.assert_allclose(np.diagonal(at), 1)
    np.testing.assert_allclose(at, at.T, rtol=1e-12)
    low, high = np.moveaxis(found["within_ci"].sel(within_run="switch-seed0").values, -1, 0)
    assert (low <= found["within"].sel(within_run="switch-seed0").values).all()
    assert (high - low)[:, 0, 1].min() > 0


def test_steps_are_as_many_as_memory_allows_and_the_last_is_among_them() -> None:
    rng = np.random.default_rng(0)
    steps = tuple(range(40))
    values = rng.standard_normal((40, 2, 6, 1, 3))
    many = SimpleNamespace(
        runs=activations({f"dense-{i}": values for i in range(2)}, steps=steps),
        unit=xr.DataArray(np.arange(6), dims="sequence"),
    )
    shared, step = _cohort(many), xr.DataArray(list(steps), dims="step")
    a_step = 4 * 36  # Gram matrices of one depth
    for most_bytes, n in ((2**30, 20), (7 * a_step + 1, 7), (1, 2)):
        found = cka_details.step_by_step(shared, _runs(many), step, most_bytes=most_bytes)
        assert found["at_step"].size == n
        assert found["at_step"].values[[0, -1]].tolist() == [0, 39]


def test_other_measures_of_all_pairs_are_those_of_two_representations(
    few: SimpleNamespace,
) -> None:
    shared = _cohort(few)
    permutation = np.random.default_rng(2).permutation(N_UNITS)
    found = cka_measures.measures(shared, _runs(few), permutation)
    expected = {
        "CKA over all tokens, debiased": lambda x, y: linear_cka(x, y, debiased=True),
        "CKA over all tokens, biased": linear_cka,
        "Procrustes": procrustes,
        "mutual 10 nearest neighbours": lambda x, y: mutual_knn(x, y, unit=shared.unit),
        "minibatch CKA, row-normalised": lambda x, y: _cka(x, y, shared.batches),
    }
    pairs = (("dense-seed0", "dense-seed1"), ("dense-seed0", "switch-seed0"),
             ("dense-seed1", "switch-seed0"))  # fmt: skip
    for name, measure in expected.items():
        z = [
            [
                fisher_z(
                    np.array(
                        measure(
                            *(normalised(_depth(few, run, 1, d)[shared.tokens], how="rows")
                              for run in pair)
                        )
                    )
                )
                for d in range(4)
            ]
            for pair in pairs
        ]  # fmt: skip
        at = found.sel(measure=name)
        np.testing.assert_allclose(at["pair_measured"], np.tanh(np.mean(z, axis=1)), rtol=1e-6)
        mixed = np.tanh(np.mean(z[1:]))
        assert float(at["kind_measured"].sel(kind="dense-MoE")) == pytest.approx(mixed)
        covered = bool(at["kind_measured_ci"].notnull().all())
        assert covered == (name != "mutual 10 nearest neighbours")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1.0])
def test_an_unusable_representation_has_no_cka_and_spoils_no_other(
    few: SimpleNamespace, wrong: float
) -> None:
    runs = {name: at.copy(deep=True) for name, at in few.runs.items()}
    runs["dense-seed1"]["resid_post"][0, 1] = wrong
    if wrong != 1.0:
        runs["dense-seed1"]["resid_post"][0, 1, 1:] = 0.5
    shared = _cohort(SimpleNamespace(runs=runs, unit=few.unit))
    last = cka.grams_at(shared, -1, ["rows"])[0]
    found = cka.at_step(shared, last, np.array([np.arange(N_UNITS)]), 0)
    missing = np.isnan(found.between.estimate)
    assert missing[:, 3, 1].all()
    assert missing[:, 3, :, 1].all()
    assert missing.sum() == 3 * 5
    assert np.isnan(found.with_last.estimate).sum() == 1


def test_what_one_block_reads_is_not_counted_beside_what_the_last_one_wrote() -> None:
    values = np.zeros((2, 6, 4, 2, 3))
    sites = ("resid_pre", "resid_mid", "resid_post")
    found = cka.common_depths(activations({"dense-a": values}, sites=sites))
    assert found == ((0, "resid_pre"), (0, "resid_mid"), (0, "resid_post"),
                     (1, "resid_mid"), (1, "resid_post"))  # fmt: skip


def test_only_depths_that_all_runs_have_are_compared(few: SimpleNamespace) -> None:
    short = few.runs["dense-seed0"].isel(layer=[1])[["resid_post"]]
    assert cka.common_depths({**few.runs, "dense-seed0": short}) == ((1, "resid_post"),)
    other = short.assign_coords(layer=[7])
    with pytest.raises(Unanswerable, match="no layer of the residual stream in common"):
        cka.common_depths({**few.runs, "dense-seed0": other})
    named = few.runs["dense-seed0"].rename(resid_mid="attn_out", resid_post="mlp_out")
    with pytest.raises(Unanswerable, match=r"no site .* train\.activation_sites"):
        cka.common_depths({**few.runs, "dense-seed0": named})


@pytest.mark.parametrize("dim", ["step", "sequence", "pos"])
def test_runs_observed_at_different_places_are_refused(few: SimpleNamespace, dim: str) -> None:
    other = few.runs["switch-seed0"].isel({dim: slice(1, None)})
    with pytest.raises(ValueError, match=rf"different places \({dim}\)"):
        _cohort(SimpleNamespace(runs={**few.runs, "switch-seed0": other}, unit=few.unit))


def test_too_few_units_are_refused_with_a_remedy(few: SimpleNamespace) -> None:
    unit = xr.DataArray(few.of_sequence % 3, dims="sequence")
    with pytest.raises(ValueError, match=r"record activations of more works"):
        _cohort(SimpleNamespace(runs=few.runs, unit=unit))


def test_a_removed_direction_or_feature_is_gone() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 6)) * [1, 9, 1, 8, 1, 7]
    left = cka_measures.without_first_direction(x)
    assert np.linalg.matrix_rank(left, tol=1e-9) == 5
    assert cka_measures.without_largest_features(x).shape == (50, 3)
    np.testing.assert_allclose(
        cka_measures.without_largest_features(x), normalised(x, how="rows")[:, [0, 2, 4]]
    )
