"""The text tags of clips in picture formats: a gif's comment, a webp's EXIF description, a PNG's text chunks.

A gif and a webp hold one text, so their tags are lines ``name: text``; the lines of a longer text begin with a space.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

IMAGE_DESCRIPTION = 0x010E  # EXIF


def to_lines(tags: dict[str, str]) -> str:
    return "\n".join(f"{name}: {text}".replace("\n", "\n ") for name, text in tags.items())


def from_lines(text: str) -> dict[str, str]:
    """The tags in the lines of ``to_lines``; any other text is the tag ``comment``."""
    tags: dict[str, str] = {}
    for line in text.replace("\n ", "\0").split("\n"):
        name, colon, value = line.partition(": ")
        if not colon or not name:
            return {"comment": text} if text else {}
        tags[name] = value.replace("\0", "\n")
    return tags


def as_exif(tags: dict[str, str]) -> Image.Exif:
    text, exif = to_lines(tags), Image.Exif()
    # Pillow writes ASCII alone, but keeps bytes as they are.
    exif[IMAGE_DESCRIPTION] = text if text.isascii() else text.encode()
    return exif


def image_tags(path: Path) -> dict[str, str] | None:
    """The tags of a gif, webp or PNG; None for a file of any other kind, told by its content."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] == b"GIF8":
        with Image.open(path) as image:
            return from_lines(image.info.get("comment", b"").decode("utf-8", "replace"))
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        with Image.open(path) as image:
            return from_lines(_utf8(image.getexif().get(IMAGE_DESCRIPTION, "")))
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        with Image.open(path) as image:
            return dict(image.text)
    return None


def _utf8(text: str | bytes) -> str:
    """EXIF text, which Pillow decodes as Latin-1."""
    return (text.encode("latin-1", "replace") if isinstance(text, str) else text).decode("utf-8", "replace")
