"""What sampling did and was asked to do, in words: sampler, guidance, weights, classes, doubts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ditkit.diffusion import AnyGuidance, SamplerSettings, Sharing, SkipLayer
from ditkit.evaluation import Generated, Request
from ditkit.evaluation.folder import SampleFolder
from ditkit.recipes.load import Loaded
from ditkit.training.weights import describe

NAMED = 20  # classes whose names are told


def describe_sample(loaded: Loaded, made: Generated, sheet: Path) -> Iterator[tuple[str, object]]:
    """(topic, text) lines about the images that `draw` made."""
    request, folder = made.request, made.folder or Path()
    found = "" if made.made == request.n else f" ({request.n - made.made} were there)"
    yield "weights", describe_weights(loaded)
    yield from (("note", doubt) for doubt in describe_doubts(loaded))
    yield "sampler", f"{describe_sampler(made.sampler)}: {made.evaluations:g} network evaluations an image"
    asked = f"{request.mode} labels"
    if request.prompts:
        asked = f"{len(set(request.prompts))} prompts" if len(set(request.prompts)) > 1 else f"{request.prompts[0]!r}"
    yield "images", f"{request.n} in {folder}{found}, {asked}, seed {request.seed}"
    if isinstance(made.images, SampleFolder) and (threads := made.images.threads):
        yield "threads", f"{threads} in each process; OMP_NUM_THREADS={threads} makes these bytes in any number of them"
    if named := describe_classes(loaded, request):
        yield "classes", named
    yield "archive", folder / "samples.npz"
    yield "sheet", sheet


def describe_classes(loaded: Loaded, request: Request) -> str:
    """Which number is which class, of those asked for: "0 circle, 1 square"; "" where names say no more."""
    shown = [k for k in sorted(set(request.labels)) if k < len(loaded.classes)]
    if all(loaded.classes[k] == str(k) for k in shown):
        return ""
    told = ", ".join(f"{k} {loaded.classes[k]}" for k in shown[:NAMED])
    return told + (", ..." if len(shown) > NAMED else "")


def describe_weights(loaded: Loaded) -> str:
    """Which weights these are, for people: "averaged (EMA), step 800"."""
    untold = "as in the file, which does not say (publishers ship EMA)"
    step = f", step {loaded.step:,}" if loaded.step is not None else ""
    return f"{untold if loaded.weights == 'flat' else describe(loaded.weights)}{step}"


def describe_doubts(loaded: Loaded) -> list[str]:
    """What of a published file was left aside, and what the user may have got wrong about it, a line each."""
    told = list(loaded.notes)
    if loaded.source == "repa" and loaded.projectors is None:
        told.append(
            "no projectors in this file: it looks like a SiT file, whose time runs the other way (--source sit)"
        )
    text = loaded.__dict__.get("text")
    if text is not None and loaded.encoder not in ("", text.id):
        told.append(f"the prompts are read by {text.id}, the model was trained with {loaded.encoder}")
    return told


def describe_sampler(sampling: SamplerSettings) -> str:
    """Solver, steps, options, shift, sharing and guidance in one line."""
    options = "".join(f", {key} {value}" for key, value in sampling.options.items())
    last = "" if sampling.last is None else f", last step {sampling.last:g}"
    last += "" if sampling.shift == 1 else f", shift {sampling.shift:g}"
    last += "" if (shared := sampling.sharing) is None else f", {describe_sharing(shared)}"
    return f"{sampling.solver}, {sampling.steps} steps{options}{last}, {describe_guidance(sampling.guidance)}"


def describe_guidance(g: AnyGuidance | None) -> str:
    """Kind, scale and where it acts: "guidance 1.8 for 0 <= t <= 0.7"."""
    if g is None:
        return "no guidance"
    if isinstance(g, SkipLayer):
        blocks = ", ".join(map(str, g.blocks))
        return f"guidance {g.scale:g} and {g.skip_scale:g} away from blocks {blocks} skipped"
    to = "<=" if g.closed else "<"
    where = f" for {g.low:g} {to} t {to} {g.high:g}" if (g.low, g.high) != (0, 1) else ""
    first = f" on the first {g.channels} channels" if g.channels else ""
    return f"guidance {g.scale:g}{first}{where}"


def describe_sharing(sharing: Sharing) -> str:
    """A schedule in words: "encoder at 5 of 25 evaluations (dp:5)"."""
    kept = "" if sharing.keep else ", modulations not kept"
    return f"encoder at {sharing.budget} of {sharing.evaluations} evaluations ({sharing.rule}{kept})"
