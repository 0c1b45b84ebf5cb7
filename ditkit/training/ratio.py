"""How far an update moves the weights, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ditkit.training.parallel import Team


class Movement:
    """Remembers weights before an update, to measure it after. Takes the memory of one more copy meanwhile."""

    @torch.no_grad()
    def __init__(self, parameters: Iterable[Tensor]):
        self._now = [getattr(p, "to_local", lambda p=p: p)() for p in parameters]  # a shard's own part
        self._before = [p.detach().clone() for p in self._now]

    @torch.no_grad()
    def ratio(self, team: Team) -> Tensor:
        """Norm of the update over the norm of the weights before it, all together; a scalar on the device.

        Of shards the squares are summed over the processes; copies agree anyway.
        """
        sizes = torch._foreach_norm(self._before)
        torch._foreach_sub_(self._before, self._now)
        moves = torch._foreach_norm(self._before)
        size, move = (team.mean(torch.stack(norms).float().square().sum()) for norms in (sizes, moves))
        return (move / size.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
