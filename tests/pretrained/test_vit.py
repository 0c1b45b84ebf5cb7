"""The compact ViT: shapes for any image, grids, saving, and what a broken folder says."""

from __future__ import annotations

import json

import pytest
import torch

from ditkit.pretrained import PretrainedMissing, SelfTaught, ViT, ViTSettings, load_teacher, vit_settings
from ditkit.protocols import Extractor

TINY = ViTSettings(channels=3, patch=4, grid=(3, 2), width=16, depth=1, heads=2, mean=(0.4, 0.5, 0.6), std=(0.2,))


def images(height=12, width=8, channels=3):
    return torch.randint(0, 256, (2, channels, height, width), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize(
    "size", [(8, 8), (16, 16), (28, 28), (32, 32), (64, 64), (96, 64), (127, 127), (256, 256), (512, 512)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sensible_shape_for_any_image(size, channels):
    """At most 256 tokens, nearly square patches that cover the image, at least 4 x 4 of them."""
    s = vit_settings(size, channels)
    assert s.grid[0] * s.grid[1] <= 256 and min(s.grid) >= 4 and s.width % s.heads == 0 and s.channels == channels
    for side, count in zip(size, s.grid, strict=True):
        assert abs(side - count * s.patch) <= s.patch / 2


def test_the_measured_shape_on_digits():
    s = vit_settings((8, 8), 1)
    assert (s.patch, s.grid, s.width, s.depth, s.heads) == (2, (4, 4), 64, 3, 2)
    assert vit_settings((8, 8), 1, depth=5).depth == 5


def test_features_on_its_own_and_on_other_grids():
    teacher = SelfTaught.untrained(TINY, seed=0)
    assert isinstance(teacher, Extractor)
    own = teacher(images())
    assert own.grid == (3, 2) and own.tokens.shape == (2, 6, 16)
    torch.testing.assert_close(own.pooled, own.tokens.mean(1))
    other = teacher(images(), grid=(6, 5))
    assert other.grid == (6, 5) and other.tokens.shape == (2, 30, 16)
    assert teacher(images(30, 50)).tokens.shape == (2, 6, 16)  # another image size is scaled
    assert not own.tokens.requires_grad


def test_standardisation_and_channels():
    """A network that sees (x/255 - mean) / std: shifting image and mean alike changes nothing."""
    one, two = SelfTaught.untrained(TINY), SelfTaught.untrained(TINY.model_copy(update={"mean": (0.4, 0.5, 0.8)}))
    darker = images().clamp(max=200)
    brighter = darker.clone()
    brighter[:, 2] += 51  # 0.2
    torch.testing.assert_close(one(darker).tokens, two(brighter).tokens, atol=1e-4, rtol=1e-4)
    grey = images(channels=1)
    assert torch.equal(one(grey).tokens, one(grey.expand(-1, 3, -1, -1)).tokens)
    sees_grey = SelfTaught.untrained(TINY.model_copy(update={"channels": 1, "mean": (0.4,)}))
    torch.testing.assert_close(sees_grey(grey.expand(-1, 3, -1, -1)).tokens, sees_grey(grey).tokens)
    with pytest.raises(ValueError, match="4 channels, it was trained on 3"):
        one(images(channels=4))


def test_tokens_are_row_major():
    """With attention silenced, changing the last patch of the first row changes token 1 of a 3 x 2 grid only."""
    network = ViT(TINY, torch.Generator().manual_seed(0))
    for block in network.blocks:
        torch.nn.init.zeros_(block.attention.proj.weight)
    teacher = SelfTaught(network)
    changed = images()
    changed[:, :, :4, 4:] = 0
    assert (teacher(changed).tokens != teacher(images()).tokens).any(-1).any(0).tolist() == [False, True, *[False] * 4]


def test_weights_follow_the_generator_only():
    torch.manual_seed(1)
    a = SelfTaught.untrained(TINY, seed=3)
    torch.manual_seed(2)
    b = SelfTaught.untrained(TINY, seed=3)
    assert a.id == b.id != SelfTaught.untrained(TINY, seed=4).id


def test_saved_and_loaded_again(tmp_path):
    teacher = SelfTaught(ViT(TINY, torch.Generator().manual_seed(0)), {"steps": 7})
    teacher.save(tmp_path / "run")
    again = load_teacher(str(tmp_path / "run"))
    assert again.id == teacher.id and again.facts == {"steps": 7} and again.settings == TINY
    assert torch.equal(again(images()).tokens, teacher(images()).tokens)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]  # no temporary folder stays
    with pytest.raises(FileExistsError, match="exists already"):
        teacher.save(tmp_path / "run")


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ditkit.pretrained.vit.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SelfTaught.untrained(TINY).save(tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "other settings", "no json"])
def test_a_damaged_folder_is_named(tmp_path, damage):
    folder = tmp_path / "run"
    SelfTaught.untrained(TINY).save(folder)
    weights, card = folder / "model.safetensors", folder / "teacher.json"
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "other settings":
        facts = json.loads(card.read_text())
        facts["settings"]["width"] = 32
        card.write_text(json.dumps(facts))
    else:
        card.write_text("{")
    with pytest.raises(PretrainedMissing) as error:
        load_teacher(str(folder))
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
