"""Clips as tensors and pixels, and their files."""

from .frames import from_uint8, resize_and_crop, to_uint8
from .reading import VIDEO_SUFFIXES, VideoError, iterate_video, read_metadata, read_video, video_duration
from .tagged import TaggedFrames
from .writing import FORMATS, WRITABLE_SUFFIXES, check_rate, check_writable, write_video

__all__ = [
    "FORMATS",
    "VIDEO_SUFFIXES",
    "WRITABLE_SUFFIXES",
    "TaggedFrames",
    "VideoError",
    "check_rate",
    "check_writable",
    "from_uint8",
    "iterate_video",
    "read_metadata",
    "read_video",
    "resize_and_crop",
    "to_uint8",
    "video_duration",
    "write_video",
]
