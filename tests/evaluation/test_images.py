"""The uint8 rules, PNG files, sheets, and files that are complete or absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditkit.evaluation.files import write_bytes, write_npz
from ditkit.evaluation.images import (
    PUBLISHED_RULES,
    RULES,
    enlarge,
    grid,
    quantise,
    read_png,
    save_png,
    viewing_factor,
)
from ditkit.files import write_atomic


def test_round_is_the_inverse_of_the_loader():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantise(levels.float() / 127.5 - 1), levels)


@pytest.mark.parametrize("rule", RULES)
def test_rules_clip_and_cover_the_range(rule):
    x = torch.tensor([-9.0, -1.0, 1.0, 9.0])
    assert quantise(x, rule).tolist() == [0, 0, 255, 255]
    assert quantise(torch.linspace(-1, 1, 5001), rule).unique().numel() == 256


def test_rules_differ_where_the_papers_differ():
    """REPA floors 255 (x + 1) / 2: half a level darker on average; DiT's and DDT's rules round halves up."""
    x = torch.linspace(-1, 1, 100_001)
    level = {rule: quantise(x, rule).double() for rule in RULES}
    assert (level["round"] - level["floor_255"]).mean().item() == pytest.approx(0.5, abs=0.01)
    assert (level["round"] - level["truncate_128"]).abs().mean() < 1e-3
    half = torch.tensor([0.5]) / 127.5  # exactly between 128 and 127: 127.5 x + 127.5 = 128
    assert quantise(half, "floor_255").item() == 128
    assert quantise(-half, "truncate_128").item() == 127
    assert quantise(torch.tensor([0.4]) / 127.5, "floor_255").item() == 127
    assert quantise(torch.tensor([0.4]) / 127.5, "repa").item() == 127
    assert set(PUBLISHED_RULES) == {"dit", "sit", "repa", "ddt"}


def test_quantise_refuses_nan_and_unknown_rules():
    with pytest.raises(ValueError, match="NaN"):
        quantise(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="unknown uint8 rule 'ceil'"):
        quantise(torch.zeros(1), "ceil")


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, channels):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    path = save_png(image, tmp_path / "new" / "a.png", {"label": "3"})
    back, text = read_png(path)
    assert torch.equal(back, image) and text == {"label": "3"}
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_grid_and_enlarge():
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 2, 3)
    sheet = grid(images, columns=2, gap=1, background=99)
    assert sheet.shape == (1, 3 * 2 + 2, 2 * 3 + 1)
    assert sheet[0, 0, 0] == 0 and sheet[0, 0, 4] == 1 and sheet[0, 3, 0] == 2 and sheet[0, 2, 0] == 99
    assert sheet[0, 6, 4] == 99, "the missing sixth image is background"
    assert torch.equal(enlarge(images, 2)[..., ::2, ::2], images)
    assert enlarge(images, 3).shape == (5, 1, 6, 9)
    assert (viewing_factor(8), viewing_factor(256)) == (8, 1)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_bytes(tmp_path / "a.bin", b"old")

    def fails(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, fails)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_npz_is_written_in_blocks_and_reads_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 6, 3), dtype=np.uint8)
    labels = np.arange(10)
    path = write_npz(tmp_path / "a.npz", (images[i : i + 3] for i in range(0, 10, 3)), images.shape, label=labels)
    with np.load(path, allow_pickle=False) as data:
        assert data.files == ["arr_0", "label"]
        assert np.array_equal(data["arr_0"], images) and np.array_equal(data["label"], labels)
    again = write_npz(tmp_path / "b.npz", [images], images.shape, label=labels)
    assert again.read_bytes() == path.read_bytes(), "same content, same bytes"


def test_npz_counts_exactly(tmp_path):
    images = np.zeros((4, 2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match="4 images came, 5 were announced"):
        write_npz(tmp_path / "a.npz", [images], (5, 2, 2, 3))
    with pytest.raises(ValueError, match="expected uint8"):
        write_npz(tmp_path / "a.npz", [images.astype(np.float32)], (4, 2, 2, 3))
    assert not list(tmp_path.iterdir())
