import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score

from analyses.statistics import routing
from analyses.statistics.documents import frequent_labels
from analyses.statistics.information import mutual_information

N_EXPERTS = 4


def _text(n_units: int = 12, length: int = 30) -> tuple[NDArray, NDArray, NDArray]:
    """Units of unequal length: unit of each token, token ids, top-2 choices."""
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(n_units), rng.integers(length // 2, length, n_units))
    label = rng.integers(-1, 5, len(unit))
    choice = np.stack([rng.permutation(N_EXPERTS)[:2] for _ in unit])
    return unit, label, choice


def _sums(choice: NDArray, label: NDArray, unit: NDArray) -> routing.Sums:
    at = routing.labelled(label, unit)
    return routing.table_sums(routing.choice_table(choice, at, n_experts=N_EXPERTS))


def test_load_sums_to_one_and_counts_every_choice() -> None:
    unit, _, choice = _text()
    counts = routing.document_choices(choice, unit, n_experts=N_EXPERTS).sum(axis=0)
    load = routing.load(counts)
    assert load.sum() == pytest.approx(1.0)
    assert load[3] == pytest.approx((choice == 3).any(axis=1).mean() / 2)


@pytest.mark.parametrize(
    ("counts", "effective"), [([5, 5, 5, 5], 4), ([9, 0, 0, 0], 1), ([7, 7, 0, 0], 2)]
)
def test_effective_experts_of_even_load_are_the_experts_in_use(
    counts: list[int], effective: float
) -> None:
    assert routing.effective_experts(np.array(counts)) == pytest.approx(effective)


def test_domain_profile_is_the_share_of_tokens_that_chose_an_expert() -> None:
    unit, _, choice = _text()
    domain = unit % 3
    table = routing.choice_table(choice, routing.labelled(domain, unit), n_experts=N_EXPERTS)
    profile = routing.domain_profile(table, top_k=2)
    assert profile[1, 2] == pytest.approx((choice[domain == 2] == 1).any(axis=1).mean())
    np.testing.assert_allclose(profile.sum(axis=0), 2)


def test_information_from_sums_agrees_with_sklearn_over_choices() -> None:
    unit, label, choice = _text()
    counted = label >= 0
    expected = mutual_info_score(np.repeat(label[counted], 2), choice[counted].ravel())
    assert routing.label_information(_sums(choice, label, unit)) == pytest.approx(expected)


def test_balanced_lookup_leaves_nothing_open_and_tells_the_log_of_its_size() -> None:
    label = np.tile(np.arange(20), 25)
    unit = np.repeat(np.arange(5), 100)
    sums = _sums((label % N_EXPERTS)[:, None], label, unit)
    assert routing.open_entropy(sums) == 0.0
    assert routing.label_information(sums) == pytest.approx(np.log(4))
    assert routing.choice_entropy(sums) == routing.label_information(sums)
    assert routing.token_specialization(sums, top_k=1) == 1.0
    assert routing.type_specialization(sums, top_k=1) == 1.0


def test_independent_table_tells_nothing_and_is_specialized_as_the_load_is() -> None:
    sums = routing.table_sums(np.outer([5, 3, 2], [10, 20, 30]))
    assert routing.label_information(sums) == pytest.approx(0.0, abs=1e-12)
    assert routing.token_specialization(sums, top_k=1) == pytest.approx(0.5)
    assert routing.type_specialization(sums, top_k=1) == pytest.approx(0.5)


def test_ids_spread_evenly_over_experts_are_specialized_as_k_of_n() -> None:
    sums = routing.table_sums(np.full((8, 5), 3))
    assert routing.token_specialization(sums, top_k=2) == pytest.approx(2 / 8)
    assert routing.type_specialization(sums, top_k=2) == pytest.approx(2 / 8)


def test_both_means_of_specialization_agree_with_a_loop_over_ids() -> None:
    unit, label, choice = _text()
    largest, shares = 0, []
    for x in range(label.max() + 1):
        chosen = choice[label == x]
        largest += max((chosen == i).any(axis=1).sum() for i in range(N_EXPERTS))
        shares.append(max((chosen == i).any(axis=1).mean() for i in range(N_EXPERTS)))
    sums = _sums(choice, label, unit)
    expected = largest / (label >= 0).sum()
    assert routing.token_specialization(sums, top_k=2) == pytest.approx(expected)
    assert routing.type_specialization(sums, top_k=2) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("block", [1, 50, 2**22])
def test_sums_without_a_unit_equal_counting_without_it(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "_BLOCK", block)
    unit, label, choice = _text()
    label[unit == 4] = -1  # a unit without any frequent id
    label[(unit != 7) & (label == 2)] = -1  # an id of one unit alone
    at = routing.labelled(label, unit)
    table = routing.choice_table(choice, at, n_experts=N_EXPERTS)
    deleted = routing.deleted_sums(choice, at, table)
    for d in range(12):
        kept = unit != d
        without = routing.labelled(label[kept], unit[kept] - (unit[kept] > d), n_labels=5)
        table = routing.choice_table(choice[kept], without, n_experts=N_EXPERTS)
        for name, expected in routing.table_sums(table)._asdict().items():
            np.testing.assert_allclose(getattr(deleted, name)[d], expected, err_msg=name)


def test_names_of_experts_and_labels_do_not_matter() -> None:
    unit, label, choice = _text()
    renamed = np.where(label < 0, -1, np.array([3, 1, 4, 0, 2])[label])
    sums = _sums(choice, label, unit)
    other = _sums(np.array([2, 0, 3, 1])[choice], renamed, unit)
    for name in ("cells", "labels", "largest", "largest_share", "used"):
        assert getattr(other, name) == pytest.approx(getattr(sums, name))


def test_information_of_many_experts_agrees_with_the_table() -> None:
    rng = np.random.default_rng(0)
    unit, label = np.repeat(np.arange(6), 50), rng.integers(0, 9, 300)
    choice = np.stack([rng.choice(256, 8, replace=False) for _ in unit])
    table = routing.choice_table(choice, routing.labelled(label, unit), n_experts=256)
    found = routing.label_information(routing.table_sums(table))
    assert found == pytest.approx(float(mutual_information(table)))


def test_unsorted_units_and_labels_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="not sorted by unit"):
        routing.labelled(np.zeros(3, dtype=int), np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="no token has a label"):
        routing.labelled(np.full(2, -1), np.array([0, 1]))


def test_rare_ids_are_not_counted() -> None:
    token = np.array([7, 7, 7, 9, 9, 9, 4])
    np.testing.assert_array_equal(frequent_labels(token, min_count=3), [0, 0, 0, 1, 1, 1, -1])
    with pytest.raises(ValueError, match=r"no token id occurs 4 times .* \(the commonest, 7, 3"):
        frequent_labels(token, min_count=4)
