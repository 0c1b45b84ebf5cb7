"""Encoded once, the same answers; memory is bounded, the folder survives."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ditkit.pretrained import CachedText, ToyTextEncoder, load_text
from ditkit.protocols import Condition, TextEncoder

PROMPTS = ["a red circle", "", "Grüße 日本 🙂", "a red circle"]


class Counting:
    """A toy encoder that notes what it was asked."""

    def __init__(self, scale: float = 1.0):
        self.inner, self.scale, self.asked = ToyTextEncoder(width=8, length=5), scale, []
        self.id, self.length, self.parts = "counting", 5, self.inner.parts
        self.width = self.pooled_width = 8

    def __call__(self, prompts):
        self.asked += prompts
        cond = self.inner(prompts)
        return Condition(text=cond.text * self.scale, mask=cond.mask, pooled=cond.pooled, parts=cond.parts)


def same(a: Condition, b: Condition) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(v, b.tensors[k]) for k, v in a.tensors.items())


def test_the_same_answers_and_each_prompt_once():
    encoder = Counting()
    cached = CachedText(encoder)
    assert isinstance(cached, TextEncoder) and (cached.id, cached.parts) == (encoder.id, encoder.parts)
    for asked in (PROMPTS, PROMPTS[::-1], [PROMPTS[1], "new"]):
        assert same(cached(asked), ToyTextEncoder(width=8, length=5)(asked))
        assert cached(asked).parts == encoder.parts
    assert encoder.asked == [*PROMPTS[:3], "new"] and len(cached) == 4
    assert same(cached([]), encoder.inner([]))


def test_answers_are_not_shared():
    cached = CachedText(Counting())
    cached(["a"]).text.zero_()
    assert cached(["a"]).text.any()


def test_memory_is_bounded():
    """The prompt asked for longest ago goes first; a limit below one prompt remembers nothing."""
    row = 5 * 8 * 4 + 5 + 8 * 4
    encoder = Counting()
    cached = CachedText(encoder, limit_bytes=2 * row)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        cached([prompt])
    assert encoder.asked == ["a", "b", "c", "b"] and cached.bytes == 2 * row and len(cached) == 2
    none = CachedText(Counting(), limit_bytes=row - 1)
    assert same(none(PROMPTS), Counting()(PROMPTS)) and none.bytes == 0 == len(none)


def test_a_folder_survives(tmp_path):
    """Text in half precision, pooled in float32, the same from the first answer on; another encoder has its own."""
    first, second = Counting(), Counting()
    cond = CachedText(first, folder=tmp_path)(PROMPTS)
    again = CachedText(second, folder=tmp_path)(PROMPTS)
    assert same(cond, again) and second.asked == [] and cond.text.dtype == torch.float32
    exact = Counting()(PROMPTS)
    assert torch.equal(cond.text, exact.text.half().float()) and not torch.equal(cond.text, exact.text)
    assert torch.equal(cond.pooled, exact.pooled) and torch.equal(cond.mask, exact.mask)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3 and not [f for f in tmp_path.rglob("*") if f.is_file() and f not in files]
    stored = load_file(files[0])
    assert (stored["text"].dtype, stored["pooled"].dtype) == (torch.float16, torch.float32)
    other = Counting()
    other.id = "other"
    CachedText(other, folder=tmp_path)(PROMPTS)
    assert len(other.asked) == 3


def test_a_damaged_file_is_written_anew(tmp_path):
    CachedText(Counting(), folder=tmp_path)(["a"])
    file = next(tmp_path.rglob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    encoder = Counting()
    CachedText(encoder, folder=tmp_path)(["a"])
    assert encoder.asked == ["a"] and file.read_bytes() == whole


def test_what_half_precision_cannot_hold_stays_exact(tmp_path):
    cond = CachedText(Counting(1e6), folder=tmp_path)(["a"])
    assert cond.text.isfinite().all() and torch.equal(cond.text, Counting(1e6)(["a"]).text)


def test_around_sd3(sd3_folder):
    """Cached answers equal fresh ones to the last bit, in whatever company the prompts come."""
    encoder = load_text(str(sd3_folder))
    cached = CachedText(encoder).to("cpu")
    cached(PROMPTS[1:])
    assert same(cached(PROMPTS), encoder(PROMPTS)) and cached.device == torch.device("cpu")
    assert cached(PROMPTS).mask is None and cached.notes == encoder.notes


@pytest.mark.gpu
def test_answers_come_out_on_the_encoders_device(sd3_folder):
    cached = CachedText(load_text(str(sd3_folder), "cuda"))
    assert cached(PROMPTS).text.device.type == cached(PROMPTS[:1]).pooled.device.type == "cuda"
