"""Loaded tiny runs as subjects of analyses, and a bar that shows nothing."""

from __future__ import annotations

import pytest

from ditkit.recipes.analyses.subject import Asked, Subject
from ditkit.recipes.load import load


@pytest.fixture
def watched():
    """watched(run, n=12, **asked) -> a Subject of the run, beside its recipe's teachers."""

    def make(run, name="", n=12, **asked):
        loaded = load(run)
        settings = Asked(
            n=n, batch=5, data=loaded.recipe.data.single(), **{"teachers": loaded.recipe.teachers, **asked}
        )
        return Subject(name, loaded, settings, run)

    return make


@pytest.fixture
def analysed():
    """analysed(ANALYSIS, subject, **settings) -> Found, with its result once through JSON as it is stored."""

    def make(analysis, subject, **settings):
        assert analysis.fits(subject) == ""
        found = analysis.measure(subject, analysis.settings(**settings), lambda *_: None)
        again = analysis.result.model_validate_json(found.result.model_dump_json())
        assert again == found.result
        return found

    return make
