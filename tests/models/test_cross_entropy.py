import pytest
import torch
import torch.nn.functional as F

from models import cross_entropy
from models.cross_entropy import linear_cross_entropy


def problem(scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        (scale * torch.randn(*shape, generator=generator)).requires_grad_()
        for shape in ((23, 5), (11, 5), (11,))
    )
    return x, weight, bias, torch.randint(0, 11, (23,), generator=generator)


@pytest.mark.parametrize("rows", [1, 4, 23, 100])
def test_value_and_gradients_are_torchs_however_rows_are_cut(rows, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", rows * 11)
    x, weight, bias, target = problem()
    ours = linear_cross_entropy(x, weight, bias, target)
    expected = F.cross_entropy(F.linear(x, weight, bias), target)
    torch.testing.assert_close(ours, expected)
    inputs = (x, weight, bias)
    torch.testing.assert_close(
        torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * expected, inputs)
    )


def test_a_target_of_vanishing_probability_has_a_finite_loss():
    x, weight, bias, target = problem(scale=30)
    expected = F.cross_entropy(F.linear(x, weight, bias), target)
    assert float(expected.detach()) > 200  # far below what float32 holds as a probability
    torch.testing.assert_close(linear_cross_entropy(x, weight, bias, target), expected)


def test_autocast_multiplies_in_bfloat16_and_gradients_stay_float32():
    x, weight, bias, target = problem()
    expected = F.cross_entropy(F.linear(x, weight, bias), target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, bias, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    assert not torch.equal(loss, expected)
    for ours, wanted in zip(
        torch.autograd.grad(loss, (x, weight, bias)),
        torch.autograd.grad(expected, (x, weight, bias)),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, wanted, rtol=0.05, atol=2e-3)
