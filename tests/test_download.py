"""Downloads from a hub of our own on the loopback address, which speaks the hub's protocol."""

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file
from test_rewards import SMALL, VOCABULARY, randomized, to_published

from t2v_turbo.core.families import VIDEOCRAFTER2
from t2v_turbo.core.rewards import REWARDS, build_reward, load_reward, present_rewards, reward_path
from t2v_turbo.train import download
from t2v_turbo.train.cli import main
from t2v_turbo.train.download import DownloadError, Published

FILE = Published("someone/some-model", "unet_mg.pt", "a test")
NAME = f"{FILE.repository}/{FILE.file}"


class Hub(ThreadingHTTPServer):
    """Serves files by "repository/file"; ``cut`` bytes of them only, where set; counts the bytes that it sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.check_sums, self.sent, self.cut = {}, {}, 0, None

    def serve(self, name: str, content: bytes, promised: bytes | None = None):
        """Serve ``content`` under the check sum of ``promised``, None = its own."""
        self.files[name], self.check_sums[name] = content, hashlib.sha256(promised or content).hexdigest()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        name = self.path.strip("/").replace("/resolve/main", "")
        if name not in self.server.files:
            self.send_error(404)
            return
        content, check_sum = self.server.files[name], self.server.check_sums[name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for header, value in {
            "Accept-Ranges": "bytes",
            "X-Repo-Commit": "0" * 40,
            "ETag": f'"{check_sum}"',
            "X-Linked-ETag": f'"{check_sum}"',
            "X-Linked-Size": str(len(content)),
        }.items():
            self.send_header(header, value)
        self.end_headers()
        if body:
            part = content[start : self.server.cut]
            self.server.sent += len(part)  # before the client has it, who may ask at once
            self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    source = tmp_path / "source.pt"
    keys = ("time_embed.0.weight", "input_blocks.1.0.temopral_conv.conv1.0.weight")
    torch.save({key: torch.randn(300, 200) for key in keys}, source)
    server = Hub()
    server.serve(NAME, source.read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def fetch(hub, folder):
    return download.download(FILE, folder, hub.url)


def test_download_and_again(hub, tmp_path):
    path = fetch(hub, tmp_path / "models")
    assert path == tmp_path / "models" / "unet_mg.pt"
    assert path.read_bytes() == hub.files[NAME]
    assert [file.name for file in path.parent.iterdir()] == ["unet_mg.pt"]
    sent = hub.sent
    fetch(hub, tmp_path / "models")
    assert hub.sent == sent  # nothing is fetched twice


def test_resume(hub, tmp_path):
    """A connection that breaks half-way costs only the missing half."""
    hub.cut = len(hub.files[NAME]) // 2
    with pytest.raises(DownloadError, match="run the same command again"):
        fetch(hub, tmp_path)
    hub.cut, hub.sent = None, 0
    assert fetch(hub, tmp_path).read_bytes() == hub.files[NAME]
    assert hub.sent <= len(hub.files[NAME]) - len(hub.files[NAME]) // 2


def test_damaged_on_the_way(hub, tmp_path):
    whole = hub.files[NAME]
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    hub.serve(NAME, bytes(damaged), promised=whole)
    with pytest.raises(DownloadError, match="check sum"):
        fetch(hub, tmp_path / "models")
    assert not (tmp_path / "models" / "unet_mg.pt").exists()


def test_not_a_checkpoint(tmp_path, hub):
    hub.serve(NAME, b"<html>Access denied</html>" * 100)
    with pytest.raises(DownloadError, match="cannot be used"):
        fetch(hub, tmp_path / "models")
    assert not (tmp_path / "models" / "unet_mg.pt").exists()


def test_unreachable(tmp_path, capsys):
    address = "http://127.0.0.1:9"  # the discard port: nobody listens
    assert main(["download", "mg", "--folder", str(tmp_path / "models"), "--endpoint", address]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "T2V-Turbo-v2/unet_mg.pt: cannot be fetched" in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(hub, tmp_path):
    """It is no fault of the network."""
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"models: cannot write here .* with --folder or T2V_TURBO_MODELS"):
        fetch(hub, tmp_path / "file" / "models")
    assert hub.sent == 0


def test_a_folder_that_cannot_be_written_to(hub, tmp_path):
    """What is in it already is found."""
    fetch(hub, tmp_path / "models")
    (tmp_path / "models").chmod(0o500)
    assert fetch(hub, tmp_path / "models").is_file()
    (tmp_path / "models").chmod(0o700)


def test_unknown_file(capsys):
    assert main(["download", "sora"]) == 2
    assert "unknown file sora; there are teacher, mg, no-mg, v1, hps, clip" in capsys.readouterr().err


# --- reward models ----------


@pytest.fixture
def rewards(hub, tmp_path, monkeypatch):
    """The hub has all reward models, of small sizes, in their published form; the models folder is a new one."""
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path / "models"))
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    for seed, name in enumerate(REWARDS):
        (repository, file), *beside = REWARDS[name].files
        reward = randomized(build_reward(name, SMALL[name], tmp_path), seed)
        monkeypatch.setitem(REWARDS, name, replace(REWARDS[name], config=SMALL[name]))
        state = {key: value.contiguous() for key, value in to_published(name, reward).items()}
        (save_file if file.endswith(".safetensors") else torch.save)(state, tmp_path / file)
        hub.serve(f"{repository}/{file}", (tmp_path / file).read_bytes())
        for repository, file in beside:
            hub.serve(f"{repository}/{file}", (tmp_path / "vocab.txt").read_bytes())
    return hub


def test_reward_models_arrive_where_they_are_looked_for(rewards, tmp_path):
    """With what must lie beside them, so that they load and score."""
    assert main(["download", *REWARDS, "--endpoint", rewards.url]) == 0
    assert present_rewards() == list(REWARDS)
    frames = torch.rand(1, 2, 3, 32, 40)
    for seed, name in enumerate(REWARDS):
        expected = randomized(build_reward(name, SMALL[name], tmp_path), seed).score(frames, ["a red circle"])
        found = load_reward(name, dtype=torch.float32).score(frames, ["a red circle"])
        torch.testing.assert_close(found, expected)
        assert {file.name for file in reward_path(name).parent.iterdir()} == {file for _, file in REWARDS[name].files}
    sent = rewards.sent
    assert main(["download", "hps", "internvideo2", "--endpoint", rewards.url]) == 0
    assert rewards.sent == sent  # nothing is fetched twice


def test_reward_models_below_a_folder(rewards, tmp_path):
    assert main(["download", "hps", "--folder", str(tmp_path / "here"), "--endpoint", rewards.url]) == 0
    assert present_rewards(folder=tmp_path / "here") == ["hps"]
    assert present_rewards() == []


def test_a_unet_is_no_reward_model(rewards, tmp_path, capsys):
    """What arrives is opened as what it shall be: a UNet, or another reward, is refused and removed."""
    hps, video = ("/".join(REWARDS[name].files[0]) for name in ("hps", "internvideo2"))
    for content in (rewards.files[NAME], rewards.files[video]):
        rewards.serve(hps, content)
        assert main(["download", "hps", "--endpoint", rewards.url]) == 2
        assert "HPS_v2.1_compressed.pt: cannot be used" in capsys.readouterr().err
        assert not list(reward_path("hps").parent.iterdir())


def test_a_page_is_no_vocabulary(rewards, capsys):
    rewards.serve("/".join(REWARDS["internvideo2"].files[1]), b"<html>Access denied</html>")
    assert main(["download", "internvideo2", "--endpoint", rewards.url]) == 2
    assert "vocab.txt: cannot be used" in capsys.readouterr().err
    assert [file.name for file in reward_path("internvideo2").parent.iterdir()] == ["InternVideo2-stage2_1b-224p-f4.pt"]


def test_names_agree_with_the_loader():
    """What is downloaded is what ``load`` looks for."""
    from t2v_turbo.core.checkpoints.locations import BASE_FILES, STUDENT_FILES

    files = {file.file for file in download.FILES.values()}
    assert files == {*BASE_FILES[VIDEOCRAFTER2.name], *STUDENT_FILES[VIDEOCRAFTER2.name].values()}
