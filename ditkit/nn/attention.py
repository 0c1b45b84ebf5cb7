"""Multi-head attention over tokens. Shapes: B batch, N tokens, K context tokens, D width, H heads, h = D / H."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ditkit.nn.norm import QKNorm, head_norm
from ditkit.nn.position import Rotation, rotate


class Attention(nn.Module):
    """Self-attention (B, N, D) -> (B, N, D): one fused qkv Linear (its xavier bound counts on that), scale h^-1/2.

    qkv_bias: DiT has it, DDT has not. `rotation` turns queries and keys after their norm (RoPE).
    """

    def __init__(self, width: int, heads: int, *, qk_norm: QKNorm = "none", qkv_bias: bool = True):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.q_norm = head_norm(qk_norm, width // heads)
        self.k_norm = head_norm(qk_norm, width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None = None, mask: Tensor | None = None) -> Tensor:
        """x (B, N, D); mask (B, N) bool: the tokens that are attended, at least one a sample; None: all."""
        q, k, v = self.project(x, rotation)
        keys = None if mask is None else mask[:, None, None]
        return self.proj(scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2).flatten(2))

    def project(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, D) -> queries, keys (normed, turned) and values, each (B, H, N, h)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q.to(v.dtype), k.to(v.dtype), v  # norms under autocast and rotations answer in float32


class CrossAttention(nn.Module):
    """Queries from x (B, N, D), keys and values from context (B, K, D) -> (B, N, D); 4 D^2 weights."""

    def __init__(self, width: int, heads: int, *, qk_norm: QKNorm = "none"):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = head_norm(qk_norm, width // heads)
        self.k_norm = head_norm(qk_norm, width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask (B, K) bool: the context tokens that are read; a sample that reads none gets the bias of `proj`."""
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, N, h)
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, K, h)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if mask is None:
            return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        reads = mask.any(dim=1)[:, None]  # a softmax over no token at all would be 0 / 0
        answer = scaled_dot_product_attention(q, k, v, attn_mask=(mask | ~reads)[:, None, None])
        return self.proj((answer * reads[..., None, None]).transpose(1, 2).flatten(2))
