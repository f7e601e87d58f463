import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import ModelConfig
from models.moe import ROWS, MoE, Router, _filled_up

CFG = ModelConfig(
    d_model=16, n_layers=2, n_heads=2, n_ctx=8, d_vocab=300,
    router="switch", moe_layers=(1,), n_experts=4, top_k=1,
)  # fmt: skip
ROUTERS = [("switch", 1), ("switch", 2), ("switch", 4), ("ungated", 1), ("ungated", 2), ("hash", 1)]


def moe_of(router: str, top_k: int = 1, **changes) -> MoE:
    torch.manual_seed(0)
    cfg = dataclasses.replace(
        CFG, router=router, top_k=top_k, router_bias=router == "ungated", **changes
    )
    return MoE(cfg)


def plain_loop(moe: MoE, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """The layer, one token and one expert at a time."""
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            if moe.cfg.router == "hash":
                chosen, weights = [int(moe.gate.expert_of_token[token[b, t]])], [1.0]
            else:
                prob = moe.gate.linear(x[b, t]).softmax(-1)
                chosen = prob.argsort(descending=True)[: moe.cfg.top_k].tolist()
                weights = prob[chosen] if moe.cfg.router == "switch" else [1.0] * len(chosen)
            for i, weight in zip(chosen, weights, strict=True):
                e = moe.experts
                hidden = F.relu(x[b, t] @ e.w_in[i] + e.b_in[i])
                out[b, t] = out[b, t] + weight * (hidden @ e.w_out[i] + e.b_out[i])
    return out


@pytest.mark.parametrize(("router", "top_k"), ROUTERS)
def test_grouped_products_equal_a_plain_loop_in_value_and_gradient(router, top_k):
    moe = moe_of(router, top_k).eval()
    x = torch.randn(2, 8, 16)
    token = torch.randint(0, 300, (2, 8))
    grads = []
    for out in (moe(x, token), plain_loop(moe, x, token)):
        moe.zero_grad()
        out.square().sum().backward()
        grads.append([p.grad for p in moe.parameters() if p.grad is not None])
    torch.testing.assert_close(moe(x, token), plain_loop(moe, x, token))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2])
def test_products_in_bfloat16_have_few_numbers_of_rows_and_the_same_values(top_k, monkeypatch):
    moe, numbers = moe_of("ungated", top_k).eval(), []
    grouped = F.grouped_mm
    monkeypatch.setattr(
        F, "grouped_mm", lambda x, w, *, offs: numbers.extend(offs) or grouped(x, w, offs=offs)
    )
    x, grad = torch.randn(2, 2, 75, 16)
    x.requires_grad_()
    token = torch.randint(0, 300, (2, 75))
    wanted = [x, *moe.experts.parameters()]

    def output_and_gradients() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out = moe(x, token)
        return [out, *torch.autograd.grad(out, wanted, grad)]

    found = output_and_gradients()
    assert numbers
    assert not any(n % ROWS for n in numbers)
    monkeypatch.setattr("models.moe.ROWS", 1)
    for filled_up, exact in zip(found, output_and_gradients(), strict=True):
        assert (filled_up - exact).norm() < 0.005 * exact.norm()
    assert any(n % ROWS for n in numbers)


@pytest.mark.parametrize("counts", [[5, 0, 130, 1], [64, 128, 0, 64]])
def test_rows_that_fill_up_are_read_by_no_slot(counts):
    expert = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    n = len(expert)
    slot = torch.randperm(n)
    row, token, of_row, room = _filled_up(slot, torch.arange(n), expert, torch.tensor(counts))
    assert room.tolist() == [-(-count // ROWS) * ROWS for count in counts]
    assert len(of_row) == len(token) == room.sum()
    assert torch.equal(token[row], slot)
    assert torch.equal(of_row[row], expert[slot])
    starts = room.cumsum(0) - room
    assert bool((row >= starts[of_row[row]]).all())
    assert bool((row < (starts + room)[of_row[row]]).all())


def test_the_language_model_loss_reaches_a_switch_router_and_no_ungated_one():
    x, token = torch.randn(2, 8, 16), torch.randint(0, 300, (2, 8))
    for router, reached in (("switch", True), ("ungated", False)):
        moe = moe_of(router)
        moe(x, token).square().sum().backward()
        gradient = moe.gate.linear.weight.grad
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) == reached


def test_the_balancing_loss_reaches_the_router_but_not_the_experts():
    for router in ("switch", "ungated"):
        moe = moe_of(router)
        moe(torch.randn(2, 8, 16), torch.randint(0, 300, (2, 8)))
        moe.balance_loss.backward()
        assert moe.gate.linear.weight.grad.abs().sum() > 0
        assert moe.experts.w_in.grad is None


def test_balancing_loss_is_one_at_uniform_and_n_experts_at_collapse():
    moe = moe_of("switch")
    uniform = torch.full((8, 4), 0.25)
    one_each = F.one_hot(torch.arange(8) % 4, 4).float()
    assert moe._balance_loss(uniform, one_each) == 1
    collapsed = F.one_hot(torch.zeros(8).long(), 4).float()
    assert moe._balance_loss(collapsed, collapsed) == 4
    both = one_each + F.one_hot((torch.arange(8) + 1) % 4, 4).float()
    assert moe_of("switch", 2)._balance_loss(uniform, both) == 1


def test_permuting_experts_changes_nothing():
    moe = moe_of("switch", 2).eval()
    x, token = torch.randn(2, 8, 16), torch.randint(0, 300, (2, 8))
    before = moe(x, token)
    permutation = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        moe.gate.linear.weight.copy_(moe.gate.linear.weight[permutation])
        for parameter in moe.experts.parameters():
            parameter.copy_(parameter[permutation])
    torch.testing.assert_close(moe(x, token), before)


def test_capacity_keeps_the_first_tokens_of_each_expert_and_drops_the_rest_in_training_only():
    moe = moe_of("hash", capacity_factor=1.0)
    token = torch.zeros(1, 8, dtype=torch.long)  # all go to one expert; capacity is 8 / 4 = 2
    x = torch.randn(1, 8, 16)
    dropless = moe.eval()(x, token)
    out = moe.train()(x, token)
    torch.testing.assert_close(out[:, :2], dropless[:, :2])
    assert torch.equal(out[:, 2:], torch.zeros(1, 6, 16))
    assert bool((dropless[:, 2:] != 0).all())


def test_router_noise_acts_in_training_only():
    for router in ("switch", "ungated"):
        gate = moe_of(router).gate
        x, token = torch.randn(64, 16), torch.randint(0, 300, (64,))
        gate.eval()
        quiet = gate(x, token)[0]
        assert torch.equal(gate(x, token)[0], quiet)
        noisy = gate.train()(x, token)[0]
        assert not torch.equal(noisy, quiet)
        torch.testing.assert_close(noisy, quiet, rtol=0.1, atol=0.02)


def test_a_hash_router_is_a_balanced_lookup_of_token_ids_and_learns_nothing():
    gate = moe_of("hash").gate
    assert list(gate.parameters()) == []
    token = torch.arange(300)
    prob, index = gate(torch.randn(300, 16), token)
    assert torch.equal(index[:, 0], gate.expert_of_token)
    assert torch.equal(prob, F.one_hot(gate.expert_of_token, 4).float())
    assert gate.expert_of_token.bincount().tolist() == [75] * 4


def test_initialization_follows_each_source():
    cfg = dataclasses.replace(CFG, d_model=128, n_heads=2)
    torch.manual_seed(0)
    switch = MoE(cfg)
    sd = math.sqrt(0.1 / 128)
    for weight in (switch.gate.linear.weight, switch.experts.w_in):
        assert float(weight.detach().abs().max()) <= 2 * sd
    # a normal cut at two standard deviations keeps 0.8796 of its own
    assert float(switch.experts.w_in.detach().std()) == pytest.approx(0.8796 * sd, rel=0.02)
    scale = {}
    for router in ("ungated", "hash"):
        moe = MoE(dataclasses.replace(cfg, router=router, router_bias=router == "ungated"))
        scale[router] = float(moe.experts.w_in.detach().abs().max()) * math.sqrt(128)
    assert scale["hash"] == pytest.approx(1, rel=1e-2)
    assert scale["ungated"] == pytest.approx(0.0625, rel=1e-2)


def test_router_computes_in_float32_under_autocast():
    gate = moe_of("switch").gate
    with torch.autocast("cpu", torch.bfloat16):
        prob, _ = gate(torch.randn(8, 16).bfloat16(), torch.zeros(8).long())
    assert prob.dtype == torch.float32


def test_router_alone_can_be_built_and_reports_best_first():
    torch.manual_seed(0)
    prob, index = Router(dataclasses.replace(CFG, top_k=3))(
        torch.randn(5, 16), torch.zeros(5).long()
    )
    ranked = prob.gather(1, index)
    assert bool((ranked.diff(dim=1) <= 0).all())
    torch.testing.assert_close(ranked[:, 0], prob.max(1).values)
