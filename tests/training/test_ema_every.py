"""Averaging every so many steps, as SD3's study does."""

from __future__ import annotations

import torch
from torch import nn

from ditkit.recipes import recipe
from ditkit.recipes.adapt import concerns
from ditkit.training.ema import Ema
from ditkit.training.loop import fit


def test_the_average_moves_every_so_many_steps(tmp_path, make_job):
    """Equal to averaging by hand at steps 2, 4 and 6 of 7."""
    job = make_job(tmp_path, steps=7, ema=0.5, ema_every=2)
    by_hand = Ema(job.model, 0.5)
    moved = []

    def on_step(step: int, values: dict) -> None:
        if step % 2 == 0:
            by_hand.update(job.model)
            moved.append(step)

    state = fit(job, on_step=on_step)
    assert moved == [2, 4, 6]
    for mine, theirs in zip(state.ema.parameters(), by_hand.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(next(state.ema.parameters()), next(state.model.parameters())), "the last step is not in it"
    assert isinstance(state.ema, nn.Module)


def test_the_random_start_fades_by_the_number_of_averagings():
    few = concerns(recipe("t2i.digits", ["training.ema=0.99", "training.ema_every=100", "training.steps=800"]))
    assert any("still 92% the random start" in line for line in few)
    assert not concerns(recipe("t2i.digits", ["training.ema=0.99", "training.ema_every=1", "training.steps=800"]))
    assert not [line for line in concerns(recipe("sd3.medium")) if "random start" in line]
