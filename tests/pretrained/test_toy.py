"""The stand-ins keep the protocols, need nothing, and are the same for the same seed."""

from __future__ import annotations

import torch

from ditkit.pretrained import ToyCodec, ToyExtractor, ToyTextEncoder
from ditkit.protocols import Extractor, TextEncoder


def test_codec_moments_carry_their_std():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codec = ToyCodec(3, seed=1)
    moments = codec.encode(x)
    noise = torch.ones(2, 12, 4, 4)
    difference = codec.sample(moments, noise) - codec.sample(moments, None)
    torch.testing.assert_close(difference, torch.full_like(difference, codec.std * codec.scale))
    assert torch.equal(moments, ToyCodec(3, seed=1).encode(x))
    assert not torch.allclose(moments, ToyCodec(3, seed=2).encode(x))


def test_extractor():
    images = torch.randint(0, 256, (2, 3, 32, 16), generator=torch.Generator().manual_seed(0)).byte()
    extractor = ToyExtractor(width=8, grid=(4, 2))
    assert isinstance(extractor, Extractor)
    features = extractor(images)
    assert features.tokens.shape == (2, 8, 8) and features.pooled.shape == (2, 8) and features.grid == (4, 2)
    assert extractor(images, grid=(2, 2)).tokens.shape == (2, 4, 8)
    shifted = images.clone()
    shifted[:, :, :8, :8] = 0  # the first cell of 4 x 2: row-major tokens
    changed = (extractor(shifted).tokens != features.tokens).any(-1).any(0)
    assert changed.tolist() == [True] + [False] * 7


def test_text_encoder():
    encoder = ToyTextEncoder(width=12, length=5)
    assert isinstance(encoder, TextEncoder)
    cond = encoder(["a red circle", "a red circle above two blue squares", ""])
    assert cond.text.shape == (3, 5, 12) and cond.mask.sum(1).tolist() == [3, 5, 0] and cond.pooled.shape == (3, 12)
    assert torch.equal(cond.text[0, :3], cond.text[1, :3])  # same words at the same places
    assert not cond.text[2].any() and not cond.pooled[2].any()
    words = [encoder([w]).pooled[0] for w in ("a", "red", "circle")]
    torch.testing.assert_close(cond.pooled[0], sum(words) / 3**0.5)
    assert torch.equal(ToyTextEncoder(width=12, length=5)(["A RED circle"]).text, cond.text[:1])
    assert encoder(["red \udcff"]).text.isfinite().all(), "bytes of a command line that are no text"
