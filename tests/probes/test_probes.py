"""One pass with every instrument, on a model of ours and on a booted OLMoE."""

import dataclasses

import numpy as np
import pytest
import torch

from models.transformer import Transformer
from probes import base
from probes.activations import ActivationProbe
from probes.base import Probe, observe, spread_positions
from probes.losses import LossProbe
from probes.predictions import PredictionProbe
from probes.routing import RoutingProbe
from store.schema import variables_of

N_POS = 8
POSITIONS = [1, 5]


def text(d_vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, d_vocab, (7, N_POS + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def all_probes(target: torch.Tensor) -> list[Probe]:
    sites = ("resid_mid", "mlp_out")
    return [
        LossProbe(target),
        PredictionProbe(POSITIONS),
        RoutingProbe(N_POS),
        ActivationProbe(sites, POSITIONS),
    ]


@pytest.fixture(params=["switch", "olmoe"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def d_vocab(model) -> int:
    return model.cfg.d_vocab


def test_every_instrument_fulfils_the_protocol():
    assert all(isinstance(probe, Probe) for probe in all_probes(text(64)[1]))


def test_our_models_carry_the_hook_names_of_the_bridge(switch, olmoe):
    ours = {name for name in switch.hook_dict if "blocks.2." not in name}  # olmoe has two blocks
    extra = {name for name in ours if "ln1_post" in name}  # a norm that olmoe does not have
    assert len(ours) > 40
    assert ours - extra <= set(olmoe.hook_dict)


def test_recorded_loss_equals_an_independent_cross_entropy(model, d_vocab):
    token, target = text(d_vocab)
    loss = observe(model, token, [LossProbe(target)], n_batches=3)["losses"]["loss"]
    with torch.no_grad():
        logits = model.eval()(token).double().numpy()
    highest = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - highest).sum(-1)) + highest[..., 0]
    expected = log_sum - np.take_along_axis(logits, target.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, expected, atol=1e-5)
    assert loss.dtype == np.float32


def test_predictions_are_whole_distributions_that_give_the_loss_of_the_target(model, d_vocab):
    token, target = text(d_vocab)
    seen = observe(model, token, all_probes(target), n_batches=3)
    log_prob = seen["predictions"]["log_prob"]
    assert log_prob["pos"].values.tolist() == POSITIONS
    np.testing.assert_allclose(np.exp(log_prob.astype("float64")).sum("d_vocab"), 1, atol=2e-3)
    index = target.numpy()[:, POSITIONS, None]
    of_target = np.take_along_axis(log_prob.values, index, axis=-1)[..., 0]
    np.testing.assert_allclose(-of_target, seen["losses"]["loss"][:, POSITIONS], rtol=6e-4)


def test_positions_are_spread_evenly_and_never_more_than_there_are():
    assert spread_positions(128, 4) == [16, 48, 80, 112]
    assert spread_positions(5, 5) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="6 positions"):
        spread_positions(5, 6)
    with pytest.raises(ValueError, match="no position"):
        PredictionProbe([])


def test_batches_of_any_size_give_the_same_observation(model, d_vocab):
    token, target = text(d_vocab)
    whole = observe(model, token, all_probes(target), n_batches=1)
    parts = observe(model, token, all_probes(target), n_batches=4)
    for group in whole:
        for name, variable in whole[group].items():
            np.testing.assert_allclose(parts[group][name], variable, atol=2e-3, err_msg=name)


def test_a_pass_takes_the_sequences_asked_for_or_those_of_so_many_tokens(switch, monkeypatch):
    token, target = text(300)
    sizes = []
    seen = switch.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    observe(switch, token, [LossProbe(target)], n_batches=3)
    for at_once in (4 * N_POS, 5 * N_POS - 1, N_POS - 1):
        monkeypatch.setattr(base, "TOKENS_AT_ONCE", at_once)
        observe(switch, token, [LossProbe(target)])
    seen.remove()
    assert sizes == [3, 2, 2, 4, 3, 4, 3, *(1,) * 7]


def test_routing_is_what_the_cache_holds(model, d_vocab):
    token, target = text(d_vocab)
    routing = observe(model, token, all_probes(target))["routing"]
    _, cache = model.eval().run_with_cache(token)
    for layer in routing["layer"].values:
        at = routing.sel(layer=layer)
        logits = cache[f"blocks.{layer}.mlp.gate.hook_out"].view(7, N_POS, -1)
        prob = logits.softmax(-1).numpy()
        np.testing.assert_allclose(at["router_prob"], prob, atol=1e-3)
        order = np.argsort(-prob, axis=-1, kind="stable")[..., :2]
        assert (at["expert_index"].values == order).mean() > 0.99
        gates = np.take_along_axis(prob, at["expert_index"].values.astype(int), -1)
        np.testing.assert_allclose(at["expert_weight"], gates, atol=1e-3)


def test_activations_are_those_at_the_chosen_positions(model, d_vocab):
    token, target = text(d_vocab)
    seen = observe(model, token, all_probes(target), n_batches=4)["activations"]
    _, cache = model.eval().run_with_cache(token)
    assert seen["pos"].values.tolist() == POSITIONS
    for site in ("resid_mid", "mlp_out"):
        for layer in seen["layer"].values:
            expected = cache[f"blocks.{layer}.hook_{site}"][:, POSITIONS].numpy()
            np.testing.assert_allclose(seen[site].sel(layer=layer), expected, atol=1e-4, rtol=1e-3)


def test_observations_are_labelled_as_the_schema_says(model, d_vocab):
    token, target = text(d_vocab)
    for group, observed in observe(model, token, all_probes(target)).items():
        known = variables_of(group)
        for name, variable in observed.items():
            assert ("step", *variable.dims) == known[name].dims
            assert variable.dtype == known[name].dtype


def test_observing_changes_no_gradient_and_no_mode(switch):
    token, target = text(300)

    def gradients():
        switch.zero_grad()
        switch.eval()(token).logsumexp(-1).sum().backward()
        return [p.grad.clone() for p in switch.parameters()]

    before = gradients()
    switch.train()
    observe(switch, token, all_probes(target))
    assert switch.training
    assert not any(point.has_hooks() for point in switch.hook_dict.values())
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))


def test_router_noise_is_off_while_observing(switch):
    token, _ = text(300)
    switch.train()
    once, again = (observe(switch, token, [RoutingProbe(N_POS)])["routing"] for _ in range(2))
    assert once.identical(again)


def test_observation_is_in_float32_under_autocast(switch):
    token, target = text(300)
    plain = observe(switch, token, [LossProbe(target)])["losses"]
    with torch.autocast("cpu", torch.bfloat16):
        assert observe(switch, token, [LossProbe(target)])["losses"].identical(plain)


def test_a_hash_router_is_recorded_as_certain(switch):
    cfg = dataclasses.replace(switch.cfg, router="hash", top_k=1)
    token, _ = text(300)
    model = Transformer(cfg)
    routing = observe(model, token, [RoutingProbe(N_POS)])["routing"]
    lookup = model.blocks[2].mlp.gate.expert_of_token[token].numpy()
    assert np.array_equal(routing["expert_index"].sel(layer=2)[..., 0], lookup)
    assert (routing["expert_weight"] == 1).all()
    assert (routing["router_prob"].max("expert") == 1).all()


def test_a_probe_that_matches_nothing_is_refused(switch):
    dense = Transformer(
        dataclasses.replace(switch.cfg, router=None, moe_layers=(), n_experts=0, top_k=0)
    )
    with pytest.raises(ValueError, match="'routing' matches no hook"):
        observe(dense, text(300)[0], [RoutingProbe(N_POS)])


def test_two_probes_of_one_group_are_refused(switch):
    token, target = text(300)
    with pytest.raises(ValueError, match="same group"):
        observe(switch, token, [LossProbe(target), LossProbe(target)])


@pytest.mark.parametrize(("sites", "positions"), [(["resid"], [0]), ([], [0]), (["mlp_out"], [])])
def test_an_activation_probe_needs_known_sites_and_some_positions(sites, positions):
    with pytest.raises(ValueError, match="at least one of each"):
        ActivationProbe(sites, positions)
