import numpy as np
import pytest
import xarray as xr

from analyses.comparison.units import unit_labels
from analyses.representation import probe_targets as targets
from analyses.representation.probe_targets import Places, frequent_classes, next_router, places

POS = np.array([0, 3, 9, 10, 23])
VOCABULARY = [" the", "x", " a", "7", ".", "ing"]
RULES = {"min_tokens": 5, "min_units": 3, "most": 32}


@pytest.fixture(scope="module")
def written(probe_set: xr.Dataset) -> xr.Dataset:
    """The probe set, its positions labelled, and its ids spelled."""
    spelled = np.array(VOCABULARY, dtype=object)
    pos = np.arange(probe_set.sizes["pos"])
    return probe_set.assign_coords(pos=pos).assign(vocabulary=("d_vocab", spelled))


@pytest.fixture(scope="module")
def found(written: xr.Dataset) -> Places:
    return places(written, unit_labels(written, "document"), POS, **RULES)


def _label(found: Places, name: str, shape: tuple[int, int]) -> np.ndarray:
    return found.targets[name].label.reshape(shape)


def test_targets_are_of_the_token_that_the_model_has_seen(
    found: Places, written: xr.Dataset
) -> None:
    token = written["token"].values
    shape = (len(token), len(POS))
    np.testing.assert_array_equal(found.token.reshape(shape), token[:, POS])
    current, previous = (_label(found, n, shape) for n in (targets.CURRENT, targets.PREVIOUS))
    names = np.array(found.targets[targets.CURRENT].classes).astype(int)
    np.testing.assert_array_equal(names[current], token[:, POS])
    np.testing.assert_array_equal(previous[:, 1:], token[:, POS[1:] - 1])
    assert (previous[:, 0] == -1).all()
    repeated = _label(found, targets.REPEATED, shape)
    for i, j in np.ndindex(shape):
        assert repeated[i, j] == (token[i, POS[j]] in token[i, : POS[j]])


def test_word_initial_is_what_is_written(found: Places, written: xr.Dataset) -> None:
    token = written["token"].values
    shape = (len(token), len(POS))
    initial = _label(found, targets.INITIAL, shape)
    assert (initial[:, 0] == -1).all()
    seen = token[:, POS[1:]]
    assert (initial[:, 1:][(seen == 0) | (seen == 2)] == 1).all()
    assert (initial[:, 1:][(seen == 3) | (seen == 4)] == 0).all()
    after_letter = np.isin(token[:, POS[1:] - 1], [0, 1, 2, 5])
    assert (initial[:, 1:][(seen == 5) & after_letter] == 0).all()
    following = found.targets[targets.NEXT]
    label = following.label.reshape(shape)
    digits = following.classes.index("digits")
    np.testing.assert_array_equal(label == digits, written["target"].values[:, POS] == 3)


def test_position_and_domain_are_those_of_the_place(found: Places, written: xr.Dataset) -> None:
    shape = (written.sizes["sequence"], len(POS))
    band = found.targets[targets.POSITION]
    assert band.classes == ("0 to 0", "3 to 3", "9 to 9", "10 to 10", "23 to 23")
    assert (band.label.reshape(shape) == np.arange(5)).all()
    domain = found.targets[targets.DOMAIN]
    names = np.array(domain.classes)[domain.label.reshape(shape)]
    np.testing.assert_array_equal(names[:, 0], written["domain"].values)


def test_positions_are_put_into_eight_bands_of_equal_size(written: xr.Dataset) -> None:
    unit = unit_labels(written, "document")
    band = places(written, unit, np.arange(24), **RULES).targets[targets.POSITION]
    assert (np.bincount(band.label) == 3 * written.sizes["sequence"]).all()
    assert len(band.classes) == 8


def test_classes_need_tokens_and_units_and_the_commonest_are_kept() -> None:
    label = np.array([0] * 9 + [1] * 9 + [2] * 3 + [3] * 12 + [4] * 8 + [-1] * 5)
    unit = np.arange(len(label)) % 4
    unit[9:18] = 1
    rules = {"min_tokens": 5, "min_units": 3}
    assert frequent_classes(label, unit, **rules, most=9).tolist() == [0, 3, 4]
    assert frequent_classes(label, unit, **rules, most=2).tolist() == [0, 3]


def test_targets_without_two_classes_are_left_out_and_named(written: xr.Dataset) -> None:
    unit = unit_labels(written, "document")
    rules = {"min_tokens": 5, "min_units": 8, "most": 32}
    found = places(written, unit, POS, **rules)  # seven documents a domain
    assert targets.DOMAIN in found.left_out
    assert targets.DOMAIN not in found.targets
    without = places(written.drop_vars("vocabulary"), unit, POS, **RULES)
    assert targets.NEXT not in without.targets
    assert targets.INITIAL not in without.targets


@pytest.mark.parametrize(
    ("layer", "site", "expected"),
    [
        (0, "resid_post", 1),
        (1, "resid_pre", 1),
        (1, "attn_out", 1),
        (1, "resid_mid", 1),
        (1, "mlp_out", 3),
        (1, "resid_post", 3),
        (3, "resid_post", None),
    ],
)
def test_next_router_is_the_first_that_reads_the_site(
    layer: int, site: str, expected: int | None
) -> None:
    assert next_router(np.array([1, 3]), layer, site) == expected
