"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the matrices inside blocks, AdamW for all else.

    B <- m B + (1 - m) G;  U = m B + (1 - m) G (Nesterov) or B;  W <- W - lr size O(U),  W decayed before

O(U) takes U = L S R^T to about L R^T by Newton-Schulz iterations; its singular values end between 0.7 and 1.2. They run
in bfloat16 on an accelerator, in float32 on a CPU, where bfloat16 products may be many times slower. Matrices that one
Linear holds for several purposes (qkv, kv) are taken apart, since they are unrelated; so says the author. Modulations
(adaLN) start at zero and are one matrix for unlike parts: they stay with AdamW, as do factors of adapters, embeddings,
the output layer, convolutions, vectors and projectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ditkit.training.parallel import is_cut, local, placed
from ditkit.training.settings import MuonSettings, TrainSettings

QUINTIC = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that each iteration applies to the singular values
FUSED = {"qkv": 3, "kv": 2}  # Linear layers that hold several matrices, by the end of their name
APART = {"modulation", "ada", "lora_A", "lora_B"}  # parts of the names of what stays with AdamW
MOST = 2**26  # numbers of matrices that are orthogonalised together
TINY = 1e-7


def matrices(model: nn.Module) -> dict[str, int]:
    """What Muon takes of a network: names of its trained weights, and of how many matrices each consists.

    The weights of Linear layers inside `model.blocks`, but none of APART.
    """
    found = {}
    for name, layer in model.named_modules():
        parts = name.split(".")
        inside = parts[0] == "blocks" and not APART & set(parts)
        if inside and isinstance(layer, nn.Linear) and layer.weight.requires_grad:
            found[f"{name}.weight"] = FUSED.get(parts[-1], 1)
    return found


def orthogonalised(x: Tensor, iterations: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """(n, rows, columns) -> the same with singular values near 1, in `dtype`. A matrix of zeros stays one."""
    a, b, c = QUINTIC
    tall = x.shape[-2] > x.shape[-1]
    x = (x.mT if tall else x).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(TINY)  # no singular value above 1
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def size_of(settings: MuonSettings, rows: int, columns: int) -> float:
    """What multiplies an orthogonal update: max(1, rows / columns)^0.5, or what gives it AdamW's usual RMS of 0.2."""
    if settings.match == "adamw":
        return 0.2 * max(rows, columns) ** 0.5
    return max(1.0, rows / columns) ** 0.5


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer: fused AdamW in its first groups, Muon in the last, whose rate is `scale` times theirs.

    `found_inf` (float scalar on the device; not 0: leave everything as it is) is looked at there, as fused AdamW does.
    Of weights that are cut over processes each matrix is gathered, orthogonalised everywhere alike, and cut again.
    """

    found_inf: Tensor | None = None

    def __init__(self, adamw: torch.optim.AdamW, taken: Sequence[tuple[nn.Parameter, int]], settings: TrainSettings):
        assert settings.muon is not None
        self.adamw, self.muon = adamw, settings.muon
        self.cuts = {id(p): cut for p, cut in taken}
        rate = settings.muon.lr
        own: dict[str, Any] = {"params": [p for p, _ in taken], "lr": rate, "scale": rate / settings.lr}
        super().__init__([*adamw.param_groups, own], {"lr": settings.lr, "scale": 1.0})
        adamw.state = self.state  # one state, by parameter

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of everything that has a gradient."""
        self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self.adamw.step()
        group = self.param_groups[-1]
        used = sorted((p for p in group["params"] if p.grad is not None), key=self._kind)
        good = None if self.found_inf is None else self.found_inf == 0
        for _, alike in groupby(used, key=self._kind):
            for some in _portions(list(alike)):
                self._update(some, group["lr"], good)

    def _kind(self, parameter: Tensor) -> tuple[int, ...]:
        return (*parameter.shape, self.cuts[id(parameter)])

    def _update(self, parameters: list[Tensor], rate: float, good: Tensor | None) -> None:
        """Matrices of one shape, cut alike. Where `good` is false what is added is zero, and nothing changes."""
        s, cut = self.muon, self.cuts[id(parameters[0])]
        grads = [local(p.grad) for p in parameters if p.grad is not None]
        share: Tensor | float = 1 - s.momentum
        if good is not None:  # of what is not finite not even 0 times may be taken
            grads = [torch.where(good, g, 0.0) for g in grads]
            share = torch.where(good, share, 0.0)
        sums = [local(self._sum(p)) for p in parameters]
        for mine, grad in zip(sums, grads, strict=True):
            mine.lerp_(grad, share)
        if s.nesterov:
            sums = list(torch._foreach_lerp(grads, sums, s.momentum))
        whole = torch.stack([_gathered(u, p) for u, p in zip(sums, parameters, strict=True)])
        rows, columns = whole.shape[1] // cut, whole.shape[2]
        dtype = torch.float32 if whole.device.type == "cpu" else torch.bfloat16
        moves = orthogonalised(whole.view(-1, rows, columns), s.iterations, dtype).to(whole.dtype).reshape(whole.shape)
        moves = moves * (-rate * size_of(s, rows, columns))
        if good is not None:
            moves = moves * good
        for p, move in zip(parameters, moves, strict=True):
            if s.weight_decay:
                local(p).mul_(1 - rate * s.weight_decay * (1.0 if good is None else good))
            local(p).add_(local(placed(move, p)) if is_cut(p) else move)

    def _sum(self, parameter: Tensor) -> Tensor:
        own = self.state[parameter]
        if "momentum_buffer" not in own:
            own["momentum_buffer"] = torch.zeros_like(parameter)
        return own["momentum_buffer"]


def _gathered(update: Tensor, beside: Tensor) -> Tensor:
    """A whole matrix of the parts that processes hold of it."""
    if not is_cut(beside):
        return update
    shape, stride = beside.shape, beside.stride()
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(update, beside.device_mesh, beside.placements, shape=shape, stride=stride).full_tensor()


def _portions(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of no more than MOST numbers, or of one."""
    many = max(1, MOST // parameters[0].numel())
    for start in range(0, len(parameters), many):
        yield parameters[start : start + many]
