"""Clips of every kind are read as a player shows them; a damaged one is an error, never a silent replacement."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from t2v_turbo.core.video import (
    VIDEO_SUFFIXES,
    VideoError,
    iterate_video,
    read_metadata,
    read_video,
    reading,
    video_duration,
)
from t2v_turbo.train.config import PreprocessConfig
from t2v_turbo.train.data.sources import list_clips
from t2v_turbo.train.scoring.requests import sort_words

GOP = {"g": "24", "bf": "2"}


def numbered(i, height=48, width=144):
    """A frame that carries its number: nine bars, the bits, from left to right."""
    bits = [225 if i >> bit & 1 else 30 for bit in range(9)]
    return np.repeat(np.repeat(np.uint8([bits]), width // 9, 1), height, 0)[..., None].repeat(3, -1)


def numbers(frames):
    """The numbers back, out of the middle of every bar."""
    bars = [frame[8:-8].mean((0, 2)).reshape(9, -1)[:, 4:-4].mean(1) > 128 for frame in frames]
    return [int(sum(1 << bit for bit in np.flatnonzero(bar))) for bar in bars]


def encode(path, images, codec="libx264", pix_fmt="yuv420p", fps=24, ms=None, sound=0, options=GOP, **settings):
    """Write images as a video; ``ms`` are the times of a variable frame rate, ``sound`` its seconds."""
    images = list(images)
    options_of_file, kind = settings.pop("container_options", {}), settings.pop("format", None)
    with av.open(str(path), "w", format=kind, options=options_of_file) as file:
        file.metadata.update(settings.pop("tags", {}))
        stream = file.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], pix_fmt
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        noise = file.add_stream("aac", rate=16000) if sound else None
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[-1] == 4 else "rgb24")
            if ms:
                frame.pts, frame.time_base = ms[i], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        for i in range(int(sound * 16000 / 1024)):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate, samples.pts = 16000, i * 1024
            file.mux(noise.encode(samples))
        if noise:
            file.mux(noise.encode())
    return path


@pytest.fixture
def ten_seconds(tmp_path):
    """240 numbered frames with a key frame every second, its index in front."""
    return encode(tmp_path / "ten.mp4", map(numbered, range(240)), container_options={"movflags": "faststart"})


@pytest.fixture
def decoded_shots(monkeypatch):
    """How many frames every pass over a file has decoded."""
    decode, passes = reading._decoded, []

    def counting(*args):
        passes.append(0)
        for shot in decode(*args):
            passes[-1] += 1
            yield shot

    monkeypatch.setattr(reading, "_decoded", counting)
    return passes


# --- time ---------

CONTAINERS = {
    "b-frames.mp4": {},
    "open-gop.mkv": {"options": {"x264-params": "keyint=24:open-gop=1:bframes=3"}},
    "open-gop-hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=24:open-gop=1:log-level=none"}},
    "no-key-frames.mp4": {"options": {"x264-params": "keyint=240:intra-refresh=1"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "24"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "24", "cpu-used": "8", "deadline": "realtime"}},
    "unfinished.webm": {"codec": "libvpx", "options": {"g": "24"}, "container_options": {"live": "1"}},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "sound.mkv": {"sound": 13},
    "sound.ts": {"sound": 13},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "options": {}},
    "motion-jpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {}},
    "no-times.avi": {},
    "b-frames.avi": {"codec": "mpeg4"},
    "open-gop.avi": {"options": {"x264-params": "keyint=24:open-gop=1:bframes=3"}},
    "motion-jpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {}},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": GOP | {"b": "4M"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": GOP | {"b": "4M"}},
    "windows.wmv": {"codec": "wmv2", "options": {"g": "24", "b": "4M"}},
    "b-frames.asf": {},
    "flash.flv": {"codec": "flv", "options": {"g": "24", "b": "4M"}},
    "b-frames.flv": {},
    "bare.h264": {},
    "bare.hevc": {"codec": "libx265", "options": {"x265-params": "keyint=24:log-level=none"}},
    "bare.m1v": {"codec": "mpeg1video", "options": GOP | {"b": "4M"}},
    "bare.m2v": {"codec": "mpeg2video", "options": GOP | {"b": "4M"}},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_any_part_of_any_container(tmp_path, name):
    path = encode(tmp_path / name, map(numbered, range(120)), **CONTAINERS[name])
    assert video_duration(path) == pytest.approx(5, abs=0.002 if path.suffix != ".asf" else 0.1)
    assert numbers(read_video(path)) == list(range(120))
    assert numbers(read_video(path, 5, 8)) == [0, 3, 6, 9, 12]
    assert numbers(read_video(path, 5, 8, 3.5)) == [84, 87, 90, 93, 96]
    assert numbers(read_video(path, 3, None, 3.5)) == [84, 85, 86]
    assert numbers(read_video(path, None, 8, 4.5)) == [108, 111, 114, 117]


def test_a_late_start_is_not_decoded_from_the_beginning(ten_seconds, decoded_shots):
    assert numbers(read_video(ten_seconds, 3, 8, 8.5)) == [204, 207, 210]
    assert len(decoded_shots) == 1 and decoded_shots[0] < 24 + 12


def test_only_what_is_wanted_is_decoded(ten_seconds, decoded_shots):
    images = iterate_video(ten_seconds)
    assert numbers(itertools.islice(images, 3)) == [0, 1, 2]
    assert decoded_shots == [4]


def test_frames_that_must_be_counted_are_sought_only_where_that_is_sure(tmp_path, decoded_shots):
    """Without B-frames a key frame's place is told by its packet's; with them, nothing tells it."""
    path = encode(tmp_path / "a.avi", map(numbered, range(120)), "mpeg4", options={"g": "24", "b": "4M"})
    assert numbers(read_video(path, 3, None, 3.5)) == [84, 85, 86]
    assert len(decoded_shots) == 1 and decoded_shots[0] < 36
    path = encode(tmp_path / "b.avi", map(numbered, range(120)), "mpeg4", options=GOP | {"b": "4M"})
    assert numbers(read_video(path, 3, None, 3.5)) == [84, 85, 86]
    assert decoded_shots[-1] == 88


def test_seeking_without_an_index_may_land_too_late(tmp_path, decoded_shots):
    path = encode(tmp_path / "long.ts", (numbered(i) for i in range(500)), options={"g": "48"})
    assert numbers(read_video(path, 3, 24, 19.9)) == [477, 478, 479]
    assert len(decoded_shots) == 2 and max(decoded_shots) < 400


@pytest.mark.parametrize("name, codec", [("clip.mp4", "libx264"), ("clip.webm", "libvpx-vp9")])
def test_variable_frame_rate(tmp_path, name, codec):
    times = [0, 40, 80, 500, 540, 580, 1200, 1240, 2000, 2040, 2080]
    path = encode(tmp_path / name, map(numbered, range(11)), codec, ms=times)
    assert numbers(read_video(path)) == list(range(11))
    assert numbers(read_video(path, 9, 4)) == [0, 2, 3, 5, 5, 7, 7, 7, 8]
    assert numbers(read_video(path, 3, 4, 0.6)) == [5, 5, 5]
    assert len(read_video(path, 200, 50)) == pytest.approx(50 * video_duration(path), abs=1)


def test_a_slow_clip_lasts_to_the_end_of_its_last_frame(tmp_path):
    path = encode(tmp_path / "slow.mp4", map(numbered, range(4)), fps=2)
    assert numbers(read_video(path, 100, 8)) == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_a_single_frame(tmp_path):
    path = encode(tmp_path / "one.mp4", [numbered(7)])
    assert numbers(read_video(path)) == numbers(read_video(path, 8, 8)) == [7]
    assert video_duration(path) == pytest.approx(1 / 24, abs=1e-3)


@pytest.mark.parametrize("fps, start", [(0, 0), (-8, 0), (float("nan"), 0), (8, -1), (8, float("nan"))])
def test_impossible_times_are_refused(ten_seconds, fps, start):
    with pytest.raises(ValueError, match="must be above 0, start at least 0"):
        read_video(ten_seconds, 2, fps, start)


def test_a_start_behind_the_end(ten_seconds):
    with pytest.raises(VideoError, match=r"is over before start=10\.5 s"):
        read_video(ten_seconds, 1, 8, 10.5)


# --- picture ---------

CORNERS = np.uint8([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [250, 250, 10]]])


def corners(height=64, width=96):
    """Red, green / blue, yellow."""
    return CORNERS.repeat(height // 2, 0).repeat(width // 2, 1)


def assert_corners(image, expected, tolerance=12):
    found = image[[4, 4, -5, -5], [4, -5, 4, -5]].reshape(2, 2, 3).astype(int)
    np.testing.assert_allclose(found, expected, atol=tolerance)


# The display matrix of an mp4 track turns the picture clockwise: 90 degrees as an upright phone writes it, 180, 270.
@pytest.mark.parametrize("matrix, turns", [((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)])
def test_rotation(tmp_path, matrix, turns):
    path = encode(tmp_path / "phone.mp4", [corners()] * 3)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    for i, value in zip((0, 1, 3, 4), matrix):
        content[place + 4 * i : place + 4 * i + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    (image,) = read_video(path, 1)
    assert image.shape == ((96, 64, 3) if turns % 2 else (64, 96, 3))
    assert_corners(image, np.rot90(CORNERS, -turns))


@pytest.mark.parametrize("aspect, width", [(Fraction(16, 11), 140), (Fraction(1, 2), 48), (Fraction(10), 96)])
def test_pixels_become_square(tmp_path, aspect, width):
    path = encode(tmp_path / "wide.mkv", [corners()] * 2, sample_aspect_ratio=aspect)
    (image,) = read_video(path, 1)
    assert image.shape == (64, width, 3)
    assert_corners(image, CORNERS)


@pytest.mark.parametrize(
    "name, codec, pix_fmt, size",
    [("a.webm", "libvpx-vp9", "yuv420p", (119, 161)), ("a.mp4", "libx264", "yuv444p", (119, 161)),
     ("a.mkv", "ffv1", "yuv420p", (17, 901)), ("b.mkv", "ffv1", "gray", (901, 17)), ("c.mkv", "ffv1", "bgra", (1, 1))],
)  # fmt: skip
def test_odd_sizes(tmp_path, name, codec, pix_fmt, size):
    path = encode(tmp_path / name, [np.full((*size, 3), 90, np.uint8)] * 2, codec, pix_fmt, options={})
    images = read_video(path)
    assert images.shape == (2, *size, 3)
    assert abs(images.astype(int) - 90).mean() < 0.5


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv420p10le", "yuv444p10le", "yuv422p"])
@pytest.mark.parametrize("colorspace", [1, 5], ids=["bt709", "bt601"])
def test_colours(tmp_path, pix_fmt, colorspace):
    """Range, depth and matrix: a matrix mixed up makes these colours wrong by 20 and more."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=8, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, 1 + (pix_fmt[3] == "j")
        frame = av.VideoFrame.from_ndarray(corners(), format="rgb24")
        full = {"src_color_range": 2, "dst_color_range": stream.codec_context.color_range}
        frame = frame.reformat(format=pix_fmt, src_colorspace=5, dst_colorspace=colorspace, **full)
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert_corners(read_video(path)[0], CORNERS, 4)


def test_ten_bits_of_grey(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(32, 0).repeat(3, 2)
    path = encode(tmp_path / "ramp.mkv", [ramp], "ffv1", "yuv444p10le", options={})
    np.testing.assert_allclose(read_video(path)[0].astype(int), ramp, atol=2)


@pytest.mark.parametrize(
    "name, codec, pix_fmt, options",
    [("a.webm", "libvpx-vp9", "yuva420p", {"b": "4M"}), ("a.mov", "png", "rgba", {}), ("a.mkv", "ffv1", "bgra", {}),
     ("b.webm", "libvpx", "yuva420p", {"b": "4M", "auto-alt-ref": "0"})],
)  # fmt: skip
def test_transparency_is_laid_over_black(tmp_path, name, codec, pix_fmt, options):
    image = np.concatenate([corners(), np.full((64, 96, 1), 255, np.uint8)], -1)
    image[:, :32, 3], image[:, 32:64, 3] = 0, 128
    path = encode(tmp_path / name, [image] * 3, codec, pix_fmt, options=options)
    frame = read_video(path)[2].astype(int)
    assert (frame[:, 4:28] <= 6).all()
    np.testing.assert_allclose(frame[8:24, 54:60], np.broadcast_to([5, 125, 5], (16, 6, 3)), atol=8)
    np.testing.assert_allclose(frame[8:24, 70:90], np.broadcast_to([10, 250, 10], (16, 20, 3)), atol=10)


def test_palettes(tmp_path):
    colours = np.zeros((256, 4), np.uint8)
    colours[:4] = [[255, *colour] for colour in CORNERS.reshape(4, 3)]  # ARGB
    index = np.uint8([[0, 1], [2, 3]]).repeat(32, 0).repeat(48, 1)
    with av.open(str(tmp_path / "palette.mov"), "w") as file:
        stream = file.add_stream("png", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "pal8"
        file.mux(stream.encode(av.VideoFrame.from_ndarray((index, colours), format="pal8")))
        file.mux(stream.encode())
    assert_corners(read_video(tmp_path / "palette.mov")[0], CORNERS, 0)


# --- gif and webp ---------


@pytest.fixture(params=["gif", "webp"])
def animation(tmp_path, request):
    """Four frames of changing length, each one quarter red and the rest transparent, which the next one replaces."""
    frames = np.zeros((4, 20, 20, 4), np.uint8)
    for i, frame in enumerate(frames):
        frame[5 * i : 5 * i + 5] = 250, 0, 0, 255
    images = [Image.fromarray(frame) for frame in frames]
    settings = {"disposal": 2} if request.param == "gif" else {"lossless": True}
    path = tmp_path / f"clip.{request.param}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 20, 300, 500], loop=0, **settings)
    return path, frames[..., :3]


def test_animations(animation):
    path, frames = animation
    assert np.array_equal(read_video(path), frames)
    assert video_duration(path) == pytest.approx(0.92)
    assert np.array_equal(read_video(path, None, 10), frames[[0, 1, 2, 2, 2, 3, 3, 3, 3, 3]])
    assert np.array_equal(read_video(path, 2, 10, 0.35), frames[[2, 3]])


def test_truncated_animations(animation):
    path, frames = animation
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.8)])
    with pytest.raises(VideoError, match=f"{path.name}: broken after"):
        read_video(path)
    if path.suffix == ".gif":  # Pillow refuses a truncated webp as a whole
        assert np.array_equal(read_video(path, 2), frames[:2])


def test_a_gif_that_is_cut_anywhere(animation):
    """Also between frames, and in what stands before a frame; behind its end may be anything."""
    path, frames = animation
    if path.suffix == ".webp":
        return
    content = path.read_bytes()
    for length in range(6, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(VideoError, match=r"clip\.gif: broken after 0\.\d\d s"):
            read_video(path)
    for behind in (b"", b"\0" * 9, b"\n", b"<html>"):
        path.write_bytes(content + behind)
        assert np.array_equal(read_video(path), frames)


def test_delays_as_browsers_have_them(tmp_path):
    images = [Image.fromarray(numbered(i)) for i in range(3)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[0, 10, 20])
    assert video_duration(tmp_path / "a.gif") == pytest.approx(0.22)


def test_what_a_file_holds_counts_not_its_name(tmp_path):
    encode(tmp_path / "clip.mp4", map(numbered, range(5))).rename(tmp_path / "clip.gif")
    assert numbers(read_video(tmp_path / "clip.gif")) == list(range(5))


# --- streams ---------


def test_a_longer_sound_does_not_lengthen_the_clip(tmp_path):
    for name in ("a.mp4", "a.mkv", "b.mkv", "a.ts"):
        path = encode(tmp_path / name, map(numbered, range(48)), sound=4)
        if name == "b.mkv":  # as programs other than FFmpeg write it
            path.write_bytes(path.read_bytes().replace(b"DURATION", b"XXXXXXXX"))
        assert video_duration(path) == pytest.approx(2, abs=0.001)
        assert numbers(read_video(path, 100, 8)) == list(range(0, 48, 3))


def test_a_cover_picture_is_not_the_clip(tmp_path):
    with av.open(str(tmp_path / "clip.mp4"), "w") as file:
        cover, stream = file.add_stream("png", rate=1), file.add_stream("libx264", rate=24)
        cover.disposition = av.stream.Disposition.attached_pic.value
        cover.pix_fmt, stream.pix_fmt = "rgb24", "yuv420p"
        for each in (cover, stream):
            each.height, each.width = 48, 144
        for each, images in ((cover, [numbered(99)]), (stream, map(numbered, range(5)))):
            for image in images:
                file.mux(each.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(each.encode())
    assert numbers(read_video(tmp_path / "clip.mp4")) == list(range(5))


def test_sound_alone(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate = 16000
        file.mux(stream.encode(samples))
        file.mux(stream.encode())
    for use in (read_video, video_duration):
        with pytest.raises(VideoError, match="holds no video stream"):
            use(tmp_path / "sound.mp4")


@pytest.mark.parametrize("sound", [True, False])
def test_a_cover_picture_alone(tmp_path, sound):
    with av.open(str(tmp_path / "song.mp4"), "w") as file:
        cover = file.add_stream("png", rate=1)
        cover.disposition = av.stream.Disposition.attached_pic.value
        cover.height, cover.width, cover.pix_fmt = 48, 144, "rgb24"
        noise = file.add_stream("aac", rate=16000) if sound else None
        file.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1), format="rgb24")))
        file.mux(cover.encode())
        for i in range(32 if sound else 0):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate, samples.pts = 16000, i * 1024
            file.mux(noise.encode(samples))
        if noise:
            file.mux(noise.encode())
    reason = "only sound with a cover picture" if sound else "only a cover picture"
    for use in (read_video, video_duration):
        with pytest.raises(VideoError, match=f"song.mp4: holds no video, {reason}$"):
            use(tmp_path / "song.mp4")


def test_a_single_frame_without_times_has_a_length(tmp_path):
    """Or a rate by its length would be a division by zero."""
    for name in ("a.h264", "a.ts", "a.avi", "a.mpg", "a.flv"):
        codec = {".mpg": "mpeg1video", ".flv": "flv"}.get(name[1:], "libx264")
        path = encode(tmp_path / name, [numbered(7)], codec, options={})
        assert numbers(read_video(path)) == [7]
        # Of a lone picture of a transport stream FFmpeg knows the field alone.
        assert video_duration(path) == pytest.approx(1 / (48 if name == "a.ts" else 24), abs=2e-3)


def test_no_frames(tmp_path):
    path = encode(tmp_path / "a.mp4", [numbered(1)], container_options={"movflags": "frag_keyframe+empty_moov"})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moof") - 4])
    with pytest.raises(VideoError, match=r"a\.mp4: holds no (frames|video stream)"):
        read_video(path)


def test_a_change_of_size(tmp_path):
    parts = [encode(tmp_path / f"{i}.ts", [corners(64, 96 + 32 * i)] * 12) for i in range(2)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert read_video(path, 8).shape == (8, 64, 96, 3)
    with pytest.raises(VideoError, match="changes its size from 96x64 to 128x64"):
        read_video(path)


def test_tags_of_another_encoding(tmp_path):
    path = encode(tmp_path / "old.mkv", [numbered(1)] * 2, tags={"title": "caf__ noir"})
    path.write_bytes(path.read_bytes().replace(b"caf__", b"caf\xe9\xe9"))
    assert numbers(read_video(path)) == [1, 1]
    assert read_metadata(path)["title"] == "caf\ufffd\ufffd noir"


# --- what a folder holds ---------

CODECS = {  # by what each container may hold; h264 where nothing is said
    ".mpg": "mpeg2video", ".mpeg": "mpeg1video", ".mpe": "mpeg1video", ".vob": "mpeg2video", ".m1v": "mpeg1video",
    ".m2v": "mpeg2video", ".wmv": "wmv2", ".asf": "msmpeg4", ".webm": "libvpx", ".ogv": "libvpx", ".ivf": "libvpx",
    ".hevc": "libx265", ".265": "libx265", ".mxf": "mpeg2video", ".dv": "dvvideo", ".rm": "rv20",
    ".y4m": "wrapped_avframe", ".mjpeg": "mjpeg", ".mjpg": "mjpeg", ".divx": "mpeg4", ".gif": "gif", ".apng": "apng",
    ".webp": "libwebp_anim",
}  # fmt: skip
PIXELS = {"mjpeg": "yuvj420p", "dvvideo": "yuv411p", "gif": "rgb8", "apng": "rgb24", "libwebp_anim": "bgra"}
FORMATS = {  # where the suffix does not tell FFmpeg what to write
    ".qt": "mov", ".divx": "avi", ".mpe": "mpeg", ".ogv": "ogg", ".mjpg": "mjpeg", ".264": "h264", ".265": "hevc",
    ".y4m": "yuv4mpegpipe", ".m4v": "mp4", ".webp": "webp",
}  # fmt: skip


def test_the_usual_suffixes_are_there():
    usual = "mp4 m4v mov 3gp webm mkv avi mpg mpeg vob ts mts m2ts wmv asf flv ogv mxf gif webp"
    assert {f".{name}" for name in usual.split()} <= set(VIDEO_SUFFIXES)


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_suffix_is_of_a_file_that_is_read(tmp_path, suffix):
    codec = CODECS.get(suffix, "libx264")
    size = (480, 720) if suffix == ".dv" else (144, 176) if suffix in (".rm",) else (48, 144)
    images = [numbered(i, size[0], size[1] // 9 * 9) for i in range(12)]
    images = [np.pad(image, ((0, 0), (0, size[1] - image.shape[1]), (0, 0)), mode="edge") for image in images]
    rate = Fraction(30000, 1001) if suffix == ".dv" else 24
    options = {".hevc": {"x265-params": "log-level=none"}, ".265": {"x265-params": "log-level=none"}}.get(suffix, {})
    place = tmp_path / f"clip{suffix}"
    encode(place, images, codec, PIXELS.get(codec, "yuv420p"), rate, options=options, format=FORMATS.get(suffix))
    found = read_video(place)
    columns = np.arange(size[1] // 9 * 9) * found.shape[2] // size[1]  # a dv's pixels were not square
    assert numbers(found[:, :, columns]) == list(range(12))
    assert [clip.name for clip in list_clips(PreprocessConfig(videos=str(tmp_path), records=""))] == [place.name]
    assert sort_words([place.name, "a prompt"]) == ([place.name], ["a prompt"])


# --- damage ---------


def test_a_truncated_mp4(ten_seconds):
    content = ten_seconds.read_bytes()
    ten_seconds.write_bytes(content[: len(content) * 6 // 10])
    assert numbers(read_video(ten_seconds, 8, 8)) == list(range(0, 24, 3))
    for start in (0.0, 7.0):
        with pytest.raises(VideoError, match=r"ten\.mp4: broken after \d\.\d\d s"):
            read_video(ten_seconds, 80, 8, start)


@pytest.mark.parametrize("name, sound", [("cut.webm", 0), ("cut.mkv", 10)])
def test_a_truncated_matroska(tmp_path, name, sound):
    path = encode(tmp_path / name, map(numbered, range(240)), "libvpx", options={"g": "24"}, sound=sound)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    assert numbers(read_video(path, 8, 8)) == list(range(0, 24, 3))
    with pytest.raises(VideoError, match=rf"{name}: is cut off after \d\.\d\d of 10\.00 s"):
        read_video(path, 80, 8)


def test_damage_in_the_middle(ten_seconds):
    with av.open(str(ten_seconds)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size and 5 <= packet.pts * packet.time_base < 6]
    packet = max((packet for packet in packets if not packet.is_keyframe), key=lambda packet: packet.size)
    content = bytearray(ten_seconds.read_bytes())
    for i in range(packet.pos + packet.size // 2, packet.pos + packet.size):  # a decoder would paint over this
        content[i] ^= 0b01010101
    ten_seconds.write_bytes(content)
    assert numbers(read_video(ten_seconds, 24, 8)) == list(range(0, 72, 3))
    assert numbers(read_video(ten_seconds, 8, 8, 8)) == list(range(192, 216, 3))  # behind it, by seeking
    with pytest.raises(VideoError, match="broken after"):
        read_video(ten_seconds)


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"\0" * 999, b"#EXTM3U\n#EXTINF:9,\nten.mp4\n#EXT-X-ENDLIST\n"]
)
def test_what_is_no_clip(tmp_path, ten_seconds, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    for use in (read_video, video_duration):
        with pytest.raises(VideoError, match=r"bad\.mp4"):
            use(path)


def test_a_file_that_is_not_there(tmp_path):
    for use in (read_video, video_duration, read_metadata):
        for path, reason in ((tmp_path / "none.mp4", "no such video file"), (tmp_path, "is a folder")):
            with pytest.raises(VideoError, match=reason):
                use(path)
