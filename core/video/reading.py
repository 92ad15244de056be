"""Read clips: every container and codec of FFmpeg through PyAV, animated gif and webp through Pillow.

A clip is what a player shows. Time is in seconds after its first frame and follows the time stamps, so a variable frame
rate, a gif's delays and a rotated, a transparent or an anamorphic picture come out right:

- the frame of an instant is the newest one that has begun; the last one stays until the clip's end
- rotation metadata are applied, non-square pixels are made square by their width, transparency is laid over black
- a gif's delay of 10 ms or less counts as 100 ms, as browsers have it
- what is damaged or ends sooner than its header says raises an error, if a wanted frame depends on it

Not done: tone mapping of HDR (values are taken as they are), deinterlacing, mirroring by metadata.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from PIL import Image, ImageSequence

from .tags import image_tags

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".webm", ".mkv", ".avi", ".divx", ".mpg", ".mpeg", ".mpe",
    ".vob", ".m1v", ".m2v", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".ogv", ".mxf", ".dv", ".rm", ".h264",
    ".264", ".hevc", ".265", ".ivf", ".y4m", ".mjpeg", ".mjpg", ".gif", ".webp", ".apng",
)  # fmt: skip
# Seconds. A webm's time stamps are whole milliseconds, so a frame may seem to begin this late.
TOLERANCE = 1e-3
# Without "explode" a decoder paints over damage with its other frames and says nothing. 2**26 pixels hold 8K.
DECODER_OPTIONS = {"err_detect": "explode", "max_pixels": str(2**26)}
# FFmpeg's own decoders of these leave the alpha plane out.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# Seconds. A transport stream has no index: seeking lands anywhere, and its next key frame may come too late.
SEEK_LEADS = (0.0, 10.0)
# Streams without a container, by FFmpeg's names: no header tells their length, no time stamp when a frame is shown.
BARE = ("h264", "hevc", "mpegvideo", "m4v", "mjpeg")
# These have an index, by which a clip can be read in any order.
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
PLAIN_PIXELS = ("yuv420p", "yuvj420p", "yuv444p")
# The one argument that PyAV 14 to 18 need and 19 does not take: what to do with tags that are no UTF-8.
TAGS = {"metadata_errors": "surrogateescape"} if int(av.__version__.partition(".")[0]) < 19 else {}

# When a frame begins, and how to get its pixels, uint8 (H, W, 3); a clip's last shot is (its end, None).
Shot = tuple[float, Callable[[], np.ndarray] | None]


class VideoError(ValueError):
    """A clip that cannot be read or written; the message names the file and the reason."""


def read_video(path: str | Path, frames: int | None = None, fps: float | None = None, start: float = 0.0) -> np.ndarray:
    """Decode a clip, or a part of it, to uint8 (F, H, W, 3); see ``iterate_video``."""
    return np.stack(list(iterate_video(path, frames, fps, start)))


def iterate_video(
    path: str | Path, frames: int | None = None, fps: float | None = None, start: float = 0.0
) -> Iterator[np.ndarray]:
    """The frames of a clip, uint8 (H, W, 3), one at a time: memory does not grow with the clip.

    Args:
        frames: how many; None = to the end. Fewer come if the clip is shorter.
        fps: rate to sample at, by time stamps; None = every frame as stored.
        start: seconds into the clip. Decoding begins at the key frame before it, or at the file's where only counting
            tells when a frame is shown.

    Raises:
        VideoError: if the file is missing or holds no video, no frame is shown at ``start`` or later, a wanted frame
            is damaged or cut off, or the frames change their size.
        ValueError: for an fps or a start that cannot be.
    """
    if (fps is not None and not fps > 0) or not start >= 0:
        raise ValueError(f"fps={fps}, start={start}: fps must be above 0, start at least 0")
    path, shape = Path(path), None
    _check_file(path)
    shots = _pictures(path) if _is_animation(path) else _film(path, start)
    sampled = _sampled(shots, fps, start) if fps else _stored(shots, start)
    for pixels in (convert() for convert in islice(sampled, frames)):
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise VideoError(f"{path}: changes its size from {_size(shape)} to {_size(pixels.shape)}; cut it there")
        yield pixels
    if shape is None and frames != 0:
        raise VideoError(f"{path}: " + (f"is over before start={start:g} s" if start else "holds no frames"))


def video_duration(path: str | Path) -> float:
    """Seconds from the beginning of the first frame to the end of the last; the sound does not count.

    Raises:
        VideoError: if the file is missing, broken or holds no video.
    """
    path = Path(path)
    if _is_animation(path):
        return max(time for time, _ in _pictures(path))
    with _opened(path) as container:
        stream = _video_stream(container, path)
        try:
            return _promised_end(container, stream) or _measured_end(container, stream)
        except av.FFmpegError as error:
            raise VideoError(f"{path}: broken ({error.strerror})") from error


@dataclass(frozen=True)
class FrameTimes:
    """When frames begin, in seconds after the first one, in the order of showing them; and when the last one ends."""

    begins: tuple[float, ...]
    end: float

    def sampled(self, frames: int, fps: float, start: float) -> list[int]:
        """Numbers of the frames that ``iterate_video`` shows; fewer if the clip is shorter."""
        shots = [*((time, partial(int, i)) for i, time in enumerate(self.begins)), (self.end, None)]
        return [number() for number in islice(_sampled(iter(shots), fps, start), frames)]


def frame_times(path: str | Path) -> FrameTimes | None:
    """The times of a clip's frames by its packets, without decoding one.

    None where that is not sure, or where pixels need more than a change of their colour space: for a container other
    than mp4, mov, mkv and webm, packets that are damaged, cut off, without time stamp, not to be shown or shown before
    the key frame that they follow, more than 8 bits, transparency, halved chroma of an odd size, and pixels that are
    not square.

    Raises:
        VideoError: if the file is missing or holds no video.
    """
    path = Path(path)
    with _opened(path) as container:
        stream = _video_stream(container, path)
        if container.format.name not in INDEXED or not _is_plain(stream):
            return None
        try:
            packets = [packet for packet in container.demux(stream) if packet.size]
        except av.FFmpegError:
            return None
        clock, key = _Clock(container, stream), None
        for packet in packets:
            key = packet.pts if packet.is_keyframe else key
            if packet.pts is None or packet.is_corrupt or packet.is_discard or key is None or packet.pts < key:
                return None
            clock.pass_packet(packet, 0.0)
        promised = _promised_end(container, stream)
        if not packets or (promised and clock.end < promised - 2 * clock.period - TOLERANCE):
            return None
        begins = sorted(float(packet.pts * packet.time_base) - clock.origin for packet in packets)
        end = promised or clock.end
        return FrameTimes(tuple(begins), end if end > begins[-1] else begins[-1] + clock.period)


def _is_plain(stream: av.VideoStream) -> bool:
    context, opaque = stream.codec_context, stream.metadata.get("alpha_mode") != "1"
    # Of an odd size halved chroma is scaled in more ways than one.
    even = context.pix_fmt == "yuv444p" or not (context.width % 2 or context.height % 2)
    return opaque and even and context.pix_fmt in PLAIN_PIXELS and _pixel_aspect(stream) == 1


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text tags of a video file, or of a picture of a sequence.

    Raises:
        VideoError: if the file is missing or broken.
    """
    _check_file(path := Path(path))
    try:
        tags = image_tags(path)
    except Exception as error:  # Pillow's parsers raise errors of many kinds
        raise VideoError(f"{path}: its tags cannot be read ({error})") from error
    if tags is None:
        with _opened(path) as container:
            tags = dict(container.metadata)
    return {_readable(name): _readable(text) for name, text in tags.items()}


def _readable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# --- choosing frames by time ---------


def _sampled(shots: Iterator[Shot], fps: float, start: float) -> Iterator[Callable[[], np.ndarray]]:
    """What is shown at start, start + 1/fps, …; before the first frame, that one."""
    shown, taken = None, 0
    for time, pixels in shots:
        while shown and start + taken / fps < time - TOLERANCE:
            yield shown
            taken += 1
        shown = pixels


def _stored(shots: Iterator[Shot], start: float) -> Iterator[Callable[[], np.ndarray]]:
    """Every frame that is shown at or after ``start``."""
    shown = None
    for time, pixels in shots:
        if shown and start < time - TOLERANCE:
            yield shown
        shown = pixels


# --- gif and webp ---------


def _is_animation(path: Path) -> bool:
    """By content: many a .gif of the web is an mp4."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] == b"GIF8" or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _pictures(path: Path) -> Iterator[Shot]:
    time = 0.0
    try:
        with Image.open(path) as file:
            for image in ImageSequence.Iterator(file):
                yield time, partial(_over_black, np.asarray(image.convert("RGBA")))
                delay = image.info.get("duration", 0)
                time += (delay if delay > 10 else 100) / 1000
        if _is_cut_off(path):
            raise EOFError("it is cut off there")
    except Exception as error:  # Pillow's parsers raise errors of many kinds
        raise VideoError(f"{path}: broken after {time:.2f} s ({error})") from error
    yield time, None


def _is_cut_off(path: Path) -> bool:
    """Whether a gif ends before its trailer; Pillow takes a cut between two frames, or in an extension, for the end."""
    with path.open("rb") as file:
        if not file.read(6).startswith(b"GIF8"):
            return False
        _skip_palette(file, file.read(7)[4:5])
        while (kind := file.read(1)) in (b"!", b","):
            if kind == b",":
                _skip_palette(file, file.read(9)[8:9])
            file.seek(1, 1)  # label of an extension, or least bits of a code
            while size := file.read(1).strip(b"\0"):
                file.seek(size[0], 1)
        return kind != b";"


def _skip_palette(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] % 8 + 1), 1)


# --- everything else ---------


def _film(path: Path, start: float) -> Iterator[Shot]:
    """The shots of a video file from the one at ``start`` on, or from an earlier one."""
    for lead in SEEK_LEADS:
        found = _sought(path, start, start - lead) if start > lead else None
        if found:
            yield from found
            return
    yield from _decoded(path)


def _sought(path: Path, start: float, seek: float) -> Iterator[Shot] | None:
    """The shots from the one at ``start`` on, by seeking; None where that leads past it."""
    shots, shown = _decoded(path, seek), None
    try:
        for shot in shots:
            if shot[0] > start + TOLERANCE:
                return chain([shown, shot], shots) if shown else None
            shown = shot
    except VideoError as error:  # perhaps only for want of the frames before
        log.debug("no way by seeking: %s", error)
    return None


def _decoded(path: Path, seek: float = 0.0) -> Iterator[Shot]:
    """The shots from the key frame before ``seek`` on.

    Raises:
        VideoError: if the file is damaged there, or ends before its time.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        decoder, aspect, clock = _decoder(stream), _pixel_aspect(stream), _Clock(container, stream)
        try:
            if seek:
                container.seek(math.floor((clock.origin + seek) / stream.time_base), stream=stream)
            # What comes before a key frame cannot be decoded; the file's own first packets are left to the decoder.
            for packet in dropwhile(lambda packet: seek and not packet.is_keyframe, container.demux(stream)):
                clock.pass_packet(packet, seek)
                for frame in decoder.decode(packet):
                    if seek and clock.is_lost(decoder):
                        raise VideoError(f"{path}: has no times to seek by")
                    yield clock.time_of(frame), partial(_rgb, frame, aspect)
        except av.FFmpegError as error:
            raise VideoError(f"{path}: broken after {max(0, clock.end):.2f} s ({error.strerror})") from error
        promised = _promised_end(container, stream)
        if promised and clock.end < promised - 2 * clock.period - TOLERANCE:
            raise VideoError(f"{path}: is cut off after {clock.end:.2f} of {promised:.2f} s")
        yield clock.last_end(promised), None


class _Clock:
    """Tells when frames begin, in seconds after the clip's first one: by their time stamps, else by counting them.

    Attributes:
        end: of the packets so far.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream):
        self.origin, self.period, self.end = _origin(stream), _frame_period(container, stream), 0.0
        self.counts, self._time = _is_timeless(container, stream), None
        # In a program stream only the first of the frames in a packet has a time stamp.
        self._seldom, self._begun = container.format.name == "mpeg", False

    def pass_packet(self, packet: av.Packet, seek: float) -> None:
        if self._time is None:
            # Without time stamps frames follow one another from the key frame on, whose place is its packet's.
            self._time = _decoding_time(packet, seek) - self.origin - self.period
        self.end = max(self.end, _packet_end(packet) - self.origin)

    def is_lost(self, decoder: av.CodecContext) -> bool:
        """Whether the first frame after seeking has no sure time.

        Frames that are shown before a key frame but follow it cannot be decoded, and nobody tells how many there are.
        """
        return not self._begun and (self._seldom or (self.counts and bool(decoder.has_b_frames)))

    def time_of(self, frame: av.VideoFrame) -> float:
        known = frame.time is not None and not self.counts
        self._time, self._begun = frame.time - self.origin if known else self._time + self.period, True
        return self._time

    def last_end(self, promised: float | None) -> float:
        """When the last frame ends; not every last packet tells how long it lasts."""
        end = 0.0 if self.counts else promised or self.end
        return end if end > self._time else self._time + self.period


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise VideoError(f"{path}: is a folder; name a video file")
    if not path.is_file():
        raise VideoError(f"{path}: no such video file")


@contextmanager
def _opened(path: str | Path) -> Iterator[av.container.InputContainer]:
    path = Path(path)
    _check_file(path)
    try:
        # Absolute, and files only: neither a name like "concat:…" nor a playlist inside may lead elsewhere. Not by
        # options=, of which PyAV before 17.1 dies (SIGSEGV) at flv and mpg, whose streams FFmpeg finds after opening.
        container = av.open(str(path.absolute()), container_options={"protocol_whitelist": "file"}, **TAGS)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be read as a video ({error}); it is damaged or of another kind") from error
    with container:
        yield container


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The main one: a cover picture is a video stream too.

    Raises:
        VideoError: if there is none, or nothing but a cover picture.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise VideoError(f"{path}: holds no video stream")
    if stream.disposition & av.stream.Disposition.attached_pic:
        besides = "only sound with a cover picture" if container.streams.audio else "only a cover picture"
        raise VideoError(f"{path}: holds no video, {besides}")
    return stream


def _decoder(stream: av.VideoStream) -> av.CodecContext:
    decoder = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1":
        try:
            decoder = av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
        except (KeyError, ValueError):
            log.warning("%s: no decoder for its transparency; it is read as opaque", stream.container.name)
    decoder.options = DECODER_OPTIONS
    return decoder


def _rgb(frame: av.VideoFrame, aspect: Fraction) -> np.ndarray:
    """Pixels (H, W, 3) of a decoded frame, upright, square and opaque."""
    transparent = any(part.is_alpha for part in frame.format.components)  # a palette has alpha too
    # Told in full, for not every PyAV asks the frame for its matrix and range. The matrix of RGB itself means nothing.
    colours = {"src_colorspace": int(frame.colorspace), "src_color_range": int(frame.color_range), "dst_colorspace": 5}
    width = max(1, round(frame.width * aspect))
    pixels = frame.to_ndarray(format="rgba" if transparent else "rgb24", width=width, **colours)
    pixels = _over_black(pixels) if transparent else pixels
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _over_black(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4) with straight alpha -> (H, W, 3)."""
    colour, alpha = pixels[..., :3], pixels[..., 3:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


# --- what the headers say ---------


def _origin(stream: av.VideoStream) -> float:
    """Time stamp of the first frame."""
    return float((stream.start_time or 0) * stream.time_base)


def _is_timeless(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Whether frames come in the right order, but with the times of their decoding: then they are counted."""
    name = container.format.name
    return name == "avi" or name in BARE or (name == "asf" and bool(stream.codec_context.has_b_frames))


def _frame_period(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds per frame, on average; where frames are counted, at the rate that the codec itself tells."""
    rates = stream.average_rate, stream.guessed_rate
    first, second = reversed(rates) if _is_timeless(container, stream) else rates
    return float(1 / (first or second or 25))


def _pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width of a pixel by its height; a value out of all reason is a mistake in the header."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return aspect if Fraction(1, 4) <= aspect <= 4 else Fraction(1)


def _decoding_time(packet: av.Packet, seek: float) -> float:
    """Seconds; where nothing tells, a time past everything, unless it is the file's first packet."""
    if packet.dts is not None:
        return float(packet.dts * packet.time_base)
    return math.inf if seek else 0.0


def _packet_end(packet: av.Packet) -> float:
    if packet.pts is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _promised_end(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """Seconds of video by the header; None where it tells only of the whole with its sound, or nothing.

    Without a header, as in a program stream (mpeg), FFmpeg guesses.
    """
    if container.format.name in (*BARE, "mpeg"):
        return None
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if tag := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = map(float, tag.groups())
        return 3600 * hours + 60 * minutes + seconds - _origin(stream)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base - _origin(stream)
    return None


def _measured_end(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds of video by its packets, undecoded: from the last key frame on where the file can be sought in.

    Without time stamps packets are counted, one for a frame.
    """
    period = _frame_period(container, stream)
    if container.format.name in BARE:
        return period * sum(packet.size > 0 for packet in container.demux(stream))
    if container.duration:
        container.seek(math.ceil(container.duration / av.time_base / stream.time_base), stream=stream)
    ends = [_packet_end(packet) + (0 if packet.duration else period) for packet in container.demux(stream)]
    return max(ends, default=0.0) - _origin(stream)
