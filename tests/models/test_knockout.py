"""Knocking out an expert is what it says, against models changed by hand, and leaves no trace."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.config import ModelConfig
from models.knockout import REPLACEMENTS, expert_means, knocked_out, loss_changes
from models.transformer import Transformer

CFG = ModelConfig(
    d_model=16, n_layers=4, n_heads=2, n_ctx=8, d_vocab=300,
    router="switch", router_bias=True, moe_layers=(1, 3), n_experts=4, top_k=1,
)  # fmt: skip
ROUTERS = [("switch", 1), ("switch", 2), ("ungated", 1), ("ungated", 2), ("hash", 1)]
rng = torch.Generator().manual_seed(0)
TOKEN = torch.randint(0, 300, (10, 8), generator=rng)
TARGET = torch.randint(0, 300, (10, 8), generator=rng)


def model_of(router: str, top_k: int = 1) -> Transformer:
    """A model whose experts all have something to say, biases included."""
    model = Transformer(dataclasses.replace(CFG, router=router, top_k=top_k)).eval()
    with torch.no_grad():
        for layer in CFG.moe_layers:
            for parameter in model.blocks[layer].mlp.experts.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return model


def changed(model: Transformer, layer: int, expert: int, output: torch.Tensor) -> Transformer:
    """A copy in which one expert gives the same output to every token."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.blocks[layer].mlp.experts.w_out[expert] = 0
        copied.blocks[layer].mlp.experts.b_out[expert] = output
    return copied


def losses(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(TOKEN).transpose(1, 2), TARGET, reduction="none")


def cached(model: Transformer, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters a layer's experts (N, D), and which of them its tokens choose (N, K)."""
    with torch.no_grad():
        cache = model.run_with_cache(TOKEN)[1]
    name = f"blocks.{layer}.mlp"
    return cache[f"{name}.hook_in"].flatten(0, 1), cache[f"{name}.hook_expert_indices"]


def slow_mean(model: Transformer, layer: int, expert: int) -> torch.Tensor:
    """Mean output of an expert over its tokens, one token at a time."""
    x, index = cached(model, layer)
    e = model.blocks[layer].mlp.experts
    outputs = [
        F.relu(x[n] @ e.w_in[expert] + e.b_in[expert]) @ e.w_out[expert] + e.b_out[expert]
        for n in range(len(x))
        if expert in index[n]
    ]
    return torch.stack(outputs).mean(0).detach() if outputs else torch.zeros(16)


@pytest.mark.parametrize(("router", "top_k"), ROUTERS)
def test_zero_is_a_model_whose_expert_gives_nothing(router, top_k):
    model = model_of(router, top_k)
    for layer in CFG.moe_layers:
        for expert in range(4):
            with knocked_out(model, layer, expert, "zero"):
                found = losses(model)
            torch.testing.assert_close(
                found, losses(changed(model, layer, expert, torch.zeros(16)))
            )


@pytest.mark.parametrize(("router", "top_k"), ROUTERS)
def test_mean_is_a_model_whose_expert_always_gives_its_mean(router, top_k):
    model = model_of(router, top_k)
    means = expert_means(model, TOKEN, batch_size=3)
    for layer in CFG.moe_layers:
        for expert in range(4):
            mean = slow_mean(model, layer, expert)
            torch.testing.assert_close(means[layer][expert], mean, rtol=1e-4, atol=1e-5)
            with knocked_out(model, layer, expert, "mean", mean=means[layer][expert]):
                found = losses(model)
            by_hand = losses(changed(model, layer, expert, mean))
            torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("router", "top_k"), ROUTERS[:-1])
def test_second_choice_is_a_router_without_the_expert_for_the_tokens_that_chose_it(router, top_k):
    model = model_of(router, top_k)
    for layer in CFG.moe_layers:
        x, index = cached(model, layer)
        token = torch.zeros(len(x), 1, dtype=torch.long)
        for expert in range(4):
            pruned = copy.deepcopy(model.blocks[layer].mlp)
            pruned.gate.linear.bias.data[expert] = -torch.inf
            served = (index == expert).any(1)
            with torch.no_grad(), knocked_out(model, layer, expert, "second_choice"):
                found = model.blocks[layer].mlp(x[:, None], token)[:, 0]
            with torch.no_grad():
                whole = model.blocks[layer].mlp(x[:, None], token)[:, 0]
                without = pruned(x[:, None], token)[:, 0]
            torch.testing.assert_close(found, torch.where(served[:, None], without, whole))


@pytest.mark.parametrize(("router", "top_k"), ROUTERS)
@pytest.mark.parametrize("batch_size", [3, 32])
def test_changes_are_those_of_whole_models_run_one_by_one(router, top_k, batch_size):
    model = model_of(router, top_k)
    means = expert_means(model, TOKEN)
    heard = []
    loss, change = loss_changes(
        model, TOKEN, TARGET, means=means, batch_size=batch_size, advance=heard.append
    )
    whole = losses(model)
    np.testing.assert_allclose(loss, whole, atol=1e-5)
    assert sum(heard) == -(-10 // batch_size) * 2 * 4 * 3
    for i, layer in enumerate(CFG.moe_layers):
        for expert in range(4):
            for name in REPLACEMENTS:
                found = change[name][i, expert]
                assert found.dtype == np.float16
                if router == "hash" and name == "second_choice":
                    assert np.isnan(found).all()
                    continue
                with knocked_out(model, layer, expert, name, mean=means[layer][expert]):
                    expected = losses(model) - whole
                np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5)
    assert np.abs(change["zero"]).max() > 0.01


def never_chosen(expert: int) -> Transformer:
    model = model_of("switch")
    for layer in CFG.moe_layers:
        model.blocks[layer].mlp.gate.linear.bias.data[expert] = -100
    return model


def test_an_expert_that_nobody_chose_changes_nothing_at_all():
    model = never_chosen(2)
    means = expert_means(model, TOKEN)
    _, change = loss_changes(model, TOKEN, TARGET, means=means)
    whole = losses(model)
    for i, layer in enumerate(CFG.moe_layers):
        assert torch.equal(means[layer][2], torch.zeros(16))
        for name in REPLACEMENTS:
            assert not change[name][i, 2].any()
            with knocked_out(model, layer, 2, name, mean=torch.ones(16)):
                assert torch.equal(losses(model), whole)


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_tokens_before_the_first_that_the_expert_serves_do_not_change(name):
    model = model_of("switch")
    means = expert_means(model, TOKEN)
    _, change = loss_changes(model, TOKEN, TARGET, means=means)
    for i, layer in enumerate(CFG.moe_layers):
        index = cached(model, layer)[1].view(10, 8)
        for expert in range(4):
            before = ((index == expert).cumsum(1) == 0).numpy()
            assert np.abs(change[name][i, expert][before]).max(initial=0) < 1e-5
            first = ((index == expert).cumsum(1) == 1) & (index == expert)
            assert np.abs(change[name][i, expert][first.numpy()]).min() > 0


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_afterwards_what_it_was(training):
    model = model_of("switch", 2).train(training)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = losses(model.eval())
    model.train(training)
    loss_changes(model, TOKEN, TARGET, means=expert_means(model, TOKEN))
    with pytest.raises(RuntimeError, match="on the way"), knocked_out(model, 1, 0, "zero"):
        raise RuntimeError("on the way")
    assert model.training == training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert torch.equal(losses(model.eval()), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_that_uses_all_experts_has_no_second_choice():
    model = model_of("switch", 4)
    _, change = loss_changes(model, TOKEN, TARGET, means=expert_means(model, TOKEN))
    assert np.isnan(change["second_choice"]).all()
    assert np.isfinite(change["zero"]).all()


@pytest.mark.parametrize(
    ("router", "arguments", "message"),
    [
        ("switch", (0, 0, "zero"), r"block 0 has no experts; those with experts: \[1, 3\]"),
        ("switch", (9, 0, "zero"), "block 9 has no experts"),
        ("switch", (1, 4, "zero"), "expert 4: layer 1 has 0 to 3"),
        ("switch", (1, 0, "mean"), "needs the mean"),
        ("hash", (1, 0, "second_choice"), "the hash router of layer 1 has no second choice"),
    ],
)
def test_what_cannot_be_knocked_out_is_refused(router, arguments, message):
    with pytest.raises(ValueError, match=message):
        knocked_out(model_of(router), *arguments)
