"""Downloads from a hub of our own on the loopback address, which speaks the hub's protocol."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from t2v_turbo.core.config import VIDEOCRAFTER2
from t2v_turbo.train import download
from t2v_turbo.train.cli import main
from t2v_turbo.train.download import DownloadError, Published

FILE = Published("someone/some-model", "unet_mg.pt", "a test")


class Hub(ThreadingHTTPServer):
    """Serves ``content`` as the file; ``cut`` bytes of it only, where set; counts the bytes that it sent."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.sent, self.cut, self.check_sum = content, 0, None, hashlib.sha256(content).hexdigest()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        content = self.server.content
        if not self.path.endswith("someone/some-model/resolve/main/unet_mg.pt"):
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in {
            "Accept-Ranges": "bytes",
            "X-Repo-Commit": "0" * 40,
            "ETag": f'"{self.server.check_sum}"',
            "X-Linked-ETag": f'"{self.server.check_sum}"',
            "X-Linked-Size": str(len(content)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            part = content[start : self.server.cut]
            self.wfile.write(part)
            self.server.sent += len(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    source = tmp_path / "source.pt"
    torch.save({"time_embed.0.weight": torch.randn(300, 400)}, source)
    server = Hub(source.read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def fetch(hub, folder):
    return download.download(FILE, folder, hub.url)


def test_download_and_again(hub, tmp_path):
    path = fetch(hub, tmp_path / "models")
    assert path == tmp_path / "models" / "unet_mg.pt"
    assert path.read_bytes() == hub.content
    assert [file.name for file in path.parent.iterdir()] == ["unet_mg.pt"]
    sent = hub.sent
    fetch(hub, tmp_path / "models")
    assert hub.sent == sent  # nothing is fetched twice


def test_resume(hub, tmp_path):
    """A connection that breaks half-way costs only the missing half."""
    hub.cut = len(hub.content) // 2
    with pytest.raises(DownloadError, match="run the same command again"):
        fetch(hub, tmp_path)
    hub.cut, hub.sent = None, 0
    assert fetch(hub, tmp_path).read_bytes() == hub.content
    assert hub.sent <= len(hub.content) - len(hub.content) // 2


def test_damaged_on_the_way(hub, tmp_path):
    content = bytearray(hub.content)
    content[len(content) // 2] ^= 1
    hub.content = bytes(content)  # the promised check sum is that of the intact file
    with pytest.raises(DownloadError, match="check sum"):
        fetch(hub, tmp_path / "models")
    assert not (tmp_path / "models" / "unet_mg.pt").exists()


def test_not_a_checkpoint(tmp_path, hub):
    hub.content = b"<html>Access denied</html>" * 100
    hub.check_sum = hashlib.sha256(hub.content).hexdigest()
    with pytest.raises(DownloadError, match="cannot be used"):
        fetch(hub, tmp_path / "models")
    assert not (tmp_path / "models" / "unet_mg.pt").exists()


def test_unreachable(tmp_path, capsys):
    address = "http://127.0.0.1:9"  # the discard port: nobody listens
    assert main(["download", "mg", "--folder", str(tmp_path), "--endpoint", address]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "T2V-Turbo-v2/unet_mg.pt: cannot be fetched" in error


def test_unknown_file(capsys):
    assert main(["download", "sora"]) == 2
    assert "unknown file sora; there are teacher, mg, no-mg" in capsys.readouterr().err


def test_names_agree_with_the_loader():
    """What is downloaded is what ``load`` looks for."""
    from t2v_turbo.core.model import BASE_FILES, STUDENT_FILES

    files = {file.file for file in download.FILES.values()}
    assert files == {*BASE_FILES[VIDEOCRAFTER2.name], *STUDENT_FILES[VIDEOCRAFTER2.name].values()}
