import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from analyses import routing_entropy as analysis
from analyses.comparison.units import unit_labels
from analyses.reporting.cli import UNANSWERABLE
from analyses.reporting.entropy_figures import plot_decomposition, plot_load, plot_relation
from analyses.routing.load import MEASURES, WITH_NULL
from analyses.routing_entropy import routing_entropy

N_EXPERTS = 8
RUNS = {"switch-a": "switch", "switch-b": "switch", "switch-c": "switch", "hash-a": "hash"}


@pytest.fixture(scope="module")
def routing(probe_set: xr.Dataset) -> xr.Dataset:
    """Two layers at steps 0 and 8: logits of noise that grow, top-2; a hash router looks ids up."""
    rng, shape = np.random.default_rng(0), probe_set["token"].shape
    prob = np.empty((len(RUNS), 2, 2, *shape, N_EXPERTS))
    for run, step, layer in np.ndindex(4, 2, 2):
        logits = (1 + 3 * step) * rng.standard_normal((*shape, N_EXPERTS))
        prob[run, step, layer] = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    index = (-prob).argsort(axis=-1, kind="stable")[..., :2]
    token = probe_set["token"].values % N_EXPERTS
    prob[3] = np.eye(N_EXPERTS)[token]
    index[3] = np.stack([token, (token + 1) % N_EXPERTS], axis=-1)
    dims = ("run", "step", "layer", "sequence", "pos")
    return xr.Dataset(
        {
            "expert_index": ((*dims, "top_k"), index.astype("int16")),
            "router_prob": ((*dims, "expert"), prob.astype("float16")),
        },
        {
            "run": list(RUNS),
            "arm": ("run", list(RUNS.values())),
            "router": ("run", list(RUNS.values())),
            "step": [0, 8],
            "layer": [1, 3],
        },
    )


@pytest.fixture(scope="module")
def losses(routing: xr.Dataset) -> xr.DataArray:
    """A loss that is the entropy of the router in layer 3, and noise."""
    p = routing["router_prob"].sel(layer=3, drop=True).astype("float64")
    entropy = -(p * np.log(p.where(p > 0, 1.0))).sum("expert")
    noise = np.random.default_rng(1).standard_normal(entropy.shape)
    return 3 + entropy + 0.1 * noise


def _measured(routing: xr.Dataset, probe_set: xr.Dataset, **options) -> xr.Dataset:
    unit = unit_labels(probe_set, "document")
    rng = np.random.default_rng(0)
    return routing_entropy(routing, probe_set, unit, n_resamples=49, rng=rng, **options)


@pytest.fixture(scope="module")
def result(routing: xr.Dataset, probe_set: xr.Dataset, losses: xr.DataArray) -> xr.Dataset:
    return _measured(routing, probe_set, loss=losses)


def test_hash_router_divides_the_work_without_indecision(result: xr.Dataset) -> None:
    at = result.sel(run="hash-a")
    assert (at["token_entropy"] == 0).all()
    assert (at["margin"] == 1).all()
    np.testing.assert_allclose(at["token_information"], at["router_entropy"])
    assert at["entropy_loss_r"].isnull().all()


def test_sharper_router_trades_indecision_for_division_of_labour(result: xr.Dataset) -> None:
    start, end = (result.sel(each_arm="switch", step=step) for step in (0, 8))
    assert (end["arm_token_entropy"] < start["arm_token_entropy"] - 0.5).all()
    assert (end["arm_token_information"] > start["arm_token_information"] + 0.5).all()
    np.testing.assert_allclose(
        result["router_entropy"], result["token_entropy"] + result["token_information"]
    )


def test_entropy_that_goes_with_the_loss_is_found_in_its_layer(result: xr.Dataset) -> None:
    at = result.sel(each_arm="switch", step=8)
    for name in ("entropy_loss_r", "entropy_loss_rho", "entropy_loss_partial_r"):
        assert float(at[f"arm_{name}"].sel(layer=3)) > 0.9
        low, high = at[f"arm_{name}_ci"].sel(layer=1).values
        assert low < 0.1
        assert high > -0.1


def test_even_routers_are_within_their_null(result: xr.Dataset) -> None:
    switch = result.sel(run=["switch-a", "switch-b", "switch-c"])
    for name in WITH_NULL:
        assert (switch[f"{name}_p"] > 0.02).sum() >= 11  # of 12
    assert (switch["dead_experts"] == 0).all()


def test_experts_that_no_id_is_sent_to_are_dead(result: xr.Dataset) -> None:
    hashed = result.sel(run="hash-a")  # six ids, two experts each
    assert (hashed["dead_experts"] == 1).all()
    assert (hashed["starved_experts"] == 1).all()
    assert (hashed["starved_experts_ci"] == 1).all()
    assert (hashed["fair_index_p"] == 0.02).all()


def test_layers_are_averaged_last(result: xr.Dataset) -> None:
    for name in ("fair_index", "token_entropy", "margin"):
        of_switch = result[name].sel(run=result["arm"] == "switch")
        np.testing.assert_allclose(
            result[f"arm_{name}_mean"].sel(each_arm="switch"), of_switch.mean(("run", "layer"))
        )


def test_every_measure_has_an_interval_over_units_and_over_runs(result: xr.Dataset) -> None:
    for name in MEASURES:
        at = result.sel(each_arm="switch")
        for kind in ("ci", "run_ci"):
            low, high = at[f"arm_{name}_{kind}"].transpose("ci_bound", ...)
            assert (low <= at[f"arm_{name}"] + 1e-12).all()
            assert (at[f"arm_{name}"] <= high + 1e-12).all()
    assert result["arm_fair_index_run_ci"].sel(each_arm="hash").isnull().all()


def test_order_of_dimensions_and_of_units_does_not_matter(
    result: xr.Dataset, routing: xr.Dataset, probe_set: xr.Dataset, losses: xr.DataArray
) -> None:
    turned = slice(None, None, -1)
    changed = _measured(
        routing.transpose("expert", "top_k", "pos", "sequence", ...).isel(sequence=turned),
        probe_set.isel(sequence=turned),
        loss=losses.transpose("pos", ...).isel(sequence=turned),
    )
    for name in MEASURES:
        np.testing.assert_allclose(changed[name], result[name], atol=1e-10)
        np.testing.assert_allclose(changed[f"{name}_ci"], result[f"{name}_ci"], atol=1e-7)


def test_dask_gives_the_same_numbers(
    result: xr.Dataset, routing: xr.Dataset, probe_set: xr.Dataset, losses: xr.DataArray
) -> None:
    changed = _measured(routing, probe_set, loss=losses, dask="local")
    xr.testing.assert_identical(changed, result)


def test_unobserved_step_is_missing_and_touches_no_other(
    result: xr.Dataset, routing: xr.Dataset, probe_set: xr.Dataset, losses: xr.DataArray
) -> None:
    part = routing.copy(deep=True)
    part["expert_index"].loc[{"run": "switch-b", "step": 8}] = -1
    part["router_prob"].loc[{"run": "switch-b", "step": 8}] = np.nan
    changed = _measured(part, probe_set, loss=losses)
    for name in [*MEASURES, "load", "dead_experts", "starved_experts", "gini_p"]:
        assert changed[name].sel(run="switch-b", step=8).isnull().all()
        xr.testing.assert_equal(changed[name].sel(step=0), result[name].sel(step=0))
    for plot in (plot_load, plot_decomposition, plot_relation):
        plot(changed)


def test_without_losses_the_relation_is_left_out(
    routing: xr.Dataset, probe_set: xr.Dataset
) -> None:
    assert "entropy_loss_r" not in _measured(routing, probe_set)


def test_command_writes_what_the_figures_show(reports: SimpleNamespace) -> None:
    folder = reports.folder / "routing_entropy"
    result = xr.Dataset.from_dict(json.loads((folder / "results.json").read_text("utf-8")))
    table = (folder / "entropy.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 1 + 2 * 3 * 2
    uniform = result["token_entropy"]
    np.testing.assert_allclose(uniform, np.log(4), atol=1e-6)
    page = (folder / "index.md").read_text(encoding="utf-8")
    assert "19, seed 3" in page
    assert "no n-gram surprisal" in page
    assert "hash router" not in page


def test_page_says_what_hash_and_ungated_routers_mean(
    write_study: Callable[..., Path], tmp_path: Path
) -> None:
    write_study(tmp_path / "s", {"hash-seed0": "hash", "ungated-seed0": "ungated"})
    arguments = [str(tmp_path / "s"), "--n-resamples", "9", "--report", str(tmp_path)]
    assert analysis.main(arguments) == 0
    page = (tmp_path / "routing_entropy" / "index.md").read_text(encoding="utf-8")
    assert "a perfect token lookup" in page
    assert "about the router, not about the output" in page


def test_study_without_experts_is_refused_with_the_remedy(
    write_study: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path / "s", {"dense-seed0": "dense"})
    assert analysis.main([str(tmp_path / "s")]) == UNANSWERABLE
    error = capsys.readouterr().err
    assert "routing was observed (1 runs, 0 of them MoE)" in error
    assert "python -m models.train quick" in error
