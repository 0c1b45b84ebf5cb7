"""Alignment: sign, scale, precision, schedules, grids, several teachers, and targets from anywhere."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from ditkit.align import (
    Aligner,
    AlignSettings,
    Cosine,
    NTXent,
    Projector,
    compute_targets,
    resize_features,
)
from ditkit.pretrained import ToyExtractor
from ditkit.protocols import Features

SIMILARITIES = [Cosine(), NTXent(), NTXent(temperature=0.5)]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features(*shape, grid=None, seed=5):
    side = math.isqrt(shape[1])
    tokens = draw(*shape, seed=seed)
    return Features(tokens, tokens.mean(1), grid or (side, side))


def make(teachers=(6,), **settings):
    defaults = {"depth": 2, "projector_width": 12}
    return Aligner(AlignSettings(**(defaults | settings)), 8, teachers, generator=torch.Generator().manual_seed(0))


# --- similarity


def test_cosine_is_minus_the_mean_cosine():
    """-1 for the same direction at any length, +1 for the opposite one, and the plain formula in between."""
    a, b = draw(3, 5, 4), draw(3, 5, 4, seed=1)
    torch.testing.assert_close(Cosine()(a, 7 * a), -torch.ones(3))
    torch.testing.assert_close(Cosine()(a, -0.1 * a), torch.ones(3))
    torch.testing.assert_close(Cosine()(a, b), -F.cosine_similarity(a, b, dim=-1).mean(1))


def test_nt_xent_equals_loops():
    a, b = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    wanted = []
    for x, y in zip(a, b, strict=True):
        s = torch.tensor([[float(torch.cosine_similarity(u, v, dim=0)) / 0.1 for v in y] for u in x])
        rows = [-(s[i, i] - s[i].logsumexp(0)) for i in range(3)]
        columns = [-(s[i, i] - s[:, i].logsumexp(0)) for i in range(3)]
        wanted.append(sum(rows + columns) / 6)
    torch.testing.assert_close(NTXent()(a, b), torch.stack(wanted))
    assert (NTXent()(a, a) < NTXent()(a, b)).all()


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=str)
def test_per_sample_so_any_cut_of_the_batch_is_equal(similarity):
    a, b = draw(4, 9, 6), draw(4, 9, 6, seed=1)
    pieces = torch.cat([similarity(a[i : i + 1], b[i : i + 1]) for i in range(4)])
    assert similarity(a, b).shape == (4,)
    torch.testing.assert_close(similarity(a, b), pieces)


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_large_norms_stays_finite(similarity, dtype):
    """A float16 norm overflows at 65504 (REPA issue 46): loss and gradient must not."""
    a = (3e4 * draw(2, 9, 64).sign()).to(dtype).requires_grad_()
    b = (3e4 * draw(2, 9, 64, seed=1).sign()).to(dtype)
    loss = similarity(a, b)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all() and a.grad.isfinite().all()
    torch.testing.assert_close(loss, similarity(a.detach().float(), b.float()))


def test_autocast_does_not_reach_the_similarity():
    """The matmul of NT-Xent would run in bfloat16 otherwise."""
    aligner = make(similarity=NTXent())
    hidden, target = {2: draw(2, 16, 8)}, [features(2, 16, 6)]
    aligner.projectors[0] = torch.nn.Identity()
    target = [features(2, 16, 8)]
    plain = aligner(hidden, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(aligner(hidden, target), plain)
        assert aligner(hidden, target).dtype == torch.float32


def test_zero_vectors_give_zero_not_nan():
    a = torch.zeros(1, 4, 3, requires_grad=True)
    loss = Cosine()(a, draw(1, 4, 3))
    loss.sum().backward()
    assert loss.item() == 0 and a.grad.isfinite().all()


# --- projector and aligner


def test_projector_layout_and_initialisation():
    """Keys 0, 2, 4; Xavier-uniform (bound sqrt(6 / (in + out))); zero biases; from the given generator."""
    projector = Projector(200, 300, 400, generator=torch.Generator().manual_seed(0))
    assert [type(m).__name__ for m in projector] == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]
    assert sorted(projector.state_dict()) == sorted(f"{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias"))
    for layer in list(projector)[::2]:
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert 0.99 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    torch.manual_seed(9)
    again = Projector(200, 300, 400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again[0].weight, projector[0].weight)
    x = draw(2, 5, 200)
    by_hand = F.linear(F.silu(F.linear(x, projector[0].weight)), projector[2].weight)
    torch.testing.assert_close(projector(x), F.linear(F.silu(by_hand), projector[4].weight))


def test_projectors_can_begin_as_pytorch_makes_them():
    """DDT leaves its projector as PyTorch makes it: weights and biases uniform within 1 / sqrt(inputs)."""
    settings = AlignSettings(depth=1, projector_width=400, projector_init="torch")
    aligner, again = (Aligner(settings, 200, [300], generator=torch.Generator().manual_seed(0)) for _ in range(2))
    for layer, other in zip(list(aligner.projectors[0])[::2], list(again.projectors[0])[::2], strict=True):
        bound = layer.in_features**-0.5
        for parameter in (layer.weight, layer.bias):
            assert 0.97 * bound < parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)
    torch.manual_seed(0)
    assert layer.weight.std().item() == pytest.approx(torch.nn.Linear(400, 300).weight.std().item(), rel=0.02)


def test_several_teachers_are_averaged_each_at_its_block():
    aligner = make((6, 10), depth=(3, 1))
    hidden = {1: draw(2, 4, 8), 3: draw(2, 4, 8, seed=1)}
    targets = [features(2, 4, 6), features(2, 4, 10, seed=6)]
    assert aligner.capture == (1, 3)
    one = Cosine()(aligner.projectors[0](hidden[3]), targets[0].tokens)
    two = Cosine()(aligner.projectors[1](hidden[1]), targets[1].tokens)
    torch.testing.assert_close(aligner(hidden, targets), (one + two) / 2)
    assert make((6, 10)).capture == (2,)


def test_the_term_carries_what_an_objective_needs():
    aligner, targets, hidden = make(weight=0.25), [features(2, 4, 6)], {2: draw(2, 4, 8).requires_grad_()}
    (term,) = aligner.terms(targets, step=3)
    assert (term.name, term.capture, term.weight) == ("align", (2,), 0.25)
    loss = term(hidden)
    assert torch.equal(loss, aligner(hidden, targets)) and loss.shape == (2,)
    loss.mean().backward()
    assert hidden[2].grad.abs().max() > 0  # no stop-gradient on the hidden state
    assert aligner.projectors[0][0].weight.grad.abs().max() > 0


def test_a_wrapper_is_called_not_bypassed():
    """DDP's hooks fire in forward: the term must go through the module that it is given."""
    aligner, targets, calls = make(), [features(2, 4, 6)], []

    class Wrapper(torch.nn.Module):
        def forward(self, *args):
            calls.append(1)
            return aligner(*args)

    (term,) = aligner.terms(targets, 0, module=Wrapper())
    term({2: draw(2, 4, 8)})
    assert calls == [1]


# --- schedule


def test_schedules():
    constant = AlignSettings(weight=0.5)
    assert [constant.weight_at(s) for s in (0, 10**7)] == [0.5, 0.5]
    stopped = AlignSettings(weight=0.5, stop_step=10)
    assert [stopped.weight_at(s) for s in (0, 9, 10, 11)] == [0.5, 0.5, 0.0, 0.0]
    linear = AlignSettings(weight=0.5, stop_step=10, schedule="linear")
    assert [linear.weight_at(s) for s in (0, 5, 10)] == pytest.approx([0.5, 0.25, 0.0])
    cosine = AlignSettings(weight=0.5, stop_step=10, schedule="cosine")
    values = [cosine.weight_at(s) for s in range(11)]
    assert values[0] == 0.5 and values[5] == pytest.approx(0.25) and values[10] == 0.0
    assert all(a > b for a, b in pairwise(values))
    with pytest.raises(ValueError, match="stop_step, the step where it reaches 0"):
        AlignSettings(schedule="linear")


def test_after_the_stop_nothing_is_computed():
    """`active` is asked before the teacher runs; terms are none, even without targets."""
    aligner = make(stop_step=3)
    assert [aligner.active(s) for s in (0, 2, 3, 4)] == [True, True, False, False]
    assert aligner.terms(None, 3) == ()
    assert make(weight=0.0).terms(None, 0) == ()
    with pytest.raises(ValueError, match="0 teacher targets for 1 projectors"):
        aligner.terms(None, 2)


# --- grids and targets


class Counting(ToyExtractor):
    """Remembers the grids it is asked for."""

    def __init__(self):
        super().__init__(width=6, grid=(4, 4))
        self.asked = []

    def __call__(self, images, *, grid=None):
        self.asked.append(grid)
        return super().__call__(images, grid=grid)


IMAGES = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (3, 5), (12, 12)])
@pytest.mark.parametrize("policy", ["resize_image", "resize_features"])
def test_a_teacher_with_another_grid(policy, grid):
    """Teacher 4 x 4 and model 4, 8, 12 or 3 x 5: the teacher gets another image, or its features are resampled."""
    teacher = Counting()
    targets = compute_targets([teacher], IMAGES, grid, policy)
    assert teacher.asked == [grid if policy == "resize_image" else None]
    aligner = Aligner(AlignSettings(depth=1, projector_width=12, grid=policy), 8, [6], grid)
    hidden = {1: draw(2, grid[0] * grid[1], 8)}
    tokens = targets[0].tokens
    if policy == "resize_features" and grid != (4, 4):
        image = tokens.transpose(1, 2).reshape(2, 6, 4, 4)
        tokens = F.interpolate(image, size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(aligner(hidden, targets), Cosine()(aligner.projectors[0](hidden[1]), tokens))
    assert not targets[0].tokens.requires_grad


def test_a_wrong_grid_is_refused_by_name():
    aligner = Aligner(AlignSettings(depth=1, projector_width=12), 8, [6], (8, 8))
    with pytest.raises(ValueError, match=r"teacher's grid is \(4, 4\), the model's \(8, 8\)"):
        aligner({1: draw(2, 64, 8)}, [features(2, 16, 6)])
    swapped = Aligner(AlignSettings(depth=1, projector_width=12), 8, [6], (2, 8))
    with pytest.raises(ValueError, match=r"\(8, 2\)"):  # the same number of tokens is not the same grid
        swapped({1: draw(2, 16, 8)}, [features(2, 16, 6, grid=(8, 2))])
    with pytest.raises(ValueError, match="projected tokens"):
        make()({2: draw(2, 16, 8)}, [features(2, 16, 5)])


def test_resized_features_keep_order():
    ramp = torch.arange(16.0).view(1, 16, 1)
    wide = resize_features(Features(ramp, ramp.mean(1), (2, 8)), (4, 8)).tokens.view(4, 8)
    assert torch.equal(wide[0], torch.arange(8.0)) and torch.equal(wide[3], torch.arange(8.0, 16.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cached_targets_equal_online_ones(tmp_path, dtype):
    """Targets computed once for all images and read back in another order: the same loss, to the bit in float32."""
    teacher = ToyExtractor(width=6)
    cache = torch.cat([compute_targets([teacher], IMAGES[i : i + 1], (4, 4))[0].tokens for i in range(2)])
    torch.save(cache.to(dtype), tmp_path / "cache.pt")
    order = torch.tensor([1, 0])
    stored = torch.load(tmp_path / "cache.pt", weights_only=True)[order]
    aligner, hidden = make(), {2: draw(2, 16, 8)}
    online = aligner(hidden, compute_targets([teacher], IMAGES[order], (4, 4)))
    cached = aligner(hidden, [Features(stored, stored.mean(1), json.loads("[4, 4]"))])
    torch.testing.assert_close(cached, online, rtol=0, atol=0 if dtype == torch.float32 else 1e-3)


# --- settings


def test_settings_read_back_and_refuse_nonsense():
    settings = AlignSettings(depth=(4, 8), similarity=NTXent(temperature=0.3), stop_step=5, schedule="cosine")
    assert AlignSettings.model_validate_json(settings.model_dump_json()) == settings
    assert AlignSettings() == AlignSettings(depth=8, weight=0.5, projector_width=2048, similarity=Cosine())
    with pytest.raises(ValueError, match="from 1"):
        AlignSettings(depth=0)
    with pytest.raises(ValueError, match="names 2 blocks for 1 teachers"):
        make(depth=(1, 2))
    with pytest.raises(ValueError, match="at least one teacher"):
        make(())
    with pytest.raises(ValueError, match="wieght"):
        AlignSettings(wieght=0.5)
