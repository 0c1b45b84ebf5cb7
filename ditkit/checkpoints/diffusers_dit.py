"""diffusers' DiTTransformer2DModel (facebook/DiT-XL-2-256 on the hub) <-> our DiT, through the official layout.

diffusers divides its timestep frequencies by half - 1 = 127, the official model by 128, and its second LayerNorm has
eps 1e-5 instead of 1e-6. The weights are the official ones, so ours reproduces the OFFICIAL output, not diffusers'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import nn

from ditkit.checkpoints.dit import DIT
from ditkit.checkpoints.keys import Table, check, inverse, need, rename
from ditkit.checkpoints.published import CheckpointError, Published, Shape, State
from ditkit.diffusion.path import AnyPath
from ditkit.diffusion.prediction import Kind
from ditkit.nn.position import sincos_table

_TABLE: Table = (  # diffusers fragment, official fragment
    ("pos_embed.proj.", "x_embedder.proj."),
    ("transformer_blocks.", "blocks."),
    (".norm1.linear.", ".adaLN_modulation.1."),
    (".attn1.to_out.0.", ".attn.proj."),
    (".ff.net.0.proj.", ".mlp.fc1."),
    (".ff.net.2.", ".mlp.fc2."),
    ("proj_out_1.", "final_layer.adaLN_modulation.1."),
    ("proj_out_2.", "final_layer.linear."),
)
_EMBED: Table = (  # every block carries its own equal copy, transformer_blocks.i.norm1.emb.*
    ("timestep_embedder.linear_1.", "t_embedder.mlp.0."),
    ("timestep_embedder.linear_2.", "t_embedder.mlp.2."),
    ("class_embedder.embedding_table.", "y_embedder.embedding_table."),
)
_COPY = re.compile(r"transformer_blocks\.\d+\.norm1\.emb\.(.+)")
_PARTS = ("to_q", "to_k", "to_v")


@dataclass(frozen=True)
class DiffusersDiT:
    """The diffusers layout of DiT. It holds no position table: `size` names the native latent, 32 x 32 by default."""

    source: str = "diffusers-dit"
    arguments: tuple[str, ...] = ("heads", "null", "size")

    def load(self, state: State, shape: Shape, path: AnyPath | None, prediction: Kind | None) -> Published:
        """diffusers tensors -> our model; a leftover `pos_embed` of the conversion script is refused by name."""
        official = self._official(state)
        patch_weight, _ = need("dit", official, "x_embedder.proj.weight", "y_embedder.embedding_table.weight")
        width, patch = patch_weight.shape[0], patch_weight.shape[2]
        height, side = shape.size or (32, 32)
        if height != side or height % patch:
            raise CheckpointError(
                f"source {self.source!r}: size {(height, side)} is not square or no multiple of patch {patch}"
            )
        official["pos_embed"] = sincos_table(height // patch, side // patch, width).to(patch_weight)[None]
        check(self.source, state, self._foreign(DIT.blank(DIT.settings(official, shape))))
        return replace(DIT.load(official, shape, path, prediction), source=self.source)

    def export(self, model: nn.Module, projectors: nn.ModuleList | None, prediction: Kind | None) -> State:
        """Our model -> diffusers keys and tensors; load them into a DiTTransformer2DModel strictly."""
        return self._foreign(DIT.export(model, projectors, prediction))

    def _official(self, state: State) -> State:
        official: State = {}
        for key, value in state.items():
            if copy := _COPY.fullmatch(key):
                name = rename(copy[1], _EMBED)
                if name in official and not torch.equal(official[name], value):
                    raise CheckpointError(
                        f"source {self.source!r}: {key} differs from another block's copy; one is needed"
                    )
                official[name] = value
            elif not any(f".attn1.{part}." in key for part in _PARTS):
                official[rename(key, _TABLE)] = value
        for key in [k for k in state if ".attn1.to_q." in k]:
            thirds = need(self.source, state, *(key.replace("to_q", part) for part in _PARTS))
            official[rename(key, (*_TABLE, (".attn1.to_q.", ".attn.qkv.")))] = torch.cat(thirds)
        return official

    def _foreign(self, official: State) -> State:
        state: State = {}
        depth = 1 + max(int(k.split(".")[1]) for k in official if k.startswith("blocks."))
        for key, value in official.items():
            if key.startswith(("t_embedder.", "y_embedder.")):
                for i in range(depth):
                    state[f"transformer_blocks.{i}.norm1.emb.{rename(key, inverse(_EMBED))}"] = value.clone()
            elif ".attn.qkv." in key:
                name = rename(key, inverse(_TABLE))
                for part, third in zip(_PARTS, value.chunk(3), strict=True):
                    state[name.replace(".attn.qkv.", f".attn1.{part}.")] = third.clone()
            elif key != "pos_embed":
                state[rename(key, inverse(_TABLE))] = value
        return state


DIFFUSERS_DIT = DiffusersDiT()
