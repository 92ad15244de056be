"""The oracle of "Moving Shapes": it looks at a clip and says what moves, where to, and how well it is drawn.

The method, all of it linear algebra on small frames:
1. Drop the grey axis of RGB. Muted backgrounds nearly vanish in the remaining plane, whatever their brightness.
2. The palette hue that most of the strong pixels have is the object's colour.
3. Projected on that colour, a pixel gives its coverage by the object; the largest component in a frame is the object.
4. Area and centroid per frame give track, direction and speed; templates of the same area give the shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np

from .captions import COLORS, MOVES, SHAPES
from .world import (
    DIRECTIONS,
    PALETTE,
    SPEEDS,
    WORLD,
    blur_matrix,
    render,
    sample_scene,
    silhouette,
    speed_name,
)

SMOOTHING = 1.0  # world pixels: sigma of the blur that keeps noise out of the segmentation
MIN_STRENGTH = 0.15  # distance from grey below which nothing counts as saturated (palette: 0.45 to 0.7)
MIN_AREA = 24.0  # world pixels; a smaller component is no object (the smallest rendered shape has 177)
MIN_FIT = 0.75  # soft IoU with a template below which the object has no shape
MIN_SPEED = 0.4  # world pixels per frame; slower is still
MAX_SLANT = 0.7  # |across| / |along| above which a motion has no single direction

# Rows: two orthonormal axes of the plane orthogonal to grey.
PLANE = np.float32([[2, -1, -1], [0, 3**0.5, -(3**0.5)]]) / np.float32(6**0.5)
HUES = np.float32([PALETTE[color] for color in COLORS]) @ PLANE.T
HUES /= np.linalg.norm(HUES, axis=1, keepdims=True)  # (colours, 2)

ATTRIBUTES = {"color": COLORS, "shape": SHAPES, "direction": tuple(DIRECTIONS), "speed": tuple(SPEEDS)}


@dataclass(frozen=True)
class Measurement:
    """What the oracle saw. An attribute it could not tell is None; the qualities are 0..1, 1 as in a clean render."""

    color: str | None = None
    shape: str | None = None
    direction: str | None = None  # left, right, up, down or still
    speed: float | None = None  # world pixels per frame (the frame's short side is 64)
    fit: float = 0.0  # soft IoU with the best template
    presence: float = 0.0  # share of the frames that show the object, times its share of all saturated pixels
    smoothness: float = 0.0  # uniform motion of one steady object
    steadiness: float = 0.0  # no flicker of the background
    sharpness: float = 0.0  # steep edges

    @property
    def speed_name(self) -> str | None:
        """slow, normal or fast; None when still or not found."""
        return speed_name(self.speed) if self.direction in MOVES else None


@dataclass(frozen=True)
class OracleScore:
    """A measurement against a wish. Attributes are None where nothing was asked, the rest is 0..1."""

    color: bool | None
    shape: bool | None
    direction: bool | None
    speed: bool | None  # told for information, not part of `semantic`: prompts rarely name a speed
    smoothness: float
    steadiness: float
    sharpness: float
    semantic: float  # mean of colour, shape and direction, of those asked
    quality: float  # mean of smoothness, steadiness and sharpness
    total: float  # mean of semantic and quality


@dataclass(frozen=True)
class _Object:
    """The object of a clip, in pixels of the clip."""

    color: str
    share: float  # of the saturated pixels
    cover: np.ndarray  # (F, H, W) smoothed coverage, 0..1, zero away from the object
    raw: np.ndarray  # (F, H, W) coverage without smoothing, not clipped
    body: np.ndarray  # (F, H, W) bool, the object and its edge
    tone: np.ndarray  # (F, 2) mean colour in the plane, relative to the clip's
    area: np.ndarray  # (F,)
    center: np.ndarray  # (F, 2) x, y
    seen: np.ndarray  # (F,) bool


def measure(clip) -> Measurement:
    """Measure a clip (F, H, W, 3): numpy or torch, uint8 or float in 0..1, any number of frames and any size.

    A clip without an object gives attributes None and qualities 0. Raises ValueError for another layout, for
    floats that are not finite, and for floats far outside 0..1.
    """
    video = _as_video(clip)  # (F, 3, H, W)
    unit = min(video.shape[2:]) / WORLD  # pixels of this clip per world pixel
    smooth = _blur(video, SMOOTHING * unit)
    thing = _find(video, smooth, MIN_AREA * unit**2)
    if thing is None:
        return Measurement()
    shape, fit = _match(thing, unit)
    velocity, residual = _motion(thing, unit)
    presence = float(thing.seen.mean() * thing.share)
    return Measurement(
        color=thing.color,
        shape=shape if fit >= MIN_FIT else None,
        direction=_direction(velocity),
        speed=None if velocity is None else float(np.hypot(*velocity)),
        fit=fit,
        presence=presence,
        smoothness=presence * _near_zero(residual, 1.0) * _identity(thing),
        steadiness=_steadiness(smooth, thing.body),
        sharpness=_sharpness(thing, shape, unit),
    )


def score(clip, expected: dict) -> OracleScore:
    """Measure a clip and compare with expected {color, shape, direction, speed}; missing or None is not asked.

    `captions.parse_prompt` makes `expected` from a prompt. Raises ValueError when nothing is asked or a value is
    unknown, and as `measure` does.
    """
    _check_expected(expected)
    seen = measure(clip)
    hits = {
        name: None if expected.get(name) is None else getattr(seen, name) == expected[name]
        for name in ("color", "shape", "direction")
    }
    speed = None if expected.get("speed") is None else seen.speed_name == expected["speed"]
    semantic = float(np.mean([hit for hit in hits.values() if hit is not None]))
    qualities = {name: getattr(seen, name) for name in ("smoothness", "steadiness", "sharpness")}
    quality = float(np.mean(list(qualities.values())))
    return OracleScore(**hits, speed=speed, **qualities, semantic=semantic, quality=quality,
                       total=(semantic + quality) / 2)


def summarize(scores: Iterable[OracleScore]) -> dict[str, float | None]:
    """The mean of every field over the scores that have it (None where none has), and their number as `n`."""
    rows = [asdict(item) for item in scores]
    if not rows:
        raise ValueError("scores is empty; score at least one clip first")
    columns = {name: [row[name] for row in rows if row[name] is not None] for name in rows[0]}
    return {name: float(np.mean(values)) if values else None for name, values in columns.items()} | {"n": len(rows)}


def accuracy(
    n: int = 500,
    seed: int = 0,
    noise: float = 0.0,
    blur: float = 0.0,
    style: str = "dense",
    degraded: bool = False,
    frames: int = 8,
    size: int = 64,
) -> dict[str, float]:
    """The oracle's own hit rates for color, shape, direction and speed on n rendered clips, and its mean qualities.

    Clips are clean but for `noise` (sigma, 0..1 scale) and `blur` (sigma, world pixels); with `degraded` they
    keep the degradations of their style instead.
    """
    scores = []
    for index in range(n):
        rng = np.random.default_rng((seed, index))
        scene = sample_scene(rng, style, frames)
        if not degraded:
            scene = replace(scene.clean(), noise=noise, blur=blur)
        scores.append(score(render(scene, frames, size, rng), scene.expected()))
    return summarize(scores)


def _as_video(clip) -> np.ndarray:
    """Check and convert to float32 (F, 3, H, W) in 0..1."""
    if hasattr(clip, "detach"):  # torch; bfloat16 has no numpy counterpart
        clip = clip.detach().cpu()
        clip = (clip.float() if clip.is_floating_point() else clip).numpy()
    clip = np.asarray(clip)
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise ValueError(f"clip has shape {clip.shape}; give frames as (F, H, W, 3)")
    if clip.dtype == np.uint8:
        video = clip.astype(np.float32) / 255
    else:
        video = clip.astype(np.float32)
        _check_range(video)
        video = np.clip(video, 0, 1)
    return np.ascontiguousarray(video.transpose(0, 3, 1, 2))


def _check_range(video: np.ndarray) -> None:
    low, high = video.min(), video.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("clip holds NaN or infinite values; look for the step that produced them")
    if low < -0.5 or high > 1.5:
        raise ValueError(f"clip has values from {low:.3g} to {high:.3g}; give floats in 0..1 or uint8")


def _check_expected(expected: dict) -> None:
    for name, value in expected.items():
        if value is not None and value not in ATTRIBUTES.get(name, ()):
            raise ValueError(f"expected {name}={value!r} is unknown; use {ATTRIBUTES.get(name, tuple(ATTRIBUTES))}")
    if all(expected.get(name) is None for name in ("color", "shape", "direction")):
        raise ValueError(f"expected {expected} asks for nothing; name a color, shape or direction")


def _blur(video: np.ndarray, sigma: float) -> np.ndarray:
    height, width = video.shape[-2:]
    return blur_matrix(height, sigma) @ (video @ blur_matrix(width, sigma).T)


def _find(video: np.ndarray, smooth: np.ndarray, min_area: float) -> _Object | None:
    """Segment the largest object of the most frequent saturated colour."""
    plane, raw = _to_plane(smooth), _to_plane(video)  # (2, F, H, W)
    strength = np.hypot(*plane)
    peak = np.quantile(strength, 0.995)
    if peak < MIN_STRENGTH:
        return None
    strong = strength > max(peak / 2, MIN_STRENGTH / 2)
    hue = np.argmax(HUES @ plane[:, strong], axis=0)
    winner = np.bincount(hue, minlength=len(COLORS)).argmax()
    core = plane[:, strong][:, hue == winner]
    core = core[:, HUES[winner] @ core > 0.8 * peak] if False else core
    return core
