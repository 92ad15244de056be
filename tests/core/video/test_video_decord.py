"""Decord as a reader: exactly PyAV's frames, or none; which reader made records is told."""

import sys
import types
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from test_video import moving
from test_video_reading import GOP, encode, numbered

from t2v_turbo.core.video import VideoError, decord_reading, read_video, write_video
from t2v_turbo.core.video.decord_reading import decord_frames, resolve_reader
from t2v_turbo.core.video.reading import frame_times
from t2v_turbo.train import preprocess
from t2v_turbo.train.config import load_config
from t2v_turbo.train.data import clips as clip_loading
from t2v_turbo.train.data.clips import read_frames
from t2v_turbo.train.data.records import read_manifest
from t2v_turbo.train.shapes.world.dataset import write_dataset

try:
    decord_reading.decord_version()
    needs_decord = pytest.mark.skipif(False, reason="")
except ImportError as error:
    needs_decord = pytest.mark.skip(reason=str(error))

TIMES = [0, 40, 80, 500, 540, 580, 1200, 1240, 2000, 2040, 2080]
ALIKE = {
    "plain.mp4": {"images": map(numbered, range(120))},
    "one-key-frame.mp4": {"images": map(numbered, range(120)), "options": {"g": "240"}},
    "no-b-frames.mov": {"images": map(numbered, range(120)), "options": {"g": "24", "bf": "0"}},
    "vp9.webm": {"images": map(numbered, range(120)), "codec": "libvpx-vp9", "options": {"g": "24", "cpu-used": "8"}},
    "variable.mp4": {"images": map(numbered, range(11)), "ms": TIMES},
    "sound.mp4": {"images": map(numbered, range(120)), "sound": 7},
    "full-chroma.mp4": {"images": moving(97, 131, 60), "pix_fmt": "yuv444p"},
    "full-range.mp4": {"images": moving(96, 130, 60), "pix_fmt": "yuvj420p"},
    "open-gop.mkv": {"images": map(numbered, range(120)), "options": {"x264-params": "keyint=24:open-gop=1:bframes=3"}},
    "wide.mkv": {"images": moving(270, 480, 60)},
}
OTHERS = {
    "clip.ts": {}, "clip.avi": {"codec": "mpeg4"}, "ten-bits.mp4": {"pix_fmt": "yuv420p10le"},
    "aspect.mkv": {"sample_aspect_ratio": Fraction(16, 11)},
    "open-gop.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=24:open-gop=1:log-level=none"}},
    "odd.webm": {"codec": "libvpx", "options": {"g": "24"}, "images": moving(47, 143, 24)},
}  # fmt: skip


def make(folder, name, images=None, **settings):
    return encode(folder / name, map(numbered, range(48)) if images is None else images, **settings)


@needs_decord
@pytest.mark.parametrize("name", ALIKE)
def test_its_frames_are_those_of_pyav(tmp_path, name):
    path = make(tmp_path, name, **{key: list(v) if key == "images" else v for key, v in ALIKE[name].items()})
    end = frame_times(path).end
    for frames, fps, start in ((2, 24, 0), (5, 8, 0), (5, 8, 0.35), (3, 24, 0.21), (4, 50, 0.5), (3, 3, end / 3)):
        expected, found = read_video(path, frames, fps, start), decord_frames(path, frames, fps, start)
        assert np.array_equal(found, expected)
    assert decord_frames(path, 10**4, 8) is None, "PyAV tells how many there are"


@needs_decord
@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)], ids=["90", "180", "270"])
def test_it_turns_clips_alike(tmp_path, matrix):
    path = make(tmp_path, "phone.mp4", moving(96, 130))
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    for i, value in zip((0, 1, 3, 4), matrix):
        content[place + 4 * i : place + 4 * i + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    assert np.array_equal(decord_frames(path, 8, 24), read_video(path))


@needs_decord
@pytest.mark.parametrize("full_chroma", [False, True])
def test_it_reads_our_own_clips_alike(tmp_path, full_chroma):
    write_video(tmp_path / "scene:%d.mp4", moving(320, 512), full_chroma=full_chroma)
    assert np.array_equal(decord_frames(tmp_path / "scene:%d.mp4", 8, 8), read_video(tmp_path / "scene:%d.mp4"))


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_might_read_otherwise_goes_to_pyav(tmp_path, name):
    path = make(tmp_path, name, **OTHERS[name])
    assert frame_times(path) is None and decord_frames(path, 2, 8) is None
    assert torch.equal(read_frames(path, 2, 8, 48, 144, reader="decord"), read_frames(path, 2, 8, 48, 144))


@pytest.mark.parametrize("name, codec", [("cut.mp4", "libx264"), ("cut.mkv", "libvpx"), ("cut.webm", "libvpx")])
def test_what_is_cut_off_goes_to_pyav(tmp_path, name, codec):
    path = encode(tmp_path / name, map(numbered, range(240)), codec, options={"g": "24"},
                  container_options={"movflags": "faststart"} if name == "cut.mp4" else {})  # fmt: skip
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    assert decord_frames(path, 8, 8) is None
    with pytest.raises(VideoError, match=r"broken after|is cut off after"):
        read_frames(path, 80, 8, 48, 144, reader="decord")


def test_times_without_decoding(tmp_path):
    path = make(tmp_path, "a.mp4", map(numbered, range(11)), ms=TIMES)
    times = frame_times(path)
    assert times.begins == pytest.approx([ms / 1000 for ms in TIMES]) and times.end > TIMES[-1] / 1000
    assert times.sampled(9, 4, 0.0) == [0, 2, 3, 5, 5, 7, 7, 7, 8]
    assert times.sampled(99, 4, 1.8) == [7, 9]


@needs_decord
@pytest.mark.parametrize("change", [{"begins": 1}, {"begins": -1}, {"late": 0.02}])
def test_what_decord_sees_otherwise_goes_to_pyav(tmp_path, monkeypatch, change):
    path = make(tmp_path, "a.mp4")
    times = frame_times(path)
    begins = times.begins[: change["begins"] or None] if change.get("begins", 0) < 0 else times.begins
    begins += (times.end,) * max(0, change.get("begins", 0))
    begins = (*begins[:20], *(time + change.get("late", 0) for time in begins[20:]))
    monkeypatch.setattr(decord_reading, "frame_times", lambda _: replace(times, begins=begins))
    assert decord_frames(path, 2, 8) is None


@needs_decord
def test_what_decord_cannot_open_goes_to_pyav(tmp_path, monkeypatch):
    times = frame_times(make(tmp_path, "a.mp4"))
    monkeypatch.setattr(decord_reading, "frame_times", lambda _: times)
    for content in (b"", b"no video" * 99, (tmp_path / "a.mp4").read_bytes()[:-700]):
        (tmp_path / "b.mp4").write_bytes(content)
        assert decord_frames(tmp_path / "b.mp4", 2, 8) is None


@needs_decord
def test_damage_inside_a_frame_passes(tmp_path):
    """Why it is off: PyAV refuses what decord paints over."""
    import av

    path = encode(tmp_path / "a.mp4", map(numbered, range(96)), options=GOP)
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size and 1 < packet.pts * packet.time_base < 2]
    packet = max((packet for packet in packets if not packet.is_keyframe), key=lambda packet: packet.size)
    content = bytearray(path.read_bytes())
    for i in range(packet.pos + packet.size // 2, packet.pos + packet.size):
        content[i] ^= 0b01010101
    path.write_bytes(content)
    assert len(read_frames(path, 24, 8, 48, 144, reader="decord")) == 24
    with pytest.raises(VideoError, match="broken after"):
        read_frames(path, 24, 8, 48, 144)


# --- the setting ---------


@pytest.fixture
def config(random_shapes, tmp_path):
    write_dataset(tmp_path / "clips", 3, seed=1, style="dense")
    settings = [f"videos={tmp_path}/clips", f"records={tmp_path}/records", f"model.folder={random_shapes}"]
    return load_config("preprocess", None, [*settings, "model.device=cpu"])


@pytest.mark.parametrize("module, problem", [
    (None, "decord cannot be loaded here"),
    (types.SimpleNamespace(__version__="3.4.0"), "the package decord here is another one, of version 3.4.0"),
])  # fmt: skip
def test_without_decord(monkeypatch, config, module, problem):
    monkeypatch.setitem(sys.modules, "decord", module)
    assert resolve_reader("pyav") == resolve_reader("auto") == "pyav"
    with pytest.raises(ValueError, match=f"reader=decord: {problem}.*; install it with pip install .*, or use reader="):
        preprocess.preprocess(replace(config, reader="decord"))
    assert not Path(config.records).exists()
    preprocess.preprocess(replace(config, reader="auto"))
    assert read_manifest(config.records)["made_from"]["reader"] is None


def test_an_unknown_reader(config):
    with pytest.raises(ValueError, match="reader=opencv is unknown; choose pyav, decord, auto"):
        replace(config, reader="opencv")


@needs_decord
def test_records_tell_their_reader_and_are_not_mixed(config, monkeypatch, tmp_path):
    preprocess.preprocess(config)
    with pytest.raises(ValueError, match=r"reader: None there, decord 0\.\d.* now"):
        preprocess.preprocess(replace(config, reader="auto"))
    read = []
    monkeypatch.setattr(clip_loading, "decord_frames", lambda *args: read.append(decord_frames(*args)) or read[-1])
    other = replace(config, reader="auto", records=str(tmp_path / "others"))
    preprocess.preprocess(other)
    assert len(read) == 3 and all(read)
    assert read_manifest(other.records)["made_from"]["reader"].startswith("decord 0.")
    one, two = ([path.read_bytes() for path in sorted(Path(c.records).glob("*.tar"))] for c in (config, other))
    assert one == two and one
