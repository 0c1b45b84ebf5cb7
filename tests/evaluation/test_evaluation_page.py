"""The code on docs/evaluation.md runs, in order, as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from ditkit.evaluation.folder import ARCHIVE

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_every_example_runs(tmp_path, monkeypatch, recwarn):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "samples" / ARCHIVE).exists()
    assert "SiT on digits" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert names["made"].evaluations == 10 and {s.metric for s in names["scores"]} >= {"frechet", "agreement"}
