import numpy as np
import pytest
import xarray as xr

from analyses.comparison.units import unit_labels
from analyses.routing.text_labels import (
    CLASS,
    DOMAIN,
    GIVEN,
    POSITION,
    PREVIOUS,
    TOKEN,
    text_labels,
)


def _label(text, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Labels in the order of the sorted sequences, -1 for none."""
    at = text.of_tokens[name]
    label = np.full(shape, -1)
    label.ravel()[at.counted] = at.label
    return label


def test_labels_are_of_the_token_that_the_router_sees(probe_set: xr.Dataset) -> None:
    text = text_labels(probe_set, unit_labels(probe_set, "document"), min_count=10)
    token = probe_set["token"].values[text.order]
    np.testing.assert_array_equal(text.ids[_label(text, TOKEN, token.shape)], token)
    previous = _label(text, PREVIOUS, token.shape)
    np.testing.assert_array_equal(previous[:, 1:], token[:, :-1])
    assert (previous[:, 0] == -1).all()
    assert len(np.unique(_label(text, POSITION, token.shape)[:, 4])) == 1
    both = text.of_token_and_domain
    np.testing.assert_array_equal(both.label // 2, text.of_tokens[TOKEN].label)
    np.testing.assert_array_equal(both.label % 2, text.domain[text.unit])
    assert text.names == [TOKEN, DOMAIN, GIVEN, PREVIOUS, POSITION]


def test_class_is_that_of_the_input_token_and_unknown_where_a_sequence_begins(
    probe_set: xr.Dataset,
) -> None:
    vocabulary = np.array([" a", "b", "1", ".", " ", "\ufffd"], dtype=object)
    known = probe_set.assign(vocabulary=("d_vocab", vocabulary))
    text = text_labels(known, unit_labels(known, "document"), min_count=10)
    token = known["token"].values[text.order]
    kind = _label(text, CLASS, token.shape)
    assert (kind[:, 0] == -1).all()
    for i, expected in ((2, {2}), (3, {3}), (4, {4}), (5, {5}), (0, {0}), (1, {0, 1})):
        assert set(kind[:, 1:][token[:, 1:] == i]) == expected


def test_unit_of_two_domains_is_refused(probe_set: xr.Dataset) -> None:
    unit = unit_labels(probe_set, "document").copy(data=np.repeat(["a", "b"], 14))
    with pytest.raises(ValueError, match="document 'a' of the probe set has sequences of two"):
        text_labels(probe_set, unit, min_count=1)
