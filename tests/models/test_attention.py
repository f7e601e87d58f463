import math

import pytest
import torch

from models.attention import Attention, head_windows, visible_keys
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
    assert torch.equal(seen["pattern"][0] > 0, attention.visible)


def test_nothing_but_windows_tells_position():
    """With unrestricted heads alone, earlier tokens may be permuted."""
    torch.manual_seed(0)
    attention = Attention(CFG)
    attention.visible.copy_(visible_keys((12,) * 4, 12))
    x = torch.randn(1, 12, 16)
    permuted = torch.cat([x[:, torch.randperm(11)], x[:, 11:]], dim=1)
    torch.testing.assert_close(attention(permuted)[:, -1], attention(x)[:, -1])
