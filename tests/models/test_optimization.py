import dataclasses
import math

import numpy as np
import pytest
import torch

from models.config import ModelConfig, RunConfig, TrainConfig
from models.data import TokenStream, chain_hash
from models.optimization import (
    Trainer,
    _noise_seed,
    learning_rate_factor,
    training_precision,
)

CFG = TrainConfig(n_steps=20, batch_size=4, learning_rate=1e-2, warmup_steps=5)
DENSE = ModelConfig(d_model=16, n_layers=2, n_heads=2, n_ctx=8, d_vocab=300)
SWITCH = dataclasses.replace(DENSE, router="switch", moe_layers=(1,), n_experts=4, top_k=1)
UNGATED = dataclasses.replace(SWITCH, router="ungated", router_bias=True)
CPU = torch.device("cpu")


def stream() -> TokenStream:
    tokens = np.random.default_rng(0).integers(0, 300, 4000).astype(np.uint16)
    return TokenStream(tokens, n_ctx=8, batch_size=4, order_seed=0, max_epochs=1)


def trainer(model: ModelConfig = SWITCH, seed: int = 0, arm: str = "arm", **changes) -> Trainer:
    cfg = dataclasses.replace(CFG, precision="float32", **changes)
    return Trainer(RunConfig(arm, seed, model), cfg, stream(), device=CPU)


def test_learning_rate_rises_over_the_warmup_and_falls_to_its_fraction_at_the_last_step():
    factors = [learning_rate_factor(step, CFG) for step in range(20)]
    np.testing.assert_allclose(factors[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(np.diff(factors[5:]), (0.1 - 1) / 14)
    assert factors[5] == 1
    assert factors[-1] == pytest.approx(CFG.final_lr_fraction)


def test_one_step_is_adamw_on_cross_entropy_and_balancing_loss():
    ours = trainer(SWITCH, weight_decay=0.1, balance_weight=0.5, gradient_clip=0.3)
    expected = trainer(SWITCH).model
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2 / 5, weight_decay=0.1)
    tokens = torch.from_numpy(stream().batch(0))
    row = ours.advance()
    torch.manual_seed(_noise_seed(ours.run, 0))
    log_prob = expected.train()(tokens[:, :-1]).log_softmax(-1)
    loss = -log_prob.gather(-1, tokens[:, 1:, None]).mean()
    (loss + 0.5 * expected.balance_loss).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in expected.parameters()))
    for p in expected.parameters():
        p.grad *= min(1.0, 0.3 / norm)
    optimizer.step()
    assert float(row["train_loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(row["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
    assert row["tokens_seen"] == 32
    for (name, p), q in zip(ours.model.named_parameters(), expected.parameters(), strict=True):
        if name.endswith("attn.k.bias"):
            continue  # shifts all scores of a query: its gradient is rounding, which Adam scales up
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [DENSE, SWITCH, UNGATED])
def test_a_restored_trainer_goes_on_bit_identically(model, tmp_path):
    whole, first, second = (trainer(model) for _ in range(3))
    for _ in range(8):
        whole.advance()
    for _ in range(3):
        first.advance()
    torch.save(first.state(), tmp_path / "state.pt")
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    rows = [second.advance() for _ in range(5)]
    assert all(
        torch.equal(p, q)
        for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True)
    )
    assert (second.step, second.stream_hash) == (8, whole.stream_hash)
    assert rows[-1]["stream_hash"] == int.from_bytes(whole.stream_hash[:8], "big")


def test_every_arm_and_seed_sees_the_same_stream():
    hashes = set()
    for model, seed in ((DENSE, 0), (DENSE, 1), (SWITCH, 0), (UNGATED, 2)):
        run = trainer(model, seed)
        for _ in range(4):
            run.advance()
        hashes.add(run.stream_hash)
    expected = b""
    for step in range(4):
        expected = chain_hash(expected, stream().batch(step))
    assert hashes == {expected}


def test_the_seed_changes_initialization_and_router_noise():
    one, other = trainer(SWITCH, 0), trainer(SWITCH, 1)
    other.model.load_state_dict(one.model.state_dict())
    losses = [float(run.advance()["train_loss"]) for run in (one, other)]
    assert losses[0] != losses[1]  # same weights, same batch: only the noise differs
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_arms_that_share_a_seed_share_no_random_number():
    one, other = trainer(DENSE, arm="dense").model, trainer(SWITCH, arm="switch").model
    shared = dict(other.named_parameters())
    random = [
        (p.detach().flatten(), shared[name].detach().flatten())
        for name, p in one.named_parameters()
        if name in shared and "ln" not in name
    ]
    assert len(random) > 10
    a, b = (torch.cat(parts) for parts in zip(*random, strict=True))
    assert not bool((a == b).any())
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.03
    noise = {_noise_seed(RunConfig(arm, 0, SWITCH), 0) for arm in ("switch", "ungated")}
    assert len(noise) == 2


def test_bfloat16_training_stays_close_to_float32():
    runs = [trainer(SWITCH), trainer(SWITCH)]
    runs[1].cfg = dataclasses.replace(runs[1].cfg, precision="bfloat16")
    losses = [[float(run.advance()["train_loss"]) for _ in range(5)] for run in runs]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)
    assert all(p.dtype == torch.float32 for p in runs[1].model.parameters())


def test_training_lowers_the_loss_of_a_predictable_text():
    run = trainer(DENSE)
    run.stream = TokenStream(
        np.tile(np.arange(10, dtype=np.uint16), 400),
        n_ctx=8, batch_size=4, order_seed=0, max_epochs=1,
    )  # fmt: skip
    losses = [float(run.advance()["train_loss"]) for _ in range(20)]
    assert losses[-1] < losses[0] / 2


def test_precision_is_bfloat16_only_where_the_hardware_multiplies_it():
    flags = torch.cpu.get_capabilities()
    native = flags.get("avx512_bf16") or flags.get("amx_bf16")
    assert training_precision(CPU) == ("bfloat16" if native else "float32")
