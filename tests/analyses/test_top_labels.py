import numpy as np

from analyses.statistics.top_labels import halves, top_labels


def test_planted_labels_are_found_and_measured_on_the_other_half() -> None:
    first = np.array([[90, 0, 5, 2], [10, 50, 5, 8]])
    second = np.array([[30, 0, 6, 0], [10, 40, 6, 0]])
    found = top_labels(first, second, top_k=1, n_top=3)
    assert found.label.tolist() == [[0, -1, -1], [1, 3, 2]]
    np.testing.assert_allclose(found.chosen[:, 0], [0.9, 1.0])
    np.testing.assert_allclose(found.held_out[:, 0], [0.75, 1.0])
    assert np.isnan(found.held_out[1, 1])  # the label does not occur on the other half


def test_of_random_routing_only_the_picked_half_looks_specialized() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.multinomial(12, np.full(8, 1 / 8), (2, 400)).transpose(0, 2, 1)
    found = top_labels(first, second, top_k=1, n_top=8)
    assert found.chosen.mean() > 0.35
    assert abs(found.held_out.mean() - 1 / 8) < 0.03


def test_two_choices_a_token_are_shares_of_tokens() -> None:
    counts = np.array([[10, 0], [10, 10], [0, 10]])
    found = top_labels(counts, counts, top_k=2, n_top=1)
    np.testing.assert_allclose(found.chosen[[0, 2], 0], [1.0, 1.0])


def test_halves_split_every_stratum() -> None:
    stratum = np.array([0] * 7 + [1] * 4 + [2])
    for seed in range(10):
        first = halves(stratum, np.random.default_rng(seed))
        assert abs(2 * first.sum() - 12) <= 1
        for s, n in ((0, 7), (1, 4)):
            assert abs(2 * first[stratum == s].sum() - n) <= 1
