"""Which places of several runs are compared, and how representations are read."""

import numpy as np
import pytest
import xarray as xr

from analyses.representation import recorded
from analyses.representation.recorded import by_layer, unshared


def test_what_all_runs_recorded_needs_no_words() -> None:
    assert list(unshared({"sites": [{"a"}, {"a"}], "steps": [{0, 1000}] * 3})) == []


def test_what_not_all_runs_recorded_is_counted_and_the_first_six_named() -> None:
    places = {
        "sites": [{"mid", "post"}, {"post"}],
        "steps": [{0, 2000}, {0}],
        "positions": [set(range(10)), set(range(8, 12))],
    }
    assert list(unshared(places)) == [
        "Only what all runs recorded is compared. Left out: 1 of 2 sites (mid); 1 of 2 steps "
        "(2,000); 10 of 12 positions (0, 1, 2, 3, 4, 5 and 4 more)."
    ]


@pytest.mark.parametrize("most", [1, 100, 10**9])
def test_layers_are_the_same_however_many_are_read_at_a_time(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "_READ_BYTES", most)
    values = np.random.default_rng(0).standard_normal((3, 5, 2, 4)).astype("float16")
    dims = ("pos", "layer", "d_model", "sequence")
    site = xr.DataArray(values, dims=dims, coords={"layer": [1, 2, 4, 6, 7]})
    found = list(by_layer(site))
    assert [int(at["layer"]) for at in found] == [1, 2, 4, 6, 7]
    np.testing.assert_array_equal(np.stack(found), np.transpose(values, (1, 3, 0, 2)))
