import numpy as np

from analyses.statistics.pairs import mean_by_label, pair_indices, pair_kinds


def test_four_runs_make_six_pairs_of_three_kinds() -> None:
    first, second = pair_indices(4)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [
        (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3),
    ]  # fmt: skip
    kinds = pair_kinds(np.array([False, False, True, True]))
    assert kinds.tolist() == ["dense-dense", *["dense-MoE"] * 4, "MoE-MoE"]


def test_means_come_in_the_order_of_kinds_and_keep_missing_values() -> None:
    labels = np.array(["MoE-MoE", "dense-dense", "dense-dense"])
    names, means = mean_by_label(np.array([[1.0, 2.0], [3, 4], [5, np.nan]]), labels, axis=0)
    assert names == ["dense-dense", "MoE-MoE"]
    np.testing.assert_array_equal(means, [[4, np.nan], [1, 2]])
