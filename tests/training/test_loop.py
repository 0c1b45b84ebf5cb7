"""The loop: accumulation, average, clipping, guard, alignment's stop, rows, warnings."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from ditkit.diffusion import BatchNoise, Flow
from ditkit.protocols import Condition
from ditkit.ranks import Ranks
from ditkit.training import NonFinite, TrainSettings, Unwritable, fit, list_steps, read_metrics
from ditkit.training.loop import forward_backward
from ditkit.training.optim import learning_rate, pieces
from ditkit.training.state import State


def gradients(job) -> dict[str, torch.Tensor]:
    state = State.fresh(job)
    values = forward_backward(state, next(job.batches(0)))
    named = [(n, p.grad) for module in job.modules for n, p in module.named_parameters()]
    return {"values": torch.stack(list(values.values())), **dict(named)}


@pytest.mark.parametrize("cut", [dict(accumulate=2), dict(accumulate=4), dict(micro_batch=4), dict(micro_batch=1)])
def test_accumulation_equals_the_large_batch(cut, make_job, tmp_path):
    """Uneven cuts too (6 rows in 4 pieces): draws are the same, each row counts once."""
    whole, parts = gradients(make_job(tmp_path)), gradients(make_job(tmp_path, **cut))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-7, msg=name)


def test_ranks_sum_to_the_large_batch(make_job, tmp_path):
    """Two processes' gradients, averaged as DDP does, are those of one process."""
    whole, ranks = gradients(make_job(tmp_path)), []
    for rank in range(2):
        job = make_job(tmp_path, job=dict(ranks=Ranks(rank, 2)))
        rows = slice(3 * rank, 3 * rank + 3)
        state = State.fresh(job)
        batch = next(job.batches(0))
        forward_backward(state, type(batch)(batch.images[rows], batch.labels[rows]))
        ranks.append({n: p.grad for module in job.modules for n, p in module.named_parameters()})
    for name in ranks[0]:
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, whole[name], rtol=1e-5, atol=1e-7)


def test_steps_are_the_textbook_steps(make_job, toy, tmp_path):
    """Three updates against AdamW and the objective written out, from the same draws."""
    model, aligner, rows = toy.Toy(), toy.ToyAligner(9), []
    both = [*model.parameters(), *aligner.parameters()]
    optimizer = torch.optim.AdamW(both, lr=1e-2, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1)
    for step in range(3):
        images = toy.images_of(step, 6)
        cond, noise = Condition(label=images.sum((1, 2, 3)) % toy.CLASSES), BatchNoise(0, step, 6)
        loss = Flow(drop=0.2)(model, toy.to_latents(images, noise), cond, noise, aligner.terms(toy.teach(images), step))
        optimizer.zero_grad()
        loss.total.backward()
        norm = torch.stack([p.grad.norm() for p in both]).norm()
        assert norm > 0.5, "the clip must act"
        for p in both:
            p.grad *= 0.5 / norm
        optimizer.step()
        rows.append(
            [loss.total.item(), loss.terms["denoise"].mean().item(), loss.terms["align"].mean().item(), norm.item()]
        )
    settings = dict(clip=0.5, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1)
    state = fit(make_job(tmp_path, steps=3, log_every=1, **settings))
    for module, wanted in zip(state.job.modules, (model, aligner), strict=True):
        for got, want in zip(module.parameters(), wanted.parameters(), strict=True):
            torch.testing.assert_close(got, want)
    for row, want in zip(read_metrics(tmp_path), rows, strict=True):
        names = ("loss", "loss_denoise", "loss_align", "grad_norm")
        assert [row[name] for name in names] == pytest.approx(want, rel=1e-5)


def test_clip_counts_network_and_projectors_together(make_job, tmp_path):
    free, clipped = gradients(make_job(tmp_path)), gradients(make_job(tmp_path, clip=0.1))
    scale = 0.1 / free["values"][-1]
    for name in free.keys() - {"values"}:
        torch.testing.assert_close(clipped[name], free[name] * scale, rtol=1e-4, atol=1e-8)
    total = torch.stack([clipped[n].norm() for n in clipped.keys() - {"values"}]).norm()
    assert total.item() == pytest.approx(0.1, rel=1e-4)


def test_the_average_follows_its_closed_form(make_job, tmp_path):
    """decay^n start + sum of (1 - decay) decay^(n-k) w_k; the first step already moves it; projectors are averaged."""
    job, seen = make_job(tmp_path, steps=7, ema=0.8), []
    start = [p.detach().clone() for m in job.modules for p in m.parameters()]
    snapshot = lambda *_: seen.append([p.detach().clone() for m in job.modules for p in m.parameters()])  # noqa: E731
    state = fit(job, on_step=snapshot)
    averages = [p for ema in state.emas for p in ema.model.parameters()]
    for i, average in enumerate(averages):
        want = 0.8**7 * start[i] + sum(0.2 * 0.8 ** (6 - k) * seen[k][i] for k in range(7))
        torch.testing.assert_close(average, want, rtol=1e-5, atol=1e-7)
        assert not average.requires_grad and not torch.equal(average, start[i])


def test_decay_zero_is_the_model_and_buffers_are_copied(make_job, tmp_path, same):
    job = make_job(tmp_path, steps=3, ema=0.0)
    state = fit(job, on_step=lambda step, values: job.model.calls.add_(1) if step < 3 else None)
    same(state.ema.state_dict(), job.model.state_dict())
    assert state.ema.calls == 2


def snapshot(state: State) -> dict:
    files = {k: {n: t.clone() for n, t in v.items()} for k, v in state.files().items()}
    return files


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_a_bad_gradient_changes_nothing(poison, make_job, tmp_path, same):
    """The gradient of one weight is poisoned in steps 3 and 4: weights, moments, averages stay; data moves on."""
    job, seen = make_job(tmp_path, steps=6, log_every=1), {}
    state_of = {}
    job.model.leave.bias.register_hook(lambda g: g * poison if state_of["step"] in (2, 3) else g)
    state_of["step"] = 0

    def on_step(step, values):
        state_of["step"] = step

    real = State.fresh.__func__
    holder = {}

    def fresh(cls, given):
        holder["state"] = real(cls, given)
        return holder["state"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(State, "fresh", classmethod(fresh))

        def watch(step, values):
            on_step(step, values)
            seen[step] = snapshot(holder["state"])

        state = fit(job, on_step=watch)
    same(seen[2], seen[3])
    same(seen[2], seen[4])
    assert not torch.equal(seen[4]["model"]["leave.bias"], seen[5]["model"]["leave.bias"])
    assert state.guard.skipped == 2 and state.step == 6
    rows = read_metrics(tmp_path)
    assert [r["skipped"] for r in rows] == [0, 0, 1, 2, 2, 2]
    assert "step 4 skipped: loss or gradient is not finite (2 in a row)" in (tmp_path / "log.txt").read_text()
    assert "loss" not in rows[2] and "loss" in rows[4]
    assert all(p.grad is None for p in job.model.parameters())


def test_too_many_bad_steps_end_the_run_with_the_good_state_saved(make_job, toy, tmp_path):
    def encode(images, noise):
        x = toy.to_latents(images, noise)
        return x if noise.step < 4 else x * float("inf")

    with pytest.raises(NonFinite, match=r"step 7: loss.* not finite 3 steps in a row.*weights are those of step 4"):
        fit(make_job(tmp_path, max_nonfinite=3, job=dict(encode=encode)))
    assert list_steps(tmp_path) == [5, 7]
    state = fit(make_job(tmp_path))
    assert state.step == 12 and state.finite() and state.guard.skipped == 3


def test_weights_that_are_not_finite_are_never_saved(make_job, tmp_path):
    job = make_job(tmp_path, keep_last=9)

    def on_step(step, values):
        if step == 7:
            job.model.leave.bias.data.fill_(float("nan"))

    with pytest.raises(NonFinite, match=r"step 10: the weights are not finite and were not saved; .*: \[5\]"):
        fit(job, on_step=on_step)
    assert list_steps(tmp_path) == [5]


def test_a_dead_run_is_told(make_job, tmp_path):
    job, said = make_job(tmp_path, steps=101), []
    for p in job.model.parameters():
        p.register_hook(lambda g: g * 0)
    job.aligner = job.targets = None
    fit(job, on_message=said.append)
    assert any("gradient has been exactly 0 for 100 steps" in text for text in said)


def test_teachers_are_not_run_after_the_stop_step(make_job, toy, tmp_path):
    calls = []
    job = make_job(tmp_path, stop=5, log_every=1, accumulate=2)
    job.targets = lambda images: calls.append(len(images)) or toy.teach(images)
    state = fit(job)
    assert calls == [3] * 10
    assert ["loss_align" in row for row in read_metrics(tmp_path)] == [True] * 5 + [False] * 7
    frozen = state.optimizer.state[job.aligner.projector.bias]["step"]
    assert frozen == 5 and state.optimizer.state[job.model.leave.bias]["step"] == 12


def test_teachers_and_codec_run_without_gradients_on_uint8(make_job, toy, tmp_path):
    job = make_job(tmp_path, steps=1)

    def encode(images, noise):
        assert images.dtype == torch.uint8 and not torch.is_grad_enabled()
        return toy.to_latents(images, noise)

    def targets(images):
        assert images.dtype == torch.uint8 and not torch.is_grad_enabled()
        return toy.teach(images)

    job.targets, job.encode = targets, encode
    fit(job)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_blocks_train_the_same_and_keep_their_keys(backend, make_job, tmp_path):
    plain = fit(make_job(tmp_path / "plain", steps=4))
    job = make_job(tmp_path / "compiled", steps=4, compile=True, backend=backend)
    state = fit(job)
    assert state.model.state_dict().keys() == plain.model.state_dict().keys()
    for name, tensor in state.model.state_dict().items():
        torch.testing.assert_close(tensor, plain.model.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert all(block._compiled_call_impl is not None for block in job.model.blocks)
    assert all(block._compiled_call_impl is None for block in state.ema.blocks)


@pytest.mark.long
def test_inductor_trains_the_same(make_job, tmp_path):
    plain = fit(make_job(tmp_path / "plain", steps=4))
    compiled = fit(make_job(tmp_path / "compiled", steps=4, compile=True))
    for name, tensor in compiled.model.state_dict().items():
        torch.testing.assert_close(tensor, plain.model.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_bf16_keeps_times_weights_and_losses_in_float32(make_job, toy, tmp_path):
    seen = {}

    class Watched(toy.Toy):
        def forward(self, x, t, cond, *, capture=()):
            seen.update(x=x.dtype, t=t.dtype)
            out = super().forward(x, t, cond, capture=capture)
            seen["out"] = out.sample.dtype
            return out

    def objective(*args):
        loss = Flow()(*args)
        seen.update(total=loss.total.dtype, **{k: v.dtype for k, v in loss.terms.items()})
        return loss

    state = fit(make_job(tmp_path, steps=2, precision="bf16", job=dict(model=Watched(), objective=objective)))
    assert seen.pop("out") == torch.bfloat16, "autocast must act"
    assert set(seen.values()) == {torch.float32}, seen
    assert {p.dtype for p in state.parameters} == {torch.float32}
    assert {p.dtype for p in state.ema.parameters()} == {torch.float32}


def test_tf32_is_set_for_the_run_only(make_job, tmp_path):
    seen, before = set(), torch.get_float32_matmul_precision()
    fit(make_job(tmp_path, steps=1, tf32=True), on_step=lambda *_: seen.add(torch.get_float32_matmul_precision()))
    assert seen == {"high"} and torch.get_float32_matmul_precision() == before


def test_rows(make_job, tmp_path):
    heard = []
    fit(make_job(tmp_path, log_every=5, warmup=4, lr=1.0 / 64), on_log=heard.append)
    rows = read_metrics(tmp_path)
    assert rows == heard and [row["step"] for row in rows] == [5, 10, 12]
    for name in ("loss", "loss_align", "grad_norm", "lr", "skipped", "images", "seconds", "images_per_s", "memory_gib"):
        assert name in rows[0]
    row = rows[-1]
    assert row["lr"] == 1 / 64 and row["images"] == 72
    split = sum(row[f"seconds_{part}"] for part in ("data", "model", "optimizer"))
    assert row["images_per_s"] == pytest.approx(6 / split) and 0 < row["seconds"] < 60
    assert row["seconds"] > rows[0]["seconds"]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_a_row_is_the_mean_of_its_steps(make_job, tmp_path):
    losses = []
    fit(make_job(tmp_path, log_every=4), on_step=lambda step, values: losses.append(values["loss"]))
    want = [sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert [row["loss"] for row in read_metrics(tmp_path)] == pytest.approx(want, rel=1e-12)


def test_learning_rate():
    plain = TrainSettings(steps=100, lr=2.0)
    assert {learning_rate(plain, s) for s in range(100)} == {2.0}
    warm = TrainSettings(steps=100, lr=2.0, warmup=4)
    assert [learning_rate(warm, s) for s in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    cosine = TrainSettings(steps=101, lr=2.0, warmup=20, schedule="cosine", final_lr=0.5)
    assert learning_rate(cosine, 20) == 2.0 and learning_rate(cosine, 60) == pytest.approx(1.25)
    assert learning_rate(cosine, 100) == pytest.approx(0.5) and learning_rate(cosine, 500) == pytest.approx(0.5)


def test_pieces_cover_the_rows_once():
    for settings in (dict(), dict(accumulate=3), dict(micro_batch=4), dict(micro_batch=99), dict(accumulate=16)):
        cut = pieces(10, TrainSettings(batch=16, **settings))
        assert [i for a, b in cut for i in range(a, b)] == list(range(10)) and all(b > a for a, b in cut)
        assert max(b - a for a, b in cut) <= settings.get("micro_batch", 99)


@pytest.mark.parametrize(
    "wrong", [dict(accumulate=2, micro_batch=2), dict(batch=2, accumulate=3), dict(lr=0), dict(ema=1.0), dict(stepz=1),
              dict(schedule="cosine", warmup=5, steps=5)],
)  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        TrainSettings(**wrong)


@pytest.mark.parametrize("scale, shift, warns", [(1, 0, False), (0.18215, 0, True), (5.5, 0, True), (1, 0.9, True)])
def test_latents_that_are_not_normalised_are_told(scale, shift, warns, make_job, tmp_path):
    def encode(images, noise):
        return noise.normal("posterior", tuple(images.shape)) * scale + shift

    def messages(check):
        said = []
        fit(make_job(tmp_path / str(check), job=dict(encode=encode, check_latents=check)), on_message=said.append)
        return [text for text in said if "first latents" in text]

    assert bool(messages(True)) == warns and not messages(False)


def test_the_look_at_the_first_latents_changes_no_bit(make_job, tmp_path, same):
    runs = [fit(make_job(tmp_path / str(check), job=dict(check_latents=check))) for check in (True, False)]
    same(runs[0].model.state_dict(), runs[1].model.state_dict())


def test_an_unwritable_folder_is_one_line_before_training(make_job, tmp_path):
    (tmp_path / "file").write_text("")
    job = make_job(tmp_path / "file" / "run")
    job.batches = None
    with pytest.raises(Unwritable, match=r"cannot write to .*file.*: Not a directory; name another folder"):
        fit(job)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(make_job, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(Unwritable, match="Permission denied"):
        fit(make_job(tmp_path))


def test_a_wrong_batch_is_told(make_job, toy, tmp_path):
    job = make_job(tmp_path)
    real = job.batches
    job.batches = lambda start: (type(b)(b.images[:4], b.labels[:4]) for b in real(start))
    with pytest.raises(ValueError, match="a batch of 4 rows for 1 processes; settings say batch=6"):
        fit(job)
    with pytest.raises(ValueError, match="batch 6 does not divide over 4"):
        make_job(tmp_path, job=dict(ranks=Ranks(0, 4)))
    with pytest.raises(ValueError, match="targets needs an aligner"):
        make_job(tmp_path, aligned=False, job=dict(targets=toy.teach))


@pytest.mark.parametrize("where", ["batches", "encode", "objective"])
def test_an_error_from_outside_saves_the_state_first(where, make_job, toy, tmp_path, same):
    """A run of days must not lose what was trained because a file went missing."""
    same_run, job = make_job(tmp_path / "whole"), make_job(tmp_path / "run")
    real, calls = getattr(job, where), []

    def failing(*args):
        if where != "batches":
            calls.append(1)
            if len(calls) == 8:
                raise OSError("the disk is gone")
            return real(*args)
        return _broken(real(*args))

    setattr(job, where, failing)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(job)
    assert list_steps(tmp_path / "run") == [5, 7]
    same(fit(make_job(tmp_path / "run")).ema.state_dict(), fit(same_run).ema.state_dict())


def _broken(batches):
    for _ in range(7):
        yield next(batches)
    raise OSError("the disk is gone")


def test_batches_that_end_and_memory_that_does_are_told(make_job, tmp_path):
    job = make_job(tmp_path)
    job.batches = lambda start: iter(())
    with pytest.raises(ValueError, match="the batches ended at step 0 of 12"):
        fit(job)

    def objective(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    with pytest.raises(RuntimeError, match=r"step 1: out of memory on cpu; set training\.micro_batch"):
        fit(make_job(tmp_path, job=dict(objective=objective)))
    assert list_steps(tmp_path) == []


def test_the_first_line_says_what_is_trained(make_job, tmp_path):
    said = []
    fit(make_job(tmp_path, accumulate=2), on_message=said.append)
    assert said[0].startswith(
        "training 657 parameters and 34 of projectors on cpu, steps 0 to 12, batch 6 = 1 x 2 passes"
    )
    assert (tmp_path / "log.txt").read_text().splitlines()[0].endswith(said[0])


def test_only_rank_zero_writes(make_job, tmp_path):
    fit(make_job(tmp_path / "a", batch=12, job=dict(ranks=Ranks(0, 2), batches=_halves(make_job(tmp_path, batch=12)))))
    fit(make_job(tmp_path / "b", batch=12, job=dict(ranks=Ranks(1, 2), batches=_halves(make_job(tmp_path, batch=12)))))
    assert list_steps(tmp_path / "a") == [10, 12] and not list((tmp_path / "b").iterdir())


def _halves(job):
    return lambda start: (type(b)(b.images[:6], b.labels[:6]) for b in job.batches(start))


def test_frozen_parameters_stay(make_job, tmp_path):
    job = make_job(tmp_path)
    job.model.enter.weight.requires_grad_(False)
    before = job.model.enter.weight.clone()
    state = fit(job)
    assert torch.equal(job.model.enter.weight, before) and torch.equal(state.ema.enter.weight, before)
    fit_again = make_job(tmp_path, steps=14)
    fit_again.model.enter.weight.requires_grad_(False)
    assert fit(fit_again).step == 14


def test_compile_of_a_model_without_blocks():
    from ditkit.training import compile_blocks

    layer = nn.Linear(2, 2)
    assert compile_blocks(layer, "eager") == 1 and layer(torch.ones(1, 2)).shape == (1, 2)
