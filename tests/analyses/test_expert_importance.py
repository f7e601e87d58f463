import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from analyses import expert_importance as analysis
from analyses.comparison.units import unit_labels
from analyses.expert_importance import expert_importance
from analyses.reporting.cli import UNANSWERABLE
from analyses.reporting.importance_figures import plot_best, plot_domains, plot_prediction
from analyses.reporting.importance_text import best_metrics, finding
from analyses.routing.prediction import METRICS
from store.schema import REPLACEMENTS

N_EXPERTS, TOP_K = 8, 2
ARMS = {"switch-seed0": "switch", "switch-seed1": "switch", "switch-seed2": "switch",
        "hash-seed0": "hash"}  # fmt: skip
METRIC_NAMES = list(METRICS)
NAMED = {"replacement": "mean", "tokens": "served"}


@pytest.fixture(scope="module")
def data(probe_set: xr.Dataset) -> SimpleNamespace:
    """Runs whose experts cost the tokens that they serve in proportion to their gate; hash none.

    Experts serve two choices a token, at steps 0 and 4; layer 3 is like layer 1 with other experts.
    """
    rng = np.random.default_rng(0)
    shape = (len(ARMS), 2, 2, *probe_set["token"].shape)
    logits = rng.standard_normal((*shape, N_EXPERTS))
    # some experts are sure of their tokens wherever they are chosen, some never
    sharp = rng.permuted(np.tile(np.linspace(0, 3, N_EXPERTS), (*shape[:3], 1)), axis=-1)
    logits += sharp[..., None, None, :]
    prob = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    index = np.argsort(-prob, axis=-1)[..., :TOP_K]
    serves = (index[..., None, :] == np.arange(N_EXPERTS)[:, None]).any(axis=-1)
    gate = np.where(serves, prob, 0.0).sum(axis=(3, 4)) / np.maximum(serves.sum(axis=(3, 4)), 1)
    change = np.where(serves, gate[:, :, :, None, None], 0.0)
    change = np.moveaxis(change + 1e-3 * rng.standard_normal(change.shape), -1, 3)
    change[3] = rng.standard_normal(change[3].shape)
    coords = {
        "run": list(ARMS), "step": [0, 4], "layer": [1, 3],
        "sequence": np.arange(shape[3]), "arm": ("run", list(ARMS.values())),
        "router": ("run", list(ARMS.values())),
    }  # fmt: skip
    dims = ("run", "step", "layer", "expert", "sequence", "pos")
    values = {name: change.copy() for name in REPLACEMENTS}
    values["second_choice"][3] = np.nan
    return SimpleNamespace(
        ablation=xr.Dataset(
            {f"loss_change_{n}": (dims, v.astype("float32")) for n, v in values.items()},
            coords | {"expert": np.arange(N_EXPERTS)},
        ),
        routing=xr.Dataset(
            {
                "expert_index": ((*dims[:3], "sequence", "pos", "top_k"), index.astype("int16")),
                "router_prob": ((*dims[:3], "sequence", "pos", "expert"), prob.astype("float32")),
            },
            coords,
        ),
        loss=xr.DataArray(
            rng.gamma(2.0, size=(*shape[:2], *shape[3:])),
            dims=("run", "step", "sequence", "pos"),
            coords={name: coords[name] for name in ("run", "step")},
        ),
        serves=serves,
    )


def measured(data: SimpleNamespace, probe_set: xr.Dataset, **options) -> xr.Dataset:
    rng = np.random.default_rng(0)
    return expert_importance(
        data.ablation, data.routing, data.loss, probe_set, unit_labels(probe_set, "document"),
        n_resamples=99, rng=rng, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(data: SimpleNamespace, probe_set: xr.Dataset) -> xr.Dataset:
    return measured(data, probe_set)


def test_importance_is_the_mean_over_all_tokens_or_those_served(
    result: xr.Dataset, data: SimpleNamespace
) -> None:
    change = data.ablation["loss_change_zero"].values
    for run, step, layer, expert in ((0, 0, 0, 3), (2, 1, 1, 7)):
        own = change[run, step, layer, expert].astype(float)
        at = result["importance"].isel(run=run, step=step, layer=layer, expert=expert)
        at = at.sel(replacement="zero")
        assert float(at.sel(tokens="all")) == pytest.approx(own.mean())
        served = data.serves[run, step, layer, ..., expert]
        assert float(at.sel(tokens="served")) == pytest.approx(own[served].mean())


def test_intervals_of_importance_are_those_of_a_mean_over_documents(
    result: xr.Dataset, data: SimpleNamespace
) -> None:
    # documents are of one length: the jackknife is the t interval of their means
    from scipy import stats

    change = data.ablation["loss_change_mean"].values[1, 1, 0, 2].astype(float)
    means = change.reshape(14, -1).mean(axis=1)
    expected = stats.t.interval(0.95, 13, means.mean(), means.std(ddof=1) / np.sqrt(14))
    at = result["importance_ci"].isel(run=1, step=1, layer=0, expert=2)
    np.testing.assert_allclose(at.sel(replacement="mean", tokens="all"), expected)


def test_the_metric_that_importance_was_made_of_predicts_it_perfectly(result: xr.Dataset) -> None:
    at = result.isel(step=-1).sel(each_arm="switch", metric="gate", **NAMED)
    assert float(at["arm_rho_mean"]) == pytest.approx(1, abs=0.02)
    assert float(at["arm_p"]) == 0.01
    assert (at["arm_rho"] > 0.95).all()


def test_the_finding_names_it_and_how_it_does_where_it_was_not_chosen(result: xr.Dataset) -> None:
    at = result.isel(step=-1)
    assert (at["held_out_metric"].sel(run=at["arm"] == "switch") != "").all()
    assert at["held_out_metric"].sel(run="hash-seed0") == ""
    rho = at["run_rho_mean"].sel(replacement="mean", tokens="all")
    for run in at["run"].values[:3]:
        others = rho.sel(run=[r for r in list(ARMS)[:3] if r != run]).mean("run")
        best = METRIC_NAMES[int(np.abs(others.values).argmax())]
        assert at["held_out_metric"].sel(run=run) == best
        expected = np.sign(others.sel(metric=best)) * rho.sel(run=run, metric=best)
        assert float(at["held_out_rho"].sel(run=run)) == pytest.approx(float(expected))
    text = finding(at)
    assert f"best by {METRICS[best_metrics(at)['switch']]} in switch runs, rho 1.00 (" in text
    scores = at["held_out_rho"].sel(run=at["arm"] == "switch").values
    assert f", and {scores.mean():.2f} (" in text
    assert " over runs) in a run left out, where " in text
    assert "by no metric in hash runs" in text


def test_a_run_whose_changes_are_noise_is_not_predicted(result: xr.Dataset) -> None:
    at = result.isel(step=-1).sel(each_arm="hash", replacement="mean")
    assert (at["arm_p"].min() > 0.01).all()


def test_correlations_are_averaged_over_layers_and_then_over_runs(result: xr.Dataset) -> None:
    own = result["arm"].values == "switch"
    rho = result["rho"].sel(run=own)
    expected = rho.mean("layer").mean("run")
    xr.testing.assert_allclose(
        result["arm_rho_mean"].sel(each_arm="switch", drop=True),
        expected.drop_vars("each_arm", errors="ignore"),
    )
    np.testing.assert_allclose(result["run_rho_mean"].sel(run=own), rho.mean("layer"))
    # with equal weights the interval over runs is that of a mean of three
    values = rho.mean("layer").isel(step=1).sel(metric="load", replacement="zero", tokens="all")
    half = 4.302653 * float(values.std("run", ddof=1)) / np.sqrt(3)
    low, high = result["arm_rho_mean_run_ci"].isel(step=1).sel(
        each_arm="switch", metric="load", replacement="zero", tokens="all"
    )  # fmt: skip
    assert float(low) == pytest.approx(max(-1, float(values.mean()) - half), abs=1e-6)
    assert float(high) == pytest.approx(min(1, float(values.mean()) + half), abs=1e-6)


def test_intervals_lie_within_what_a_correlation_can_be(result: xr.Dataset) -> None:
    for name in ("arm_rho_ci", "arm_rho_mean_ci", "arm_rho_mean_run_ci"):
        assert float(np.abs(result[name]).max()) <= 1


def test_names_of_experts_do_not_matter(
    result: xr.Dataset, data: SimpleNamespace, probe_set: xr.Dataset
) -> None:
    order = np.random.default_rng(1).permutation(N_EXPERTS)
    new = np.argsort(order).astype("int16")
    renamed = SimpleNamespace(
        ablation=data.ablation.isel(expert=order).assign_coords(expert=np.arange(N_EXPERTS)),
        routing=data.routing.isel(expert=order).assign(
            expert_index=data.routing["expert_index"].copy(
                data=new[data.routing["expert_index"].values]
            )
        ),
        loss=data.loss,
    )
    changed = measured(renamed, probe_set)
    for name in ("rho", "contrast", "own_change", "arm_rho_mean_ci"):
        np.testing.assert_allclose(changed[name], result[name], atol=1e-9, err_msg=name)
    np.testing.assert_allclose(changed["importance"], result["importance"].isel(expert=order))


def test_a_router_without_second_choice_has_no_value_there_and_all_others(
    result: xr.Dataset,
) -> None:
    at = result.sel(run="hash-seed0")
    assert at["importance"].sel(replacement="second_choice").isnull().all()
    assert at["importance"].sel(replacement=["mean", "zero"]).notnull().all()


def test_own_change_is_that_of_each_tokens_first_choice(
    result: xr.Dataset, data: SimpleNamespace, probe_set: xr.Dataset
) -> None:
    change = data.ablation["loss_change_zero"].values[0, 1, 1].astype(float)
    first = data.routing["expert_index"].values[0, 1, 1, ..., 0]
    own = np.take_along_axis(change, first[None].astype(int), axis=0)[0]
    at = result["own_change"].isel(run=0, step=1, layer=1).sel(replacement="zero")
    assert float(at.sel(token_class="all tokens")) == pytest.approx(own.mean())
    verse = (probe_set["domain"] == "verse").values
    assert float(at.sel(token_class="domain: verse")) == pytest.approx(own[verse].mean())


def test_change_by_domain_is_over_all_tokens_of_the_domain(
    result: xr.Dataset, data: SimpleNamespace, probe_set: xr.Dataset
) -> None:
    prose = (probe_set["domain"] == "prose").values
    at = result.isel(run=1, step=0, layer=1, expert=5).sel(domain="prose")
    change = data.ablation["loss_change_mean"].values[1, 0, 1, 5][prose].astype(float)
    assert float(at["change_by_domain"].sel(replacement="mean")) == pytest.approx(change.mean())
    served = data.serves[1, 0, 1, ..., 5][prose]
    assert float(at["share_of_domain"]) == pytest.approx(served.mean())


def test_part_of_the_text_is_analysed_by_itself(
    result: xr.Dataset, data: SimpleNamespace, probe_set: xr.Dataset
) -> None:
    sequences = np.arange(8, 20)
    part = SimpleNamespace(
        ablation=data.ablation.isel(sequence=sequences), routing=data.routing, loss=data.loss
    )
    found = measured(part, probe_set)
    assert found.sizes["unit"] == 6
    assert found.attrs["n_tokens"] == 12 * 24
    alone = SimpleNamespace(
        ablation=data.ablation.isel(sequence=sequences).assign_coords(sequence=np.arange(12)),
        routing=data.routing.isel(sequence=sequences).assign_coords(sequence=np.arange(12)),
        loss=data.loss.isel(sequence=sequences),
    )
    expected = measured(alone, probe_set.isel(sequence=sequences))
    for name in ("rho", "importance", "contrast", "own_change", "metric_value"):
        np.testing.assert_allclose(found[name], expected[name], err_msg=name)
    part.ablation = data.ablation.isel(sequence=[0, 1])
    with pytest.raises(ValueError, match="ablate more documents"):
        measured(part, probe_set)


def test_a_step_that_a_run_lacks_is_missing_and_can_be_drawn(
    result: xr.Dataset, data: SimpleNamespace, probe_set: xr.Dataset
) -> None:
    routing, ablation = data.routing.copy(deep=True), data.ablation.copy(deep=True)
    place = {"run": "switch-seed1", "step": 4}
    routing["expert_index"].loc[place] = -1
    for name in ablation:
        ablation[name].loc[place] = np.nan
    gap = SimpleNamespace(ablation=ablation, routing=routing, loss=data.loss)
    found = measured(gap, probe_set)
    assert found["rho"].sel(place).isnull().all()
    assert found["arm_rho_mean"].sel(each_arm="switch", step=4).isnull().all()
    xr.testing.assert_equal(found["rho"].sel(step=0), result["rho"].sel(step=0))
    at = found.isel(step=-1)
    assert list(best_metrics(at)) == ["hash"]
    plot_prediction(at, METRICS)
    plot_best(at, best_metrics(at), METRICS)
    plot_domains(at.sel(run="hash-seed0"))


@pytest.mark.slow
def test_workers_find_the_same(result: xr.Dataset, data: SimpleNamespace, probe_set) -> None:
    found = measured(data, probe_set, dask="local")
    xr.testing.assert_identical(found, result)


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def page(write_study: Callable[..., Path], tmp_path_factory) -> Path:
    """Report on switch, hash and ungated runs, on a corpus whose domains have hostile names."""
    folder = tmp_path_factory.mktemp("importance")
    runs = {f"{arm}-seed{seed}": arm for arm in ("switch", "hash", "ungated") for seed in (0,)}
    names = {"prose": "<script>alert(1)</script>|`$x$", "verse": "$\\frac"}
    write_study(folder / "s", {"dense-seed0": "dense"} | runs, **names)
    arguments = [str(folder / "s"), "--report", str(folder), "--n-resamples", "19"]
    assert analysis.main([*arguments, "--unit", "document"]) == 0
    return folder / "expert_importance"


def test_command_writes_what_the_figures_show(page: Path) -> None:
    stored = json.loads((page / "results.json").read_text(encoding="utf-8"))
    result = xr.Dataset.from_dict(stored)
    assert result["step"].values.tolist() == [1]
    rows = _rows(page / "prediction.csv")
    assert len(rows) == 3 * len(METRICS) * 3 * 2
    for row in rows:
        at = result.isel(step=0).sel(
            {name: row[name] for name in ("each_arm", "metric", "replacement", "tokens")}
        )
        value, written = (
            float(at["arm_rho_mean"].astype(float)),
            float(row["arm_rho_mean"] or "nan"),
        )
        assert written == pytest.approx(value, rel=1e-6, nan_ok=True)
    text = (page / "index.md").read_text(encoding="utf-8")
    assert "--unit document" in text
    assert "19, seed 0" in text
    assert "over 14 documents" in text


def test_page_says_what_hash_and_ungated_routing_mean(page: Path) -> None:
    text = (page / "index.md").read_text(encoding="utf-8")
    assert "a perfect token lookup" in text
    assert "It has no second choice" in text
    assert "about the router, not about the output" in text


def test_corpus_text_is_shown_and_never_acts(page: Path) -> None:
    for path in (page / "index.md", *page.glob("*.svg")):
        assert "<script>" not in path.read_text(encoding="utf-8")
    rows = _rows(page / "domains_1.csv")
    assert {row["domain"] for row in rows} == {"<script>alert(1)</script>|`$x$", "$\\frac"}


def test_study_without_knock_outs_is_refused_with_the_command_that_makes_them(
    write_study: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    write_study(tmp_path / "dense", {"dense-seed0": "dense", "dense-seed1": "dense"})
    assert analysis.main([str(tmp_path / "dense")]) == UNANSWERABLE
    assert "0 of 2 runs have experts" in capsys.readouterr().err
    write_study(tmp_path / "s", {"switch-seed0": "switch"})
    shutil.rmtree(tmp_path / "s/switch-seed0.zarr/ablation/committed/c")
    assert analysis.main([str(tmp_path / "s")]) == UNANSWERABLE
    error = capsys.readouterr().err
    assert f"run `python -m models.ablate {tmp_path / 's/switch-seed0.zarr'}`" in error
    assert "--keep-weights" in error
