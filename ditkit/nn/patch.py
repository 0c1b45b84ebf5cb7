"""Images to patch tokens and back."""

from __future__ import annotations

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> tokens (B, N, width): a convolution with kernel = stride = patch; tokens are row-major."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.project = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x.to(self.project.weight.dtype)).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Tokens (B, rows * columns, patch * patch * C) -> image (B, C, rows * patch, columns * patch).

    Each token is (patch row, patch column, channel), channel fastest, as DiT, SiT and SD3 publish it (DDT differs).
    """
    grid = tokens.unflatten(1, (rows, columns)).unflatten(3, (patch, patch, -1))  # (B, h, w, p, q, C)
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
