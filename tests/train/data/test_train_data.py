"""Clips for preprocessing: which part of a longer video is taken, and how little of it is in memory."""

import gc
import weakref

import numpy as np
import pytest
import torch

from t2v_turbo.core.video import read_video, write_video
from t2v_turbo.train.config import PreprocessConfig
from t2v_turbo.train.data import clips as clip_loading
from t2v_turbo.train.data.clips import ClipDataset, choose_start, read_frames
from t2v_turbo.train.data.sources import ClipError, list_clips
from t2v_turbo.train.seeds import generator_for


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Four seconds at 24 fps that brighten by two levels a frame."""
    path = tmp_path_factory.mktemp("video") / "long.mp4"
    frames = np.zeros((96, 64, 64, 3), np.uint8)
    frames[:] = (2 * np.arange(96, dtype=np.uint8) + 20)[:, None, None, None]
    write_video(path, frames, 24)
    path.with_suffix(".txt").write_text("a grey wall")
    return path


def seconds(frames):
    """When each frame (F, 3, H, W) is shown in the video."""
    return (frames.float().mean((1, 2, 3)) - 20) / 2 / 24


def dataset(video, **settings):
    config = PreprocessConfig(videos=str(video.parent), records="r", **settings)
    return ClipDataset(list_clips(config), config, 8, (8, 32, 32))


def test_the_start_is_chosen_among_all_that_fit(video):
    generator = generator_for("test")
    starts = torch.tensor([choose_start(video, 1.0, "random", generator) for _ in range(200)])
    assert starts.min() >= 0 and starts.max() <= 3 and starts.min() < 0.2 and starts.max() > 2.8
    assert abs(starts.mean() - 1.5) < 0.2
    assert choose_start(video, 1.0, "first", generator) == 0
    assert choose_start(video, 1.0, "middle", generator) == pytest.approx(1.5)
    for where in ("middle", "random"):
        assert choose_start(video, 4.0, where, generator) == pytest.approx(0, abs=1e-6)
        assert choose_start(video, 9.0, where, generator) == 0


@pytest.mark.parametrize("where, expected", [("first", 0), ("middle", 1.5)])
def test_the_part_that_is_wanted(video, where, expected):
    clip = dataset(video, start=where)[0]
    assert clip.problem is None and clip.start == pytest.approx(expected)
    torch.testing.assert_close(seconds(clip.frames), expected + torch.arange(8) / 8, atol=0.03, rtol=0)


def test_a_random_part_is_the_seeds_and_the_frames_are_from_there(video):
    clips = [dataset(video, seed=seed)[0] for seed in range(6)]
    again = dataset(video, seed=3)[0]
    assert again.start == clips[3].start and torch.equal(again.frames, clips[3].frames)
    assert len({clip.start for clip in clips}) == 6
    for clip in clips:
        # The newest frame at an instant began up to 1/24 s before it.
        lag = clip.start + torch.arange(8) / 8 - seconds(clip.frames)
        assert lag.min() > -0.02 and lag.max() < 1 / 24 + 0.02


def test_the_last_start_that_fits_gives_all_frames(video):
    assert read_frames(video, 8, 8, 32, 32, 3.0).shape == (8, 3, 32, 32)
    with pytest.raises(ClipError, match=r"too short: 7 of 8 frames at 8 fps from 3\.20 s on"):
        read_frames(video, 8, 8, 32, 32, 3.2)


@pytest.mark.parametrize("where", ["first", "middle", "random"])
def test_a_video_that_is_too_short_or_broken_says_so(video, tmp_path, where):
    write_video(tmp_path / "short.mp4", read_video(video, 10), 24)
    (tmp_path / "broken.mp4").write_bytes(video.read_bytes()[:2000])
    for name in ("short.txt", "broken.txt"):
        (tmp_path / name).write_text("a wall")
    clips = dataset(tmp_path / "short.mp4", start=where)
    problems = {clips[i].clip.name: clips[i].problem for i in range(2)}
    too_short = "too short: 4 of 8 frames at 8 fps; take a longer clip, or fewer frames"
    assert problems["short.mp4"] == f"{tmp_path}/short.mp4: {too_short}"
    assert "broken.mp4" in problems["broken.mp4"]


FLAGS = {
    True: ["1", "1.0", "true", "TRUE", " yes ", "on"],
    False: ["0", "0.0", "False", "no", "Off", "none", ""],
}


def test_a_table_tells_whether_motion_guides(tmp_path):
    table = tmp_path / "table.csv"
    for wanted, words in FLAGS.items():
        table.write_text("relpath,text,use_motion_guide\n" + "".join(f"{word}.mp4,a wall,{word}\n" for word in words))
        clips = list_clips(PreprocessConfig(videos=str(table), records="r"))
        assert {clip.name: clip.use_motion_guide for clip in clips} == {f"{word}.mp4": wanted for word in words}
    table.write_text("relpath,text,use_motion_guide\na.mp4,a wall,1\nb.mp4,a wall,offf\n")
    problems = {clip.name: clip.problem for clip in list_clips(PreprocessConfig(videos=str(table), records="r"))}
    told = "use_motion_guide=offf is neither yes nor no: write true or false"
    assert problems == {"a.mp4": None, "row 2": told}
    table = table.with_suffix(".json")
    table.write_text('[{"relpath": "a", "text": "a"}, {"relpath": "b", "text": "b", "use_motion_guide": false}]')
    clips = list_clips(PreprocessConfig(videos=str(table), records="r"))
    assert {clip.name: clip.use_motion_guide for clip in clips} == {"a": True, "b": False}


def test_one_frame_in_full_size_is_in_memory(video, monkeypatch):
    alive, most = [], 0

    def watched(*args):
        nonlocal most
        for image in read_video(*args):
            image = image.repeat(4, 0).repeat(4, 1)
            alive.append(weakref.ref(image))
            gc.collect()
            most = max(most, sum(image() is not None for image in alive))
            yield image

    monkeypatch.setattr(clip_loading, "iterate_video", watched)
    frames = read_frames(video, 8, 8, 32, 32)
    torch.testing.assert_close(seconds(frames), torch.arange(8) / 8, atol=0.03, rtol=0)
    assert len(alive) == 8 and most <= 2  # the last one and the next
