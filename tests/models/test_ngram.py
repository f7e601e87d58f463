from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from models.ngram import KneserNey, discounts, fit_kneser_ney

A, B, C = 1, 2, 3


def joined(documents: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([i for document in documents for i in (*document, 0)])


def random_documents(seed: int, *, n: int, length: int, d_vocab: int) -> list[list[int]]:
    """Texts whose tokens depend on the two before them, with a few tokens far more common."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(n):
        text = rng.integers(1, d_vocab, size=2).tolist()
        for _ in range(rng.integers(0, length)):
            habit = 1 + (3 * text[-1] + 5 * text[-2]) % (d_vocab - 1)
            text.append(
                habit if rng.random() < 0.6 else int(1 + rng.integers(d_vocab - 1) ** 2 // d_vocab)
            )
        documents.append(text)
    return documents


class SlowKneserNey:
    """The textbook's recursion over dictionaries, one order; nothing shared with the module."""

    def __init__(self, documents, *, order, n_words, discount):
        self.order, self.n_words = order, n_words
        grams = {
            k: Counter(tuple(d[i : i + k]) for d in documents for i in range(len(d) - k + 1))
            for k in range(1, order + 1)
        }
        self.count, self.discount = {}, {}
        for k in range(1, order + 1):
            self.count[k] = (
                grams[k] if k == order else Counter(longer[1:] for longer in grams[k + 1])
            )
            self.discount[k] = self.discounts(self.count[k], discount)
        self.following = defaultdict(list)
        for k in self.count:
            for gram, count in self.count[k].items():
                self.following[gram[:-1], k].append(count)

    @staticmethod
    def discounts(count, discount):
        if discount is not None:
            return [0, discount, discount, discount]
        n = [sum(c == r for c in count.values()) for r in range(5)]
        if not all(n[1:]):
            return [0, 0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        found = [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        if all(0 < found[r] <= r for r in (1, 2, 3)):
            return found
        return [0, 0.5, 1.0, 1.5]

    def probability(self, word, context, k=None):
        k = min(self.order, len(context) + 1) if k is None else k
        if k == 0:
            return 1 / self.n_words
        context = tuple(context)[len(context) - (k - 1) :]
        lower = self.probability(word, context[1:], k - 1)
        following = self.following.get((context, k), [])
        if not following:
            return lower
        d, count = self.discount[k], self.count[k][(*context, word)]
        held = sum(d[min(c, 3)] for c in following)
        return (max(count - d[min(count, 3)], 0) + held * lower) / sum(following)


def probability(model: KneserNey, order: int, context: Sequence[int], word: int) -> float:
    """P of a word after a context, from the surprisal of the last position."""
    targets = np.array([[*context[1:], word]])
    return float(np.exp(-model.surprisal(np.array([context]), targets)[order - 1, 0, -1]))


BIGRAM = {
    "aa": "3/20", "ba": "57/80", "ca": "11/80",
    "ab": "17/40", "bb": "17/40", "cb": "3/20",
    "ac": "11/20", "bc": "3/10", "cc": "3/20",
}  # fmt: skip
TRIGRAM = {
    "aab": "71/160", "bab": "71/160", "cab": "9/80",
    "aba": "9/40", "bba": "51/160", "cba": "73/160",
    "aca": "9/40", "bca": "91/160", "cca": "33/160",
    "acc": "2/5", "bcc": "2/5", "ccc": "1/5",
}  # fmt: skip


@pytest.mark.parametrize(("gram", "exact"), [*BIGRAM.items(), *TRIGRAM.items()])
def test_probabilities_of_a_small_text_equal_exact_fractions(gram: str, exact: str) -> None:
    """`gram` is the word, then its context; by hand, discount 3/4 at every level."""
    token = {"a": A, "b": B, "c": C}
    model = fit_kneser_ney(
        joined([[A, B, A, C], [A, B, B], [C, A, B]]), max_order=len(gram), d_vocab=4, discount=0.75
    )
    word, *context = (token[letter] for letter in gram)
    assert probability(model, len(gram), context, word) == pytest.approx(
        float(Fraction(exact)), rel=1e-6
    )


@pytest.mark.parametrize("discount", [None, 0.6])
@pytest.mark.parametrize(("n", "length", "d_vocab"), [(60, 40, 12), (5, 9, 40), (200, 12, 5)])
def test_surprisal_equals_a_slow_dictionary_implementation(
    n: int, length: int, d_vocab: int, discount: float | None
) -> None:
    documents = random_documents(0, n=n, length=length, d_vocab=d_vocab)
    documents.append([1, 2, 3, 4, 4])
    model = fit_kneser_ney(joined(documents), d_vocab=d_vocab, discount=discount)
    text = np.random.default_rng(1).integers(1, d_vocab, size=(6, 9))
    text[0, :8] = (documents[0] * 8)[:8]
    surprisal = model.surprisal(text[:, :-1], text[:, 1:])
    assert surprisal.dtype == np.float32
    assert surprisal.shape == (5, 6, 8)
    for order in range(1, 6):
        known = {
            k: SlowKneserNey(documents, order=k, n_words=d_vocab - 1, discount=discount)
            for k in range(1, order + 1)
        }
        for sequence in range(6):
            for pos in range(8):
                context = text[sequence, max(0, pos - order + 2) : pos + 1].tolist()
                context = context if order > 1 else []
                slow = known[len(context) + 1].probability(text[sequence, pos + 1], context)
                assert surprisal[order - 1, sequence, pos] == pytest.approx(-np.log(slow), rel=1e-5)


def test_probabilities_sum_to_one_after_any_context() -> None:
    d_vocab = 30
    model = fit_kneser_ney(
        joined(random_documents(0, n=50, length=60, d_vocab=d_vocab)), d_vocab=d_vocab
    )
    contexts = np.random.default_rng(0).integers(1, d_vocab, size=(200, 4))
    tokens = np.repeat(contexts, d_vocab - 1, axis=0)
    words = np.tile(np.arange(1, d_vocab), len(contexts))[:, None]
    surprisal = model.surprisal(tokens, np.hstack([tokens[:, 1:], words]))[:, :, -1]
    total = np.exp(-surprisal.astype(float)).reshape(5, len(contexts), -1).sum(axis=-1)
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_discounts_follow_the_counts_of_counts() -> None:
    count = np.repeat([1, 2, 3, 4, 9], [40, 15, 8, 5, 3])
    y = 40 / 70
    expected = (1 - 2 * y * 15 / 40, 2 - 3 * y * 8 / 15, 3 - 4 * y * 5 / 8)
    assert discounts(count) == pytest.approx(expected)


@pytest.mark.parametrize("count", [[1, 1, 2, 2], [7, 8], [1] * 100 + [2] + [3] * 5 + [4]])
def test_discounts_fall_back_where_counts_cannot_give_them(count: list[int]) -> None:
    assert discounts(np.array(count)) == (0.5, 1.0, 1.5)


def test_a_text_of_one_repeated_token_gives_finite_surprisal() -> None:
    model = fit_kneser_ney(np.full(50, 3), d_vocab=8)
    sequence = np.array([[3, 3, 3, 5, 5, 3]])
    surprisal = model.surprisal(sequence[:, :-1], sequence[:, 1:])
    assert np.isfinite(surprisal).all()
    assert (surprisal[:, 0, 1] < 0.1).all()
    assert (surprisal[:, 0, 2] > 2).all()


def test_the_order_of_documents_does_not_matter() -> None:
    documents = random_documents(0, n=40, length=30, d_vocab=20)
    text = np.random.default_rng(0).integers(1, 20, size=(20, 12))
    there, back = (
        fit_kneser_ney(joined(order), d_vocab=20).surprisal(text[:, :-1], text[:, 1:])
        for order in (documents, documents[::-1])
    )
    np.testing.assert_allclose(there, back, rtol=1e-6)


def test_no_ngram_crosses_a_separator() -> None:
    apart = joined([[1, 2]] * 9 + [[3, 4]] * 9)
    together = joined([[1, 2, 3, 4]] * 9)
    after_two = [
        probability(fit_kneser_ney(tokens, max_order=2, d_vocab=6), 2, [2], 3)
        for tokens in (apart, together)
    ]
    assert after_two[0] == probability(fit_kneser_ney(apart, max_order=2, d_vocab=6), 2, [5], 3)
    assert after_two[1] > 0.8


def test_near_the_start_a_high_order_equals_the_order_that_has_its_context() -> None:
    documents = random_documents(0, n=40, length=30, d_vocab=20)
    model = fit_kneser_ney(joined(documents), d_vocab=20)
    text = np.array([document[:9] for document in documents if len(document) >= 9])
    surprisal = model.surprisal(text[:, :-1], text[:, 1:])
    for order in range(3, 6):
        available = order - 2
        np.testing.assert_array_equal(
            surprisal[order - 1, :, :available], surprisal[order - 2, :, :available]
        )
        assert (surprisal[order - 1, :, available:] != surprisal[order - 2, :, available:]).any()


def test_orders_recover_the_entropies_of_a_markov_chain() -> None:
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.full(8, 0.5), size=8)
    text = [0]
    for _ in range(40_000):
        text.append(int(np.searchsorted(transition[text[-1]].cumsum(), rng.random())))
    chain = np.minimum(np.array(text), 7) + 1
    model = fit_kneser_ney(chain[:30_000], d_vocab=9)
    tested = chain[30_000:40_000].reshape(100, 100)
    mean = model.surprisal(tested[:, :-1], tested[:, 1:]).mean(axis=(1, 2))
    share = np.bincount(chain, minlength=9)[1:] / len(chain)
    entropy = -(share * np.log(share)).sum()
    entropy_rate = -(share @ (transition * np.log(transition)).sum(axis=1))
    assert mean[0] == pytest.approx(entropy, abs=0.02)
    assert mean[1:3] == pytest.approx([entropy_rate] * 2, abs=0.03)


def test_max_tokens_bounds_the_fit_and_spreads_it_over_the_text() -> None:
    tokens = np.concatenate([np.full(100_000, 1), np.full(100_000, 2), np.full(100_000, 3)])
    model = fit_kneser_ney(tokens, d_vocab=5, max_tokens=200_000)
    assert 190_000 < model.n_tokens < 200_000
    seen = np.array([[1], [2], [3]])
    assert (model.surprisal(seen, seen)[1] < 0.01).all()
    assert fit_kneser_ney(tokens, d_vocab=5, max_tokens=300_000).n_tokens == 300_000


def test_what_cannot_be_fitted_or_scored_is_an_error() -> None:
    with pytest.raises(ValueError, match="no document has 4 tokens"):
        fit_kneser_ney(joined([[1, 2, 3], [1, 2]]), d_vocab=5)
    with pytest.raises(ValueError, match="reach 5; a vocabulary of 5"):
        fit_kneser_ney(np.array([1, 5]), d_vocab=5)
    with pytest.raises(ValueError, match=r"discount 0.0 must lie in"):
        fit_kneser_ney(np.array([1, 2]), d_vocab=5, discount=0.0)
    model = fit_kneser_ney(np.array([1, 2, 1, 2]), max_order=2, d_vocab=5)
    with pytest.raises(ValueError, match=r"must be one \(sequence, pos\)"):
        model.surprisal(np.ones((2, 3), dtype=int), np.ones((3, 2), dtype=int))
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=r"must lie between 1 \(0 separates"):
            model.surprisal(np.array([[1]]), np.array([[wrong]]))
