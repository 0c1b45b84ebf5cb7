"""The ledger as one page of markdown, from results alone: `python benchmarks/claims.py` and `ditkit reproduce all`."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED, Claim
from ditkit.recipes.reproduce.result import Result
from ditkit.recipes.reproduce.study import minutes

NOT_RUN = "not run"
SIGNS: dict[str, str] = {HOLDS: "✔", FAILS: "✘", UNDECIDED: "?", NOT_RUN: "–"}
INTRO = """\
Claims of the papers, re-tested by `ditkit reproduce` with models of a size that the budget states. The rule that
decides stands in the code and was fixed before anything was run. Three verdicts: ✔ holds, ✘ does not hold at this
size, ? undecided (seeds disagree, or a difference is no larger than its spread); with fewer than three seeds nothing
is decided. A verdict speaks of these images at this size, not of ImageNet.

Distances are Fréchet distances (FD) in two feature spaces that no model here was trained against: a small
classifier's (trained on the labels of the same images; it shares neither its loss nor its weights with the self-
supervised teacher of REPA) and a convolutional network's with random weights (nobody trained it, so that it favours
no model). Where one number is given it is their geometric mean. Beside them stand class agreement (the share of
samples that the classifier takes for what they were asked to be) and validation loss. ± is the standard deviation
over seeds. Claims about text are tested on captioned scenes, where what is seen is checked against the prompt. Every
score stands in the JSON."""
COST = (
    "Cost is the seconds of all trainings and scores that a claim rests on, one process at a time; claims share runs, "
    "so that together they took less."
)


@dataclass(frozen=True)
class Ledger:
    """What the page is made of. results: name of the file (without .json) -> result; tried: claim -> two sentences.

    budget, source: which results count (source as in Result.data; "": each claim's own); others are told beside them.
    ValueError where a result or a trial is of a claim that is not in `claims`.
    """

    claims: Mapping[str, Claim]
    results: Mapping[str, Result]
    tried: Mapping[str, str]
    budget: str = "small"
    source: str = ""

    def __post_init__(self):
        asked = {result.claim for result in self.results.values()} | set(self.tried)
        if unknown := sorted(asked - set(self.claims)):
            raise ValueError(f"{', '.join(unknown)}: no such claim in the ledger")

    def of(self, claim: str) -> dict[str, Result]:
        """All results of a claim, by file: those that count first; few keys, many seeds."""
        found = {name: result for name, result in self.results.items() if result.claim == claim}

        def order(name: str) -> tuple[bool, int, int, str]:
            return not self._counts(found[name]), len(keys_of(found[name])), -len(found[name].seeds), name

        return {name: found[name] for name in sorted(found, key=order)}

    def main(self, claim: str) -> Result | None:
        """The result that the ledger counts; none where only other budgets or data, or nothing, was run."""
        return next((result for result in self.of(claim).values() if self._counts(result)), None)

    def _counts(self, result: Result) -> bool:
        own = self.source or self.claims[result.claim].data
        return result.budget == self.budget and result.data.get("source") == own

    @property
    def papers(self) -> dict[str, list[str]]:
        """Paper -> names of its claims, in the registry's order."""
        found: dict[str, list[str]] = {}
        for claim in self.claims.values():
            found.setdefault(claim.paper, []).append(claim.name)
        return found

    @property
    def headline(self) -> str:
        """How many claims, and how many of each verdict."""
        counts = Counter(r.verdict if (r := self.main(name)) else NOT_RUN for name in self.claims)
        parts = [f"**{counts[HOLDS]} hold**", f"{counts[FAILS]} do not hold at this size"]
        parts.append(f"{counts[UNDECIDED]} are undecided")
        parts += [f"{counts[NOT_RUN]} have not been run"] if counts[NOT_RUN] else []
        return f"{len(self.claims)} claims: {', '.join(parts)}."


def ledger_page(ledger: Ledger, picture: str, folder: str, more: str = "") -> str:
    """The page. picture: its address; folder: where the JSON files are, as the page sees it; more: a sentence."""
    shown = f"![Every claim: ratio of what it calls better to the other, by seed, and the verdict]({picture})"
    parts = ["# The claims ledger", "", "<!-- Written from the JSON by a program; not by hand. -->", ""]
    parts += [ledger.headline, "", f"{INTRO} {more}".rstrip(), "", shown, ""]
    for paper, names in ledger.papers.items():
        parts += [f"## {escape(paper)}", "", *summary(ledger, names), ""]
        for name in names:
            parts += [*details(ledger, name, folder), ""]
    parts += [
        "## At larger sizes",
        "",
        *larger(ledger),
        "",
        "## Machines and versions",
        "",
        COST,
        "",
        *machines(ledger),
    ]
    return "\n".join(parts) + "\n"


def summary(ledger: Ledger, names: Iterable[str]) -> list[str]:
    """A paper's claims, one row each: what was claimed, the paper's number, ours, verdict, cost."""
    rows = []
    for name in names:
        claim, result = ledger.claims[name], ledger.main(name)
        told = [f"[{name}](#{name})", claim.says, claim.table, claim.number or "–"]
        if result is None:
            rows.append([*told, "–", NOT_RUN, "–"])
        else:
            rows.append([*told, ours(result), sign(result), minutes(result.seconds)])
    return table(("claim", "says", "where", "the paper's number", "ours", "verdict", "cost"), rows)


def details(ledger: Ledger, name: str, folder: str) -> list[str]:
    """One claim: verdict and why, the rule, what was tried, the command, and results with other settings."""
    claim, results, main = ledger.claims[name], ledger.of(name), ledger.main(name)
    lines = [f"### {name}", ""]
    if main is None:
        lines += [f"{NOT_RUN.capitalize()}. Rule: {escape(claim.rule)}", ""]
    else:
        lines += [f"{sign(main)}. {escape(main.reason)}", "", f"Rule: {escape(main.rule)}", ""]
    if name in ledger.tried:
        lines += [f"Looked into: {escape(ledger.tried[name])}", ""]
    lines += ["```bash", main.commands[0] if main else command(claim), "```", ""]
    if main:
        file = next(file for file, result in results.items() if result is main)
        lines += [origin(main, file, folder), ""]
    others = [(file, result) for file, result in results.items() if result is not main]
    if others:
        rows = [[differs(r, claim), ours(r), sign(r), minutes(r.seconds), link(file, folder)] for file, r in others]
        lines += ["Also asked:", "", *table(("with", "ours", "verdict", "cost", "file"), rows, plain=4), ""]
    return lines[:-1]


def larger(ledger: Ledger) -> list[str]:
    """What a GPU's budget gave, or that it was not run."""
    rows = []
    for name, claim in ledger.claims.items():
        if "gpu" not in claim.budgets:
            continue
        found = [r for r in ledger.of(name).values() if r.budget == "gpu"]
        told = [sentence(r, claim) for r in found] or [NOT_RUN]
        rows.append([f"[{name}](#{name})", "; ".join(told), f"`{command(claim, 'gpu')}`"])
    text = (
        "The budget `gpu` asks the same of models of the papers' sizes, on images of the user's (CIFAR-10 as parquet: "
        "in pixels, and with `latents=true` in the latents of a codec trained on them, always with a teacher of one's "
        "own) or on scenes. A claim that has no result of it says so."
    )
    return [text, "", *table(("claim", "result", "command"), rows, plain=2)]


def machines(ledger: Ledger) -> list[str]:
    """Processors, threads and versions that the results come from, and of which commits and dates."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in ledger.results.values():
        e = result.environment
        place = e.get("cpu") if e.get("device", "cpu") == "cpu" and e.get("cpu") else e.get("device", "?")
        versions = (f"Python {e.get('python', '?')}", f"torch {e.get('packages', {}).get('torch', '?')}")
        groups.setdefault((str(place), f"{e.get('threads', '?')} of {e.get('cpu_count', '?')}", *versions), []).append(
            result
        )
    rows = []
    for key, group in sorted(groups.items()):
        dates = sorted({result.date for result in group})
        commits = sorted({(result.commit or "unknown")[:7] for result in group})
        rows.append([key[0], key[1], ", ".join(key[2:]), " to ".join(dict.fromkeys((dates[0], dates[-1]))),
                     ", ".join(commits), str(len(group))])  # fmt: skip
    return table(("machine", "threads", "versions", "dates", "commits", "results"), rows)


def ours(result: Result) -> str:
    """Our number and of how many seeds it is."""
    n = len(result.seeds)
    return f"{result.our_number or result.reason} ({n} seed{'s' if n > 1 else ''})"


def sign(result: Result) -> str:
    """The verdict with its sign."""
    return f"{SIGNS[result.verdict]} {result.verdict}"


def origin(result: Result, file: str, folder: str) -> str:
    """Of what, where and when a result is."""
    made = f"commit {(result.commit or 'unknown')[:7]}, {result.date}"
    words = [escape(images(result)), f"seeds {', '.join(map(str, result.seeds))}", minutes(result.seconds), made]
    return "; ".join([*words, link(file, folder)]) + "."


def images(result: Result) -> str:
    """The images in words: "digits 8x8x1, 1,437 training images, 10 classes"."""
    d = result.data
    known = [str(d.get("source", "?")) + (f" {d['size']}" if "size" in d else "")]
    known += [f"{d['training']:,} training images"] if "training" in d else []
    known += [f"{d['classes']} classes"] if "classes" in d else []
    return ", ".join(known)


def differs(result: Result, claim: Claim) -> str:
    """What a result was asked with beside what is usual: data, budget, keys, number of seeds."""
    source = result.data.get("source")
    words = [str(source)] if source != claim.data else []
    words += [f"budget {result.budget}"] if result.budget != "small" else []
    words += [f"`{key}`" for key in keys_of(result)]
    return ", ".join(words) or f"{len(result.seeds)} seeds"


def sentence(result: Result, claim: Claim) -> str:
    """A result of a larger budget in a few words."""
    return f"{images(result)}: {sign(result)}, {ours(result)}"


def command(claim: Claim, budget: str = "small") -> str:
    """How to ask a claim."""
    data = claim.data if budget == "small" or claim.data == "scenes" else "YOUR_IMAGES"
    return f"ditkit reproduce {claim.name} --data {data} --seeds 3 --budget {budget}"


def keys_of(result: Result) -> tuple[str, ...]:
    """The settings of the budget that the command changed, as KEY=VALUE."""
    return tuple(word for word in shlex.split(result.commands[0]) if "=" in word and not word.startswith("-"))


def file_name(result: Result) -> str:
    """The name of its file among others, without .json: "repa-gain-digits+steps=800", "repa-gain-parquet-gpu"."""
    source = str(result.data.get("source", "data")).removeprefix("a ")
    budget = "" if result.budget == "small" else f"-{result.budget}"
    keys = (re.sub(r"[^A-Za-z0-9.=_-]+", "_", key) for key in keys_of(result))
    return "+".join([f"{result.claim}-{source}{budget}", *keys])


def link(file: str, folder: str) -> str:
    """To a result's JSON."""
    return f"[JSON]({folder}/{file}.json)"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], plain: int = -1) -> list[str]:
    """A table of markdown; cells are escaped but for links in the first, code, and the column `plain`."""
    head = list(head)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [cell if i == plain or cell.startswith(("[", "`")) else escape(cell) for i, cell in enumerate(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def escape(text: str) -> str:
    """Text that markdown shows as it is, on one line."""
    return re.sub(r"([|*~<>$\[\]\\])", r"\\\1", " ".join(text.split()))
