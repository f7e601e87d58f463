"""Models that users would pick instead of ours, as wide and deep, for as many tokens."""

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from models.config import ModelConfig


class PlainBlock(nn.Module):
    """Causal attention and a ReLU MLP."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.ln1, self.ln2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.ReLU(), nn.Linear(4 * d_model, d_model)
        )

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        by_head = (B, T, self.n_heads, -1)
        q, k, v = (y.view(by_head).transpose(1, 2) for y in self.qkv(self.ln1(x)).split(D, dim=2))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp(self.ln2(x))


class PlainGPT(nn.Module):
    """A GPT as nanoGPT writes it: learned positions, fused projection, causal kernel, pre-norm."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(cfg.d_vocab, cfg.d_model)
        self.position = nn.Parameter(torch.randn(cfg.n_ctx, cfg.d_model))
        self.blocks = nn.Sequential(
            *(PlainBlock(cfg.d_model, cfg.n_heads) for _ in range(cfg.n_layers))
        )
        self.ln = nn.LayerNorm(cfg.d_model)
        self.unembed = nn.Linear(cfg.d_model, cfg.d_vocab, bias=False)

    def forward(self, token: Tensor) -> Tensor:
        return self.unembed(self.ln(self.blocks(self.embed(token) + self.position)))


def gpt2(cfg: ModelConfig) -> nn.Module:
    """GPT-2 of `transformers`."""
    config = transformers.GPT2Config(
        vocab_size=cfg.d_vocab, n_positions=cfg.n_ctx, n_embd=cfg.d_model, n_layer=cfg.n_layers,
        n_head=cfg.n_heads, activation_function="relu", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        tie_word_embeddings=False, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def mixture(name: str, cfg: ModelConfig) -> nn.Module:
    """OLMoE or Mixtral of `transformers`, experts in every block, with its default kernels."""
    sizes = {
        "vocab_size": cfg.d_vocab,
        "max_position_embeddings": cfg.n_ctx,
        "hidden_size": cfg.d_model,
        "intermediate_size": 8 * round(cfg.d_model / 3),  # rows of whole 16-byte blocks
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_heads,
        "num_experts_per_tok": cfg.top_k,
        "use_cache": False,
    }
    tokens = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    if name == "OLMoE":
        config = transformers.OlmoeConfig(num_experts=cfg.n_experts, **sizes, **tokens)
        return transformers.OlmoeForCausalLM(config)
    config = transformers.MixtralConfig(num_local_experts=cfg.n_experts, **sizes, **tokens)
    return transformers.MixtralForCausalLM(config)
