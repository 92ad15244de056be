"""Clips in and out."""

import numpy as np
import pytest
import torch

from t2v_turbo.core import video
from t2v_turbo.core.video import VideoError


@pytest.fixture
def ramp():
    """Eight grey frames from black to white, of an odd height."""
    frames = np.zeros((8, 63, 64, 3), np.uint8)
    frames[:] = np.linspace(0, 255, 8).astype(np.uint8)[:, None, None, None]
    return frames


def greys(frames):
    return [round(float(frame.mean()) / 255 * 7) for frame in frames]


def test_mp4_round_trip(tmp_path, ramp):
    path = tmp_path / "clip.mp4"
    video.write_video(path, ramp, 8, {"prompt": 'a "red" circle', "seed": "3"})
    assert greys(video.read_video(path)) == list(range(8))
    assert video.read_metadata(path)["prompt"] == 'a "red" circle'
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_gif_round_trip(tmp_path, ramp):
    path = tmp_path / "clip.gif"
    video.write_video(path, ramp, 8, {"prompt": "a circle"})
    read = video.read_video(path)
    assert read.shape == ramp.shape
    assert greys(read) == list(range(8))
    assert b"prompt: a circle" in path.read_bytes()


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


def test_bad_targets(tmp_path, ramp):
    for path, reason in (
        (tmp_path / "clip.xyz", "cannot write '.xyz'"),
        (tmp_path / "none" / "clip.mp4", "does not exist"),
        (tmp_path, "use .mp4 or .gif"),
    ):
        with pytest.raises(VideoError, match=reason):
            video.write_video(path, ramp)
    assert list(tmp_path.iterdir()) == []


def test_bad_sources(tmp_path):
    with pytest.raises(VideoError, match="no such video"):
        video.read_video(tmp_path / "none.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video" * 100)
    with pytest.raises(VideoError, match=r"broken.mp4"):
        video.read_video(broken)


def test_a_failed_write_keeps_the_old_file(tmp_path, ramp):
    path = tmp_path / "clip.mp4"
    video.write_video(path, ramp)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        video.write_video(path, ramp[..., :2])
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
