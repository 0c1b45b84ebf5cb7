"""Rewrite the golden recipes after a change that is meant: python tests/recipes/regenerate.py

The golden test compares every resolved recipe with these files, so that no published constant changes unseen.
"""

from __future__ import annotations

import json
from pathlib import Path

from ditkit.recipes import RECIPES, recipe

GOLDEN = Path(__file__).parent / "golden"


def resolved() -> dict[str, dict]:
    """{paper: {recipe: its resolved tree}}."""
    papers: dict[str, dict] = {}
    for name in RECIPES:
        papers.setdefault(name.partition(".")[0], {})[name] = recipe(name).model_dump(mode="json")
    return papers


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for paper, recipes in resolved().items():
        (GOLDEN / f"{paper}.json").write_text(json.dumps(recipes, indent=1) + "\n")
        print(f"{paper}: {len(recipes)} recipes")
