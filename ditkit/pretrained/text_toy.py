"""Toy stand-ins of SD3's three text encoders, in the places of the real ones: nothing to download."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from ditkit.pretrained.text_networks import ROLES, Encoded, Role
from ditkit.pretrained.text_sd3 import assemble, layout
from ditkit.pretrained.toy import ToyTextEncoder
from ditkit.protocols import Condition


class ToySD3Text:
    """TextEncoder of three toys laid out as SD3's. One that is left out gives zeros in its place; nothing moves.

    The two CLIPs know which words a prompt has, not in which order: tokens in alphabetical order side by side in
    channels, each `width` / 2 wide, and a pooled vector each. T5 knows the order too: `width` wide tokens with
    positions behind those of the CLIPs, nothing pooled. Every one has its own random vectors. length: words each reads.
    """

    def __init__(self, width: int = 48, length: int = 16, seed: int = 0, left_out: Collection[Role] = ()):
        half = width // 2
        widths: dict[Role, tuple[int, int]] = {"clip_l": (half, half), "clip_g": (half, half), "t5": (width, 0)}
        self.parts = layout(widths, length, length)
        self.width, self.pooled_width, self.length = width, 2 * half, 2 * length
        kept = [role for role in ROLES if role not in left_out]
        self.encoders = {
            role: ToyTextEncoder(widths[role][0], length, 3 * seed + ROLES.index(role) + 1, ordered=role == "t5")
            for role in kept
        }
        self.reader = ToyTextEncoder(width, length)  # tells once, whoever is left out, what none of them reads
        self.id = f"toy-sd3-{'-'.join(role if role in kept else 'none' for role in ROLES)}-{width}-{length}-{seed}"
        self.notes = [f"text encoder {role} is left out: zeros stand in its place" for role in left_out]
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> ToySD3Text:
        """Conditions come out on `device`."""
        self.device = torch.device(device)
        return self

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> text (B, 2 length, width), pooled (B, width), no mask: padding is attended; no words: zeros."""
        read = [self.reader.read(prompt) for prompt in prompts]
        encoded: dict[str, Encoded] = {}
        for role, encoder in self.encoders.items():
            cond = encoder([" ".join(words) for words in read])
            assert cond.text is not None
            encoded[role] = Encoded(cond.text, None if role == "t5" else cond.pooled)
        return assemble(self.parts, encoded, len(prompts), torch.device("cpu")).to(self.device)
