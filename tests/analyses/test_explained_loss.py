import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from statsmodels.formula.api import ols

from analyses.statistics.explained_loss import explained_loss, explained_null
from analyses.statistics.permutation import permutation_p
from analyses.statistics.routing import Labelled, labelled

N_EXPERTS, N_UNITS = 3, 8


def _text(effect: float = 0.0, *, seed: int = 0) -> tuple[NDArray, NDArray, Labelled, NDArray]:
    """Losses that depend on the id, and by `effect` on the expert; some tokens have no id."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(N_UNITS), rng.integers(30, 50, N_UNITS))
    label, choice = rng.integers(-1, 6, len(unit)), rng.integers(0, N_EXPERTS, len(unit))
    loss = 2 * label + effect * (choice == 1) + rng.standard_normal(len(unit))
    return loss, choice, labelled(label, unit), unit


def test_shares_agree_with_nested_regressions() -> None:
    loss, choice, at, _ = _text(0.8)
    frame = pd.DataFrame({"y": loss, "e": choice, "v": -1})
    frame.loc[at.counted, "v"] = at.label
    frame = frame[frame["v"] >= 0]
    small, large = (ols(f, frame).fit() for f in ("y ~ C(v)", "y ~ C(v) : C(e)"))
    found, _ = explained_loss(loss, choice, at, n_experts=N_EXPERTS)
    between, freedom = small.ssr - large.ssr, large.df_model - small.df_model
    assert found.eta2 == pytest.approx(between / small.ssr)
    omega2 = (between - freedom * large.mse_resid) / (
        between + (len(frame) - freedom) * large.mse_resid
    )
    assert found.omega2 == pytest.approx(omega2)


def test_shares_without_a_unit_equal_computing_without_it() -> None:
    loss, choice, at, unit = _text(0.8)
    label = np.full(len(unit), -1)
    label[at.counted] = at.label
    _, deleted = explained_loss(loss, choice, at, n_experts=N_EXPERTS)
    for d in range(N_UNITS):
        kept = unit != d
        without = labelled(label[kept], unit[kept] - (unit[kept] > d), n_labels=6)
        expected, _ = explained_loss(loss[kept], choice[kept], without, n_experts=N_EXPERTS)
        assert deleted.eta2[d] == pytest.approx(expected.eta2)
        assert deleted.omega2[d] == pytest.approx(expected.omega2)


def test_loss_that_the_expert_settles_is_explained_in_full() -> None:
    _, choice, at, _ = _text()
    found, _ = explained_loss(choice * 1.0, choice, at, n_experts=N_EXPERTS)
    assert found.eta2 == pytest.approx(1.0)
    assert found.omega2 == pytest.approx(1.0)


def test_lookup_explains_nothing_beyond_the_id() -> None:
    loss, choice, at, _ = _text()
    choice[at.counted] = at.label % N_EXPERTS
    found, _ = explained_loss(loss, choice, at, n_experts=N_EXPERTS)
    assert found.eta2 == pytest.approx(0.0, abs=1e-12)
    assert found.omega2 == pytest.approx(0.0, abs=1e-12)
    null = explained_null(
        loss, choice, at, n_experts=N_EXPERTS, n_resamples=19, rng=np.random.default_rng(0)
    )
    assert permutation_p(found.omega2, null.omega2) == 1.0


def test_constant_added_to_the_loss_changes_nothing() -> None:
    loss, choice, at, _ = _text(0.8)
    one, _ = explained_loss(loss, choice, at, n_experts=N_EXPERTS)
    other, _ = explained_loss(loss + 1e4, choice, at, n_experts=N_EXPERTS)
    assert other.omega2 == pytest.approx(one.omega2)


def test_omega2_is_zero_on_average_and_p_uniform_where_the_expert_does_not_matter() -> None:
    omega2, p = [], []
    for seed in range(200):
        loss, choice, at, _ = _text(seed=seed)
        found, _ = explained_loss(loss, choice, at, n_experts=N_EXPERTS)
        rng = np.random.default_rng(seed)
        null = explained_null(loss, choice, at, n_experts=N_EXPERTS, n_resamples=39, rng=rng)
        omega2.append(found.omega2)
        p.append(float(permutation_p(found.omega2, null.omega2)))
    assert abs(np.mean(omega2)) < 0.004 < np.std(omega2)
    assert 8 <= np.sum(np.array(p) <= 0.1) <= 32
    assert 79 <= np.sum(np.array(p) <= 0.5) <= 122


def test_null_exchanges_choices_within_ids_only() -> None:
    # the id settles the expert's share of each id, so a null over all tokens would differ
    loss, choice, at, _ = _text(1.5)
    rng = np.random.default_rng(0)
    found, _ = explained_loss(loss, choice, at, n_experts=N_EXPERTS)
    null = explained_null(loss, choice, at, n_experts=N_EXPERTS, n_resamples=400, rng=rng)
    slow = []
    for _ in range(400):
        moved = choice.copy()
        for v in range(6):
            own = at.counted[at.label == v]
            moved[own] = rng.permutation(choice[own])
        slow.append(explained_loss(loss, moved, at, n_experts=N_EXPERTS)[0].eta2)
    assert null.eta2.mean() == pytest.approx(np.mean(slow), rel=0.1)
    assert null.eta2.std() == pytest.approx(np.std(slow), rel=0.2)
    assert permutation_p(found.omega2, null.omega2) == pytest.approx(1 / 401)
