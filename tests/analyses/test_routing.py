import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.statistics import routing
from analyses.statistics.documents import frequent_labels, probe_text
from analyses.statistics.information import miller_madow, mutual_information
from analyses.statistics.permutation import document_permutations, permutation_p
from analyses.statistics.resampling import jackknife

N_EXPERTS = 4


def _text(n_documents: int = 12, length: int = 30) -> tuple[NDArray, NDArray, NDArray]:
    """Documents of unequal length: label of each token's document, token ids, top-2 choices."""
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(n_documents), rng.integers(length // 2, length, n_documents))
    label = rng.integers(-1, 5, len(document))
    choice = np.stack([rng.permutation(N_EXPERTS)[:2] for _ in document])
    return document, label, choice


def test_load_sums_to_one_and_counts_every_choice() -> None:
    document, _, choice = _text()
    counts = routing.document_choices(choice, document, n_experts=N_EXPERTS).sum(axis=0)
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
    document, _, choice = _text()
    domain = np.arange(12) % 3
    counts = routing.document_choices(choice, document, n_experts=N_EXPERTS)
    table = routing.domain_table(counts, domain, n_domains=3)
    profile = routing.domain_profile(table, top_k=2)
    slow = (choice[domain[document] == 2] == 1).any(axis=1).mean()
    assert profile[2, 1] == pytest.approx(slow)
    np.testing.assert_allclose(profile.sum(axis=1), 2)


def test_experts_that_follow_the_domain_hold_all_its_information() -> None:
    document, domain = np.repeat(np.arange(8), 10), np.arange(8) % 4
    counts = routing.document_choices(domain[document][:, None], document, n_experts=N_EXPERTS)
    table = routing.domain_table(counts, domain, n_domains=4)
    assert mutual_information(table) == pytest.approx(np.log(4))


def test_information_without_a_document_equals_computing_without_it() -> None:
    document, _, choice = _text()
    domain = np.arange(12) % 3
    counts = routing.document_choices(choice, document, n_experts=N_EXPERTS)
    deleted = routing.domain_deleted(counts, domain, n_domains=3)
    for d in range(12):
        kept = np.arange(12) != d
        table = routing.domain_table(counts[kept], domain[kept], n_domains=3)
        assert deleted[d] == pytest.approx(mutual_information(table))


def test_token_lookup_is_fully_specialized_in_vocabulary() -> None:
    label = np.random.default_rng(0).integers(0, 20, 500)
    table = routing.vocabulary_table((label % N_EXPERTS)[:, None], label, n_experts=N_EXPERTS)
    assert routing.vocabulary_specialization(table, top_k=1) == 1.0


def test_ids_spread_evenly_over_experts_are_not_specialized() -> None:
    assert routing.vocabulary_specialization(np.full((8, 5), 3), top_k=2) == pytest.approx(2 / 8)


def test_vocabulary_specialization_agrees_with_a_loop_over_ids() -> None:
    _, label, choice = _text()
    table = routing.vocabulary_table(choice, label, n_experts=N_EXPERTS)
    total = 0.0
    for x in range(label.max() + 1):
        chosen = choice[label == x]
        total += max((chosen == i).any(axis=1).sum() for i in range(N_EXPERTS))
    expected = total / (label >= 0).sum()
    assert routing.vocabulary_specialization(table, top_k=2) == pytest.approx(expected)


def test_vocabulary_specialization_without_a_document_equals_computing_without_it() -> None:
    document, label, choice = _text()
    label[document == 4] = -1  # a document without any frequent id
    table = routing.vocabulary_table(choice, label, n_experts=N_EXPERTS)
    deleted = routing.vocabulary_deleted(choice, label, document, table)
    for d in range(12):
        kept = document != d
        without = routing.vocabulary_table(choice[kept], label[kept], n_experts=N_EXPERTS)
        expected = routing.vocabulary_specialization(without, top_k=2)
        assert deleted[d] == pytest.approx(expected)


def test_renaming_experts_changes_nothing() -> None:
    document, label, choice = _text()
    renamed = np.array([2, 0, 3, 1])[choice]
    domain, orders = (
        np.arange(12) % 3,
        np.random.default_rng(0).permuted(np.tile(np.arange(12), (5, 1)), axis=1),
    )
    for measure in (
        lambda c: routing.domain_null(
            routing.document_choices(c, document, n_experts=N_EXPERTS), domain, orders, n_domains=3
        ),
        lambda c: [
            routing.vocabulary_specialization(table, top_k=2)
            for table in routing.exchanged_tables(c, label, document, orders, n_experts=N_EXPERTS)
        ],
    ):
        np.testing.assert_allclose(measure(renamed), measure(choice))


def test_identity_permutation_gives_back_the_observed_table() -> None:
    document, label, choice = _text()
    order = np.random.default_rng(0).permutation(len(document))  # tokens in any order
    table = routing.vocabulary_table(choice, label, n_experts=N_EXPERTS)
    (exchanged,) = routing.exchanged_tables(
        choice[order], label[order], document[order], np.arange(12)[None], n_experts=N_EXPERTS
    )
    # within a document tokens keep their order, whichever order documents come in
    np.testing.assert_array_equal(exchanged, table)


def test_documents_exchange_whole_blocks_of_choices() -> None:
    document = np.array([0, 0, 1, 1, 1])
    label = np.array([0, 1, 2, 3, 4])
    choice = np.array([0, 1, 2, 3, 0])[:, None]
    (table,) = routing.exchanged_tables(
        choice, label, document, np.array([[1, 0]]), n_experts=N_EXPERTS
    )
    np.testing.assert_array_equal(table.argmax(axis=0), [2, 3, 0, 0, 1])


def test_null_keeps_the_load() -> None:
    document, label, choice = _text()
    label = np.abs(label)  # count every token
    orders = document_permutations(12, n_resamples=20, rng=np.random.default_rng(0))
    tables = routing.exchanged_tables(choice, label, document, orders, n_experts=N_EXPERTS)
    load = np.bincount(choice.ravel(), minlength=N_EXPERTS)
    for table in tables:
        np.testing.assert_array_equal(table.sum(axis=1), load)


def test_p_is_uniform_when_documents_have_habits_of_their_own_but_no_topic() -> None:
    # each document prefers an expert for reasons that neither its domain nor its words explain
    rng = np.random.default_rng(0)
    n, length = 16, 20
    document, domain = np.repeat(np.arange(n), length), np.arange(n) % 2
    p_domain, p_vocabulary, p_tokens = [], [], []
    for _ in range(200):
        habit = rng.integers(0, N_EXPERTS, n)[document]
        free = rng.integers(0, N_EXPERTS, n * length)
        choice = np.where(rng.random(n * length) < 0.5, habit, free)[:, None]
        label = rng.integers(0, 6, n * length)
        orders = document_permutations(n, n_resamples=59, rng=rng)
        counts = routing.document_choices(choice, document, n_experts=N_EXPERTS)
        table = routing.domain_table(counts, domain, n_domains=2)
        observed = mutual_information(table)
        null = routing.domain_null(counts, domain, orders, n_domains=2)
        p_domain.append(permutation_p(observed, null))
        shuffled = [
            mutual_information(
                np.histogram2d(rng.permutation(domain[document]), choice[:, 0], (2, N_EXPERTS))[0]
            )
            for _ in range(19)
        ]
        p_tokens.append(permutation_p(observed, np.array(shuffled)))
        table = routing.vocabulary_table(choice, label, n_experts=N_EXPERTS)
        exchanged = routing.exchanged_tables(choice, label, document, orders, n_experts=N_EXPERTS)
        draws = [routing.vocabulary_specialization(t, top_k=1) for t in exchanged]
        observed = routing.vocabulary_specialization(table, top_k=1)
        p_vocabulary.append(permutation_p(observed, np.array(draws)))
    for p in (p_domain, p_vocabulary):
        assert 8 <= np.sum(np.array(p) <= 0.1) <= 32  # 20 expected; 99.8% of a binomial
        assert 79 <= np.sum(np.array(p) <= 0.5) <= 122
    assert np.mean(np.array(p_tokens) <= 0.1) > 0.5  # permuting tokens instead rejects too often


def test_interval_covers_and_the_two_corrections_enclose_the_information() -> None:
    # documents spread around the routing of their domain, which is known
    rng = np.random.default_rng(0)
    n_documents, domain = 30, np.arange(30) % 5
    habits = rng.dirichlet(np.full(N_EXPERTS, 4.0), 5)
    truth = mutual_information(habits / 5)
    plug_in, adjusted, corrected, margin = [], [], [], []
    for _ in range(200):
        choice = [rng.multinomial(100, rng.dirichlet(40 * habits[d])) for d in domain]
        counts = np.stack(choice)
        table = routing.domain_table(counts, domain, n_domains=5)
        orders = document_permutations(n_documents, n_resamples=40, rng=rng)
        null = routing.domain_null(counts, domain, orders, n_domains=5).mean()
        deleted = routing.domain_deleted(counts, domain, n_domains=5)
        low, high = jackknife(mutual_information(table), deleted).ci
        plug_in.append(mutual_information(table))
        adjusted.append(plug_in[-1] - null)
        corrected.append(miller_madow(table))
        margin.append((high - low) / 2)
    off = np.abs(np.array(adjusted) - np.mean(adjusted))
    assert (off <= np.array(margin)).mean() > 0.93
    assert np.mean(adjusted) < truth < np.mean(corrected) < np.mean(plug_in)


def test_rare_ids_are_not_counted() -> None:
    token = np.array([7, 7, 7, 9, 9, 9, 4])
    np.testing.assert_array_equal(frequent_labels(token, min_count=3), [0, 0, 0, 1, 1, 1, -1])
    with pytest.raises(ValueError, match=r"no token id occurs 4 times .* \(the commonest, 7, 3"):
        frequent_labels(token, min_count=4)


def test_document_of_two_domains_is_refused() -> None:
    token = np.zeros((2, 3), dtype=int)
    with pytest.raises(ValueError, match="document 'a' of the probe set has sequences of two"):
        probe_text(token, np.array(["a", "a"]), np.array(["x", "y"]), min_count=1)
