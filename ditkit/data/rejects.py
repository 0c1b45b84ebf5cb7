"""The reject list: every image that could not be used, once, with its path and the reason."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

log = logging.getLogger("ditkit.data")
REJECTS = ".rejects.jsonl"  # ending of a list that stands beside what it belongs to


class Rejects:
    """Collects unusable images; each is logged as a warning and, given a file, appended to it as one JSON line.

    A file that exists is continued: what it lists is not listed again. Lines are {"path": ..., "reason": ...}.
    """

    def __init__(self, file: str | os.PathLike | None = None):
        self.file = None if file is None else Path(file)
        self.reasons: dict[str, str] = {}
        self._known = read_rejects(self.file) if self.file else {}

    def add(self, path: str, reason: str) -> None:
        """List one image, unless it is listed already (here, or by another process in the same file)."""
        if path in self.reasons:
            return
        self.reasons[path] = reason
        shown = path.encode("utf-8", "backslashreplace").decode()  # file names need not be text
        log.warning("unusable image, another takes its place: %s: %s", shown, reason)
        if self.file is None or path in self._known:
            return
        self._known = read_rejects(self.file)  # other ranks may have added to it
        if path not in self._known:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as out:  # one short write in append mode: never interleaved
                out.write(json.dumps({"path": path, "reason": reason}) + "\n")


def read_rejects(file: str | os.PathLike) -> dict[str, str]:
    """Path -> reason of a reject list; empty where there is no such file. Torn lines are passed over."""
    found: dict[str, str] = {}
    if Path(file).exists():
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                found.setdefault(row["path"], row["reason"])
            except (ValueError, KeyError, TypeError):
                continue
    return found
