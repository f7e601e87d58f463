import time

import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.statistics import minibatch_cka as cka
from analyses.statistics.resampling import jackknife
from analyses.statistics.similarity import linear_cka

# two representations of six tokens, exact values by rational arithmetic
X = np.array([[1, 0], [2, 1], [0, 3], [4, 1], [1, 1], [3, 5]], dtype=float)
Y = np.array([[2, 1, 0], [0, 1, 1], [1, 4, 2], [3, 0, 1], [1, 1, 1], [5, 2, 6]], dtype=float)


def _song(x: NDArray, y: NDArray) -> float:
    """HSIC1 by its definition, from whole Gram matrices."""
    k, m, n = x @ x.T, y @ y.T, len(x)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    trace = np.trace(k @ m)
    means = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    rows = 2 * one @ k @ m @ one / (n - 2)
    return float((trace + means - rows) / (n * (n - 3)))


def _in_documents(
    rng: np.random.Generator, *, n_documents: int, length: int, width: int = 64
) -> tuple[NDArray, NDArray]:
    """Tokens of one document share a mean of the same variance as what is their own."""
    unit = np.repeat(np.arange(n_documents), length)
    shared = rng.standard_normal((n_documents, width))
    return shared[unit] + rng.standard_normal((len(unit), width)), unit


def _planted(seed: int = 0) -> tuple[list[NDArray], NDArray]:
    """Three representations alike in part, of units of unequal length."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(9), [7, 5, 5, 4, 6, 6, 5, 2, 9])
    x = rng.standard_normal((len(unit), 5))
    second = x @ rng.standard_normal((5, 7)) + rng.standard_normal((len(unit), 7))
    return [x, second, rng.standard_normal((len(unit), 3))], unit


def test_hsic1_of_integers_is_exact() -> None:
    grams = [cka.gram_features(z, [np.arange(6)]) for z in (X, Y)]
    table = cka.hsic_table(grams)[..., 0] / (6 * 3)
    np.testing.assert_allclose(table, [[81 / 10, 23 / 3], [23 / 3, 106 / 9]], rtol=1e-13)
    assert cka.minibatch_cka(X, Y, batches=[np.arange(6)]) == pytest.approx(0.7849326492878265)


def test_cka_below_zero_is_kept() -> None:
    x = np.array([[2, 0], [-2, 1], [2, 2], [2, -1], [1, 2], [0, 2]], dtype=float)
    y = np.array([[0, -2], [0, 1], [-1, 1], [0, 2], [-1, 1], [-2, -2]], dtype=float)
    assert cka.minibatch_cka(x, y, batches=[np.arange(6)]) == pytest.approx(-0.3694636251100956)


@pytest.mark.parametrize(
    ("size", "expected"),
    # the first two of batches in order; the last is the published value over all tokens
    [(20, 0.5337183633654443), (50, 0.5308439528321823), (100, 0.51346)],
)
def test_published_example_in_batches(size: int, expected: float) -> None:
    legacy = np.random.RandomState(1337)
    x = legacy.randn(100, 10)
    y = legacy.randn(100, 10) + x
    assert cka.minibatch_cka(x, y, batches=list(np.arange(100).reshape(-1, size))) == pytest.approx(
        expected, abs=5e-6
    )


def test_batches_of_unequal_size_agree_with_the_definition() -> None:
    (x, y, _), unit = _planted()
    dealt = cka.batches(unit, rng=np.random.default_rng(1))
    assert len({len(batch) for batch in dealt}) > 1

    def total(a: NDArray, b: NDArray) -> float:
        return sum(len(t) * (len(t) - 3) * _song(a[t], b[t]) for t in dealt)

    expected = total(x, y) / np.sqrt(total(x, x) * total(y, y))
    assert cka.minibatch_cka(x, y, batches=dealt) == pytest.approx(expected, rel=1e-12)


def test_u_centred_rows_sum_to_zero_and_nothing_is_left_of_row_effects() -> None:
    rng = np.random.default_rng(0)
    gram = rng.standard_normal((7, 7))
    gram += gram.T
    effect = rng.standard_normal(7)
    centred = cka.u_centred(gram.copy())
    np.testing.assert_allclose(centred.sum(axis=1), 0, atol=1e-13)
    np.testing.assert_array_equal(np.diag(centred), 0)
    np.testing.assert_allclose(cka.u_centred(gram + effect[:, None] + effect), centred, atol=1e-12)


def test_two_lists_give_the_blocks_of_one() -> None:
    representations, unit = _planted()
    dealt = cka.batches(unit, rng=np.random.default_rng(0))
    grams = [cka.gram_features(x, dealt) for x in representations]
    np.testing.assert_allclose(
        cka.hsic_table(grams[:1], grams[1:]), cka.hsic_table(grams)[:1, 1:], rtol=1e-12
    )
    np.testing.assert_allclose(
        cka.hsic_without_each_unit(grams[:1], grams[1:], batches=dealt, unit=unit),
        cka.hsic_without_each_unit(grams, batches=dealt, unit=unit)[:1, 1:],
        rtol=1e-12,
    )


@pytest.mark.parametrize("dtypes", [(np.float64,) * 3, (np.float16, np.float64, np.float32)])
def test_a_table_holds_what_kept_grams_give(dtypes: tuple[type, ...]) -> None:
    representations, unit = _planted()
    representations = [x.astype(t) for x, t in zip(representations, dtypes, strict=True)]
    dealt = cka.batches(unit, rng=np.random.default_rng(0))
    grams = [cka.gram_features(x, dealt) for x in representations]
    expected = cka.cka_of_all(cka.hsic_table(grams).sum(axis=-1))
    rtol = 1e-12 if dtypes[0] == np.float64 else 1e-5
    found = cka.minibatch_cka_table(representations, batches=dealt)
    np.testing.assert_allclose(found, expected, rtol=rtol)
    blocks = cka.minibatch_cka_table(representations[:1], representations[1:], batches=dealt)
    np.testing.assert_allclose(blocks, expected[:1, 1:], rtol=rtol)
    assert cka.minibatch_cka(*representations[:2], batches=dealt) == blocks[0, 0]


def test_order_in_memory_costs_one_copy_and_not_one_a_batch() -> None:
    x = np.random.default_rng(0).standard_normal((4000, 256), dtype=np.float32)
    dealt = list(np.arange(4000).reshape(-1, 4))
    seconds = []
    for order in ("C", "F"):
        arranged = np.asarray(x, order=order)  # type: ignore[call-overload]
        start = time.process_time()
        cka.gram_features(arranged, dealt)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 5 * seconds[0]  # else some 50 times


def test_totals_without_a_unit_are_those_of_batches_without_it() -> None:
    representations, unit = _planted()
    dealt = cka.batches(unit, rng=np.random.default_rng(0))
    # one of four tokens, so that too few are left without one of them
    assert min(map(len, dealt)) == 4
    grams = [cka.gram_features(x, dealt) for x in representations]
    without = cka.hsic_without_each_unit(grams, batches=dealt, unit=unit)
    for u in range(9):
        left = [batch[unit[batch] != u] for batch in dealt]
        left = [batch for batch in left if len(batch) >= 4]
        again = [cka.gram_features(x, left) for x in representations]
        expected = cka.hsic_table(again).sum(axis=-1)
        np.testing.assert_allclose(without[..., u], expected, rtol=1e-10, atol=1e-10)


def test_a_unit_without_a_token_in_a_batch_changes_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((8, 3))
    dealt, unit = [np.arange(5)], np.arange(8)
    grams = [cka.gram_features(x, dealt)]
    without = cka.hsic_without_each_unit(grams, batches=dealt, unit=unit)[0, 0]
    np.testing.assert_allclose(without[5:], cka.hsic_table(grams).sum(), rtol=1e-12)


def test_batches_part_the_tokens_with_one_of_a_unit_each() -> None:
    unit = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 11))
    dealt = cka.batches(unit, rng=np.random.default_rng(1))
    assert [len(batch) for batch in dealt] == [30] * 11
    np.testing.assert_array_equal(np.sort(np.concatenate(dealt)), np.arange(330))
    for batch in dealt:
        assert len(np.unique(unit[batch])) == len(batch)


def test_only_what_long_units_have_beyond_the_fourth_longest_is_dropped() -> None:
    length = [3, 3, 8, 5, 9, 9]
    unit = np.repeat(np.arange(6), length)
    dealt = cka.batches(unit, rng=np.random.default_rng(0))
    assert [len(batch) for batch in dealt] == [6, 6, 6, 4, 4]
    assert sum(map(len, dealt)) == np.minimum(length, sorted(length)[-4]).sum()


def test_large_batches_are_divided_into_equal_parts() -> None:
    dealt = cka.batches(np.arange(1003), largest=250, rng=np.random.default_rng(0))
    assert sorted(map(len, dealt)) == [200, 200, 201, 201, 201]
    assert [len(b) for b in cka.batches(np.arange(7), largest=4, rng=np.random.default_rng(0))] == [
        7
    ]


def test_rotation_scale_and_offset_are_ignored_and_other_linear_maps_are_not() -> None:
    (x, y, _), unit = _planted()
    rng = np.random.default_rng(2)
    dealt = cka.batches(unit, rng=rng)
    q, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    found = cka.minibatch_cka(x, y, batches=dealt)
    assert cka.minibatch_cka(3 * x @ q + 1000, y, batches=dealt) == pytest.approx(found, rel=1e-9)
    assert cka.minibatch_cka(x, x @ q, batches=dealt) == pytest.approx(1)
    assert abs(cka.minibatch_cka(x * [1, 1, 1, 1, 9], y, batches=dealt) - found) > 0.05


def test_order_of_tokens_does_not_matter() -> None:
    (x, y, _), unit = _planted()
    dealt = cka.batches(unit, rng=np.random.default_rng(0))
    moved = np.random.default_rng(1).permutation(len(unit))
    there = np.argsort(moved)
    assert cka.minibatch_cka(
        x[moved], y[moved], batches=[there[batch] for batch in dealt]
    ) == pytest.approx(cka.minibatch_cka(x, y, batches=dealt))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_low_precision_agrees_with_float64_even_far_from_the_origin(dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((400, 64)) + 30).astype(dtype)
    y = (x[:, :32] - 30 + rng.standard_normal((400, 32))).astype(dtype)
    dealt = cka.batches(np.tile(np.arange(100), 4), rng=rng)
    exact = cka.minibatch_cka(x.astype(np.float64), y.astype(np.float64), batches=dealt)
    assert abs(cka.minibatch_cka(x, y, batches=dealt) - exact) < 1e-6


@pytest.mark.parametrize(("n_documents", "length", "debiased"), [(100, 20, 0.13), (20, 100, 0.44)])
def test_tokens_of_one_document_are_alike_in_anything(
    n_documents: int, length: int, debiased: float
) -> None:
    rng = np.random.default_rng(0)
    over_all, batchwise = [], []
    for _ in range(10):
        x, unit = _in_documents(rng, n_documents=n_documents, length=length)
        y, _ = _in_documents(rng, n_documents=n_documents, length=length)
        over_all.append(linear_cka(x, y, debiased=True))
        batchwise.append(cka.minibatch_cka(x, y, batches=cka.batches(unit, rng=rng)))
    assert np.mean(over_all) == pytest.approx(debiased, abs=0.02)
    assert abs(np.mean(batchwise)) < 3 * np.std(batchwise) / np.sqrt(10)
    assert abs(np.mean(batchwise)) < 0.01


def test_jackknife_intervals_cover_what_holds_in_all_text() -> None:
    rng = np.random.default_rng(0)
    mixing, unit = rng.standard_normal((6, 5)), np.repeat(np.arange(40), 5)
    # covariances of tokens: half of the variance is that of the unit
    cross, first, second = 2 * mixing, 2 * np.eye(6), 2 * mixing.T @ mixing + 2 * np.eye(5)
    truth = np.linalg.norm(cross) ** 2 / np.linalg.norm(first) / np.linalg.norm(second)
    hits = 0
    for _ in range(200):
        x, noise = (
            rng.standard_normal((40, p))[unit] + rng.standard_normal((200, p)) for p in (6, 5)
        )
        dealt = cka.batches(unit, rng=rng)
        grams = [cka.gram_features(z, dealt) for z in (x, x @ mixing + noise)]
        without = cka.hsic_without_each_unit(grams, batches=dealt, unit=unit)
        estimate = cka.cka_of_all(cka.hsic_table(grams).sum(axis=-1))[0, 1]
        low, high = jackknife(estimate, cka.cka_of_all(without)[0, 1]).ci
        hits += low <= truth <= high
    # 99% of what 200 intervals of 95% hit
    assert 182 <= hits <= 197


def test_exchanging_units_leaves_no_similarity_on_average() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(40), 3)
    shared = rng.standard_normal((40, 4))[unit]
    x, y = (shared + 0.3 * rng.standard_normal((120, 4)) for _ in range(2))
    dealt = cka.batches(unit, rng=rng)
    first, second = (cka.gram_features(z, dealt) for z in (x, y))

    def total(other: cka.Grams) -> float:
        return float(cka.hsic_table([first], [other]).sum())

    null = [
        total(cka.permuted(second, rng.permutation(40), batches=dealt, unit=unit))
        for _ in range(400)
    ]
    assert abs(np.mean(null)) < 3 * np.std(null) / np.sqrt(400)
    assert total(second) > np.max(null)


def test_permuted_grams_are_those_of_permuted_tokens() -> None:
    (x, _, _), unit = _planted()
    rng = np.random.default_rng(3)
    dealt = cka.batches(unit, rng=rng)
    pi = rng.permutation(9)
    moved = cka.permuted(cka.gram_features(x, dealt), pi, batches=dealt, unit=unit)
    for batch, gram in zip(dealt, moved, strict=True):
        token = dict(zip(unit[batch].tolist(), batch.tolist(), strict=True))
        source = []
        for u in unit[batch]:
            v = int(pi[u])
            while v not in token:
                v = int(pi[v])
            source.append(token[v])
        assert sorted(source) == sorted(batch)
        (expected,) = cka.gram_features(x, [np.array(source)])
        np.testing.assert_allclose(gram, expected, atol=1e-12)


def test_tokens_of_huge_norm_outweigh_all_others_unless_rows_are_scaled() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 2000, 64))
    special = rng.choice(2000, 20, replace=False)
    for z in (x, y):
        z[special] = 30 * 8 * _unit_length(rng.standard_normal(64))
    dealt = cka.batches(np.arange(2000), rng=rng)
    assert cka.minibatch_cka(cka.normalised(x), cka.normalised(y), batches=dealt) > 0.95
    rows = [cka.normalised(z, how="rows") for z in (x, y)]
    assert abs(cka.minibatch_cka(*rows, batches=dealt)) < 0.02


def _unit_length(x: NDArray) -> NDArray:
    return x / np.linalg.norm(x)


def test_one_large_shared_dimension_is_seen_alone_unless_features_are_scaled() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 2000, 64))
    x[:, 0] = y[:, 0] = 5 * rng.standard_normal(2000)
    dealt = cka.batches(np.arange(2000), rng=rng)
    assert cka.minibatch_cka(cka.normalised(x), cka.normalised(y), batches=dealt) == pytest.approx(
        0.9, abs=0.02
    )
    z = [cka.normalised(a, how="z") for a in (x, y)]
    assert cka.minibatch_cka(*z, batches=dealt) == pytest.approx(1 / 64, abs=0.01)


def test_normalised_agrees_with_scikit_learn() -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x = np.random.default_rng(0).standard_normal((50, 6)) * [1, 2, 3, 4, 5, 6] + 7
    rows = preprocessing.normalize(x)
    np.testing.assert_allclose(cka.normalised(x, how="rows"), rows - rows.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(
        cka.normalised(x, how="z"), preprocessing.StandardScaler().fit_transform(x), atol=1e-12
    )
    np.testing.assert_allclose(cka.normalised(x), x - x.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_constant_feature_and_a_zero_row_stay_zero(dtype: type) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(dtype)
    x[:, 1] = 0.1
    scaled = cka.normalised(x, how="z")
    np.testing.assert_array_equal(scaled[:, 1], 0)
    np.testing.assert_allclose(scaled[:, [0, 2]].std(axis=0), 1, rtol=1e-3)
    x[7] = 0
    rows = cka.normalised(x, how="rows")
    length = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    mean = (x / np.where(length > 0, length, 1)).mean(axis=0)
    np.testing.assert_allclose(rows[7], -mean, rtol=1e-3)


@pytest.mark.parametrize("how", ["raw", "rows", "z"])
def test_values_that_are_not_finite_are_refused(how: cka.Preprocessing) -> None:
    x = np.ones((8, 3), dtype=np.float16)
    x[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"not finite .* in row 5"):
        cka.normalised(x, how=how)
    with pytest.raises(ValueError, match="not finite"):
        cka.gram_features(x, [np.arange(8)])
    x[5, 1] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        cka.normalised(x, how=how)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_constant_representations_are_refused(dtype: type) -> None:
    x = np.full((12, 3), 0.1, dtype=dtype)
    with pytest.raises(ValueError, match="same for all"):
        cka.normalised(x)
    with pytest.raises(ValueError, match="same for all"):
        cka.gram_features(x, list(np.arange(12).reshape(2, 6)))
    with pytest.raises(ValueError, match="same for all"):
        cka.minibatch_cka(np.eye(12), x, batches=list(np.arange(12).reshape(2, 6)))
    x[0] = 1
    assert len(cka.gram_features(x, list(np.arange(12).reshape(2, 6)))) == 2


def test_other_bad_input_is_refused() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 3))
    with pytest.raises(ValueError, match="at least 4 tokens, there is one of 3"):
        cka.gram_features(x, [np.arange(3)])
    with pytest.raises(ValueError, match="there is none"):
        cka.gram_features(x, [])
    with pytest.raises(ValueError, match=r"has shape \(12,\)"):
        cka.gram_features(x[:, 0], [np.arange(12)])
    with pytest.raises(ValueError, match="'rank' is not known"):
        cka.normalised(x, how="rank")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of 3"):
        cka.batches(np.array([0, 0, 1, 2]), rng=rng)
    with pytest.raises(ValueError, match="at most 3"):
        cka.batches(np.arange(9), largest=3, rng=rng)
    with pytest.raises(ValueError, match="11 and 12 tokens"):
        cka.minibatch_cka(x, x[:11], batches=[np.arange(11)])
    with pytest.raises(ValueError, match="there is one of 3"):
        cka.minibatch_cka(x, x, batches=[np.arange(5), np.arange(3)])
    grams = [cka.gram_features(x[:n], [np.arange(n)]) for n in (12, 11)]
    with pytest.raises(ValueError, match="different tokens or batches"):
        cka.hsic_table(grams)


def test_a_self_term_that_is_not_positive_gives_nan() -> None:
    found = cka.cka_from(np.ones(3), np.array([4, 0, -1.0]), np.array([1, 1, 1.0]))
    np.testing.assert_array_equal(found, [0.5, np.nan, np.nan])
