"""A file from a URL: once, whole, and only under its checksum. A server of our own on this machine."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ditkit.pretrained import PretrainedMissing
from ditkit.pretrained.download import cache_folder, download, is_url

CONTENT = bytes(range(256)) * 5000  # more than one block
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DITKIT_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server():
    """(address, the paths asked for); every path but /none has CONTENT, /short promises more than it sends."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404 if self.path == "/none" else 200)
            self.send_header("Content-Length", str(len(CONTENT) + 10 * (self.path == "/short")))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", asked
    http.shutdown()
    http.server_close()


def refused(source: str) -> str:
    with pytest.raises(PretrainedMissing) as error:
        download(source, "extractor inception")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_is_fetched_once_and_under_its_name(cache, server):
    address, asked = server
    path = download(f"{address}/a/weights.pth?raw=1#sha256={SHA}", "extractor inception")
    assert path.read_bytes() == CONTENT and path.name == f"{SHA[:16]}-weights.pth" and path.parent == cache
    assert download(f"{address}/a/weights.pth?raw=1#sha256={SHA.upper()}", "extractor inception") == path
    assert asked == ["/a/weights.pth?raw=1"]


def test_the_first_digits_of_a_checksum_do(cache, server):
    address, _ = server
    assert download(f"{address}/w.pth#sha256={SHA[:8]}", "extractor inception").read_bytes() == CONTENT
    assert "is no checksum" in refused(f"{address}/w.pth#sha256={SHA[:7]}")


def test_another_checksum_leaves_nothing(cache, server):
    address, _ = server
    assert f"sha256 {SHA}, not {'0' * 64}" in refused(f"{address}/w.pth#sha256={'0' * 64}")
    assert list(cache.iterdir()) == []


def test_a_damaged_copy_is_fetched_again(cache, server):
    address, asked = server
    path = download(f"{address}/w.pth#sha256={SHA}", "extractor inception")
    path.write_bytes(CONTENT[:-1])
    assert download(f"{address}/w.pth#sha256={SHA}", "extractor inception").read_bytes() == CONTENT
    assert len(asked) == 2


def test_without_a_checksum_nothing_is_asked(cache, server):
    address, asked = server
    text = refused(f"{address}/w.pth")
    assert f"it has no checksum: write {address}/w.pth#sha256=HEX" in text and not asked


def test_no_page_no_server_half_a_file_no_network(cache, server, monkeypatch):
    address, asked = server
    assert "404" in refused(f"{address}/none#sha256={SHA}")
    assert "refused" in refused(f"http://127.0.0.1:9/w.pth#sha256={SHA}").lower()
    refused(f"{address}/short#sha256={SHA[::-1]}")
    assert list(cache.iterdir()) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(asked)
    assert "HF_HUB_OFFLINE forbids" in refused(f"{address}/w.pth#sha256={SHA}") and len(asked) == before


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("DITKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ditkit"
    assert is_url("https://a/b") and not is_url("org/name") and not is_url("/https://x")
