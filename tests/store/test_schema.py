from collections import Counter

import numpy as np
import pytest

from store.conform import OBSERVED
from store.schema import DIMENSIONS, GROUPS, VARIABLES, variables_of


def test_every_variable_has_a_place_of_its_own() -> None:
    places = Counter((variable.group, variable.name) for variable in VARIABLES)
    assert set(places.values()) == {1}


def test_no_variable_is_named_like_a_dimension() -> None:
    # It would overwrite the labels of that dimension in its group.
    assert not {variable.name for variable in VARIABLES} & set(DIMENSIONS)


def test_every_dimension_of_a_variable_is_known() -> None:
    assert {dim for variable in VARIABLES for dim in variable.dims} <= set(DIMENSIONS)


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: f"{v.group}/{v.name}")
def test_fill_value_survives_the_dtype(variable) -> None:
    if variable.dtype == "str":
        assert isinstance(variable.fill_value, str)
    else:
        stored = np.array(variable.fill_value).astype(variable.dtype)
        np.testing.assert_array_equal(stored, variable.fill_value)


def test_what_probes_observe_has_step_first() -> None:
    for group in OBSERVED:
        assert {variable.dims[0] for variable in variables_of(group).values()} == {"step"}


def test_groups_partition_the_variables() -> None:
    assert sum(len(variables_of(group)) for group in GROUPS) == len(VARIABLES)


def test_unknown_group_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'logits' is not in the schema; known groups: .*losses"):
        variables_of("logits")
