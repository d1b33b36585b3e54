"""A tiny language model, its tokenizer and prompts, made without a download."""

from __future__ import annotations

from typing import Any


def language_model() -> dict[str, Any]:
    """`policy`, `tokenizer` and `prompts`, for trainers of transformers and TRL."""
    import datasets
    import tokenizers
    import transformers

    words = {word: i for i, word in enumerate(["<pad>", "<end>", *"abcdefgh"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<pad>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
    config = transformers.GPT2Config(
        vocab_size=len(words),
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    prompts = datasets.Dataset.from_dict({"prompt": ["a b", "c d", "e f", "g h"] * 4})
    return {
        "policy": transformers.GPT2LMHeadModel(config),
        "tokenizer": tokenizer,
        "prompts": prompts,
    }
