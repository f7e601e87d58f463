from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from analyses import routing_locality as analysis
from analyses.comparison.units import unit_labels
from analyses.reporting.locality_figures import plot_lags, plot_steps
from analyses.reporting.locality_tables import tables
from analyses.routing.locality import ALL, BY_LAG, MEASURES, OTHER
from analyses.routing_locality import routing_locality

N_EXPERTS, N_DOCUMENTS, N_POS = 8, 30, 64


@pytest.fixture(scope="module")
def text() -> xr.Dataset:
    """Sixty ids without order, two sequences a document."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, 60, (2 * N_DOCUMENTS, N_POS))
    names = np.array([f"d{i:02d}" for i in range(N_DOCUMENTS)])
    return xr.Dataset(
        {"token": (("sequence", "pos"), token), "document": ("sequence", np.repeat(names, 2))}
    )


def _sticky(rng: np.random.Generator, shape: tuple[int, int], stay: float) -> np.ndarray:
    """A chain that keeps its expert with probability `stay`, and else draws one."""
    drawn, keep = rng.integers(0, N_EXPERTS, shape), rng.random(shape) < stay
    for pos in range(1, shape[1]):
        drawn[:, pos] = np.where(keep[:, pos], drawn[:, pos - 1], drawn[:, pos])
    return drawn


def _index(values: list[np.ndarray], arm: list[str], *, n_steps: int = 1) -> xr.DataArray:
    stacked = np.stack(values)[:, None, None]
    stacked = stacked if stacked.ndim == 6 else stacked[..., None]
    return xr.DataArray(
        np.repeat(stacked, n_steps, axis=1).astype("int16"),
        dims=("run", "step", "layer", "sequence", "pos", "top_k"),
        coords={
            "run": [f"{a}-{i}" for i, a in enumerate(arm)],
            "step": list(range(n_steps)),
            "layer": [1],
            "arm": ("run", arm),
        },
    )


def _measured(index: xr.DataArray, text: xr.Dataset, **options) -> xr.Dataset:
    unit = unit_labels(text, "document")
    return routing_locality(index, text, unit, n_experts=N_EXPERTS, **options)


@pytest.fixture(scope="module")
def index(text: xr.Dataset) -> xr.DataArray:
    """Chains, choices of the topic only, and maps from id to expert."""
    rng, shape = np.random.default_rng(1), text["token"].shape
    topic = np.repeat(rng.integers(0, N_EXPERTS, N_DOCUMENTS), 2)[:, None]
    topical = np.where(rng.random(shape) < 0.5, topic, rng.integers(0, N_EXPERTS, shape))
    maps = [rng.integers(0, N_EXPERTS, 60)[text["token"].values] for _ in range(6)]
    values = [_sticky(rng, shape, 0.5), _sticky(rng, shape, 0.5), topical, *maps]
    return _index(values, ["chain"] * 2 + ["topic"] + ["hash"] * 6)


@pytest.fixture(scope="module")
def result(index: xr.DataArray, text: xr.Dataset) -> xr.Dataset:
    return _measured(index, text)


def test_planted_chain_has_its_repetition_at_every_lag(result: xr.Dataset) -> None:
    at = result.sel(each_arm="chain", layer=1, choice="first", pairs=ALL)
    expected = 0.5 ** result["lag"] + (1 - 0.5 ** result["lag"]) / N_EXPERTS
    np.testing.assert_allclose(at["arm_lag_repetition"], expected, atol=0.02)
    assert float(at["arm_repetition"].isel(step=0)) == float(at["arm_lag_repetition"][0])
    assert float(at["arm_beyond_load"].isel(step=0)) == pytest.approx(0.4375, abs=0.03)


def test_topic_is_beyond_the_loads_but_not_beyond_the_sequence(result: xr.Dataset) -> None:
    at = result.sel(run="topic-2", layer=1, choice="first", pairs=ALL).isel(step=0)
    assert float(at["beyond_load"]) > 0.15
    low, high = at["beyond_text_ci"].values
    assert low < 0 < high
    assert float(at["beyond_text"]) == pytest.approx(0, abs=0.02)


def test_hash_router_repeats_equal_tokens_only(result: xr.Dataset) -> None:
    at = result.sel(each_arm="hash", layer=1, choice="first").isel(step=0)
    for pairs in (ALL, OTHER):  # this text has no order: equal tokens stand anywhere
        low, high = at["arm_beyond_text_ci"].sel(pairs=pairs).values
        assert low < 0 < high
    repeated = at["arm_repetition"]
    assert float(repeated.sel(pairs=ALL)) > float(repeated.sel(pairs=OTHER))


def test_doubled_words_are_locality_of_all_pairs_but_not_of_two_ids(text: xr.Dataset) -> None:
    doubled = text.copy(deep=True)
    doubled["token"].values[:, 1::2] = doubled["token"].values[:, ::2]
    rng = np.random.default_rng(3)
    maps = [rng.integers(0, N_EXPERTS, 60)[doubled["token"].values] for _ in range(8)]
    at = _measured(_index(maps, ["hash"] * 8), doubled).sel(each_arm="hash", layer=1)
    beyond = at["arm_beyond_text"].isel(step=0, choice=0)
    assert float(beyond.sel(pairs=ALL)) > 0.3
    low, high = at["arm_beyond_text_run_ci"].isel(step=0, choice=0).sel(pairs=OTHER).values
    assert low < 0 < high


def test_interval_over_units_covers_a_null_of_independent_tokens(text: xr.Dataset) -> None:
    rng, shape = np.random.default_rng(4), text["token"].shape
    runs = [rng.integers(0, N_EXPERTS, shape) for _ in range(200)]
    at = _measured(_index(runs, ["null"] * 200), text).isel(step=0, layer=0, choice=0, pairs=0)
    low, high = at["beyond_text_ci"].transpose("ci_bound", "run").values
    covered = int(((low < 0) & (high > 0)).sum())
    assert 180 <= covered <= 198  # 190 expected, sd 3
    assert float(at["beyond_text"].mean()) == pytest.approx(0, abs=0.001)


def test_two_choices_are_first_and_any(text: xr.Dataset) -> None:
    rng = np.random.default_rng(5)
    sets = np.argsort(rng.random((*text["token"].shape, N_EXPERTS)), axis=-1)[..., :2]
    at = _measured(_index([sets, sets], ["switch"] * 2), text).isel(step=0, layer=0)
    assert at["choice"].values.tolist() == ["first", "any"]
    np.testing.assert_allclose(at["uniform_chance"], [0.125, 13 / 28])
    np.testing.assert_allclose(at["arm_load_chance"][0], [0.125, 13 / 28], atol=0.003)
    np.testing.assert_allclose(at["arm_beyond_text"], 0, atol=0.02)
    for plot in (plot_steps, plot_lags):
        plot(_measured(_index([sets, sets], ["switch"] * 2, n_steps=2), text))


def test_interval_is_the_jackknife_over_texts_that_lack_a_unit(
    index: xr.DataArray, text: xr.Dataset
) -> None:
    where = {"layer": 1, "choice": "first", "pairs": OTHER}
    runs, short = index.isel(run=[0], sequence=slice(16)), text.isel(sequence=slice(16))
    without = []
    for name in np.unique(short["document"]):
        kept = short["document"].values != name
        part = _measured(runs.isel(sequence=kept), short.isel(sequence=kept))
        without.append(float(part["beyond_text"].sel(where).squeeze()))
    error = np.sqrt((8 - 1) * np.var(without))
    low, high = _measured(runs, short)["beyond_text_ci"].sel(where).values.squeeze()
    assert (high - low) / 2 == pytest.approx(2.3646 * error, rel=1e-4)  # t of 7 degrees of freedom


def test_every_measure_has_both_intervals(result: xr.Dataset) -> None:
    for name in MEASURES | BY_LAG:
        value = result[f"arm_{name}"].sel(each_arm="chain")
        for kind in ("ci", "run_ci"):
            low, high = (
                result[f"arm_{name}_{kind}"].sel(each_arm="chain").transpose("ci_bound", ...)
            )
            assert (low <= value + 1e-12).all()
            assert (value <= high + 1e-12).all()


def test_order_of_dimensions_and_sequences_does_not_matter(
    result: xr.Dataset, index: xr.DataArray, text: xr.Dataset
) -> None:
    turned = slice(None, None, -1)
    changed = _measured(
        index.transpose("top_k", "pos", "sequence", ...).isel(sequence=turned),
        text.isel(sequence=turned),
    )
    for name in result.data_vars:
        np.testing.assert_allclose(changed[name], result[name], atol=1e-12, err_msg=str(name))


def test_steps_not_observed_by_all_are_left_out_and_partial_ones_refused(
    index: xr.DataArray, text: xr.Dataset
) -> None:
    two = xr.concat([index, index.assign_coords(step=[5])], "step").isel(run=slice(2))
    two.loc[{"run": "chain-1", "step": 5}] = -1
    changed = _measured(two, text)
    assert changed["skipped_step"].values.tolist() == [5]
    assert changed["step"].values.tolist() == [0]
    two.loc[{"run": "chain-1", "step": 0, "sequence": 3}] = -1
    with pytest.raises(ValueError, match="layer 1 of run 'chain-1' lacks choices of some tokens"):
        _measured(two, text)
    two.loc[{"run": "chain-1"}] = -1
    with pytest.raises(ValueError, match="no step was observed by all of 2 runs; wait"):
        _measured(two, text)


def test_tables_show_percent_of_what_was_measured(result: xr.Dataset) -> None:
    published, beyond, by_lag = tables(result)
    shown = dict(zip(published.columns, published.rows[0], strict=True))
    at = result.sel(each_arm="chain", layer=1, choice="first", pairs=ALL).isel(step=-1)
    assert shown["same expert"] == f"{100 * float(at['arm_repetition']):.1f}"
    assert shown["even loads"] == "12.5"
    assert len(beyond.rows) == 3 * 2
    assert by_lag.columns[2:] == ("1", "2", "4", "8", "16", "32")


def test_page_says_what_a_hash_router_means(
    write_study: Callable[..., Path], tmp_path: Path, reports: SimpleNamespace
) -> None:
    write_study(tmp_path / "s", {"hash-seed0": "hash", "ungated-seed0": "ungated"})
    assert analysis.main([str(tmp_path / "s"), "--report", str(tmp_path)]) == 0
    page = (tmp_path / "routing_locality" / "index.md").read_text(encoding="utf-8")
    assert "Equal tokens always repeat its expert" in page
    assert "about the router, not about the output" in page
    usual = (reports.folder / "routing_locality" / "index.md").read_text(encoding="utf-8")
    assert "hash router" not in usual
