"""Small equivalents of ComfyUI's own nodes, whose inputs bear its names."""

from __future__ import annotations

from ...core.video import from_uint8, read_video, to_uint8, video_duration, write_video
from ..host.plain import PlainHost


def encode_text(clip, text) -> tuple:
    return (clip.encode_from_tokens_scheduled(clip.tokenize(text)),)


def decode(samples, vae) -> tuple:
    return (vae.decode(samples["samples"]),)


def create_video(images, fps) -> tuple:
    return ((images, fps),)


def load_video(file) -> tuple:
    path = PlainHost().input_path(file)
    if not path.is_file():
        raise ValueError(
            f"file: '{file}' does not lie in {path.parent}; put it there, name another folder with --input FOLDER, or "
            "another file with --set NODE.file=NAME"
        )
    frames = read_video(path)
    return ((from_uint8(frames).movedim(1, -1), len(frames) / video_duration(path)),)


def video_components(video) -> tuple:
    """Images, no sound, frames per second."""
    images, fps = video
    return images, None, fps


def preview_image(images) -> tuple:
    """Nobody looks."""
    return ()


def preview_any(source) -> tuple:
    print(source)
    return ()


def primitive(value) -> tuple:
    return (value,)


NATIVE = {
    "CLIPTextEncode": encode_text,
    "VAEDecode": decode,
    "CreateVideo": create_video,
    "LoadVideo": load_video,
    "GetVideoComponents": video_components,
    "PreviewImage": preview_image,
    "PreviewAny": preview_any,
    "PrimitiveStringMultiline": primitive,
}


class SaveVideo:
    """Writes mp4 files below the output folder, numbered like ComfyUI's, with the graph as their tags."""

    def __init__(self, tags: dict[str, str]):
        self.tags = tags

    def __call__(self, video, filename_prefix, format="auto", codec="auto") -> dict:
        path, subfolder = PlainHost().new_output(filename_prefix, ".mp4")
        images, fps = video
        write_video(path, to_uint8(images.movedim(-1, 1)), fps, self.tags)
        return {"ui": {"images": [{"filename": path.name, "subfolder": subfolder, "type": "output"}]}}
