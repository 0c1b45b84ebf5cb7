"""The claim sd3-channels: its codecs, what differs between its runs, its score of a codec, and its rule."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ditkit.config import diff
from ditkit.pretrained import CodecSettings, load_codec
from ditkit.recipes.claims.sd3_channels import SIZES, Restored, channels_of, judge, name_of
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened


@pytest.fixture(scope="module")
def study():
    return opened("sd3-channels")


def test_channels_follow_from_the_pixels_of_a_cell():
    def of(side, channels):
        return channels_of(SimpleNamespace(source=SimpleNamespace(size=(side, side), channels=channels)))

    assert of(8, 1) == [1, 2, 4] and of(32, 3) == [4, 8, 16] and of(256, 3) == [4, 8, 16] and of(16, 3) == [3, 6, 12]


def test_runs_differ_in_their_codec_and_their_size(study):
    by = {trial.name: trial.recipe for trial in study.trials}
    keys = {d.key for d in diff(by[name_of("small", 1)], by[name_of("small", 4)])}
    assert keys == {"codec.source", "model.channels"}
    keys = {d.key for d in diff(by[name_of("small", 4)], by[name_of("medium", 4)])}
    assert keys == {"model.width", "model.depth", "model.heads"}
    assert by[name_of("small", 2)].model.size == (4, 4) and by[name_of("small", 2)].model.grid == (4, 4)


def test_every_seed_has_its_own_codecs(study):
    arms = study.arms
    assert len(arms) == 18 and len({arm.file for arm in arms}) == 18
    sources = {(arm.recipe.model.channels, arm.seed): arm.recipe.codec.source for arm in arms}
    assert len(set(sources.values())) == 9
    wanted = {str(study.bed.pool.made(name)): training for name, training in study.bed.wanted.items()}
    for (channels, seed), source in sources.items():
        assert (wanted[source].channels, wanted[source].seed, wanted[source].steps) == (channels, seed, 300)


def test_a_codec_that_loses_nothing_and_one_that_loses_all(study, monkeypatch):
    kept = []
    monkeypatch.setattr(
        study.bed.__class__, "judge", lambda self, images, labels: (kept.append(images), {"random": 1})[1]
    )
    codec = load_codec(CodecSettings(kind="pixels"), torch.device("cpu"), channels=3)

    def score(codec):
        monkeypatch.setattr(study.bed.__class__, "load", lambda self, folder, step: SimpleNamespace(codec=codec))
        return Restored(4)(study.bed, None, 0)

    assert score(codec) == {"random": 1, "psnr": 100.0}
    assert kept[0].shape == (len(study.bed.held_out), 1, 8, 8) and kept[0].dtype == torch.uint8
    assert torch.equal(kept[0][3], study.bed.held_out[3].image)
    decode = codec.decode
    monkeypatch.setattr(codec, "decode", lambda latents: 0 * decode(latents), raising=False)
    assert 0 < score(codec)["psnr"] < 10, "grey images"


def table(study, restored, small, medium, lost=()):
    """restored: distances of codecs by channels; small, medium: samples' distances by channels; + 1 % a seed."""

    def answer(trial, measure, seed):
        size, channels = trial.split()[0].rstrip(","), int(trial.split()[1])
        place = channels_of(study.bed).index(channels)
        if isinstance(measure, Restored):
            return {**quality(restored[place] * (1 + 0.01 * seed)), "psnr": 20.0 + 5 * place}
        more = 1 + 0.01 * seed * (size == "medium")
        return quality((small if size == "small" else medium)[place] * more)

    return made_up(study, answer, lost=lost)


@pytest.mark.parametrize(
    ("restored", "small", "medium", "verdict"),
    [
        ((4, 2, 1), (4, 4, 5), (4, 3, 2), HOLDS),
        ((4, 2, 3), (4, 4, 5), (4, 3, 2), FAILS),  # a doubling that reconstructs worse
        ((4, 2, 1), (4, 3, 2), (4, 4, 5), FAILS),  # the smaller one gains more
        ((4, 2, 1), (4, 4, 4), (4, 4, 4), UNDECIDED),
        ((4, 2, 2), (4, 4, 5), (4, 3, 2), UNDECIDED),
    ],
)
def test_the_rule(study, restored, small, medium, verdict):
    found = judge(table(study, restored, small, medium))
    assert found.verdict == verdict
    assert found.effect == pytest.approx([medium[2] / medium[0] / (small[2] / small[0])] * 3)
    assert found.ours["reconstruction"]["psnr"][2] == [30.0] * 3 and "PSNR 20 ± 0, 25 ± 0, 30 ± 0 dB" in found.number


def test_a_lost_run_counts_against_its_side(study):
    made = {"restored": (4, 2, 1), "small": (4, 4, 5), "medium": (4, 3, 2)}
    most = [(name_of("medium", 4), seed) for seed in range(3)]
    assert judge(table(study, **made, lost=most)).verdict == FAILS
    assert judge(table(study, **made, lost=[(name_of(size, 4), 0) for size in SIZES])).verdict == UNDECIDED
