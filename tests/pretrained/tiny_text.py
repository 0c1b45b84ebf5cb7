"""SD3's three text encoders in the small, with random weights, in the folders of a diffusers pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(*, pad: str = END) -> Any:
    """CLIP's byte-level BPE without merges: every text has tokens. Id 0 is "!", as in the published vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = ["!", *(c for c in letters if c != "!"), *(f"{c}</w>" for c in letters), START, END]
    vocab = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad, model_max_length=77)


def t5_tokenizer() -> Any:
    """T5's unigram model over ASCII letters: pad 0, end 1, unknown 2."""
    from transformers import T5Tokenizer

    letters = [chr(c) for c in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((c, -3.0) for c in letters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def clip_model(width: int, activation: str, *, seed: int, projection: str = "random", layers: int = 3) -> Any:
    """CLIPTextModelWithProjection; projection "identity" is what SD3's CLIP-L has."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=width, hidden_act=activation,
        bos_token_id=512, eos_token_id=513, pad_token_id=513, initializer_factor=5.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases that do something
                parameter.add_(0.2 * torch.randn_like(parameter))
        if projection == "identity":
            model.text_projection.weight.copy_(torch.eye(width))
    return model


def t5_model(width: int = 32, *, seed: int = 3) -> Any:
    """T5EncoderModel in the v1.1 style: gated GELU, no biases."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=98, d_model=width, d_kv=4, d_ff=24, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    return T5EncoderModel(config).eval()


def tiny_text_parts(*, t5: bool = True) -> dict[str, Any]:
    """The six text arguments of StableDiffusion3Pipeline: widths 8 (CLIP-L), 12 (CLIP-G) and 32 (T5), pooled 20.

    t5 False: text_encoder_3 and tokenizer_3 are None, as in a pipeline without T5.
    """
    return {
        "text_encoder": clip_model(8, "quick_gelu", seed=1, projection="identity"),
        "text_encoder_2": clip_model(12, "gelu", seed=2),
        "text_encoder_3": t5_model() if t5 else None,
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(pad="!"),
        "tokenizer_3": t5_tokenizer() if t5 else None,
    }


def tiny_sd3_text(folder: Path, *, t5: bool = True) -> dict[str, Any]:
    """Write `tiny_text_parts` as the text folders of a pipeline with its model_index.json; the parts are returned."""
    parts = tiny_text_parts(t5=t5)
    index: dict[str, Any] = {"_class_name": "StableDiffusion3Pipeline"}
    for name, part in parts.items():
        index[name] = [None, None] if part is None else ["transformers", type(part).__name__]
        if part is not None:
            part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index))
    return parts
