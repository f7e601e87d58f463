import dataclasses
import json

import pytest

from models.config import PRESETS, ModelConfig, RunConfig, StudyConfig, TrainConfig, as_json, quick
from models.settings import override

DENSE = ModelConfig(d_model=16, n_layers=2, n_heads=2, n_ctx=8, d_vocab=300)


def test_observation_steps_double_up_to_512_then_follow_the_interval():
    steps = TrainConfig(n_steps=2500, observe_every=1000).observation_steps
    assert steps == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 2500)


def test_observation_steps_stop_at_the_last_step():
    assert TrainConfig(n_steps=5, observe_every=2).observation_steps == (0, 1, 2, 4, 5)


@pytest.mark.parametrize("preset", PRESETS.values())
def test_runs_of_a_preset_share_data_and_have_seeds_in_every_main_arm(preset):
    cfg = preset()
    assert len({run.name for run in cfg.runs}) == len(cfg.runs)
    arms = [run.arm for run in cfg.runs]
    assert all(arms.count(arm) >= 2 for arm in ("dense", "switch"))
    assert {run.model.n_ctx for run in cfg.runs} == {cfg.data.n_ctx}


def test_seeds_preset_has_the_eighteen_runs_that_statistics_are_developed_on():
    arms = [run.arm for run in PRESETS["seeds"]().runs]
    counts = {arm: arms.count(arm) for arm in arms}
    assert counts == {"dense": 4, "dense_120": 2, "switch": 4, "ungated": 4, "hash": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "not a multiple of n_heads"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_experts": 8}, "a dense model"),
        ({"router": "switch", "n_experts": 8, "top_k": 1}, "moe_layers"),
        ({"router": "switch", "n_experts": 8, "top_k": 1, "moe_layers": (2,)}, "moe_layers"),
        ({"router": "switch", "n_experts": 2, "top_k": 3, "moe_layers": (1,)}, "top_k 3"),
        ({"router": "hash", "n_experts": 4, "top_k": 2, "moe_layers": (1,)}, "hash router"),
        (
            {"router": "switch", "n_experts": 2, "top_k": 1, "moe_layers": (1,), "d_model": 12},
            "multiple of 8",
        ),
    ],
)
def test_an_impossible_architecture_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DENSE, **change)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "a..b", "x" * 101, "a\\b"])
def test_a_name_that_could_leave_its_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"run name .* cannot be used"):
        StudyConfig("study", quick().data, quick().train, (RunConfig(name, 0, DENSE),))
    with pytest.raises(ValueError, match=r"study name .* cannot be used"):
        StudyConfig(name, quick().data, quick().train)


def test_two_runs_of_one_name_are_refused():
    run = quick().runs[0]
    with pytest.raises(ValueError, match="share a name"):
        dataclasses.replace(quick(), runs=(run, run))


def test_a_configuration_survives_json():
    assert json.loads(as_json(quick()))["runs"][3]["model"]["moe_layers"] == [1, 3]
    assert as_json(quick()) == as_json(quick())


def test_settings_reach_the_study_its_data_its_training_and_every_model():
    cfg = override(
        quick(), ["name=other", "data.n_ctx=64", "train.learning_rate=1e-4", "model.windows=half"]
    )
    assert (cfg.name, cfg.data.n_ctx, cfg.train.learning_rate) == ("other", 64, 1e-4)
    assert {(run.model.n_ctx, run.model.windows) for run in cfg.runs} == {(64, "half")}


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("train.n_steps=7", "n_steps", 7),
        ("train.activation_sites=resid_mid,mlp_out", "activation_sites", ("resid_mid", "mlp_out")),
        ("train.activation_sites=", "activation_sites", ()),
        ("train.threads=none", "threads", None),
    ],
)
def test_a_setting_is_read_by_the_type_of_its_field(setting, field, value):
    assert getattr(override(quick(), [setting]).train, field) == value


@pytest.mark.parametrize("text", ["true", "False"])
def test_a_truth_value_is_read_as_the_word_it_is(text):
    cfg = override(quick(), [f"model.router_bias={text}"])
    of_experts = {run.model.router_bias for run in cfg.runs if run.model.router}
    assert of_experts == {text == "true"}


def test_what_concerns_experts_reaches_only_the_models_that_have_some():
    cfg = override(quick(), ["model.n_experts=4", "model.top_k=2"])
    sizes = {(run.model.router, run.model.n_experts, run.model.top_k) for run in cfg.runs}
    assert sizes == {(None, 0, 0), ("switch", 4, 2)}


def test_none_is_a_value_only_where_the_field_allows_it():
    assert override(quick(), ["data.domain_column=none"]).data.domain_column is None
    with pytest.raises(ValueError, match="cannot be read as int"):
        override(quick(), ["train.n_steps=none"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.n_steps", "has no '='"),
        ("train.steps=3", "names no field"),
        ("train.prediction_positions=129", "a sequence has 128 positions"),
        ("data.n_ctx=8", r"activation_positions is 16, but a sequence has 8"),
        ("model.d_head=3", "names no field"),
        ("runs=()", "names no field"),
        ("train.n_steps=2*50", "cannot be read as int"),
        ("train.n_steps=__import__('os').getpid()", "cannot be read as int"),
        ("data.source=web", "not one of builtin, folder, dataset"),
        ("train.n_steps=0", "n_steps is 0"),
        ("name=../../etc", "cannot be used"),
        ("model.router=hash", "names no field"),
        ("model.router_bias=0", "not true or false"),
        ("train.threads=0", "threads is 0"),
        ("train.learning_rate=nan", "learning_rate is nan"),
        ("train.final_lr_fraction=nan", "final_lr_fraction is nan"),
        ("train.warmup_steps=-5", "warmup_steps is -5"),
        ("model.capacity_factor=0", "capacity_factor is 0"),
        ("data.order_seed=-1", "order_seed is -1"),
    ],
)
def test_a_bad_setting_is_refused_and_never_evaluated(setting, message):
    with pytest.raises(ValueError, match=message):
        override(quick(), [setting])
