import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.statistics import routing
from analyses.statistics.information import miller_madow, mutual_information
from analyses.statistics.moved_choices import exchanged, moved_sums, relabelled_sums, rotated
from analyses.statistics.permutation import document_permutations, permutation_p
from analyses.statistics.resampling import jackknife

N_EXPERTS, N_UNITS = 4, 12


def _text() -> tuple[NDArray, NDArray, NDArray]:
    """Units of unequal length: unit of each token, token ids, top-2 choices."""
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(N_UNITS), rng.integers(15, 30, N_UNITS))
    label = rng.integers(-1, 5, len(unit))
    choice = np.stack([rng.permutation(N_EXPERTS)[:2] for _ in unit])
    return unit, label, choice


def _observed(choice: NDArray, at: routing.Labelled) -> routing.Sums:
    return routing.table_sums(routing.choice_table(choice, at, n_experts=N_EXPERTS))


def _assert_equal(found: routing.Sums, draw: int, expected: routing.Sums) -> None:
    for name, value in expected._asdict().items():
        np.testing.assert_allclose(getattr(found, name)[draw], value, err_msg=name)


def test_moving_nothing_gives_back_what_is_observed() -> None:
    unit, label, choice = _text()
    at, still = routing.labelled(label, unit), np.arange(N_UNITS)[None]
    for arrangements in (exchanged(at.slices, still), rotated(at.slices, np.zeros((1, N_UNITS)))):
        found = moved_sums(choice, at, arrangements, n_experts=N_EXPERTS)
        _assert_equal(found, 0, _observed(choice, at))
    found = relabelled_sums(choice, at, np.zeros(N_UNITS, dtype=int), still, n_experts=N_EXPERTS)
    _assert_equal(found, 0, _observed(choice, at))


def test_units_exchange_whole_runs_of_choices() -> None:
    unit, label = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 2, 3, 4])
    choice = np.array([0, 1, 2, 3, 0])
    at = routing.labelled(label, unit)
    (pieces,) = exchanged(at.slices, np.array([[1, 0]]))
    np.testing.assert_array_equal(np.concatenate([choice[p] for p in pieces]), [2, 3, 0, 0, 1])


def test_rotation_keeps_every_unit_and_its_order() -> None:
    unit, label, _ = _text()
    at, turns = routing.labelled(label, unit), np.random.default_rng(1).random((5, N_UNITS))
    place = np.arange(len(unit))
    for pieces in rotated(at.slices, turns):
        moved = np.concatenate([place[p] for p in pieces])
        np.testing.assert_array_equal(unit[moved], unit)
        for whole in at.slices:
            steps = np.diff(moved[whole]) % (whole.stop - whole.start)
            assert (steps == 1).all()


def test_moved_sums_agree_with_counting_every_draw() -> None:
    unit, label, choice = _text()
    at = routing.labelled(label, unit)
    orders = document_permutations(N_UNITS, n_resamples=5, rng=np.random.default_rng(0))
    pieces = list(exchanged(at.slices, orders))
    found = moved_sums(choice, at, pieces, n_experts=N_EXPERTS)
    for draw, of_draw in enumerate(pieces):
        _assert_equal(found, draw, _observed(np.concatenate([choice[p] for p in of_draw]), at))


def test_relabelled_sums_agree_with_counting_every_draw() -> None:
    unit, label, choice = _text()
    domain = np.arange(N_UNITS) % 3
    at = routing.labelled(label, unit)
    orders = document_permutations(N_UNITS, n_resamples=5, rng=np.random.default_rng(0))
    found = relabelled_sums(choice, at, domain, orders, n_experts=N_EXPERTS)
    for draw, order in enumerate(orders):
        both = np.where(label < 0, -1, 3 * label + domain[order][unit])
        _assert_equal(found, draw, _observed(choice, routing.labelled(both, unit, n_labels=15)))


def test_exchange_keeps_the_load_and_rotation_the_load_of_every_unit() -> None:
    unit, label, choice = _text()
    at = routing.labelled(np.abs(label), unit)  # every token is counted
    orders = document_permutations(N_UNITS, n_resamples=20, rng=np.random.default_rng(0))
    found = moved_sums(choice, at, exchanged(at.slices, orders), n_experts=N_EXPERTS)
    assert (found.experts == np.bincount(choice.ravel(), minlength=N_EXPERTS)).all()


def test_lookup_has_a_share_of_one_and_its_null_has_not() -> None:
    rng = np.random.default_rng(0)
    unit, label = np.repeat(np.arange(20), 40), rng.integers(0, 30, 800)
    at, choice = routing.labelled(label, unit), (label * 7 % N_EXPERTS)[:, None]
    orders = document_permutations(20, n_resamples=30, rng=rng)
    null = moved_sums(choice, at, exchanged(at.slices, orders), n_experts=N_EXPERTS)
    observed = _observed(choice, at)
    assert routing.open_entropy(observed) == 0.0
    assert (routing.label_information(null) < 0.2 * routing.label_information(observed)).all()


def _p(choice: NDArray, at: routing.Labelled, null: routing.Sums) -> float:
    observed = routing.label_information(_observed(choice, at))
    return float(permutation_p(observed, routing.label_information(null)))


def test_p_is_uniform_when_units_have_habits_of_their_own_but_no_topic() -> None:
    # each unit prefers an expert for reasons that neither its domain nor its words explain
    rng = np.random.default_rng(0)
    n, length = 16, 20
    unit, domain = np.repeat(np.arange(n), length), np.arange(n) % 2
    whole = routing.labelled(np.zeros(n * length, dtype=int), unit)
    of_domain = routing.labelled(domain[unit], unit)
    place = routing.labelled(np.tile(np.arange(length) // 5, n), unit)
    p: dict[str, list[float]] = {"domain": [], "ids": [], "place": [], "given": [], "tokens": []}
    for _ in range(200):
        habit = rng.integers(0, N_EXPERTS, n)[unit]
        free = rng.integers(0, N_EXPERTS, n * length)
        choice = np.where(rng.random(n * length) < 0.5, habit, free)[:, None]
        label = rng.integers(0, 6, n * length)
        at = routing.labelled(label, unit)
        both = routing.labelled(2 * label + domain[unit], unit, n_labels=12)
        orders = document_permutations(n, n_resamples=59, rng=rng)
        pieces = rotated(place.slices, rng.random(orders.shape))
        relabelled = relabelled_sums(choice, whole, domain, orders, n_experts=N_EXPERTS)
        p["domain"].append(_p(choice, of_domain, relabelled))
        moved = moved_sums(choice, at, exchanged(at.slices, orders), n_experts=N_EXPERTS)
        p["ids"].append(_p(choice, at, moved))
        moved = moved_sums(choice, place, pieces, n_experts=N_EXPERTS)
        p["place"].append(_p(choice, place, moved))
        relabelled = relabelled_sums(choice, at, domain, orders, n_experts=N_EXPERTS)
        left = -routing.open_entropy(_observed(choice, both))
        p["given"].append(float(permutation_p(left, -routing.open_entropy(relabelled))))
        shuffled = [
            mutual_information(
                np.histogram2d(rng.permutation(domain[unit]), choice[:, 0], (2, N_EXPERTS))[0]
            )
            for _ in range(19)
        ]
        observed = routing.label_information(_observed(choice, of_domain))
        p["tokens"].append(float(permutation_p(observed, np.array(shuffled))))
    for name in ("domain", "ids", "place", "given"):
        assert 8 <= np.sum(np.array(p[name]) <= 0.1) <= 32, name  # 20 expected; 99.8%
        assert 79 <= np.sum(np.array(p[name]) <= 0.5) <= 122, name
    assert np.mean(np.array(p["tokens"]) <= 0.1) > 0.5  # permuting tokens rejects too often


def test_interval_covers_and_the_two_corrections_enclose_the_information() -> None:
    # units spread around the routing of their domain, which is known
    rng = np.random.default_rng(0)
    n, length, domain = 30, 100, np.arange(30) % 5
    unit = np.repeat(np.arange(n), length)
    habits = rng.dirichlet(np.full(N_EXPERTS, 4.0), 5)
    truth = mutual_information(habits / 5)
    at = routing.labelled(domain[unit], unit)
    whole = routing.labelled(np.zeros(n * length, dtype=int), unit)
    plug_in, adjusted, corrected, margin = [], [], [], []
    for _ in range(200):
        counts = [rng.multinomial(length, rng.dirichlet(40 * habits[d])) for d in domain]
        choice = np.concatenate([np.repeat(np.arange(N_EXPERTS), c) for c in counts])[:, None]
        table = routing.choice_table(choice, at, n_experts=N_EXPERTS)
        orders = document_permutations(n, n_resamples=40, rng=rng)
        null = relabelled_sums(choice, whole, domain, orders, n_experts=N_EXPERTS)
        deleted = routing.label_information(routing.deleted_sums(choice, at, table))
        plug_in.append(float(routing.label_information(routing.table_sums(table))))
        adjusted.append(plug_in[-1] - routing.label_information(null).mean())
        corrected.append(miller_madow(table))
        low, high = jackknife(np.array(plug_in[-1]), deleted).ci
        margin.append((high - low) / 2)
    off = np.abs(np.array(adjusted) - np.mean(adjusted))
    assert (off <= np.array(margin)).mean() > 0.93
    assert np.mean(adjusted) < truth < np.mean(corrected) < np.mean(plug_in)


def test_given_the_id_the_domain_tells_nothing_where_it_only_has_words_of_its_own() -> None:
    # routing looks at the id alone, with noise; domains differ in the frequencies of ids
    rng = np.random.default_rng(0)
    n, length, domain = 24, 60, np.arange(24) % 3
    unit = np.repeat(np.arange(n), length)
    words = rng.dirichlet(np.full(12, 0.4), 3)
    label = np.concatenate([rng.choice(12, length, p=words[d]) for d in domain])
    choice = np.where(rng.random(n * length) < 0.7, label % N_EXPERTS,
                      rng.integers(0, N_EXPERTS, n * length))[:, None]  # fmt: skip
    at, orders = routing.labelled(label, unit), document_permutations(n, n_resamples=199, rng=rng)
    whole = routing.labelled(np.zeros(n * length, dtype=int), unit)
    null = relabelled_sums(choice, whole, domain, orders, n_experts=N_EXPERTS)
    assert _p(choice, routing.labelled(domain[unit], unit), null) == 0.005
    both = routing.labelled(3 * label + domain[unit], unit, n_labels=36)
    left = routing.open_entropy(relabelled_sums(choice, at, domain, orders, n_experts=N_EXPERTS))
    assert permutation_p(-routing.open_entropy(_observed(choice, both)), -left) > 0.05
    # and where experts follow the domain at every id, it tells
    choice = np.where(rng.random(n * length) < 0.3, domain[unit], choice[:, 0])[:, None]
    left = routing.open_entropy(relabelled_sums(choice, at, domain, orders, n_experts=N_EXPERTS))
    assert permutation_p(-routing.open_entropy(_observed(choice, both)), -left) == 0.005


def test_rotation_finds_what_the_position_settles() -> None:
    unit, place = np.repeat(np.arange(10), 40), np.tile(np.arange(40) // 10, 10)
    at, rng = routing.labelled(place, unit), np.random.default_rng(0)
    pieces = rotated(at.slices, rng.random((99, 10)))
    null = moved_sums(place[:, None], at, pieces, n_experts=N_EXPERTS)
    assert _p(place[:, None], at, null) == 0.01
    # exchanged units keep their positions, so that null would be blind to it
    orders = document_permutations(10, n_resamples=9, rng=rng)
    blind = moved_sums(place[:, None], at, exchanged(at.slices, orders), n_experts=N_EXPERTS)
    assert _p(place[:, None], at, blind) == pytest.approx(1.0)
