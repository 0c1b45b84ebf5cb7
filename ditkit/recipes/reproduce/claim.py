"""A claim of a paper that can be re-tested here, and what a test of it is made of."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ditkit.config import Settings, fingerprint
from ditkit.data import NAMED, DataSettings
from ditkit.evaluation import Section
from ditkit.recipes.recipe import Recipe

Verdict = Literal["holds", "does not hold at this size", "undecided"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold at this size"
UNDECIDED: Verdict = "undecided"
Show = Callable[..., None]  # show(stage, done, total, note="")
SIZES = ("smoke", "small", "gpu")
JUDGES, TRAINING, SCORING = "judges", "training", "scoring"  # the stages that progress is told of


@dataclass(frozen=True)
class Arm:
    """One training run of a study, and the scores that are asked of it.

    parts: name of a score -> network evaluations that it takes, of all its samples (for the estimate of time).
    run: a finished run from elsewhere that is taken instead of a training; it is only read.
    """

    name: str
    recipe: Recipe
    parts: Mapping[str, float]
    run: Path | None = None

    @property
    def seed(self) -> int:
        """Of the training and of the samples."""
        return self.recipe.training.seed

    @property
    def key(self) -> str:
        """A name for files: "rf/lognorm(0.00,1.00)" of seed 1 -> "rf-lognorm-0.00-1.00-seed1"."""
        signed = re.sub(r"(?<![a-z0-9])-(?=\d)", "m", self.name.lower())
        return f"{re.sub(r'[^a-z0-9._]+', '-', signed).strip('-')}-seed{self.seed}"

    @property
    def file(self) -> str:
        """Names what is trained, whatever it is called and wherever files lie: two claims may share it."""
        sources = [t.model_copy(update={"source": Path(t.source).name}) for t in self.recipe.teachers]
        codec = self.recipe.codec.model_copy(update={"source": Path(self.recipe.codec.source).name})
        data = self.recipe.data.model_copy(update={"source": Path(self.recipe.data.source).name})
        neutral = self.recipe.model_copy(update={"teachers": tuple(sources), "codec": codec, "data": data})
        told = fingerprint(neutral, ("name", "title", "source", "notes", "published", "unpublished"))
        m = self.recipe.model
        return f"{m.kind}-{m.width}x{m.depth}-{told[:10]}-seed{self.seed}"


@dataclass(frozen=True)
class Finding:
    """What came out. paper, ours: JSON values; sections and remarks: what the page shows of it beside the verdict.

    number: ours in a few words, with its spread, beside the paper's in the ledger. effect: where two things were
    compared, what the claim calls better over what it calls worse, a ratio of distances for each seed.
    """

    paper: dict[str, Any]
    ours: dict[str, Any]
    verdict: Verdict
    reason: str
    sections: Sequence[Section]
    remarks: Sequence[str] = ()
    number: str = ""
    effect: Sequence[float] = ()


class Study(Protocol):
    """One test of a claim: its runs, who judges them, and what follows from the scores."""

    @property
    def arms(self) -> Sequence[Arm]: ...

    @property
    def data(self) -> dict[str, Any]:
        """What is told of the images: source, images, classes, fingerprint; never a path."""
        ...

    @property
    def shelf(self) -> str:
        """Name of the part of the pool where its runs are; studies that name the same one share them."""
        ...

    def begin(self, show: Show) -> None:
        """Make what the runs need and what judges them; called once, before the first piece of work that is left."""
        ...

    def score(self, arm: Arm, folder: Path, part: str, show: Show) -> Any:
        """One score of a finished run, as JSON; the same whenever it is asked for."""
        ...

    def find(self, scores: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path]) -> Finding:
        """The finding. scores: arm.key -> part -> what `score` said, None for a run that diverged."""
        ...


@dataclass(frozen=True)
class Question:
    """What is asked: a claim, of which images, at what size, over which seeds, and where the answer goes."""

    claim: Claim
    size: str
    budget: Settings
    data: str
    seeds: tuple[int, ...]
    out: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    keys: tuple[str, ...] = ()
    shared: Path | None = None  # where runs are that claims share; none: "pool" beside `out`

    @property
    def images(self) -> DataSettings:
        """The training images: digits as they are, of others the training split."""
        if self.data == "digits":
            return DataSettings(source=self.data, split="train", size=8, channels=1)
        return DataSettings(source=self.data, split="train")

    @property
    def origin(self) -> str:
        """What is told of where the images are from; no path."""
        return self.data if self.data in NAMED else "parquet" if ".parquet" in self.data else "a folder"

    @property
    def pool(self) -> Path:
        """Where runs are that claims share."""
        return self.shared or self.out.parent / "pool"

    @property
    def shelf(self) -> str:
        """A part of the pool for this claim alone, under this budget; of a user's images it does not say which."""
        asked = json.dumps([self.settings, self.origin], sort_keys=True)
        return f"{self.claim.name}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    @property
    def command(self) -> str:
        """The command that asks this, with stand-ins for the paths of someone's images and runs."""
        keys = ["base=YOUR_RUN" if key.startswith("base=") else shlex.quote(key) for key in self.keys]
        words = ["ditkit reproduce", self.claim.name, f"--data {self.data if self.data in NAMED else 'YOUR_IMAGES'}"]
        return " ".join([*words, f"--seeds {len(self.seeds)}", f"--budget {self.size}", *keys])

    @property
    def settings(self) -> dict[str, Any]:
        """The budget as JSON, as study.json and result.json keep it; holds no path."""
        return self.claim.told(self.budget)


def as_json(budget: Settings) -> dict[str, Any]:
    """A budget that holds no path, as JSON."""
    return budget.model_dump(mode="json")


@dataclass(frozen=True)
class Claim:
    """A claim: says is what the paper says, rule what decides the verdict, fixed before anything is run.

    budgets: size -> settings of the study, which command-line keys change; minutes: size -> about how many on two idle
    CPU cores with one seed; a plan times the machine itself. told: a budget as JSON, without paths. number: the
    paper's, in a few words.
    """

    name: str
    paper: str
    table: str
    says: str
    rule: str
    data: str
    budgets: Mapping[str, Settings]
    minutes: Mapping[str, float]
    open: Callable[[Question], Study]
    told: Callable[[Settings], dict[str, Any]] = as_json
    number: str = ""
