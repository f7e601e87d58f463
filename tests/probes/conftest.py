import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from models.config import ModelConfig
from models.transformer import Transformer

SWITCH = ModelConfig(
    d_model=16, n_layers=3, n_heads=2, n_ctx=8, d_vocab=300,
    router="switch", moe_layers=(0, 2), n_experts=4, top_k=2,
)  # fmt: skip


@pytest.fixture
def switch() -> Transformer:
    return Transformer(SWITCH)


@pytest.fixture(scope="session")
def olmoe(tmp_path_factory) -> TransformerBridge:
    """A random OLMoE with two layers, saved by transformers and booted from disk."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("olmoe")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    experts = {"num_experts": 8, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    OlmoeForCausalLM(
        OlmoeConfig(**sizes, **heads, **experts, pad_token_id=0, eos_token_id=1)
    ).save_pretrained(folder)
    words = {f"w{i}": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="w1", eos_token="w1", pad_token="w0"
    ).save_pretrained(folder)
    return TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
