"""`attention`: every family's blocks, over the checkpoints of a run, and what cannot be looked at."""

import pytest
import torch
from torch import nn

from ditkit.recipes.analyses.attention import ANALYSIS, qk_norm
from ditkit.recipes.load import load


def test_blocks_and_history_of_a_run(watched, analysed, tiny_ddt):
    subject = watched(tiny_ddt)
    before = {name: p.clone() for name, p in subject.loaded.model.state_dict().items()}
    found = analysed(ANALYSIS, subject, t="0.1,0.6", images=7)
    r = found.result
    assert (r.images, r.qk_norm, len(r.blocks), len(r.blocks[0])) == (7, "rms", 2, 3)
    assert all(0 < b.lowest_head <= b.entropy <= 1 and b.rms > 0 for at in r.blocks for b in at)
    assert [m.step for m in r.history] == [3, 6] and r.history[-1].blocks == r.blocks[1], (
        "the last is what is looked at"
    )
    assert r.history[0].blocks != r.history[1].blocks
    assert all(torch.equal(p, before[name]) for name, p in subject.loaded.model.state_dict().items())
    shown = ANALYSIS.show({"": found})
    assert len(shown.panels) == 6 and "from step 3 to 6 the largest logit went from" in shown.said[1]
    low = min(range(3), key=lambda j: r.blocks[1][j].entropy)
    assert f"at t = 0.6, with rms norm of queries and keys, attention is sharpest in block {low + 1} " in shown.said[0]
    assert analysed(ANALYSIS, subject, t=0.5, images=2, history=0).result.history == []


def test_the_norm_is_read_off_the_network(watched, tiny_ddt):
    model = watched(tiny_ddt).loaded.model
    assert qk_norm(model) == "rms"
    for block in model.blocks:
        block.attention.q_norm = nn.Identity()
    assert qk_norm(model) == "none" and qk_norm(nn.Linear(2, 2)) == "none"


def test_what_is_drawn_and_said_of_training_is_named(watched, analysed, tiny_ddt):
    shown = ANALYSIS.show({"": analysed(ANALYSIS, watched(tiny_ddt), t=0.5, images=3)})
    assert [s.name for panel in shown.panels[-2:] for s in panel.series] == ["lowest block", "any block"]
    assert "limits of these changes are not known" in shown.said[1]
    assert "their labels" in shown.note and "those of text among them" in shown.note


def test_history_ends_where_the_model_is_looked_at(watched, analysed, tiny_ddt):
    subject = watched(tiny_ddt)
    subject.loaded = load(tiny_ddt, step=3)
    assert analysed(ANALYSIS, subject, t=0.5, images=2).result.history == []


def test_text_and_image_are_told_apart(watched, analysed, tiny_text, tiny_run):
    found = analysed(ANALYSIS, watched(tiny_text, n=4), t=0.5)
    for b in found.result.blocks[0]:
        assert 0 < b.weight_on_text < 1 and 0 < b.text_entropy <= 1
    table = ANALYSIS.show({"": found}).tables["Attention"]
    assert table.columns[-1] == "weight on text" and len(table.rows[0]) == len(table.columns)
    plain = analysed(ANALYSIS, watched(tiny_run), t="0.2,0.5", images=3)
    assert plain.result.blocks[0][0].weight_on_text is None and plain.result.qk_norm == "none"
    both = ANALYSIS.show({"text": found, "sit": plain})
    assert [s.name for s in both.panels[0].series] == ["text", "sit"]
    assert all(len(row) == len(both.tables["Attention"].columns) for row in both.tables["Attention"].rows)
    assert any("with no norm of queries and keys" in line for line in both.said)


def test_other_networks_are_refused_in_words(watched, tiny_run):
    subject = watched(tiny_run)
    subject.loaded.model = nn.Linear(2, 2)
    assert ANALYSIS.fits(subject) == "its blocks have no attention that is known here"
    with pytest.raises(ValueError, match="t none"):
        ANALYSIS.measure(subject, ANALYSIS.settings(t=()), lambda *_: None)
