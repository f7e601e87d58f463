import numpy as np
import pytest
import xarray as xr

from store.conform import conform, labels_of

TOKENS = ("sequence", "pos")
CHOICE = ("layer", "sequence", "pos", "top_k")


def losses(values: np.ndarray, dims: tuple[str, ...] = TOKENS) -> xr.Dataset:
    return xr.Dataset({"loss": (dims, values)})


def test_values_come_back_in_the_dtype_of_the_schema() -> None:
    values = conform(losses(np.ones((2, 3))), "losses")["loss"]
    assert values.dtype == "float32"


def test_values_in_their_dtype_are_not_copied() -> None:
    values = np.ones((2, 3), dtype="float32")
    assert np.shares_memory(conform(losses(values), "losses")["loss"], values)


def test_variable_outside_the_schema_is_refused() -> None:
    unknown = losses(np.ones((2, 3))).assign(perplexity=(TOKENS, np.ones((2, 3))))
    with pytest.raises(ValueError, match="'perplexity' of group 'losses' is not in the schema"):
        conform(unknown, "losses")


def test_dimensions_in_another_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"losses/loss has dims .'pos', 'sequence'.*transpose"):
        conform(losses(np.ones((3, 2)), ("pos", "sequence")), "losses")


def test_an_observation_with_a_step_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="has dims"):
        conform(losses(np.ones((1, 2, 3)), ("step", *TOKENS)), "losses")


@pytest.mark.parametrize(
    ("group", "name", "dims", "values"),
    [
        ("losses", "loss", TOKENS, np.array([["a"]])),
        ("losses", "loss", TOKENS, np.array([[1j]])),
        ("routing", "expert_index", CHOICE, np.ones((1, 1, 1, 1))),
        ("probe_set", "domain", ("sequence",), np.array([1])),
        ("probe_set", "domain", ("sequence",), np.array([b"bytes"])),
        ("training", "stream_hash", ("step",), np.array([-1])),
    ],
    ids=["text", "complex", "float as index", "number as text", "bytes as text", "signed hash"],
)
def test_another_kind_of_value_is_refused(group, name, dims, values) -> None:
    with pytest.raises(ValueError, match=f"{group}/{name} is .*the schema says"):
        conform(xr.Dataset({name: (dims, values)}), group)


@pytest.mark.parametrize(
    ("group", "name", "dims", "value"),
    [
        ("routing", "expert_index", CHOICE, 40_000),
        ("routing", "router_prob", (*CHOICE[:3], "expert"), 1e6),
        ("probe_set", "token", TOKENS, 2**40),
    ],
)
def test_value_out_of_range_is_refused_and_named(group, name, dims, value) -> None:
    values = np.full((1,) * len(dims), value)
    with pytest.raises(ValueError, match=rf"{group}/{name} holds .*out of the range"):
        conform(xr.Dataset({name: (dims, values)}), group)


def test_infinite_and_missing_values_are_kept() -> None:
    values = np.array([[np.inf, np.nan, 1.0]])
    np.testing.assert_array_equal(conform(losses(values), "losses")["loss"], values)


def test_scalar_label_of_a_selected_step_is_no_variable() -> None:
    series = losses(np.ones((2, 2, 3)), ("step", *TOKENS)).assign_coords(step=[0, 1])
    assert list(conform(series.isel(step=1), "losses")) == ["loss"]


def test_labels_are_those_given_or_else_count_from_zero() -> None:
    labels = labels_of(losses(np.ones((2, 3))).assign_coords(sequence=[7, 9]), "losses")
    assert {dim: values.tolist() for dim, values in labels.items()} == {
        "sequence": [7, 9],
        "pos": [0, 1, 2],
    }


def test_labels_that_are_not_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels of 'sequence' in group 'losses' are .*integers"):
        labels_of(losses(np.ones((2, 3))).assign_coords(sequence=["a", "b"]), "losses")
