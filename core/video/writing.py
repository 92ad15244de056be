"""Write clips: mp4 (H.264) through PyAV; gif, webp and numbered PNG pictures through imageio.

The same frames give the same file, byte for byte, whatever the process did before and however many cores it may use.

An mp4 is not written through imageio's PyAV plugin: that takes neither options of the encoder nor tags of colour, so
x264 would encode at its default quality and with its macroblock tree, which makes other pixels every time (see
``X264``), and readers would have to guess the colours.
"""

from __future__ import annotations

import os
import re
import shutil
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from PIL.PngImagePlugin import PngInfo

from ..files import check_folder, replacing
from .reading import VideoError
from .tags import as_exif, to_lines

# Frames per second that a file carries. A gif counts hundredths of a second, and players show what lasts below 20 ms
# for 100 ms instead; so they do with webp.
RATES = {".mp4": (0.01, 240.0), ".gif": (0.01, 50.0), ".webp": (0.01, 50.0), ".png": (0.01, 240.0)}
WRITABLE_SUFFIXES = tuple(RATES)
FORMATS = tuple(suffix[1:] for suffix in RATES)

# x264 reads memory that it has not written where the macroblock tree is on: equal frames come out different, by up to
# 13 levels, after other work in the process. The number of threads changes the result too, and follows the machine's.
X264 = {"x264-params": "mbtree=0", "threads": "1"}
# FFmpeg's numbers, as PyAV 14 has no names for all of them: sRGB pixels, converted by BT.601's matrix to TV range. Most
# programs that ignore these tags take a file for that.
COLOUR_TAGS = {"colorspace": 6, "color_primaries": 1, "color_trc": 13, "color_range": 1}
TO_YUV = {"src_colorspace": 5, "dst_colorspace": 5, "src_color_range": 2, "dst_color_range": 1}

NUMBER = re.compile(r"%(?:0[1-9])?d")


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: float = 8,
    metadata: dict[str, str] | None = None,
    full_chroma: bool = False,
) -> None:
    """Write uint8 frames (F, H, W, 3) as .mp4, .gif, .webp or numbered .png, by the suffix.

    Args:
        fps: frames per second. In a gif frames last whole hundredths of a second, in a webp thousandths; they differ by
            one so that the clip as a whole keeps its time.
        metadata: text tags: of the mp4, in the comment of the gif or the EXIF description of the webp (as
            ``name: text`` lines), in text chunks of every PNG. ``read_metadata`` reads them.
        full_chroma: of an mp4: store colour in full resolution (4:4:4) and at higher quality, as training data; some
            browsers do not play it.

    Raises:
        VideoError: see ``check_writable``.
        ValueError: for frames of another shape or type.
    """
    path = check_writable(path, fps)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"{path}: frames must be uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}")
    metadata = {name: _encodable(text) for name, text in (metadata or {}).items()}
    if path.suffix.lower() == ".png":
        _write_pictures(path, frames, metadata | {"fps": f"{fps:g}"})
        return
    with replacing(path) as partial:
        if path.suffix.lower() == ".mp4":
            _write_mp4(partial, frames, fps, metadata, full_chroma)
        else:
            _write_animation(partial, frames, fps, metadata)


# --- before the work ---------


def check_writable(path: str | Path, fps: float | None = None) -> Path:
    """Fail early, before the work, where a clip could not be written later.

    Raises:
        VideoError: for another suffix than ``WRITABLE_SUFFIXES``, a missing or unwritable folder, a folder of that
            name, PNG pictures that are not numbered or are there already, or a frame rate that the file cannot carry.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE_SUFFIXES:
        raise VideoError(f"{path}: cannot write '{path.suffix or 'no suffix'}'; use {_either(WRITABLE_SUFFIXES)}")
    if os.path.isdir(path):
        raise VideoError(f"{path}: is a folder; name a file")
    if not os.path.isdir(path.parent):
        raise VideoError(f"{path}: the folder {path.parent} does not exist; create it first")
    if suffix == ".png":
        _check_numbered(path)
    if fps is not None:
        check_rate(fps, suffix, f"{path}: fps=")
    try:
        return check_folder(path)
    except ValueError as error:
        raise VideoError(str(error)) from error


def check_rate(fps: float, suffix: str, name: str) -> None:
    """Refuse frames per second that a file cannot carry.

    Args:
        name: what stands before the value in the error.

    Raises:
        VideoError: with the limits.
    """
    low, high = RATES[suffix.lower()]
    if not low <= fps <= high:
        remedy = "; write an .mp4, or take a lower rate" if high < fps <= RATES[".mp4"][1] else ""
        raise VideoError(f"{name}{fps:g} is outside {low:g}..{high:g}, the rates that {suffix[1:]} carries{remedy}")


def _check_numbered(path: Path) -> None:
    if len(NUMBER.findall(path.name)) != 1 or path.name.count("%") != 1:
        raise VideoError(
            f"{path}: a clip is a PNG picture for every frame; put their number into the name, such as "
            f"{path.with_name('%05d.png')}, or write {_either(WRITABLE_SUFFIXES[:-1])}"
        )
    before, after = map(re.escape, NUMBER.split(path.name))
    there = [other.name for other in path.parent.iterdir() if re.fullmatch(rf"{before}\d+{after}", other.name)]
    if there:
        raise VideoError(f"{path}: {min(there)} is there, and clips would mix; name an empty folder, or remove it")


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _encodable(text: str) -> str:
    """Text as it can be written in UTF-8: without halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


# --- mp4 ---------


def _write_mp4(path: Path, frames: np.ndarray, fps: float, metadata: dict[str, str], full_chroma: bool) -> None:
    # Fast where there are many clips and size matters less; quality is about the same.
    pix_fmt, crf, preset = ("yuv444p", "8", "veryfast") if full_chroma else ("yuv420p", "12", "medium")
    if not full_chroma:
        # Halved colour needs even sides; the last row or column is repeated where one is odd.
        frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    # An absolute path, for FFmpeg takes a name such as "scene:1.mp4" for a protocol.
    place, options = str(path.absolute()), {"movflags": "use_metadata_tags"}
    with av.open(place, "w", format="mp4", container_options=options) as container:
        container.metadata.update(metadata)
        rate = Fraction(float(fps)).limit_denominator(100_000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": crf, "preset": preset} | X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        for name, value in COLOUR_TAGS.items():
            setattr(stream.codec_context, name, value)
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pix_fmt, **TO_YUV)))
        container.mux(stream.encode())


# --- gif, webp, PNG ---------


def _write_animation(path: Path, frames: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    if path.suffix.lower() == ".gif":
        unit, settings = 10, {"comment": to_lines(metadata).encode()}
    else:
        unit, settings = 1, {"quality": 90} | ({"exif": as_exif(metadata)} if metadata else {})
    durations = _durations(len(frames), fps, unit)
    _save_image(path, frames, save_all=True, duration=durations, loop=0, **settings)


def _durations(frames: int, fps: float, unit: int) -> list[int]:
    """Milliseconds of every frame, multiples of ``unit``, whose sums are never off by more than half of one."""
    ends = [round(Fraction(i * 1000, unit) / Fraction(float(fps))) * unit for i in range(frames + 1)]
    return [end - begin for begin, end in pairwise(ends)]


def _write_pictures(path: Path, frames: np.ndarray, metadata: dict[str, str]) -> None:
    """One PNG per frame, numbered from 0; all under temporary names first."""
    text = PngInfo()
    for name, value in metadata.items():
        text.add_text(name, value)
    partial = path.with_name(f".{path.stem.replace('%', '')}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        names = [path.name % i for i in range(len(frames))]
        for name, frame in zip(names, frames):
            _save_image(partial / name, frame, pnginfo=text)
        for name in names:
            os.replace(partial / name, path.with_name(name))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save_image(path: Path, pixels: np.ndarray, **settings) -> None:
    import imageio.v3 as iio  # not at every start of a command

    # Encoded in memory: imageio takes names such as "a.zip/b.gif" for more than a path, and where a file cannot be
    # written it tries again as it is collected, and prints a traceback.
    settings |= {"extension": path.suffix.lower(), "plugin": "pillow", "is_batch": pixels.ndim == 4}
    path.write_bytes(iio.imwrite("<bytes>", pixels, **settings))
