"""A language model that is small enough for tests of everything around one."""

from pathlib import Path


def tiny_model(folder: Path, smollm2: Path) -> Path:
    """A random two-layer model with SmolLM2's tokeniser and chat template: fast, it knows nothing, and it says little.

    It ends its reply where it may, and else its line where it may: random replies would be as long as they can be.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    (line_end,) = tokenizer.encode("\n")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0  # every hidden state has this in common
        model.lm_head.weight[line_end, 0] = 1.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = 2.0
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
