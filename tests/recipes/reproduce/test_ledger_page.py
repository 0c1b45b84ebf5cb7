"""The ledger's page and picture from made-up results: what counts, what is only told, and what has not been run."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from ditkit.recipes.reproduce.ledger_page import Ledger, escape, file_name, keys_of, ledger_page
from ditkit.recipes.reproduce.ledger_picture import Row, drawn_from, ledger_picture, reach, short, shortened
from tests.recipes.reproduce.results import PAPER, a_claim, a_result

CLAIMS = {name: a_claim(name) for name in ("one", "two", "three", "four")}
CLAIMS["four"] = a_claim("four", paper="Ours", data="scenes")


def ledger(*results, tried=None, **changes) -> Ledger:
    """Of these results."""
    return Ledger(CLAIMS, {file_name(result): result for result in results}, tried or {}, **changes)


LONGER = a_result("one", FAILS, "steps=800", our_number="+5 % ± 1")
FOUND = (a_result("one"), LONGER, a_result("two", FAILS), a_result("three", UNDECIDED, effect=()))


def page(found: Ledger) -> str:
    return ledger_page(found, "images/ledger.png", "../kept", more="More.")


def test_verdicts_are_counted_once_a_claim():
    assert ledger(*FOUND).headline == (
        "4 claims: **1 hold**, 1 do not hold at this size, 1 are undecided, 1 have not been run."
    )
    assert ledger().headline.endswith("4 have not been run.")


def test_what_counts_is_the_claims_own_question():
    found = ledger(*FOUND, a_result("two", HOLDS, budget="gpu", data={"source": "parquet"}))
    assert found.main("one") is not LONGER and found.main("one").verdict == HOLDS
    assert found.main("two").verdict == FAILS and found.main("four") is None
    assert ledger(LONGER).main("one") is LONGER, "better than nothing"
    more = a_result("one", FAILS, seeds=(0, 1, 2, 3, 4))
    assert Ledger(CLAIMS, {"a": FOUND[0], "b": more}, {}).main("one") is more
    assert ledger(a_result("four")).main("four") is None, "digits, where the claim is about scenes"
    assert ledger(a_result("four"), source="digits").main("four").verdict == HOLDS
    assert ledger(a_result("one", budget="gpu"), budget="gpu").main("one") is not None


def test_the_page_tells_everything_of_a_claim():
    text = page(ledger(*FOUND, tried={"two": "Twice the steps.\nThe same came out."}))
    row = next(line for line in text.splitlines() if line.startswith("| [one](#one)"))
    assert row == (
        r"| [one](#one) | one is better \| by far | Table 1 | FID 2 \* 3 | -13 % ± 4 (3 seeds) | ✔ holds | 2 min |"
    )
    assert f"## {PAPER}" in text and text.index("## First") < text.index("## Ours")
    assert "```bash\nditkit reproduce one --data digits --seeds 3 --budget small\n```" in text
    assert r"Seen \<so\>." in text and "Rule: Holds: always." in text and "commit abcdef0, 2026-01-02" in text
    assert "[JSON](../kept/one-digits.json)" in text and "digits 8x8, 1,437 training images, 10 classes" in text
    assert r"| `steps=800` | +5 % ± 1 (3 seeds) | ✘ does not hold at this size |" in text
    assert "Looked into: Twice the steps. The same came out." in text
    assert "| A CPU | 1 of 2 | Python 3.11, torch 2.9 | 2026-01-02 | abcdef0 | 4 |" in text
    assert "![Every claim" in text and "(images/ledger.png)" in text and "JSON. More." in text.replace("\n", " ")


def test_what_was_not_run_says_so_and_how():
    text = page(ledger(a_result("two", HOLDS, budget="gpu", data={"source": "parquet", "size": "32x32"}), *FOUND))
    assert "### four\n\nNot run. Rule: Holds: always." in text
    assert "ditkit reproduce four --data scenes --seeds 3 --budget small" in text
    larger = text[text.index("## At larger sizes") : text.index("## Machines")].splitlines()
    assert "| [one](#one) | not run | `ditkit reproduce one --data YOUR_IMAGES --seeds 3 --budget gpu` |" in larger
    assert "| [two](#two) | parquet 32x32: ✔ holds, -13 % ± 4 (3 seeds) |" in "\n".join(larger)


def test_a_claim_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="five: no such claim"):
        ledger(a_result("five"))
    with pytest.raises(ValueError, match="six: no such claim"):
        ledger(tried={"six": "-"})


def test_names_of_files():
    assert file_name(a_result("one")) == "one-digits"
    assert file_name(LONGER) == "one-digits+steps=800"
    odd = a_result("one", keys="""'rows=["a/b","c d"]' base=YOUR_RUN""", budget="gpu", data={"source": "a folder"})
    assert keys_of(odd) == ('rows=["a/b","c d"]', "base=YOUR_RUN")
    assert file_name(odd) == "one-folder-gpu+rows=_a_b_c_d_+base=YOUR_RUN"


def test_markdown_shows_text_as_it_is():
    assert escape("a|b *c* ~5 <d>\n [e] $x$") == r"a\|b \*c\* \~5 \<d\> \[e\] \$x\$"


def test_the_picture_has_a_row_for_each_claim_and_says_what_it_was_drawn_from():
    found = ledger(*FOUND, a_result("four", data={"source": "scenes"}, effect=(0.01, 200.0)))
    drawn, fewer = (
        Image.open(io.BytesIO(ledger_picture(of))) for of in (found, Ledger({"one": CLAIMS["one"]}, {}, {}))
    )
    assert drawn.format == "PNG" and drawn.width == fewer.width == 1600 and drawn.height > fewer.height
    assert drawn.info["Source"] == drawn_from(found) != drawn_from(ledger(*FOUND))
    assert drawn_from(ledger(*reversed(FOUND))) == drawn_from(ledger(*FOUND))


@pytest.mark.parametrize(("effect", "most"), [((0.9, 1.1), 2.0), ((0.4, 1.1), 4.0), ((1.0, 100.0), 8.0), ((), 2.0)])
def test_the_axis_holds_what_there_is(effect, most):
    assert reach([Row("heading"), Row("one", a_result("one", effect=effect))]) == most


def test_labels_of_the_picture():
    assert short(PAPER) == "ONE" and short("Ours") == "Ours"
    assert short("A, a successor of B (arXiv 1234.56789)") == "A, a successor of B"
    assert shortened("a few words", 20) == "a few words" and shortened("a few words; and more", 16) == "a few words …"
