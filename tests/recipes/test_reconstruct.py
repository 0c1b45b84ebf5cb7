"""Scores of codecs: exact ones, known errors, a tiny autoencoder, images that cannot be read, one batch at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import DataError, DataSettings, open_source
from ditkit.evaluation import Moments, frechet
from ditkit.evaluation.images import read_png
from ditkit.evaluation.metrics import psnr, ssim
from ditkit.pretrained import PixelCodec, ToyExtractor
from ditkit.recipes.reconstruct import Reconstruction, open_originals, paired_interval, picture, reconstruct, write
from ditkit.recipes.score_files import compare_scores, describe_protocols, read_scores

CPU = torch.device("cpu")
TOY = {"toy": ToyExtractor(8)}


class Darker(PixelCodec):
    """Gives every pixel back two grey levels darker."""

    id = "darker"

    def __init__(self):
        super().__init__(3)
        self.id, self.seen = "darker", []

    def decode(self, latents):
        self.seen.append(len(latents))
        return latents - 2 / 127.5


def quiet(*_):
    pass


def scored(codec, source, asked=None, extractors=TOY, say=quiet, bar=quiet, **options):
    return reconstruct(codec, source, asked, extractors=extractors, device=CPU, bar=bar, say=say, **options)


def value(scores, space, metric):
    return next(s.value for s in scores.spaces[space].scores if s.metric == metric)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """130 smooth images of 16 x 16, none darker than two levels."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(130):
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(2, 256, (3, 3, 3), dtype=np.uint8))
        Image.fromarray(np.asarray(small.resize((16, 16), Image.Resampling.BILINEAR))).save(folder / f"{i:03d}.png")
    return str(folder)


@pytest.mark.parametrize("codec", ["pixels", "toy"])
def test_exact_codecs_get_the_best_of_every_score(photos, codec):
    lines = []
    made, source = open_originals(codec, photos, CPU)
    scores = scored(made, source, say=lines.append, n=40)
    assert value(scores, "images", "psnr") == 100 and value(scores, "images", "ssim") == 1
    assert value(scores, "toy", "frechet") == pytest.approx(0, abs=1e-9)
    assert "40 of 40 images come back exactly; each counts as 100 dB" in lines
    assert all(s.interval is None for s in scores.spaces["images"].scores), "no spread was measured"


def test_a_known_error_gives_the_known_scores(photos):
    source = open_source(photos)
    codec, told = Darker(), []
    scores = scored(codec, source, bar=lambda *given: told.append(given))
    assert value(scores, "images", "psnr") == pytest.approx(10 * math.log10(255**2 / 4), abs=1e-9)
    images = torch.stack([source[i].image for i in range(len(source))])
    darker = images - 2
    assert value(scores, "images", "ssim") == pytest.approx(ssim(images, darker).mean().item(), abs=1e-12)
    toy = TOY["toy"]
    wanted = frechet(Moments.of(toy(images).pooled), Moments.of(toy(darker).pooled))
    assert value(scores, "toy", "frechet") == pytest.approx(wanted, rel=1e-6) and wanted > 0
    low, high = scores.spaces["toy"].scores[0].interval
    assert low < value(scores, "toy", "frechet") < high
    assert max(codec.seen) == 16 and sum(codec.seen) == 130, "a batch at a time"
    assert ("reconstructed", 130, 130) in told


def test_scores_do_not_depend_on_the_batch(photos):
    source = open_source(photos)
    a, b = (scored(Darker(), source, Reconstruction(batch=batch)) for batch in (16, 7))
    for name in a.spaces:
        for x, y in zip(a.spaces[name].scores, b.spaces[name].scores, strict=True):
            assert x.value == pytest.approx(y.value, rel=1e-9) and x.protocol == y.protocol


def test_pairs_vary_together():
    """Both sides move with the images; the limits are of the difference, far tighter than of unpaired sets."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(400, 4, generator=generator) * 5
    fake = real + 0.1 * torch.randn(400, 4, generator=generator)
    found = frechet(Moments.of(real), Moments.of(fake))
    low, high = paired_interval(found, real, fake)
    away = fake[torch.randperm(400, generator=generator)]
    loose = paired_interval(found, real, away)
    assert low <= found <= high and high - low < (loose[1] - loose[0]) / 2
    assert paired_interval(found, real[:99], fake[:99]) is None


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    folder = tmp_path_factory.mktemp("vae")
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, **blocks
    ).save_pretrained(folder)
    return str(folder)


def test_an_autoencoder_by_its_mean_or_a_draw(photos, vae):
    codec, source = open_originals(vae, photos, CPU)
    mean = scored(codec, source, n=24)
    drawn, again, other = (
        scored(codec, source, Reconstruction(posterior="draw", seed=seed, batch=batch), n=24)
        for seed, batch in ((0, 16), (0, 5), (1, 16))
    )
    psnrs = [value(scores, "images", "psnr") for scores in (mean, drawn, again, other)]
    assert len({round(v, 3) for v in psnrs}) == 3 and psnrs[1] == pytest.approx(psnrs[2], abs=1e-3)
    batch = torch.stack([source[i * 130 // 24].image for i in range(24)])
    latents = codec.sample(codec.encode(batch.float() / 127.5 - 1), None)
    by_hand = (codec.decode(latents) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    assert psnrs[0] == pytest.approx(psnr(batch, by_hand).mean().item(), abs=0.01)
    protocol = mean.spaces["toy"].scores[0].protocol
    assert (protocol.codec, protocol.sampler, protocol.labels) == (codec.id, {"posterior": "mean"}, "none")
    assert (
        "24 reconstructions of 16x16 by codec kl-" in protocol.sentence()
        and "posterior's mean" in describe_protocols(mean)[0]
    )
    with pytest.raises(ValueError, match=r"sampler\.posterior 'draw' there, 'mean' here"):
        compare_scores(mean, drawn, False)
    assert compare_scores(drawn, again, False)


def test_what_does_not_fit_is_refused_before_it_is_scored(photos, vae, tmp_path):
    codec, source = open_originals("pixels", photos, CPU)
    with pytest.raises(ValueError, match="rfid-imagenet-val: n must be 50000, not 130"):
        scored(codec, source, Reconstruction(protocol="rfid-imagenet-val"))
    with pytest.raises(ValueError, match="unknown uint8 rule"):
        Reconstruction(uint8="nix")
    with pytest.raises(DataError, match="no such file or folder"):
        open_originals("pixels", str(tmp_path / "gone"), CPU)
    digits = open_source("digits")
    lines = []
    assert [
        s.metric for s in scored(PixelCodec(1), digits, extractors={}, say=lines.append, n=5).spaces["images"].scores
    ] == ["psnr"]
    assert any("no ssim" in line for line in lines)


def test_colours_and_sizes_that_the_codec_can_take(vae, photos):
    codec, source = open_originals(vae, DataSettings(source="digits"), CPU)
    assert (source.channels, source.size) == (3, (8, 8)) and codec.factor == 2
    assert open_originals("toy", photos, CPU, (12, 10))[1].size == (12, 10)


def test_images_that_cannot_be_read_are_left_out_and_listed(photos, tmp_path):
    for i in range(5):
        Image.open(f"{photos}/{i:03d}.png").save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    scores = scored(PixelCodec(3), open_source(str(tmp_path)))
    assert scores.unusable == 1 and scores.unusable_paths[0].endswith("3.png")
    assert scores.spaces["images"].scores[0].protocol.n == 4
    for file in tmp_path.glob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises((ValueError, DataError)):
        scored(PixelCodec(3), open_source(str(tmp_path)))


def test_files(photos, tmp_path):
    source, codec = open_source(photos), Darker()
    scores = scored(codec, source, Reconstruction(what="codec darker", data=photos), n=20)
    files = write(scores, codec, source, tmp_path / "out", device=CPU)
    assert read_scores(files[0]) == scores and scores.what == "codec darker"
    sheet, text = read_png(files[1])
    assert torch.equal(sheet, picture(codec, source, Reconstruction(), CPU)) and text["columns"].startswith("original")
    factor = 4  # 16 pixels are shown as 64
    assert sheet.shape == (3, 8 * (64 + 2) - 2, 3 * (64 + 2) - 2)
    cell = sheet[:, :64, 132:196]
    assert torch.equal(cell, torch.full_like(cell, 2 * 4)), "four times a difference of two"
    assert torch.equal(sheet[:, :64:factor, :64:factor], source[0].image)
