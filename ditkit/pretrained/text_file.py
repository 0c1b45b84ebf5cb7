"""Stability's single files: clip_l, clip_g and t5xxl .safetensors, or a whole SD3 file that contains them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ditkit.pretrained.missing import PretrainedMissing, first_line

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # of T5: one tensor, either name
MARKS = {"t5": "encoder.final_layer_norm.weight"}  # a key that every file of this kind has
CLIP_MARK = "text_model.embeddings.token_embedding.weight"


def read_text_file(path: str | Path, role: str, what: str) -> tuple[dict, dict[str, Tensor]]:
    """(arguments of the transformers config, state in transformers' keys) of one text encoder.

    A whole SD3 file has it under "text_encoders.ROLE.transformer."; other tensors of the file are never read. Sizes
    come from the tensors; heads have 64 channels, CLIP-L's MLP is a quick GELU and CLIP-G's an exact one.
    """
    path = Path(path).expanduser()
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            prefix = _prefix(keys, role)
            state = {key.removeprefix(prefix): file.get_tensor(key) for key in keys if key.startswith(prefix)}
    except PretrainedMissing:
        raise
    except Exception as error:  # safetensors names damage in many ways
        raise PretrainedMissing(what, f"{path.name} is no readable .safetensors file: {first_line(error)}") from error
    state.pop("text_model.embeddings.position_ids", None)
    state.pop("logit_scale", None)
    try:
        return (_t5(state) if role == "t5" else _clip(state, role)), state
    except (KeyError, ValueError) as error:
        raise PretrainedMissing(what, f"{path.name} holds no {role}: {first_line(error)} not found") from error


def _prefix(keys: list[str], role: str) -> str:
    whole = f"text_encoders.{'t5xxl' if role == 't5' else role}.transformer."
    return whole if any(key.startswith(whole) for key in keys) else ""


def _clip(state: dict[str, Tensor], role: str) -> dict:
    vocabulary, width = state[CLIP_MARK].shape
    projection = state.get("text_projection.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _layers(state, "text_model.encoder.layers."),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
        "projection_dim": width if projection is None else projection.shape[0],
        "hidden_act": "quick_gelu" if role == "clip_l" else "gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _t5(state: dict[str, Tensor]) -> dict:
    there = [key for key in EMBEDDINGS if key in state]
    if not there:
        raise KeyError(EMBEDDINGS[0])
    for key in EMBEDDINGS:
        state.setdefault(key, state[there[0]])
    vocabulary, width = state[there[0]].shape
    first = "encoder.block.0.layer."
    buckets, heads = state[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": state[f"{first}0.SelfAttention.q.weight"].shape[0] // heads,
        "d_ff": state[f"{first}1.DenseReluDense.wi_0.weight"].shape[0],
        "num_layers": _layers(state, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))
