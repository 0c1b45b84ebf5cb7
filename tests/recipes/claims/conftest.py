"""Claims are judged here many times over; what matters is what is said, so plots are told, not drawn."""

from __future__ import annotations

import pytest

from ditkit.evaluation.plots import description


@pytest.fixture(autouse=True)
def told_not_drawn(monkeypatch):
    """Drawing has tests of its own."""
    monkeypatch.setattr(
        "ditkit.evaluation.sections.draw", lambda panel, order, identity: f"<svg>{description(panel)}</svg>"
    )
