import dataclasses

import pytest
import torch

from models.config import (
    ModelConfig,
    quick,
    reference_dense,
    reference_moe,
    reference_moe_switch,
    seeds,
)
from models.transformer import Transformer, n_active_parameters, n_parameters

DENSE = ModelConfig(d_model=16, n_layers=2, n_heads=2, n_ctx=8, d_vocab=300)
SWITCH = dataclasses.replace(DENSE, router="switch", moe_layers=(1,), n_experts=4, top_k=1)
TOKEN = torch.arange(24).view(3, 8) * 7 % 300


@pytest.mark.parametrize(
    ("cfg", "count"),
    [
        (reference_dense(), 135_338_348),
        (reference_moe(), 211_742_488),
        (reference_moe_switch(), 211_742_456),
    ],
)
def test_reference_models_have_the_published_number_of_parameters(cfg, count):
    assert n_parameters(cfg) == count


@pytest.mark.parametrize(
    "run", {run.arm: run for run in seeds().runs}.values(), ids=lambda r: r.arm
)
def test_counts_on_the_meta_device_are_those_of_a_real_model(run):
    assert n_parameters(run.model) == sum(p.numel() for p in Transformer(run.model).parameters())


def test_active_parameters_leave_out_the_experts_not_chosen():
    one_expert = dataclasses.replace(SWITCH, n_experts=1)
    router_rows = 3 * SWITCH.d_model  # a router has a row for each expert
    assert n_active_parameters(SWITCH) == n_parameters(one_expert) + router_rows
    assert n_active_parameters(DENSE) == n_parameters(DENSE)


def test_embedding_and_unembedding_are_untied_and_no_table_tells_position():
    names = [name for name, _ in Transformer(DENSE).named_parameters()]
    assert "embed.weight" in names
    assert "unembed.linear.weight" in names
    assert not [name for name in names if "pos" in name.replace("ln1_post", "")]


def test_block_is_the_reference_studys():
    model = Transformer(DENSE)
    x = model.embed(TOKEN)
    for block in model.blocks:
        x = x + block.ln1_post(block.attn(block.ln1(x)))
        x = x + block.mlp(block.ln2(x))
    torch.testing.assert_close(model(TOKEN), model.unembed.linear(model.ln_final(x)))


@pytest.mark.parametrize("cfg", [DENSE, SWITCH])
def test_no_token_sees_a_later_one(cfg):
    model = Transformer(cfg).eval()
    changed = TOKEN.clone()
    changed[:, 5:] = 1
    torch.testing.assert_close(model(changed)[:, :5], model(TOKEN)[:, :5])
    assert not torch.allclose(model(changed)[:, 5:], model(TOKEN)[:, 5:])


@pytest.mark.parametrize("cfg", [DENSE, SWITCH])
def test_with_a_target_the_mean_loss_is_the_same_watched_or_not(cfg):
    model = Transformer(cfg).eval()
    target = (TOKEN + 1) % 300
    expected = -model(TOKEN).log_softmax(-1).gather(-1, target[..., None]).mean()
    torch.testing.assert_close(model(TOKEN, target), expected)
    seen = []
    watch = ("unembed.hook_out", lambda logits, hook: seen.append(logits.shape))
    with model.hooks(fwd_hooks=[watch]):
        torch.testing.assert_close(model(TOKEN, target), expected)
    assert seen == [(3, 8, 300)]


def test_the_seed_fixes_initialization_and_leaves_the_callers_random_state():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = (Transformer(SWITCH, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.embed.weight, other.embed.weight)


def test_hash_maps_differ_between_seeds():
    cfg = dataclasses.replace(SWITCH, router="hash")
    maps = [Transformer(cfg, seed=seed).blocks[1].mlp.gate.expert_of_token for seed in (0, 1)]
    assert not torch.equal(*maps)


def test_cache_and_hooks_work_as_a_transformer_lens_user_expects():
    model = Transformer(SWITCH).eval()
    logits, cache = model.run_with_cache(TOKEN)
    torch.testing.assert_close(cache["unembed.hook_out"], logits)
    torch.testing.assert_close(
        cache["blocks.1.hook_resid_post"],
        cache["blocks.1.hook_resid_mid"] + cache["blocks.1.hook_mlp_out"],
    )
    torch.testing.assert_close(cache["resid_post", 1], cache["blocks.1.hook_resid_post"])
    shapes = {
        "hook_embed": (3, 8, 16),
        "blocks.0.ln2.hook_out": (3, 8, 16),
        "blocks.0.hook_attn_out": (3, 8, 16),
        "blocks.0.attn.hook_q": (3, 8, 2, 8),
        "blocks.0.attn.hook_pattern": (3, 2, 8, 8),
        "blocks.0.attn.hook_z": (3, 8, 2, 8),
        "blocks.0.mlp.hook_post": (3, 8, 64),
        "blocks.1.mlp.gate.hook_out": (24, 4),
        "blocks.1.mlp.hook_expert_indices": (24, 1),
        "blocks.1.mlp.hook_expert_weights": (24, 4),
    }
    assert {name: tuple(cache[name].shape) for name in shapes} == shapes

    def silence(value, hook):
        return torch.zeros_like(value)

    silenced = model.run_with_hooks(TOKEN, fwd_hooks=[("blocks.1.hook_mlp_out", silence)])
    assert not torch.allclose(silenced, logits)
    torch.testing.assert_close(model(TOKEN), logits)


@pytest.mark.parametrize(
    "run", {run.arm: run for run in quick().runs}.values(), ids=lambda r: r.arm
)
def test_attaching_and_removing_hooks_leaves_gradients_bit_identical(run):
    model = Transformer(run.model).eval()
    token = torch.randint(0, 2048, (2, 128), generator=torch.Generator().manual_seed(0))

    def gradients():
        model.zero_grad()
        model(token).logsumexp(-1).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before = gradients()
    model.run_with_cache(token)
    after = gradients()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_only_ungated_experts_learn_more_slowly():
    (group,) = Transformer(SWITCH).parameter_groups(0.1)
    assert group["lr"] == 0.1
    others, experts = Transformer(dataclasses.replace(SWITCH, router="ungated")).parameter_groups(
        0.1
    )
    assert (others["lr"], experts["lr"]) == (0.1, 0.05)  # 4 experts
    counts = [sum(p.numel() for p in group["params"]) for group in (others, experts)]
    assert sum(counts) == n_parameters(dataclasses.replace(SWITCH, router="ungated"))
    assert counts[1] == 4 * (2 * 16 * 64 + 64 + 16)
