"""Samples a second of the loader alone."""

import pytest

from ditkit.data import Folder, loader_rates, open_source
from ditkit.data.rate import Anew, Undecoded


def test_rows_for_workers_with_and_without_decoding(pets):
    rows = loader_rates(Folder(pets, 8), 4, (0, 1), 0.05)
    assert [(row["decode"], row["workers"]) for row in rows] == [(True, 0), (True, 1), (False, 0), (False, 1)]
    for row in rows:
        assert row["batch"] == 4 and row["samples"] >= 4 and row["samples"] % 4 == 0 and row["seconds"] > 0
        assert row["samples_per_s"] == pytest.approx(row["samples"] / row["seconds"]) and row["first_batch_s"] > 0


def test_decoding_is_measured_whatever_is_kept(pets, monkeypatch):
    reads = []
    picture = Folder.picture
    monkeypatch.setattr(Folder, "picture", lambda self, i: reads.append(i) or picture(self, i))
    source = open_source(str(pets))
    source.keep_in_memory()
    anew, undecoded = Anew(source), Undecoded(source)
    reads.clear()
    assert anew[3].path == anew[3].path and reads == [3, 3]
    reads.clear()
    assert [undecoded[i].label for i in (0, 11)] == [0, 1] and len(undecoded) == 12 and not reads
    assert undecoded[7].image is undecoded[0].image
