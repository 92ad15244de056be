"""Clips in and out."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from t2v_turbo.core import video
from t2v_turbo.core.video import VideoError

ALL = (".mp4", ".gif", ".webp", ".png")


@pytest.fixture
def ramp():
    """Eight grey frames from black to white, of an odd height."""
    frames = np.zeros((8, 63, 64, 3), np.uint8)
    frames[:] = np.linspace(0, 255, 8).astype(np.uint8)[:, None, None, None]
    return frames


def greys(frames):
    return [round(float(frame.mean()) / 255 * 7) for frame in frames]


def written(folder):
    return sorted(file.name for file in folder.iterdir())


# --- there and back ---------

TAGS = {"prompt": 'a "red" circle: café 中', "seed": "3", "workflow": json.dumps({"a": "b\n"}), "note": "a\n\n b: c\n"}


@pytest.mark.parametrize("suffix", ALL[:3])
def test_round_trip(tmp_path, ramp, suffix):
    path = tmp_path / f"clip{suffix}"
    video.write_video(path, ramp, 8, TAGS)
    read = video.read_video(path)
    assert read.shape[0] == 8 and read.shape[1:] in (ramp.shape[1:], (64, 64, 3))
    assert greys(read) == list(range(8))
    assert video.video_duration(path) == pytest.approx(1)
    assert video.read_metadata(path).items() >= TAGS.items()
    assert written(tmp_path) == [path.name]


def test_pictures(tmp_path, ramp):
    video.write_video(tmp_path / "100-%03d.png", ramp, 8, TAGS)
    assert written(tmp_path) == [f"100-00{i}.png" for i in range(8)]
    for i, frame in enumerate(ramp):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"100-00{i}.png")), frame)
    assert video.read_metadata(tmp_path / "100-003.png") == TAGS | {"fps": "8"}


def test_clips_of_pictures_do_not_mix(tmp_path, ramp):
    video.write_video(tmp_path / "a%02d.png", ramp)
    for name in ("a%02d.png", "a%d.png"):
        with pytest.raises(VideoError, match=r"a00\.png is there, and clips would mix"):
            video.check_writable(tmp_path / name)
    video.check_writable(tmp_path / "b%02d.png")


def test_the_tags_of_other_programs(tmp_path, ramp):
    for comment, expected in ((b"made by hand\na: b", "made by hand\na: b"), (b"caf\xe9", "caf\ufffd")):
        Image.fromarray(ramp[0]).save(tmp_path / "a.gif", comment=comment)
        assert video.read_metadata(tmp_path / "a.gif") == {"comment": expected}
    for name in ("a.gif", "a.webp", "a.png"):
        Image.fromarray(ramp[0]).save(tmp_path / name)
        assert video.read_metadata(tmp_path / name) == {}


def test_tags_that_cannot_be_encoded(tmp_path, ramp):
    """As the command line passes bytes that are no UTF-8."""
    for suffix in ALL[:3]:
        video.write_video(tmp_path / f"clip{suffix}", ramp[:2], 8, {"prompt": "caf\udce9"})
        assert video.read_metadata(tmp_path / f"clip{suffix}")["prompt"] == "caf?"


def test_a_single_frame(tmp_path, ramp):
    for suffix in ALL[:3]:
        video.write_video(tmp_path / f"clip{suffix}", ramp[3:4])
        assert greys(video.read_video(tmp_path / f"clip{suffix}")) == [3]


@pytest.mark.parametrize(
    ("fps", "frames", "expected"),
    [(None, 3, [0, 1, 2]), (4, None, [0, 2, 4, 6]), (16, 6, [0, 0, 1, 1, 2, 2]), (8, 100, list(range(8)))],
)
def test_resampling_in_time(tmp_path, ramp, fps, frames, expected):
    path = tmp_path / "clip.mp4"
    video.write_video(path, ramp, 8)
    assert greys(video.read_video(path, frames, fps)) == expected


def test_tensor_round_trip():
    frames = torch.rand(2, 3, 4, 5)
    assert (video.from_uint8(video.to_uint8(frames)) - frames).abs().max() <= 0.5 / 255 + 1e-6


# --- frame rates ---------


@pytest.mark.parametrize("suffix", ALL[:3])
@pytest.mark.parametrize("fps", [0.01, 0.3, 7, 8, 23.976, 30000 / 1001, 48, 50, 60, 240])
def test_a_file_keeps_its_rate_or_is_refused(tmp_path, ramp, suffix, fps):
    path = tmp_path / f"clip{suffix}"
    if fps > 50 and suffix != ".mp4":
        with pytest.raises(VideoError, match=rf"fps={fps} is outside 0.01..50, the rates that {suffix[1:]} carries"):
            video.write_video(path, ramp, fps)
        assert written(tmp_path) == []
        return
    video.write_video(path, ramp, fps)
    assert video.video_duration(path) == pytest.approx(8 / fps, abs=0.0051, rel=1e-6)
    assert greys(video.read_video(path)) == list(range(8))
    if suffix == ".gif":  # what is below, players show for 100 ms
        with Image.open(path) as image:
            for i in range(8):
                image.seek(i)
                assert image.info["duration"] >= 20


@pytest.mark.parametrize("fps", [0, -8, 0.0004, 241, 1e9, float("inf"), float("nan")])
def test_impossible_rates(tmp_path, ramp, fps):
    for name in ("clip.mp4", "clip.gif", "clip.webp", "%d.png"):
        with pytest.raises(VideoError, match=r"fps=.* is outside 0.01..(50|240), the rates that \w+ carries"):
            video.check_writable(tmp_path / name, fps)
        with pytest.raises(VideoError, match="is outside"):
            video.write_video(tmp_path / name, ramp, fps)
    assert written(tmp_path) == []


# --- the same file every time ---------


def moving(height, width, frames=8):
    """A disc over coloured stripes, and noise at the end."""
    y, x = np.mgrid[:height, :width]
    clip = np.stack([np.stack([3 * x + 7 * i, 2 * y + 5 * i, 2 * (x + y) - 9 * i], -1) for i in range(frames)])
    for i, image in enumerate(clip := (clip % 256).astype(np.uint8)):
        image[(y - height / 2) ** 2 + (x - width * (0.25 + i / 40)) ** 2 < (height / 5) ** 2] = 230, 25, 25
    clip[-2:] = np.random.default_rng(0).integers(0, 256, clip[-2:].shape, np.uint8)
    return clip


def dirty_the_heap(rng):
    """Allocate and release memory, as a process that samples clips has done."""
    kept = [rng.integers(0, 256, int(size), np.uint8) for size in rng.integers(1000, 400000, 60)]
    return kept[::2]


@pytest.mark.parametrize("size", [(64, 64), (40, 24), (320, 512)])
@pytest.mark.parametrize("full_chroma", [False, True])
def test_twelve_files_of_one_clip_are_one_file(tmp_path, size, full_chroma):
    clip, rng, files = moving(*size), np.random.default_rng(), set()
    for _ in range(12):
        kept = dirty_the_heap(rng)
        video.write_video(tmp_path / "clip.mp4", clip, full_chroma=full_chroma)
        files.add((tmp_path / "clip.mp4").read_bytes())
        del kept
    assert len(files) == 1


WRITER = """
import os, sys, conftest, test_video
from t2v_turbo.core.video import write_video
cores, folder, *suffixes = sys.argv[1:]
if cores == "one" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
for size in ((64, 64), (40, 24), (320, 512)):
    for suffix in suffixes:
        write_video(f"{folder}/{size[0]}{suffix}", test_video.moving(*size))
    write_video(f"{folder}/{size[0]}-full.mp4", test_video.moving(*size), full_chroma=True)
"""


def test_other_processes_write_the_same_file(tmp_path):
    """Whatever is in fresh memory (glibc fills it) and on however many cores."""
    found = []
    for number, (fill, cores) in enumerate([("0", "all"), ("85", "all"), ("254", "one")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        places = os.pathsep.join([str(ROOT / "tests"), str(Path(__file__).parent)])
        environment = os.environ | {"MALLOC_PERTURB_": fill, "PYTHONPATH": places}
        command = [sys.executable, "-c", WRITER, cores, str(folder), *ALL[:3]]
        subprocess.run(command, check=True, env=environment, timeout=300)
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(found[0]) == 12
    assert found[0] == found[1] == found[2]


# --- colour ---------

SATURATED = [*itertools.product((0, 255), repeat=3), (230, 25, 25), (25, 180, 45), (30, 60, 230), (165, 40, 215)]
# A decoder's numbers of what the tags mean: BT.601's matrix, BT.709's primaries, sRGB, TV range.
MEANING = {"colorspace": 6, "color_primaries": 1, "color_trc": 13, "color_range": 1}


@pytest.mark.parametrize("height", [64, 720])
@pytest.mark.parametrize("full_chroma", [False, True])
def test_colours_are_what_the_tags_say(tmp_path, height, full_chroma):
    bars = np.uint8([SATURATED]).repeat(40, 1).repeat(height, 0)
    path = tmp_path / "clip.mp4"
    video.write_video(path, np.stack([bars] * 3), full_chroma=full_chroma)
    with av.open(str(path)) as file:
        context = file.streams.video[0].codec_context
        assert {name: getattr(context, name) for name in MEANING} == MEANING
        assert b"colrnclx" in path.read_bytes()  # of the container, which some programs ask instead
        (frame, *_) = file.decode(video=0)
        # Told nothing but what the frame itself says.
        as_tagged = frame.to_ndarray(
            format="rgb24", src_colorspace=int(frame.colorspace), src_color_range=int(frame.color_range)
        )
    for pixels in (as_tagged, *video.read_video(path)):
        for i, colour in enumerate(SATURATED):
            area = pixels[8:-8, 40 * i + 8 : 40 * i + 32].astype(int)
            assert abs(area - colour).max() <= 2, colour


def test_full_chroma(tmp_path):
    """A clip of single coloured pixels, which halved chroma would smear."""
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[:, ::2, ::2] = 255, 0, 0
    errors = {}
    for full in (True, False):
        video.write_video(tmp_path / "clip.mp4", frames, full_chroma=full)
        errors[full] = abs(video.read_video(tmp_path / "clip.mp4").astype(int) - frames).mean()
    assert errors[True] < 5 < 25 < errors[False]


# --- what cannot be written, or read ---------


def test_bad_targets(tmp_path, ramp):
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "clip.xyz", "cannot write '.xyz'; use .mp4, .gif, .webp or .png"),
        (tmp_path / "none" / "clip.mp4", "does not exist"),
        (tmp_path / "file" / "clip.mp4", "does not exist"),
        (tmp_path, "cannot write 'no suffix'"),
        (tmp_path / ("n" * 300 + ".mp4"), "cannot write here"),
        (tmp_path / "clip.png", r"such as .*%05d.png, or write .mp4, .gif or .webp"),
        (tmp_path / "50%.png", "put their number into the name"),
        (tmp_path / "%d-%d.png", "put their number into the name"),
        (tmp_path / "%s%d.png", "put their number into the name"),
    ):
        for use in (video.check_writable, lambda path: video.write_video(path, ramp)):
            with pytest.raises(VideoError, match=reason):
                use(path)
    assert written(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "name", ["scene:1.mp4", "concat:a.mp4", "pipe:1.mp4", "file:x.mp4", "%d.mp4", "-.mp4", "-y.mp4", "a|b.mp4",
             "é'\".mp4", "scene:1.gif", "http:x.gif", "%d.gif", "-.webp", "imageio:x.webp",
             "a.zip.gif", "pipe:1-%d.png"],
)  # fmt: skip
def test_names_that_mean_something_to_ffmpeg(tmp_path, monkeypatch, ramp, name):
    """Relative to the working folder, as on the command line."""
    monkeypatch.chdir(tmp_path)
    video.write_video(name, ramp, 8, {"prompt": "a"})
    assert written(tmp_path) == ([f"pipe:1-{i}.png" for i in range(8)] if name.endswith("png") else [name])
    name = name.replace("1-%d", "1-0")
    assert greys(video.read_video(name)) == ([0] if name.endswith("png") else list(range(8)))
    assert video.read_metadata(name)["prompt"] == "a"


def test_bad_frames(tmp_path, ramp):
    for frames in (ramp[0], ramp[:0], ramp.astype(np.float32), ramp[..., :2], ramp[..., [0, 1, 2, 2]]):
        for name in ("clip.mp4", "clip.gif", "%d.png"):
            with pytest.raises(ValueError, match=r"frames must be uint8 \(F, H, W, 3\), not"):
                video.write_video(tmp_path / name, frames)
    assert written(tmp_path) == []


def test_bad_sources(tmp_path):
    with pytest.raises(VideoError, match="no such video"):
        video.read_video(tmp_path / "none.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video" * 100)
    with pytest.raises(VideoError, match=r"broken.mp4"):
        video.read_video(broken)
    for head in (b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"\0" * 99):
        broken.write_bytes(head)
        with pytest.raises(VideoError, match=r"broken.mp4"):
            video.read_metadata(broken)


def test_a_failed_write_keeps_the_old_file(tmp_path, ramp):
    resource = pytest.importorskip("resource")
    for name in ("clip.mp4", "clip.gif"):
        video.write_video(tmp_path / name, ramp)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("clip.mp4", "clip.gif", "clip.webp", "%d.png"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a disk that is full
        try:
            with pytest.raises(OSError, match="File too large"):
                video.write_video(tmp_path / name, moving(64, 64))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
