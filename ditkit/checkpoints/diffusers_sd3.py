"""diffusers' SD3Transformer2DModel <-> our MMDiT, through Stability's layout.

diffusers keeps queries, keys and values apart and has (scale, shift) where Stability has (shift, scale) in the final
layer and in the text half of the last block: the halves are swapped. The networks compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ditkit.checkpoints.keys import Table, check, inverse, need, rename
from ditkit.checkpoints.published import Published, Shape, State
from ditkit.checkpoints.sd3 import SD3, SIZES, Official, depth_of
from ditkit.diffusion.path import AnyPath
from ditkit.diffusion.prediction import Kind
from ditkit.models import MMDiT, MMDiTSettings

_TABLE: Table = (  # diffusers fragment, Stability fragment; pos_embed last, so that undoing it comes first
    ("pos_embed.proj.", "x_embedder.proj."),
    ("time_text_embed.timestep_embedder.linear_1.", "t_embedder.mlp.0."),
    ("time_text_embed.timestep_embedder.linear_2.", "t_embedder.mlp.2."),
    ("time_text_embed.text_embedder.linear_1.", "y_embedder.mlp.0."),
    ("time_text_embed.text_embedder.linear_2.", "y_embedder.mlp.2."),
    ("transformer_blocks.", "joint_blocks."),
    (".norm1.linear.", ".x_block.adaLN_modulation.1."),
    (".norm1_context.linear.", ".context_block.adaLN_modulation.1."),
    (".attn.norm_q.", ".x_block.attn.ln_q."),
    (".attn.norm_k.", ".x_block.attn.ln_k."),
    (".attn.norm_added_q.", ".context_block.attn.ln_q."),
    (".attn.norm_added_k.", ".context_block.attn.ln_k."),
    (".attn.to_out.0.", ".x_block.attn.proj."),
    (".attn.to_add_out.", ".context_block.attn.proj."),
    (".attn2.norm_q.", ".x_block.attn2.ln_q."),
    (".attn2.norm_k.", ".x_block.attn2.ln_k."),
    (".attn2.to_out.0.", ".x_block.attn2.proj."),
    (".ff.net.0.proj.", ".x_block.mlp.fc1."),
    (".ff.net.2.", ".x_block.mlp.fc2."),
    (".ff_context.net.0.proj.", ".context_block.mlp.fc1."),
    (".ff_context.net.2.", ".context_block.mlp.fc2."),
    ("norm_out.linear.", "final_layer.adaLN_modulation.1."),
    ("proj_out.", "final_layer.linear."),
    ("pos_embed.pos_embed", "pos_embed"),
)
_FUSED = {  # Stability fragment -> the three of diffusers
    ".x_block.attn.qkv.": (".attn.to_q.", ".attn.to_k.", ".attn.to_v."),
    ".context_block.attn.qkv.": (".attn.add_q_proj.", ".attn.add_k_proj.", ".attn.add_v_proj."),
    ".x_block.attn2.qkv.": (".attn2.to_q.", ".attn2.to_k.", ".attn2.to_v."),
}


@dataclass(frozen=True)
class DiffusersSD3:
    """The diffusers layout of SD3. It has any number and width of heads; of a file without config.json say `heads`."""

    source: str = "diffusers-sd3"
    arguments: tuple[str, ...] = ("heads", "size")

    def load(self, state: State, shape: Shape, path: AnyPath | None, prediction: Kind | None) -> Published:
        """diffusers tensors (copied) -> our model, strict."""
        _BODY.check_kind(prediction)
        need(self.source, state, *(rename(key, inverse(_TABLE)) for key in SIZES))
        official = self._official(state)
        settings = _BODY.settings(official, shape)
        check(self.source, state, self._foreign(_BODY.blank(settings)))
        return replace(_BODY.published(_BODY.assemble(official, settings), path), source=self.source)

    def export(self, model: nn.Module, projectors: nn.ModuleList | None, prediction: Kind | None) -> State:
        """Our model -> diffusers keys and tensors (copies); load them into an SD3Transformer2DModel strictly."""
        if projectors is not None:
            raise _BODY.refusal("the family has no projectors; leave them out")
        _BODY.check_kind(prediction)
        return self._foreign(_BODY.official(exportable(model)))

    def _official(self, state: State) -> State:
        """Stability's keys, the tensors copied once."""
        parts = {part for three in _FUSED.values() for part in three}
        official = {
            rename(key, _TABLE): value.clone() for key, value in state.items() if not any(part in key for part in parts)
        }
        for fused, three in _FUSED.items():
            for key in [k for k in state if three[0] in k]:
                thirds = need(self.source, state, *(key.replace(three[0], part) for part in three))
                official[rename(key.replace(three[0], fused), _TABLE)] = torch.cat(thirds)
        return _swapped(official)

    def _foreign(self, official: State) -> State:
        """diffusers' keys; `official` is used up."""
        official, state, back = _swapped(official), {}, inverse(_TABLE)
        while official:
            key, value = official.popitem()
            fused = next((f for f in _FUSED if f in key), None)
            if fused is None:
                state[rename(key, back)] = value
                continue
            for part, third in zip(_FUSED[fused], value.chunk(3), strict=True):
                state[rename(key.replace(fused, part), back)] = third.clone()
        return state


def exportable(model: nn.Module) -> MMDiT:
    """The model, if diffusers' class can be it; CheckpointError with the reason if not."""
    mmdit = _BODY.exportable(model)
    s = mmdit.settings
    if not s.pooled_width:
        raise _BODY.refusal("it takes no pooled text vector; diffusers' class always does")
    if round(s.width * s.mlp_ratio) != 4 * s.width:
        raise _BODY.refusal(f"its mlp_ratio is {s.mlp_ratio:g}; diffusers' class has 4")
    return mmdit


def transformer_config(settings: MMDiTSettings) -> dict[str, Any]:
    """config.json of an SD3Transformer2DModel that takes the exported tensors."""
    s = settings
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": max(s.size),
        "patch_size": s.patch,
        "in_channels": s.channels,
        "out_channels": s.channels,
        "num_layers": s.depth,
        "attention_head_dim": s.width // s.heads,
        "num_attention_heads": s.heads,
        "joint_attention_dim": s.text_width,
        "caption_projection_dim": s.width,
        "pooled_projection_dim": s.pooled_width,
        "pos_embed_max_size": s.table or 3 * max(s.grid),
        "dual_attention_layers": [i - 1 for i in s.dual],
        "qk_norm": "rms_norm" if s.qk_norm == "rms" else None,
    }


def _swapped(official: State) -> State:
    """Shift and scale change places in the final layer and in the text half of the last block."""
    last = (
        f"joint_blocks.{depth_of(official) - 1}.context_block.adaLN_modulation.1.",
        "final_layer.adaLN_modulation.1.",
    )
    return {key: _turned(value) if key.startswith(last) else value for key, value in official.items()}


def _turned(value: Tensor) -> Tensor:
    return torch.cat(value.chunk(2)[::-1])


_BODY = Official("diffusers-sd3", SD3.time_scale, SD3.head_width, SD3.native)
DIFFUSERS_SD3 = DiffusersSD3()
