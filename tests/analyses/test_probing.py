from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analyses.statistics.probe_baselines import control_labels, lookup, majority
from analyses.statistics.probing import STRENGTHS, Moments, predicted, ridge, unit_folds
from analyses.statistics.resampling import jackknife, leave_one_out

N_UNITS, PER_UNIT, N_FEATURES, N_CLASSES = 30, 40, 12, 4


@pytest.fixture(scope="module")
def text() -> SimpleNamespace:
    """Tokens of 30 units, features of very different sizes, labels that follow some of them."""
    rng = np.random.default_rng(0)
    n = N_UNITS * PER_UNIT
    unit = np.repeat(np.arange(N_UNITS), PER_UNIT)
    scale = np.array([1e-3, 1e3, *np.ones(N_FEATURES - 2)])
    x = scale * (5 + rng.standard_normal((n, N_FEATURES)))
    z = (x / scale)[:, :N_CLASSES] + 1.5 * rng.standard_normal((n, N_CLASSES))
    label = z.argmax(axis=1)
    pair = np.where(rng.random(n) < 0.3, -1, z[:, 0] > 5).astype(int)
    return SimpleNamespace(unit=unit, fold=unit_folds(unit, n_folds=5), x=x, label=label, pair=pair)


def _moments(x: np.ndarray, y: np.ndarray) -> Moments:
    return Moments(np.float64(len(x)), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y)


def _sklearn(strength: float, n: int):
    return make_pipeline(StandardScaler(), RidgeClassifier(alpha=strength * n))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_ridge_is_that_of_sklearn(text: SimpleNamespace, strength: float) -> None:
    x, label = text.x, text.label
    theirs = _sklearn(strength, len(x)).fit(x, label).decision_function(x)
    weight, intercept = ridge(_moments(x, np.eye(N_CLASSES)[label]), [0.5, strength])
    ours = 2 * (x @ weight[1].T + intercept[1]) - 1  # their columns are 1 and -1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)


def test_constant_feature_changes_nothing(text: SimpleNamespace) -> None:
    y = np.eye(N_CLASSES)[text.label]
    wider = np.column_stack([text.x, np.full(len(text.x), 0.1)])
    weight, intercept = ridge(_moments(text.x, y), [1e-2])
    more, intercept_of_more = ridge(_moments(wider, y), [1e-2])
    np.testing.assert_allclose(more[..., :-1], weight, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(intercept_of_more, intercept, atol=1e-7)
    np.testing.assert_allclose(more[..., -1], 0, atol=1e-9)


def _nested(
    x: np.ndarray, label: np.ndarray, fold: np.ndarray, strengths: tuple[float, ...]
) -> np.ndarray:
    """Nested cross-validation as a slow loop over scikit-learn's pipelines."""
    answer, folds, counted = np.full(len(label), -1), set(fold), label >= 0
    for f in folds:
        hits = []
        for strength in strengths:
            right = 0
            for g in folds - {f}:
                fit, score = (fold != f) & (fold != g) & counted, (fold == g) & counted
                probe = _sklearn(strength, fit.sum()).fit(x[fit], label[fit])
                right += (probe.predict(x[score]) == label[score]).sum()
            hits.append(right)
        best = max(i for i, right in enumerate(hits) if right == max(hits))
        fit, score = (fold != f) & counted, (fold == f) & counted
        probe = _sklearn(strengths[best], fit.sum()).fit(x[fit], label[fit])
        answer[score] = probe.predict(x[score])
    return answer


def test_cross_validated_answers_are_those_of_sklearn(text: SimpleNamespace) -> None:
    fold, strengths = unit_folds(text.unit, n_folds=4), (1e-3, 1e-1, 1.0)
    shuffled = np.random.default_rng(1).permutation(text.label)
    tasks = [np.stack([text.label, shuffled]), text.pair[None]]
    together = predicted(text.x, tasks, fold, strengths=strengths)
    labels = (text.label, shuffled, text.pair)
    for ours, label in zip((*together[0], together[1][0]), labels, strict=True):
        np.testing.assert_array_equal(ours, _nested(text.x, label, fold, strengths))


def test_answers_do_not_depend_on_units_of_features_or_on_order(text: SimpleNamespace) -> None:
    rng = np.random.default_rng(2)
    found = predicted(text.x, [text.label[None]], text.fold)[0]
    moved = text.x * rng.uniform(0.1, 10, N_FEATURES) + rng.standard_normal(N_FEATURES)
    order = rng.permutation(len(moved))
    again = predicted(moved[order], [text.label[None, order]], text.fold[order])[0]
    np.testing.assert_array_equal(again, found[:, order])


def test_planted_linear_code_is_read_without_error(text: SimpleNamespace) -> None:
    rng = np.random.default_rng(3)
    label = rng.integers(N_CLASSES, size=len(text.unit))
    x = np.eye(N_CLASSES)[label] @ rng.standard_normal((N_CLASSES, N_FEATURES))
    x += 0.01 * rng.standard_normal(x.shape)
    np.testing.assert_array_equal(predicted(x, [label[None]], text.fold)[0][0], label)


def test_constant_representation_gives_the_commonest_class(text: SimpleNamespace) -> None:
    label = np.where(np.random.default_rng(4).random(len(text.unit)) < 0.6, 0, 1)
    answers = predicted(np.ones((len(label), 3)), [label[None]], text.fold)[0][0]
    assert (answers == 0).all()


def test_selectivity_of_random_features_is_zero_and_its_interval_covers() -> None:
    rng = np.random.default_rng(8)
    unit = np.repeat(np.arange(N_UNITS), PER_UNIT)
    fold, covers, found = unit_folds(unit, n_folds=5), [], []
    for _ in range(40):
        x, token = rng.standard_normal((len(unit), 6)), rng.integers(300, size=len(unit))
        label = rng.integers(2, size=len(unit))
        control = control_labels(label, token, rng.permutation(300))
        task = np.stack([label, control])
        right = predicted(x, [task], fold, strengths=(1e-2, 1.0))[0] == task
        of_units = np.bincount(unit, right[0].astype(float) - right[1]) / PER_UNIT
        found.append(of_units.mean())
        low, high = jackknife(of_units.mean(), leave_one_out(of_units) / (N_UNITS - 1)).ci
        covers.append(low <= 0 <= high)
    assert np.mean(covers) >= 0.85
    assert np.mean(found) == pytest.approx(0, abs=0.01)


def test_splitting_by_token_finds_what_is_not_there() -> None:
    """Features that tell units apart, and labels of whole units that nothing else goes with."""
    rng = np.random.default_rng(5)
    unit = np.repeat(np.arange(N_UNITS), PER_UNIT)
    label = rng.permutation(N_UNITS)[unit] % 2
    x = rng.standard_normal((N_UNITS, N_UNITS))[unit]
    x += 0.3 * rng.standard_normal(x.shape)
    by_unit = predicted(x, [label[None]], unit_folds(unit, n_folds=5))[0][0]
    by_token = predicted(x, [label[None]], rng.integers(5, size=len(unit)))[0][0]
    assert (by_token == label).mean() > 0.95
    assert (by_unit == label).mean() < 0.7


def test_folds_hold_whole_units_of_about_equal_size(text: SimpleNamespace) -> None:
    for unit in np.unique(text.unit):
        assert len(np.unique(text.fold[text.unit == unit])) == 1
    assert set(np.bincount(text.fold)) == {len(text.unit) // 5}
    assert unit_folds(np.arange(4).repeat(2), n_folds=5).max() == 3
    with pytest.raises(ValueError, match="the data have 2, fewer than 3; add works"):
        unit_folds(np.array([0, 0, 1]), n_folds=5)


def test_lookup_is_a_count_of_the_other_folds(text: SimpleNamespace) -> None:
    rng = np.random.default_rng(6)
    token, label = rng.integers(50, size=len(text.unit)), text.pair
    found, commonest = lookup(label, token, text.fold), majority(label, text.fold)
    for t in np.flatnonzero(label >= 0)[:200]:
        others = (text.fold != text.fold[t]) & (label >= 0)
        overall = np.bincount(label[others], minlength=2)
        own = np.bincount(label[others & (token == token[t])], minlength=2)
        assert found[t] == max(range(2), key=lambda c: (own[c], overall[c]))
        assert commonest[t] == overall.argmax()
    assert (found[label < 0] == -1).all()


def test_lookup_takes_the_commonest_class_for_an_unseen_id() -> None:
    label, token, fold = np.array([1, 1, 1, 0]), np.array([5, 5, 5, 9]), np.array([0, 1, 2, 2])
    assert lookup(label, token, fold).tolist() == [1, 1, 1, 1]


def test_control_is_a_function_of_the_id_in_the_shares_of_the_target() -> None:
    rng = np.random.default_rng(7)
    token, rank = rng.integers(300, size=9000), rng.permutation(300)
    label = rng.choice(3, p=[0.7, 0.2, 0.1], size=9000)
    label[:100] = -1
    control = control_labels(label, token, rank)
    counted = label >= 0
    assert (control[~counted] == -1).all()
    for token_id in range(300):
        assert len(np.unique(control[counted & (token == token_id)])) == 1
    shares = [np.bincount(x[counted]) / counted.sum() for x in (label, control)]
    np.testing.assert_allclose(*shares, atol=0.01)
    assert (control != control_labels(label, token, rng.permutation(300))).any()
