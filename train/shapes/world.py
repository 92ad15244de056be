"""The renderer of "Moving Shapes": one saturated shape that moves over a muted background.

Lengths are pixels of a 64x64 frame, whatever the size of the rendered picture, and time is counted in frames.
Everything is a pure function of its arguments: a clip of a data set depends on (seed, index, style) alone.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...core.text_files import read_json, write_json, write_text
from ...core.video import write_video
from .captions import COLORS, SHAPES, dense_caption, short_caption

logger = logging.getLogger(__name__)

WORLD = 64  # side of the frame in world pixels
MARGIN = 1.0  # free border that the shape never enters

# Saturated and at least 45 degrees of hue apart, so that neither a small VAE nor the oracle confuses two.
PALETTE = {
    "red": (230, 25, 25),
    "yellow": (245, 225, 20),
    "green": (25, 180, 45),
    "cyan": (20, 215, 225),
    "blue": (30, 60, 230),
    "purple": (165, 40, 215),
}
# (dx, dy), y pointing down
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
SPEEDS = {"slow": 1.0, "normal": 2.5, "fast": 4.0}  # world pixels per frame
BACKGROUNDS = ("plain", "gradient", "stripes", "checker")
TINTS = {"neutral": (0.0, 0.0, 0.0), "warm": (0.035, 0.0, -0.035), "cool": (-0.035, 0.0, 0.035)}

# All four shapes of one radius cover the area pi * radius^2, and their centroid is their centre.
SQUARE = np.sqrt(np.pi) / 2  # half side
TRIANGLE = np.sqrt(np.pi / (3 * np.sqrt(3)))  # inner radius; the tip is twice as far
CROSS = np.sqrt(9 * np.pi / 20)  # half length of an arm; an arm is a third as wide as long
EXTENTS = {  # reach from the centre to the left/right, up, down, in radii
    "circle": (1.0, 1.0, 1.0),
    "square": (SQUARE, SQUARE, SQUARE),
    "triangle": (np.sqrt(3) * TRIANGLE, 2 * TRIANGLE, TRIANGLE),
    "cross": (CROSS, CROSS, CROSS),
}

STYLES = {
    # like WebVid: mixed quality and modest motion
    "short": {"speeds": (0.5, 0.4, 0.1), "still": 0.08, "degraded": 0.25},
    # like VidGen: clean, strong motion
    "dense": {"speeds": (0.0, 0.45, 0.55), "still": 0.03, "degraded": 0.0},
}


@dataclass(frozen=True)
class Scene:
    """What a clip shows. Lengths in world pixels (the frame is 64 wide), brightness in 0..1."""

    shape: str  # one of SHAPES
    color: str  # one of COLORS
    direction: str  # one of DIRECTIONS
    speed: float  # world pixels per frame, 0 when still
    radius: float  # of the circle with the same area
    x: float  # centre in the first frame, from the left
    y: float  # and from the top
    background: str = "plain"  # one of BACKGROUNDS
    light: float = 0.5  # mean brightness of the background
    tint: str = "neutral"  # one of TINTS
    contrast: float = 0.1  # half the brightness range of gradient, stripes and checker
    period: float = 16.0  # of stripes and checker
    noise: float = 0.0  # sigma of white noise, 0..1 scale
    blur: float = 0.0  # sigma of the Gaussian
    compression: float = 0.0  # quantisation step of 8x8 DCT blocks, 0..1 scale
    flicker: float = 0.0  # sigma of the frames' brightness gain

    def __post_init__(self):
        allowed = {"shape": SHAPES, "color": COLORS, "direction": tuple(DIRECTIONS),
                   "background": BACKGROUNDS, "tint": tuple(TINTS)}
        for name, names in allowed.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; use one of {', '.join(names)}")

    @property
    def speed_name(self) -> str | None:
        """slow, normal or fast; None when the shape is still."""
        return speed_name(self.speed) if self.direction != "still" else None

    def clean(self) -> Scene:
        """The same scene without noise, blur, compression and flicker."""
        return replace(self, noise=0.0, blur=0.0, compression=0.0, flicker=0.0)

    def expected(self) -> dict:
        """What the oracle should find: {color, shape, direction, speed}."""
        facts = {name: getattr(self, name) for name in ("color", "shape", "direction")}
        return facts | {"speed": self.speed_name}


@dataclass(frozen=True)
class Clip:
    """A rendered scene: frames are uint8 (F, H, W, 3)."""

    scene: Scene
    frames: np.ndarray
    short_caption: str
    dense_caption: str


def speed_name(speed: float) -> str:
    """The name whose speed is nearest to `speed` (world pixels per frame)."""
    return min(SPEEDS, key=lambda name: abs(SPEEDS[name] - speed))


def sample_scene(rng: np.random.Generator, style: str = "dense", frames: int = 8) -> Scene:
    """Draw a scene whose whole path of `frames` frames stays inside the picture.

    style: "short" (part of the clips degraded, slow to normal) or "dense" (clean, normal to fast).
    Raises ValueError for an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r} is unknown; use one of {', '.join(STYLES)}")
    settings = STYLES[style]
    shape, color = _pick(rng, SHAPES), _pick(rng, COLORS)
    direction = "still" if rng.random() < settings["still"] else _pick(rng, ("left", "right", "up", "down"))
    radius = rng.uniform(7.5, 11.0)
    speed = _pick(rng, tuple(SPEEDS.values()), settings["speeds"]) * rng.uniform(0.9, 1.1)
    speed, x, y = _place(rng, shape, radius, direction, speed, frames)
    return Scene(shape, color, direction, speed, radius, x, y, **_sample_background(rng),
                 **_sample_degradation(rng, settings["degraded"]))


def render(
    scene: Scene, frames: int = 8, size: int = 64, rng: np.random.Generator | int | None = None
) -> np.ndarray:
    """Draw a scene -> uint8 (frames, size, size, 3). `rng` (or a seed) feeds noise and flicker only.

    Raises ValueError when `frames` or `size` is not positive.
    """
    if frames < 1 or size < 1:
        raise ValueError(f"frames {frames} and size {size} must be at least 1")
    rng = np.random.default_rng(0 if rng is None else rng)
    ground = _background(scene, size)  # (3, H, W)
    unit = size / WORLD
    x, y = _track(scene, frames)
    cover = silhouette(scene.shape, scene.radius * unit, x * unit, y * unit, size, size)[:, None]
    paint = np.float32(PALETTE[scene.color])[:, None, None] / 255
    video = _degrade(ground + cover * (paint - ground), scene, rng)  # (F, 3, H, W)
    video = np.clip(video * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(video.transpose(0, 2, 3, 1))


def render_clip(seed: int, index: int, style: str = "dense", frames: int = 8, size: int = 64) -> Clip:
    """Clip `index` of the data set (seed, style), with both captions; its frames are uint8 (F, H, W, 3)."""
    rng = np.random.default_rng((seed, index, int(style == "dense")))  # the styles share no scenes
    scene = sample_scene(rng, style, frames)
    video = render(scene, frames, size, rng)
    # captions draw last, so that a new template does not change the pixels of existing data sets
    return Clip(scene, video, short_caption(scene, rng), dense_caption(scene, rng))


def write_dataset(
    folder: str | Path,
    count: int,
    seed: int = 0,
    style: str = "dense",
    frames: int = 8,
    size: int = 64,
    fps: int = 8,
) -> Path:
    """Write clips 0..count-1 as clip_000000.mp4 (h264), .txt (short caption), .json {scene, short, dense}.

    A clip whose mp4 exists is skipped, so that an interrupted call can be repeated; the mp4 comes last and
    appears under its name only when complete. Returns the folder. Raises ValueError for an odd `size` and for
    a folder that holds another data set.

    The video keeps full colour resolution (h264 High 4:4:4), as halved chroma would blur the edges of every shape at 64
    pixels: ffmpeg, PyAV, decord and VLC read it, some browsers do not.
    """
    if size % 2:
        raise ValueError(f"size {size} is odd, which h264 cannot store; use an even size")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(count) if not (folder / f"clip_{i:06d}.mp4").exists()]
    for index in sorted(set(range(count)).difference(missing))[:1]:
        _check_same(folder / f"clip_{index:06d}.json", render_clip(seed, index, style, frames, size))
    logger.info("%s: %d clips to write, %d there already", folder, len(missing), count - len(missing))
    for index in tqdm(missing, desc=f"{style} clips", unit="clip"):
        clip = render_clip(seed, index, style, frames, size)
        stem = folder / f"clip_{index:06d}"
        record = {"scene": asdict(clip.scene), "short": clip.short_caption, "dense": clip.dense_caption}
        write_text(stem.with_suffix(".txt"), clip.short_caption + "\n")
        write_json(stem.with_suffix(".json"), record)
        write_video(stem.with_suffix(".mp4"), clip.frames, fps, full_chroma=True)
    return folder


def silhouette(shape: str, radius, x, y, height: int, width: int, edge: float = 1.0) -> np.ndarray:
    """Coverage of the pixels by a shape, anti-aliased over `edge` pixels -> float32 (N, height, width), 0..1.

    radius, x, y: pixels of this picture, scalars or (N,) arrays.
    """
    radius, x, y = (np.atleast_1d(np.float32(value))[:, None, None] for value in (radius, x, y))
    column = np.arange(width, dtype=np.float32)[None, None, :] + np.float32(0.5) - x  # (N, 1, W)
    row = np.arange(height, dtype=np.float32)[None, :, None] + np.float32(0.5) - y  # (N, H, 1)
    return np.clip(np.float32(0.5) - _signed_distance(shape, column, row, radius) / np.float32(edge), 0, 1)


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance to the outline, negative inside, from (N, 1, W) and (N, H, 1) offsets -> (N, H, W)."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    ax, ay = np.abs(x), np.abs(y)
    if shape == "square":
        return np.maximum(ax, ay) - np.float32(SQUARE) * radius
    if shape == "triangle":  # tip up: the base, and the two sides folded into one by symmetry
        slope = np.float32(np.sqrt(3) / 2) * ax - np.float32(0.5) * y
        return np.maximum(slope, y) - np.float32(TRIANGLE) * radius
    long, wide = np.float32(CROSS) * radius, np.float32(CROSS / 3) * radius
    return np.minimum(np.maximum(ax - long, ay - wide), np.maximum(ax - wide, ay - long))


def _track(scene: Scene, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The centre in every frame: x (F,), y (F,)."""
    dx, dy = DIRECTIONS[scene.direction]
    travel = scene.speed * np.arange(frames)
    return scene.x + dx * travel, scene.y + dy * travel


def _pick(rng: np.random.Generator, options: tuple, weights: tuple | None = None):
    if weights is None:
        return options[rng.integers(len(options))]
    return options[int(np.searchsorted(np.cumsum(weights), rng.random(), side="right"))]


def _place(
    rng: np.random.Generator, shape: str, radius: float, direction: str, speed: float, frames: int
) -> tuple[float, float, float]:
    """(speed, x, y) such that the path fits: many frames slow the shape down rather than let it leave."""
    side, up, down = (MARGIN + radius * reach for reach in EXTENTS[shape])
    dx, dy = DIRECTIONS[direction]
    steps = max(frames - 1, 1)
    room = abs(dx) * (WORLD - 2 * side) + abs(dy) * (WORLD - up - down)
    speed = float(min(speed, room / steps))  # no direction, no room: still has speed 0
    return speed, _start(rng, side, side, dx * speed * steps), _start(rng, up, down, dy * speed * steps)


def _start(rng: np.random.Generator, before: float, after: float, shift: float) -> float:
    """A coordinate that keeps its distance from both borders, here and after the shift."""
    low, high = before - min(shift, 0), WORLD - after - max(shift, 0)
    return rng.uniform(low, max(low, high))  # a path as long as its room may cross them by rounding


def _sample_background(rng: np.random.Generator) -> dict:
    return {
        "background": _pick(rng, BACKGROUNDS),
        "light": rng.uniform(0.12, 0.85),
        "tint": _pick(rng, tuple(TINTS)),
        "contrast": rng.uniform(0.05, 0.12),
        "period": rng.uniform(12.0, 24.0),
    }


def _sample_degradation(rng: np.random.Generator, probability: float) -> dict:
    """Each kind of damage strikes independently with the given probability."""
    ranges = {"noise": (0.015, 0.05), "blur": (0.5, 1.1), "compression": (0.1, 0.35), "flicker": (0.02, 0.08)}
    return {kind: rng.uniform(*r) for kind, r in ranges.items() if rng.random() < probability}


def _background(scene: Scene, size: int) -> np.ndarray:
    """The muted ground -> float32 (3, size, size)."""
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size  # 0..1
    wave = np.sin(at * np.float32(2 * np.pi * WORLD / scene.period))
    pattern = {
        "plain": lambda: np.zeros((1, 1), np.float32),
        "gradient": lambda: 1 - 2 * at[:, None],  # the light comes from above
        "stripes": lambda: np.sign(wave)[None, :],
        "checker": lambda: np.sign(wave[None, :] * wave[:, None]),
    }[scene.background]()
    grey = np.float32(scene.light) + np.float32(scene.contrast) * np.broadcast_to(pattern, (size, size))
    return np.clip(grey + np.float32(TINTS[scene.tint])[:, None, None], 0, 1)


def _degrade(video: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Blur, flicker, noise and compression of (F, 3, H, W) in 0..1, in the order of a camera and a codec."""
    size = video.shape[-1]
    if scene.blur:
        kernel = blur_matrix(size, scene.blur * size / WORLD)
        video = kernel @ video @ kernel.T
    if scene.flicker:
        swing = rng.standard_normal((len(video), 1, 1, 1), np.float32)
        video = video * (1 + np.float32(scene.flicker) * swing)
    if scene.noise:
        video = video + np.float32(scene.noise) * rng.standard_normal(video.shape, np.float32)
    if scene.compression:
        dct, steps = _dct(size)
        coarse = np.float32(scene.compression) * steps
        video = dct.T @ (np.round(dct @ video @ dct.T / coarse) * coarse) @ dct
    return video


@lru_cache(maxsize=64)
def blur_matrix(size: int, sigma: float) -> np.ndarray:
    """K, float32 (size, size), such that K @ image @ K.T is a Gaussian blur of `sigma` pixels."""
    at = np.arange(size)
    kernel = np.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=8)
def _dct(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The 8-block DCT as a block-diagonal matrix, and the relative quantisation steps, both (size, size)."""
    matrix, frequency = np.zeros((size, size)), np.zeros(size)
    for start in range(0, size, 8):
        n = min(8, size - start)
        k, i = np.arange(n)[:, None], np.arange(n)
        block = np.cos(np.pi * k * (2 * i + 1) / (2 * n)) * np.sqrt(2 / n)
        block[0] /= np.sqrt(2)
        matrix[start:start + n, start:start + n], frequency[start:start + n] = block, np.arange(n)
    steps = 0.25 + 0.25 * (frequency[:, None] + frequency)  # the eye forgives coarse high frequencies
    return matrix.astype(np.float32), steps.astype(np.float32)


def _check_same(record: Path, clip: Clip) -> None:
    """An interrupted data set may only be continued with the arguments that began it."""
    if read_json(record)["scene"] != asdict(clip.scene):
        raise ValueError(f"{record} belongs to another seed, style or length; choose an empty folder")


