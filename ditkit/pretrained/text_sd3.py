"""SD3's text conditioning out of three encoders, any of which may be left out; and REPA's out of CLIP-L alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ditkit.pretrained.text_networks import ROLES, CLIPText, Encoded, Role, T5Text
from ditkit.pretrained.tokens import warn_of_cuts
from ditkit.protocols import Condition, Part

CLIP_TOKENS = 77


def layout(widths: Mapping[Role, tuple[int, int]], clip_tokens: int, t5_tokens: int) -> tuple[Part, ...]:
    """Where each encoder's numbers stand, from (width, pooled width) of each.

    CLIP-L and CLIP-G share tokens and stand side by side in channels, T5's tokens follow (arXiv 2403.03206, B.2).
    """
    (l, l_pooled), (g, g_pooled), (t5, _) = (widths[role] for role in ROLES)
    return (
        Part("clip_l", (0, clip_tokens), (0, l), (0, l_pooled)),
        Part("clip_g", (0, clip_tokens), (l, l + g), (l_pooled, l_pooled + g_pooled)),
        Part("t5", (clip_tokens, clip_tokens + t5_tokens), (0, t5 if t5_tokens else 0), (0, 0)),
    )


def assemble(parts: Sequence[Part], encoded: Mapping[str, Encoded], batch: int, device: torch.device) -> Condition:
    """The encoders' outputs in their places, zeros elsewhere: text (B, L, D) and pooled (B, P), no mask.

    SD3's sizes: [CLIP-L 77 x 768 | CLIP-G 77 x 1280 | zeros] then T5 77 x 4096 -> (B, 154, 4096), pooled (B, 2048).
    """
    length, width, pooled_width = (max(getattr(part, axis)[1] for part in parts) for axis in Part._fields[1:])
    text = torch.zeros(batch, length, width, device=device)
    pooled = torch.zeros(batch, pooled_width, device=device)
    for part in parts:
        if part.name not in encoded:
            continue
        found = encoded[part.name]
        text[:, slice(*part.tokens), slice(*part.channels)] = found.states
        if found.pooled is not None:
            pooled[:, slice(*part.pooled)] = found.pooled
    return Condition(text=text, pooled=pooled, parts=tuple(parts))


class SD3Text:
    """TextEncoder of SD3. An encoder that is left out gives zeros in its place; nothing moves (paper: 5.3.3).

    widths: (width, pooled width) of each of clip_l, clip_g, t5. batch: prompts per pass; with 1 a prompt's numbers
    never depend on its neighbours, to the last bit.
    """

    def __init__(
        self,
        networks: Mapping[Role, CLIPText | T5Text],
        widths: Mapping[Role, tuple[int, int]],
        *,
        t5_length: int = 77,
        batch: int = 1,
        id: str = "",
    ):
        self.networks, self.batch = dict(networks), batch
        lengths = {role: n.tokenizer.frame.length for role, n in networks.items() if role != "t5"}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"text: CLIP-L and CLIP-G have different numbers of tokens: {lengths}")
        self.parts = layout(widths, next(iter(lengths.values()), CLIP_TOKENS), t5_length)
        self.length = self.parts[-1].tokens[1]
        self.width = max(part.channels[1] for part in self.parts)
        self.pooled_width = max(part.pooled[1] for part in self.parts)
        hashes = "-".join(networks[role].id if role in networks else "none" for role in ROLES)
        self.id = f"sd3-{hashes}-{self.length}x{self.width}{id}"
        left_out = [role for role in ROLES if role not in networks]
        self.notes = [f"text encoder {role} is left out: zeros stand in its place" for role in left_out]
        self.device = torch.device("cpu")
        self._told: set[str] = set()

    def to(self, device: torch.device | str) -> SD3Text:
        """Move the networks; conditions come out where they are."""
        self.device = torch.device(device)
        for network in self.networks.values():
            network.model.to(device)
        return self

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> text (B, length, width), pooled (B, pooled_width), no mask: padding is attended."""
        found = [assemble(self.parts, {}, 0, self.device)]
        for start in range(0, len(prompts), self.batch):
            chunk = prompts[start : start + self.batch]
            encoded: dict[str, Encoded] = {role: network(chunk) for role, network in self.networks.items()}
            warn_of_cuts(chunk, {role: e.cuts for role, e in encoded.items()}, self._told)
            found.append(assemble(self.parts, encoded, len(chunk), self.device))
        return Condition.concat(found)


class LastCLIP:
    """TextEncoder of REPA's text-to-image rows: CLIP-L's last states after the final LayerNorm, no pooled vector."""

    pooled_width = 0
    notes: tuple[str, ...] = ()

    def __init__(self, network: CLIPText, *, batch: int = 1, id: str = ""):
        self.network, self.batch = network, batch
        self.width, self.length = network.width, network.tokenizer.frame.length
        self.parts = (Part("clip_l", (0, self.length), (0, self.width)),)
        self.id = f"clip-{network.id}-{self.length}x{self.width}{id}"
        self._told: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where conditions come out."""
        return self.network.model.device

    def to(self, device: torch.device | str) -> LastCLIP:
        """Move the network."""
        self.network.model.to(device)
        return self

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> text (B, 77, 768), neither pooled nor mask."""
        found = [torch.zeros(0, self.length, self.width, device=self.device)]
        for start in range(0, len(prompts), self.batch):
            chunk = prompts[start : start + self.batch]
            encoded = self.network(chunk, last=True)
            warn_of_cuts(chunk, {"clip_l": encoded.cuts}, self._told)
            found.append(encoded.states)
        return Condition(text=torch.cat(found), parts=self.parts)
