"""The oracle of "Moving Shapes": it looks at a clip and says what moves, where to, and how well it is drawn.

The method, all of it linear algebra on small frames:
1. Drop the grey axis of RGB: muted backgrounds nearly vanish in the remaining plane, bright or dark.
2. The palette hue that most of the strong pixels have is the object's colour.
3. Projected on that colour, a pixel gives its coverage; the largest component in a frame is the object.
4. Area and centroid per frame give track, direction and speed; templates of the same area give the shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np

from .rendering import blur_matrix, render, silhouette
from .scene import COLORS, DIRECTIONS, MOVES, PALETTE, SHAPES, SPEEDS, WORLD, sample_scene, speed_name

SMOOTHING = 1.0  # world pixels: sigma of the blur that keeps noise out of the segmentation
MIN_STRENGTH = 0.15  # distance from grey below which nothing counts as saturated (palette: 0.45 to 0.7)
MIN_AREA = 24.0  # world pixels; a smaller component is no object (the smallest rendered shape has 177)
MIN_SHARE = 0.1  # of the saturated pixels; an object with fewer is one crumb of many
MAX_STRONG = 0.5  # share of saturated pixels above which they are the background
MIN_FIT = 0.8  # soft IoU with a template below which the object has no shape
MIN_SPEED = 0.4  # world pixels per frame; slower is still
MAX_SLANT = 0.7  # |across| / |along| above which a motion has no single direction

# Rows: two orthonormal axes of the plane orthogonal to grey.
PLANE = np.float32([[2, -1, -1], [0, 3**0.5, -(3**0.5)]]) / np.float32(6**0.5)
HUES = np.float32([PALETTE[color] for color in COLORS]) @ PLANE.T
HUES /= np.linalg.norm(HUES, axis=1, keepdims=True)  # (colours, 2)

ATTRIBUTES = {"color": COLORS, "shape": SHAPES, "direction": tuple(DIRECTIONS), "speed": tuple(SPEEDS)}


@dataclass(frozen=True)
class Measurement:
    """What the oracle saw. None: it could not tell. The qualities are 0..1, 1 as in a clean render."""

    color: str | None = None
    shape: str | None = None
    direction: str | None = None  # left, right, up, down or still
    speed: float | None = None  # world pixels per frame (the frame's short side is 64)
    displacement: float = 0.0  # length of its path, however it turns, in world pixels per frame; 0 without an object
    fit: float = 0.0  # soft IoU with the best template
    presence: float = 0.0  # share of the frames that show the object, times its share of all saturated pixels
    smoothness: float = 0.0  # uniform motion of one steady object
    steadiness: float = 0.0  # no flicker of the background
    sharpness: float = 0.0  # steep edges

    @property
    def speed_name(self) -> str | None:
        """slow, normal or fast; None when still or not found."""
        return speed_name(self.speed) if self.direction in MOVES else None

    @property
    def moves(self) -> bool:
        """Whether there is any motion, of which a dynamic degree is the share of clips; whereto does not matter."""
        return self.displacement >= MIN_SPEED


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
        displacement=_displacement(thing, unit),
        fit=fit,
        presence=presence,
        smoothness=presence * _near_zero(residual, 1.0) * _identity(thing),
        steadiness=_steadiness(smooth, thing.body),
        sharpness=_sharpness(thing, shape, unit),
    )


def score(clip, expected: dict) -> OracleScore:
    """Measure a clip and compare with expected {color, shape, direction, speed}; None or missing: not asked.

    `captions.parse_prompt` makes `expected` from a prompt. Raises ValueError when nothing is asked or a value
    is unknown, and as `measure` does.
    """
    return compare(measure(clip), expected)


def compare(seen: Measurement, expected: dict) -> OracleScore:
    """`score` of a clip that is measured already."""
    _check_expected(expected)
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
    means = {name: float(np.mean(values)) if values else None for name, values in columns.items()}
    return means | {"n": len(rows)}


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
    """The oracle's own hit rates (color, shape, direction, speed) and mean qualities on n rendered clips.

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
        if name not in ATTRIBUTES:
            raise ValueError(f"expected names {name!r}, which is unknown; use {', '.join(ATTRIBUTES)}")
        if value is not None and value not in ATTRIBUTES[name]:
            raise ValueError(f"expected {name} {value!r} is unknown; use {', '.join(ATTRIBUTES[name])}")
    if all(expected.get(name) is None for name in ("color", "shape", "direction")):
        raise ValueError(f"expected {expected} asks for nothing; name a color, shape or direction")


def _blur(video: np.ndarray, sigma: float) -> np.ndarray:
    height, width = video.shape[-2:]
    return blur_matrix(height, sigma) @ (video @ blur_matrix(width, sigma).T)


def _to_plane(video: np.ndarray) -> np.ndarray:
    """(F, 3, H, W) -> the two colour axes without grey, (2, F, H, W)."""
    return np.einsum("pc,fchw->pfhw", PLANE, video, optimize=True)


def _find(video: np.ndarray, smooth: np.ndarray, min_area: float) -> _Object | None:
    """Segment the largest object of the most frequent saturated colour; None where there is none."""
    plane = _to_plane(smooth)  # (2, F, H, W)
    paint = _saturated(plane)
    if paint is None:
        return None
    color, axis, ground, strong = paint
    cover = np.tensordot(axis, plane, 1) - axis @ ground  # (F, H, W), 0 on the ground and 1 on the object
    core = _largest_component(cover > 0.5)
    count = core.sum((1, 2))
    seen = count >= min_area
    share = min(1.0, count[seen].sum() / strong)
    if share < MIN_SHARE:
        return None
    core &= seen[:, None, None]
    body = _dilate(core, round(2 * SMOOTHING * (min_area / MIN_AREA) ** 0.5))
    area, center = _moments(cover * body)
    tone = (plane * core).sum((2, 3)).T / np.maximum(count, 1)[:, None]
    raw = np.tensordot(axis, _to_plane(video), 1) - axis @ ground
    return _Object(color, share, np.clip(cover, 0, 1) * body, raw, body, tone, area, center, seen)


def _saturated(plane: np.ndarray) -> tuple[str, np.ndarray, np.ndarray, int] | None:
    """The main saturated colour of a clip (2, F, H, W), or None for a muted clip or a saturated background.

    Returns its name, the axis (2,) along which it is 1 above the ground, the ground's tint (2,), and how many
    pixels are saturated in any colour.
    """
    strength = np.hypot(*plane)
    peak = np.quantile(strength, 0.995)  # inside the smallest rendered shape, above single noisy pixels
    strong, muted = strength > peak / 2, strength < peak / 4
    if peak < MIN_STRENGTH or strong.mean() > MAX_STRONG:
        return None
    color, tone = _dominant(plane[:, strong])
    ground = plane[:, muted].mean(1) if muted.any() else np.zeros(2, np.float32)
    return color, (tone - ground) / np.sum((tone - ground) ** 2), ground, int(strong.sum())


def _dominant(pixels: np.ndarray) -> tuple[str, np.ndarray]:
    """The palette colour nearest to most of the pixels (2, N), and the mean (2,) of its stronger half."""
    hue = np.argmax(HUES @ pixels, axis=0)
    winner = np.bincount(hue).argmax()
    pixels = pixels[:, hue == winner]
    strength = HUES[winner] @ pixels
    return COLORS[winner], pixels[:, strength >= np.median(strength)].mean(1)


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest 4-connected component in every frame of a bool mask (F, H, W)."""
    step = np.diff(mask.astype(np.int8), axis=2, prepend=0, append=0)  # (F, H, W + 1)
    frame, row, start = np.nonzero(step == 1)  # runs of pixels, in reading order
    end = np.nonzero(step == -1)[2]
    if not len(start):
        return mask
    root = _join_runs(frame * (mask.shape[1] + 1) + row, start, end)
    size = np.bincount(root, end - start, minlength=len(start))  # pixels, at the root of each component
    best = np.zeros(len(mask))
    np.maximum.at(best, frame, size[root])
    first = np.full(len(mask), len(start))  # of equal components, the first
    np.minimum.at(first, frame, np.where(size[root] == best[frame], root, len(start)))
    keep = root == first[frame]
    marks = np.zeros(step.shape, np.int8)
    marks[frame[keep], row[keep], start[keep]] = 1
    marks[frame[keep], row[keep], end[keep]] -= 1
    return np.cumsum(marks, axis=2)[..., :-1] > 0


def _join_runs(line: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Union-find over runs that touch on consecutive lines -> the root of every run (N,)."""
    line, start, end = line.tolist(), start.tolist(), end.tolist()
    parent = list(range(len(line)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    above = 0  # the first run that can touch run i from the line above
    for i in range(len(line)):
        while line[above] < line[i] - 1 or (line[above] == line[i] - 1 and end[above] <= start[i]):
            above += 1
        other = above
        while line[other] == line[i] - 1 and start[other] < end[i]:
            low, high = sorted((find(other), find(i)))
            parent[high] = low
            other += 1
    return np.array([find(i) for i in range(len(line))])


def _dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Grow a bool mask (F, H, W) by `reach` pixels along rows and columns (a diamond)."""
    for _ in range(max(reach, 1)):
        grown = mask.copy()
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        grown[:, :, 1:] |= mask[:, :, :-1]
        grown[:, :, :-1] |= mask[:, :, 1:]
        mask = grown
    return mask


def _moments(cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area (F,) and centroid (F, 2) as x, y, in pixels; the centroid of an empty frame means nothing."""
    columns, rows = cover.sum(1), cover.sum(2)  # (F, W), (F, H)
    area = np.maximum(columns.sum(1), 1e-6)
    x = columns @ (np.arange(columns.shape[1]) + 0.5) / area
    y = rows @ (np.arange(rows.shape[1]) + 0.5) / area
    return area, np.stack([x, y], axis=1)


def _template(thing: _Object, shape: str, edge: float) -> np.ndarray:
    """The shape drawn with the object's areas and centroids in the frames that show it -> (N, H, W)."""
    x, y = thing.center[thing.seen].T
    radius = np.sqrt(thing.area[thing.seen] / np.pi)
    return silhouette(shape, radius, x, y, *thing.cover.shape[1:], edge)


def _match(thing: _Object, unit: float) -> tuple[str, float]:
    """The shape whose template has the largest soft IoU with the object, over all frames that show it."""
    cover = thing.cover[thing.seen]
    edge = max(1.0, 3.5 * SMOOTHING * unit)  # a ramp as wide as the smoothed edge
    fits = {}
    for shape in SHAPES:
        template = _template(thing, shape, edge)
        overlap = float(np.minimum(cover, template).sum())
        fits[shape] = overlap / (float(cover.sum() + template.sum()) - overlap)
    best = max(fits, key=fits.get)
    return best, fits[best]


def _track(thing: _Object, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """The frames that show the object (N,), and its places there (N, 2) in world pixels."""
    return np.flatnonzero(thing.seen), thing.center[thing.seen] / unit


def _motion(thing: _Object, unit: float) -> tuple[np.ndarray | None, float]:
    """Least-squares velocity (2,) and rms distance of the track from uniform motion, both in world pixels.

    No velocity is told from a single frame, from an object seen in less than half of the frames, or from a
    track that jumps about rather than moves.
    """
    time, track = _track(thing, unit)
    if len(time) < 2:
        return None, 0.0
    time, track = time - time.mean(), track - track.mean(0)
    velocity = time @ track / (time @ time)
    residual = float(np.sqrt(np.mean(np.sum((track - time[:, None] * velocity) ** 2, axis=1))))
    travel = np.hypot(*velocity) * np.ptp(time)
    erratic = residual > 1 + travel / 4
    return (None if erratic or thing.seen.mean() < 0.5 else velocity), residual


def _displacement(thing: _Object, unit: float) -> float:
    """Mean distance (world pixels) between the object's places in neighbouring frames."""
    time, track = _track(thing, unit)
    if len(time) < 2:
        return 0.0
    return float(np.hypot(*np.diff(track, axis=0).T).sum() / (time[-1] - time[0]))


def _direction(velocity: np.ndarray | None) -> str | None:
    if velocity is None:
        return None
    if np.hypot(*velocity) < MIN_SPEED:
        return "still"
    across, along = sorted(np.abs(velocity))
    if across > MAX_SLANT * along:
        return None
    return max(MOVES, key=lambda name: np.dot(DIRECTIONS[name], velocity))


def _near_zero(value: float, scale: float) -> float:
    """1 at zero, 1/2 at `scale`."""
    return float(1 / (1 + (value / scale) ** 2))


def _identity(thing: _Object) -> float:
    """1 when the object's size and colour stay the same; 1/2 when size varies by 10 %, or colour by 25 %."""
    size, tone = np.sqrt(thing.area[thing.seen]), thing.tone[thing.seen]
    mean = tone.mean(0)
    spread = np.sqrt(np.mean(np.sum((tone - mean) ** 2, axis=1))) / max(np.hypot(*mean), 1e-6)
    return _near_zero(size.std() / size.mean(), 0.1) * _near_zero(spread, 0.25)


def _steadiness(smooth: np.ndarray, body: np.ndarray) -> float:
    """1 when the background stays the same from frame to frame; 1/2 at a mean change of 2 % of white."""
    if len(smooth) == 1:
        return 1.0
    outside = ~(body[1:] | body[:-1])
    if not outside.any():
        return 0.0
    change = np.abs(np.diff(smooth, axis=0)).mean(1)  # (F - 1, H, W)
    return _near_zero(change[outside].mean(), 0.02)


def _sharpness(thing: _Object, shape: str, unit: float) -> float:
    """Steepness of the edges relative to a clean render of the same object."""
    clean = _template(thing, shape, 1.0)
    reference = _steepness(clean, _blur(clean, SMOOTHING * unit), thing.body[thing.seen])
    found = _steepness(thing.raw[thing.seen], thing.cover[thing.seen], thing.body[thing.seen])
    return float(np.clip(found / max(reference, 1e-6), 0, 1))


def _steepness(raw: np.ndarray, smooth: np.ndarray, body: np.ndarray) -> float:
    """Mean slope of `raw` along the slope of `smooth`, which has the edges but little of the noise."""
    def slopes(image):  # (N, H, W) -> two of (N, H - 1, W - 1)
        return image[:, :-1, 1:] - image[:, :-1, :-1], image[:, 1:, :-1] - image[:, :-1, :-1]

    (raw_x, raw_y), (x, y), inside = slopes(raw), slopes(smooth), body[:, 1:, 1:]
    along = (raw_x * x + raw_y * y)[inside].sum()
    return float(along / max(np.hypot(x, y)[inside].sum(), 1e-6))
