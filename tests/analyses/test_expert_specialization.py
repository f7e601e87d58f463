import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score

from analyses import expert_specialization as analysis
from analyses.comparison.units import unit_labels
from analyses.expert_specialization import expert_specialization
from analyses.reporting.cli import UNANSWERABLE
from analyses.reporting.specialization_figures import plot_profile, plot_scores, plot_shares

SCORES = ("token_specialization", "type_specialization")


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def _measured(expert_index: xr.DataArray, probe_set: xr.Dataset, **options) -> xr.Dataset:
    unit = unit_labels(probe_set, "document")
    options = {"n_resamples": 99, "rng": np.random.default_rng(0)} | options
    return expert_specialization(expert_index, probe_set, unit, **options)


@pytest.fixture(scope="module")
def result(expert_index: xr.DataArray, probe_set: xr.Dataset) -> xr.Dataset:
    rng = np.random.default_rng(7)
    loss = rng.gamma(2.0, 1.0, (3, 2, *probe_set["token"].shape))
    loss += 2.0 * (expert_index.values[:, :, 0, ..., 0] == 1)
    named = {n: expert_index[n].values for n in ("run", "step")}
    losses = xr.DataArray(loss, dims=("run", "step", "sequence", "pos"), coords=named)
    return _measured(expert_index, probe_set, loss=losses)


def test_experts_that_follow_the_domain_are_found_out(result: xr.Dataset) -> None:
    at = result.sel(run="by domain", step=8, layer=1)
    assert float(at["information"].sel(label="domain")) == pytest.approx(np.log(2))
    assert float(at["share"].sel(label="domain")) == pytest.approx(1.0)
    given = at.sel(label="domain given token id")
    assert float(given["share"]) == pytest.approx(1.0)
    assert float(given["information"]) > 0.6
    arm = result.sel(each_arm="switch", place="mean", label="domain")
    assert float(arm["arm_last_information_p"]) == 0.01
    expected = [[0, 0], [1, 0], [0, 0], [0, 1]]
    shares = at["domain_specialization"].sel(domain=["prose", "verse"])
    np.testing.assert_array_equal(shares, expected)


def test_token_lookup_has_context_independence_of_exactly_one(result: xr.Dataset) -> None:
    at = result.sel(run="by token", step=8, layer=1)
    of_id = at.sel(label="token id")
    assert float(of_id["share"]) == 1.0
    np.testing.assert_array_equal(of_id["share_deleted"], 1.0)
    np.testing.assert_array_equal(of_id["run_share_ci"], [1.0, 1.0])
    assert float(of_id["information_null_mean"]) < 0.2 * float(of_id["information"])
    given = at.sel(label="domain given token id")
    assert float(given["information"]) == 0.0
    assert np.isnan(float(given["share"]))  # nothing is left to be known
    for score in SCORES:
        assert float(at[score]) == 1.0
        assert float(at[f"{score}_null_mean"]) < 0.5
    assert float(at["loss_omega2"]) == pytest.approx(0.0, abs=1e-12)


def test_random_routing_is_not_beyond_chance(result: xr.Dataset) -> None:
    noise = result.sel(step=0, layer=1)
    for name in ("information", *SCORES):
        assert (noise[name] <= 1.001 * noise[f"{name}_null"].max("resample")).all()
    at = result.sel(each_arm="ungated", place="mean")
    assert (at["arm_last_information_p"] > 0.02).all()
    assert (np.abs(at["arm_last_share"]) < 0.06).all()


def test_information_and_ami_agree_with_sklearn(
    result: xr.Dataset, expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    token = probe_set["token"].values
    for run in ("by domain", "by nothing"):
        choice = expert_index.sel(run=run, step=8, layer=1).values[..., 0]
        domain = np.broadcast_to(probe_set["domain"].values[:, None], token.shape)
        for label, x, y in (
            ("token id", token, choice),
            ("previous token id", token[:, :-1], choice[:, 1:]),
            ("domain", domain, choice),
        ):
            x, y = x.ravel().astype(str), y.ravel()
            at = result.sel(run=run, layer=1, label=label)
            assert float(at["information"].sel(step=8)) == pytest.approx(mutual_info_score(x, y))
            expected = adjusted_mutual_info_score(x, y)
            assert float(at["ami"]) == pytest.approx(expected, abs=1e-9)


def test_share_and_arm_follow_from_information_and_its_null(result: xr.Dataset) -> None:
    at = result.sel(step=8)
    chance = at["information_null"].mean("resample")
    share = (at["information"] - chance) / (at["information_limit"] - chance)
    known = at["information_limit"] > 1e-6
    np.testing.assert_allclose(at["share"].where(known), share.where(known), atol=1e-9)
    low, high = result["run_share_ci"].where(known).transpose("ci_bound", ...)
    assert ((low <= result["share"]) & (result["share"] <= high) | ~known | low.isnull()).all()
    early = result["information_null"].sel(step=0).notnull().sum("resample")
    assert (early == result.attrs["n_early"]).all()


def test_expert_that_costs_loss_is_found_beyond_the_token_id(result: xr.Dataset) -> None:
    random, domain = (result.sel(run=run, layer=1) for run in ("by nothing", "by domain"))
    # a quarter of tokens 2 nats higher: variance 2² 3/16 beside that of the gamma, 2
    expected = 0.75 / 2.75
    assert float(random["loss_omega2"]) == pytest.approx(expected, abs=0.06)
    assert float(domain["loss_omega2"]) == pytest.approx(1 / 3, abs=0.06)
    assert float(result["arm_last_loss_omega2_p"].sel(each_arm="ungated", place="mean")) == 0.01


def test_names_of_experts_do_not_matter(
    result: xr.Dataset, expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    renamed = expert_index.copy(data=np.array([2, 0, 3, 1], dtype="int16")[expert_index.values])
    changed = _measured(renamed, probe_set)
    for name in ("information", "share", "information_miller_madow", "ami", *SCORES):
        np.testing.assert_allclose(changed[name], result[name], atol=1e-9, err_msg=name)
    np.testing.assert_allclose(changed["load"].isel(expert=[2, 0, 3, 1]), result["load"])


def test_order_of_sequences_does_not_matter(
    expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    n = expert_index.sizes["sequence"]
    order = np.arange(n).reshape(-1, 2)[::-1].ravel()  # whole documents, last first
    one = _measured(expert_index, probe_set, n_resamples=20)
    other = _measured(
        expert_index.isel(sequence=order), probe_set.isel(sequence=order), n_resamples=20
    )
    for name in one.data_vars:
        if name != "first_choice":
            np.testing.assert_allclose(other[name], one[name], atol=1e-12, err_msg=str(name))
    np.testing.assert_array_equal(other["first_choice"], one["first_choice"].isel(sequence=order))


def test_top_tokens_of_a_lookup_are_its_own_on_the_other_half(result: xr.Dataset) -> None:
    at = result.sel(run="by token", layer=1)
    for expert in range(4):
        top = at["top_token"].isel(expert=expert).dropna("rank").values
        assert set(top) == {i for i in range(6) if i % 4 == expert}
    assert (at["top_share_held_out"].where(at["top_token"].notnull(), 1.0) == 1.0).all()


def test_unobserved_step_is_missing(
    result: xr.Dataset, expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    part = expert_index.copy(deep=True)
    part.loc[{"run": "by token", "step": 8}] = -1
    changed = _measured(part, probe_set)
    assert changed["information"].sel(run="by token", step=8).isnull().all()
    assert changed["last_step"].values.tolist() == [8, 0, 8]
    assert changed["information_null"].sel(run="by token", step=0).notnull().all()
    xr.testing.assert_allclose(
        changed["information"].sel(step=0), result["information"].sel(step=0)
    )
    for plot in (plot_shares, plot_scores, plot_profile):
        plot(changed)


def test_two_choices_a_token_are_measured_together(
    expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    pairs = xr.concat([expert_index, (expert_index + 1) % 4], "top_k")
    result = _measured(pairs, probe_set, n_resamples=20)
    np.testing.assert_allclose(result["load"].sum("expert"), 1)
    np.testing.assert_allclose(result["domain_specialization"].sum("expert"), 2)
    assert "ami" not in result
    assert float(result["uniform_share"]) == 0.5
    at = result.sel(run="by token", step=8, layer=1)
    # the id settles which two, and no label could settle which of the two
    of_id = at.sel(label="token id")
    assert float(of_id["information"]) < np.log(4) - np.log(2) + 1e-9
    assert float(of_id["share"]) == pytest.approx(1.0)
    assert np.isnan(float(at["share"].sel(label="domain given token id")))
    for score in SCORES:
        assert float(at[score]) == pytest.approx(1.0)


def test_many_experts_with_few_tokens_each_are_at_chance(probe_set: xr.Dataset) -> None:
    rng = np.random.default_rng(0)
    shape = probe_set["token"].shape
    choice = np.argsort(rng.random((*shape, 256)), axis=-1)[..., :8].astype("int16")
    index = xr.DataArray(
        choice[None, None, None],
        dims=("run", "step", "layer", "sequence", "pos", "top_k"),
        coords={"run": ["a"], "step": [0], "layer": [0], "arm": ("run", ["switch"]),
                "n_experts": ("run", [256])},
    )  # fmt: skip
    result = _measured(index, probe_set, n_resamples=40)
    assert (np.abs(result["share"]) < 0.02).all()
    assert (result["information"].sel(label="token id") > 0.1).all()  # all of it by chance
    assert (result["arm_last_information_p"] > 0.02).all()


def test_runs_and_steps_may_be_computed_in_any_order(
    expert_index: xr.DataArray, probe_set: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(function, items, progress, dask):
        assert dask == "local"
        return [function(item) for item in reversed(items)][::-1]

    monkeypatch.setattr("analyses.routing.specialization.mapped", elsewhere)
    other = _measured(expert_index, probe_set, n_resamples=20, dask="local")
    monkeypatch.undo()
    xr.testing.assert_equal(other, _measured(expert_index, probe_set, n_resamples=20))


def test_command_writes_what_the_figures_show(reports: SimpleNamespace) -> None:
    folder = reports.folder / "expert_specialization"
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    result = xr.Dataset.from_dict(stored)
    rows = _rows(folder / "shares.csv")
    assert len(rows) == 1 * 3 * 2 * 5
    for row in rows:
        at = result.sel(
            each_arm=row["each_arm"], step=int(row["step"]), layer=int(row["layer"]),
            label=row["label"],
        )  # fmt: skip
        found = at["arm_share"].item()
        assert (row["arm_share"] == "") == (found is None)
        if found is not None:
            assert float(row["arm_share"]) == pytest.approx(found, rel=1e-7, abs=1e-9)
    assert result.sizes["resample"] == 19
    page = (folder / "index.md").read_text(encoding="utf-8")
    assert "--n-resamples 19" in page
    assert "19, seed 3" in page
    assert "hash router" not in page
    assert "Loss that the expert explains beyond the token id" in page


@pytest.fixture(scope="module")
def hostile(write_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report on hash and ungated runs, on a corpus whose domains have hostile names."""
    folder = tmp_path_factory.mktemp("hostile")
    names = {"prose": "<script>alert(1)</script>|`$x$", "verse": "$\\frac"}
    write_study(folder / "s", {"hash-seed0": "hash", "ungated-seed0": "ungated"}, **names)
    arguments = [str(folder / "s"), "--n-resamples", "9", "--report", str(folder)]
    assert analysis.main(arguments) == 0
    return folder / "expert_specialization"


def test_page_says_what_hash_and_ungated_routing_mean(hostile: Path) -> None:
    page = (hostile / "index.md").read_text(encoding="utf-8")
    assert "a perfect token lookup: nothing was learned" in page
    assert "context independence and its vocabulary specialization are 1 by construction" in page
    assert "about the router, not about the output" in page


def test_corpus_text_is_shown_and_never_acts(hostile: Path) -> None:
    drawings = sorted(hostile.glob("domain_profile_*.svg"))
    assert len(drawings) == 2
    for path in (hostile / "index.md", *drawings):
        assert "<script>" not in path.read_text(encoding="utf-8")
    rows = _rows(hostile / "domain_profile_1.csv")
    assert {row["domain"] for row in rows} == {"<script>alert(1)</script>|`$x$", "$\\frac"}


def test_perfect_lookup_is_said_in_the_finding(
    expert_index: xr.DataArray, probe_set: xr.Dataset
) -> None:
    kept = expert_index.sel(run=["by token"])
    found = analysis._finding(_measured(kept, probe_set, n_resamples=20))
    assert "hash routing is a perfect token lookup (context independence 1)" in found


def test_study_without_experts_is_refused_with_the_remedy(
    write_study: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    write_study(tmp_path / "s", {"dense-seed0": "dense", "dense-seed1": "dense"})
    assert analysis.main([str(tmp_path / "s")]) == UNANSWERABLE
    error = capsys.readouterr().err
    assert "routing was observed (2 runs, 0 of them MoE)" in error
    assert "python -m models.train quick" in error
