"""All claims one after another: shared runs are planned once, one that fails does not end the rest, the user's page."""

from __future__ import annotations

from functools import partial

import pytest

from ditkit.data import DataError
from ditkit.recipes import digits
from ditkit.recipes.claims import CLAIMS, ask, ask_all
from ditkit.recipes.reproduce import make_plan, read_result
from ditkit.recipes.reproduce.claim import SCORING, TRAINING, Arm
from ditkit.recipes.reproduce.study import Seen
from ditkit.recipes.reproduce.whole import FAILED, carry_out_all, plan_all, write_ledger
from tests.recipes.reproduce.results import NoArms, a_claim, only_claims


class Picky(NoArms):
    """Has no use for digits."""

    def __init__(self, q):
        raise DataError(f"data {q.data!r}: only elsewhere")


class Broken(NoArms):
    """Its judge has a defect."""

    def find(self, scores, folders):
        raise KeyError("lost")


class Shared(NoArms):
    """One run, the same for all; the score has the claim's name where that begins with "own"."""

    shelf = "shelf"

    def __init__(self, q):
        super().__init__(q)
        self.shelf = "shelf"
        recipe = digits.sit().with_({"model.width": 16, "model.depth": 1, "model.heads": 2, "training.batch": 4})
        self.arms = (Arm(q.claim.name, recipe, {q.claim.name if q.claim.name.startswith("own") else "x": 10.0}),)


@pytest.fixture
def known(monkeypatch):
    """known(name=study, ...) makes these all the claims that there are."""
    return partial(only_claims, monkeypatch)


def quiet(*_):
    """Says nothing."""


def test_runs_that_are_shared_count_once(known, tmp_path):
    known(first=Shared, second=Shared, own=Shared)
    questions, _ = ask_all(out=tmp_path)
    whole, alone = plan_all(questions, {}, quiet), [make_plan(q).seconds for q in questions]
    assert whole.runs == 1 and len(whole.seen.paces) == 1 and all(seconds[TRAINING] > 0 for seconds in alone)
    seen, seconds = Seen(), []
    for q in questions:
        seconds.append(make_plan(q, seen).seconds)
    assert seconds[0][TRAINING] > 0 == seconds[1][TRAINING] == seconds[2][TRAINING]
    assert seconds[0][SCORING] == seconds[2][SCORING] > 0 == seconds[1][SCORING]
    assert whole.seconds == pytest.approx(sum(seconds[0].values()) + seconds[2][SCORING], rel=0.9)


def test_one_that_fails_does_not_end_the_rest(known, tmp_path):
    known(one=NoArms, broken=Broken, picky=Picky, two=NoArms)
    questions, left_out = ask_all(["steps=3"], seeds=3, out=tmp_path / "all")
    said: list[str] = []
    whole = plan_all(questions, left_out, said.append)
    assert whole.left_out == {"picky": "data 'digits': only elsewhere"} and len(whole.questions) == 3
    assert any("left out: picky" in line for line in whole.lines())
    results = carry_out_all(whole, lambda plan: quiet, said.append)
    assert list(results) == ["one", "two"] and results["two"].our_number == "3 steps"
    assert whole.failed == {"broken": "KeyError: 'lost'"} and "failed: broken: KeyError: 'lost'" in said
    assert "in find" in (tmp_path / "all" / "broken" / FAILED).read_text()
    assert read_result(tmp_path / "all" / "one") == results["one"]

    text = write_ledger(tmp_path / "all", whole, CLAIMS).read_text()
    assert text.count("✔ holds | ") == 2 and "[JSON](./one/result.json)" in text and "2 have not been run" in text
    assert (tmp_path / "all" / "ledger.png").stat().st_size > 1000 and str(tmp_path) not in text

    known(one=NoArms, broken=NoArms, two=NoArms)
    mended = plan_all(ask_all(["steps=3"], seeds=3, out=tmp_path / "all")[0], {}, quiet)
    assert set(carry_out_all(mended, lambda plan: quiet, quiet)) == {"one", "broken", "two"}
    assert not mended.failed and not (tmp_path / "all" / "broken" / FAILED).exists()


def test_a_page_of_ones_own_images_counts_them(known, tmp_path):
    known(one=NoArms)
    whole = plan_all(ask_all(data="cats", size="gpu", out=tmp_path)[0], {}, quiet)
    carry_out_all(whole, lambda plan: quiet, quiet)
    assert "1 claims: **1 hold**" in write_ledger(tmp_path, whole, CLAIMS).read_text()


def test_ctrl_c_ends_everything(known, tmp_path):
    class Stopped(NoArms):
        def find(self, scores, folders):
            raise KeyboardInterrupt

    known(one=Stopped, two=NoArms)
    with pytest.raises(KeyboardInterrupt):
        carry_out_all(plan_all(ask_all(out=tmp_path)[0], {}, quiet), lambda plan: quiet, quiet)
    assert not (tmp_path / "two" / "result.json").exists()


def test_a_folder_of_another_question_is_a_failure_of_one_claim(known, tmp_path):
    known(one=NoArms, two=NoArms)
    make_plan(ask("one", ["steps=5"], out=tmp_path / "one"))
    whole = plan_all(ask_all(out=tmp_path)[0], {}, quiet)
    assert "another settings" in whole.failed["one"] and [q.claim.name for q in whole.questions] == ["two"]


def test_where_nothing_is_left_it_says_why(known, tmp_path):
    known(picky=Picky)
    with pytest.raises(DataError, match="only elsewhere"):
        plan_all(ask_all(out=tmp_path)[0], {}, quiet)
    with pytest.raises(ValueError, match="stepz"):
        ask_all(["stepz=1"])
    with pytest.raises(ValueError, match="did you mean 'small'"):
        ask_all(size="smal")


def test_claims_that_do_not_know_a_key_or_a_budget_are_left_out(known, monkeypatch):
    known(one=NoArms)
    monkeypatch.setitem(CLAIMS, "two", a_claim("two", budgets={"small": digits.sit().training}))
    assert list(ask_all(["steps=7"])[1]) == []
    assert "no budget 'gpu'" in ask_all(size="gpu")[1]["two"]
    questions, left_out = ask_all(["warmup=7"])
    assert [q.claim.name for q in questions] == ["two"] and "warmup" in left_out["one"]
    assert str(questions[0].out).endswith("two-small") and questions[0].pool.name == "pool"
