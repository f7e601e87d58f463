import dataclasses
import math

import pytest
import torch
from torch import nn

from models.attention import Attention, WindowedHeads, head_windows, visible_keys
from models.block_attention import block_attention
from models.config import ModelConfig

CFG = ModelConfig(d_model=16, n_layers=1, n_heads=4, n_ctx=12, d_vocab=300)


def test_powers_schedule_is_the_reference_studys():
    assert head_windows("powers", 11, 840) == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 840)


def test_half_schedule_leaves_the_second_half_unrestricted():
    assert head_windows("half", 5, 100) == (1, 2, 100, 100, 100)


def test_a_head_sees_exactly_its_window():
    visible = visible_keys((1, 3), 6)
    for query in range(6):
        for key in range(6):
            assert bool(visible[0, query, key]) == (key == query)
            assert bool(visible[1, query, key]) == (0 <= query - key < 3)


@pytest.mark.parametrize("windows", ["powers", "half"])
def test_attention_equals_a_loop_over_queries(windows):
    torch.manual_seed(0)
    cfg = ModelConfig(d_model=16, n_layers=1, n_heads=4, n_ctx=12, d_vocab=300, windows=windows)
    attention = Attention(cfg)
    x = torch.randn(2, 9, 16)
    expected = torch.zeros(2, 9, 16)
    q, k, v = (linear(x) for linear in (attention.q, attention.k, attention.v))
    for head, window in enumerate(head_windows(windows, 4, 12)):
        part = slice(4 * head, 4 * head + 4)
        for query in range(9):
            first = max(0, query - window + 1)
            keys, values = k[:, first : query + 1, part], v[:, first : query + 1, part]
            scores = (keys * q[:, query, None, part]).sum(-1) / math.sqrt(4)
            expected[:, query, part] = (scores.softmax(-1)[..., None] * values).sum(1)
    torch.testing.assert_close(attention(x), attention.o(expected))


def test_watching_the_pattern_does_not_change_the_output():
    torch.manual_seed(0)
    attention = Attention(CFG)
    x = torch.randn(2, 12, 16)
    unwatched = attention(x)
    seen = {}
    attention.hook_pattern.add_hook(lambda pattern, hook: seen.update(pattern=pattern))
    torch.testing.assert_close(attention(x), unwatched)
    torch.testing.assert_close(seen["pattern"].sum(-1), torch.ones(2, 4, 12))
    assert torch.equal(seen["pattern"][0] > 0, visible_keys(attention.windows, 12))


@pytest.mark.parametrize("windows", ["powers", "half"])
@pytest.mark.parametrize("n_pos", [1, 8, 33, 72])
def test_heads_in_blocks_equal_the_whole_pattern_in_value_and_gradient(windows, n_pos):
    torch.manual_seed(0)
    attention = Attention(
        ModelConfig(d_model=32, n_layers=1, n_heads=8, n_ctx=72, d_vocab=300, windows=windows)
    )
    assert {group.block for group in attention.groups} == {
        "powers": {1, 8, 32, 72},
        "half": {1, 8, 72},
    }[windows]
    x = torch.randn(2, n_pos, 32)

    def value_and_gradients():
        attention.zero_grad()
        out = attention(x)
        out.square().sum().backward()
        return out, [p.grad for p in attention.parameters()]

    in_blocks = value_and_gradients()
    attention.hook_pattern.add_hook(lambda pattern, hook: None)
    torch.testing.assert_close(value_and_gradients(), in_blocks, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("windows", "block"), [((2, 3), 4), ((1, 9, 20), 20)])
def test_gradients_of_blocks_are_those_of_finite_differences(windows, block):
    generator = torch.Generator().manual_seed(0)
    heads = WindowedHeads(windows, block=block, n_ctx=20).double()
    q, k, v = (
        torch.randn(2, len(windows), 20, 3, dtype=torch.float64, generator=generator)
        .requires_grad_()
        for _ in range(3)
    )  # fmt: skip
    assert torch.autograd.gradcheck(lambda *x: block_attention(*x, heads.mask), (q, k, v))


@pytest.mark.parametrize("windows", ["powers", "half"])
def test_on_a_cpu_bfloat16_takes_no_fused_kernel_and_comes_close_to_float32(windows, monkeypatch):
    torch.manual_seed(0)
    cfg = ModelConfig(d_model=32, n_layers=1, n_heads=8, n_ctx=72, d_vocab=300, windows=windows)
    attention, x = Attention(cfg), torch.randn(3, 50, 32)

    def value_and_gradient():
        own = x.clone().requires_grad_()
        out = attention(own)
        return out.detach(), *torch.autograd.grad(out.square().sum(), own)

    exact = value_and_gradient()
    monkeypatch.setattr(
        "models.attention.F.scaled_dot_product_attention",
        lambda *args, **options: pytest.fail("took the fused kernel"),
    )
    with torch.autocast("cpu", torch.bfloat16):
        rounded = value_and_gradient()
    assert rounded[0].dtype == torch.bfloat16
    for ours, wanted in zip(rounded, exact, strict=True):
        assert float((ours - wanted).norm() / wanted.norm()) < 0.02


def test_nothing_but_windows_tells_position():
    """With unrestricted heads alone, earlier tokens may be permuted."""
    torch.manual_seed(0)
    attention = Attention(dataclasses.replace(CFG, windows="half"))
    attention.windows = (12,) * 4
    attention.groups = nn.ModuleList([WindowedHeads((12,) * 4, block=12, n_ctx=12)])
    attention.heads_per_group = [4]
    x = torch.randn(1, 12, 16)
    permuted = torch.cat([x[:, torch.randperm(11)], x[:, 11:]], dim=1)
    torch.testing.assert_close(attention(permuted)[:, -1], attention(x)[:, -1])
