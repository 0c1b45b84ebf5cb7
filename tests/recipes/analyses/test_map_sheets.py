"""`maps`: sheets whose cells are the image, the teacher's and the blocks' tokens, a square each."""

import pytest
import torch

from ditkit.analysis.components import principal_colours
from ditkit.recipes.analyses.maps import ANALYSIS, fitted


def test_cells_are_tokens_and_images(watched, analysed, tiny_run):
    subject = watched(tiny_run)
    found = analysed(ANALYSIS, subject, t="0.5,1", shown=3)
    assert list(found.pictures) == ["t-0.5", "t-1"] and found.result.blocks == [1, 2]
    sheet = found.pictures["t-0.5"]
    side, gap = 96, 2
    assert sheet.dtype == torch.uint8 and sheet.shape == (3, 3 * (side + gap) - gap, 4 * (side + gap) - gap)
    rows = [0, 6, 11]  # of 12, evenly
    x = subject.noised(subject.test.latents, 0.5, subject.noise_of(subject.test))[rows]
    with torch.no_grad():
        cond = subject.null(subject.test.cond.index(rows))
        tokens = subject.loaded.model(x, torch.full((3,), 0.5), cond, capture=(2,)).hidden[2]
    colours, shares = principal_colours(tokens)
    assert found.result.shares[0][1] == pytest.approx(shares, rel=1e-3)
    for i in range(3):
        cell = (
            sheet[:, i * (side + gap) :, 3 * (side + gap) :][:, :side, :side]
            .unflatten(2, (4, 24))
            .unflatten(1, (4, 24))
        )
        assert (cell == cell[:, :, :1, :, :1]).all(), "a square a token"
        want = 255 * colours[i].T.unflatten(1, (4, 4))
        assert (cell[:, :, 0, :, 0].double() - want).abs().max() < 2
        image = sheet[:, i * (side + gap) :, :side][:, :side]
        assert torch.equal(image[:, ::12, ::12], subject.test.images[rows[i]].expand(3, -1, -1))


def test_titles_name_the_columns_and_models(watched, analysed, tiny_run, tiny_ddt):
    a, b = (analysed(ANALYSIS, watched(run), t="0.5,0.9", shown=2) for run in (tiny_run, tiny_ddt))
    alone = ANALYSIS.show({"": a})
    assert list(alone.pictures) == [
        f"t = {t}, from left to right image, toy-extractor-16-4x4-0, block 1, block 2" for t in ("0.5", "0.9")
    ]
    both = ANALYSIS.show({"sit": a, "ddt": b})
    assert [title[:12] for title in both.pictures] == ["sit: t = 0.5", "ddt: t = 0.5"] and len(both.said) == 2
    assert "% after block 1" in both.said[0] and "100 % of toy" not in both.said[1]


def test_large_images_are_averaged_and_small_ones_repeated():
    image = torch.tensor([[0, 100], [200, 40]], dtype=torch.uint8)[None, None]
    assert torch.equal(fitted(image, (4, 4))[0, 2, ::2, ::2], image[0, 0])
    assert fitted(image, (1, 1)).flatten().tolist() == [85, 85, 85]
