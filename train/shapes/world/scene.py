"""What a clip of Moving Shapes shows, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

COLORS = ("red", "yellow", "green", "cyan", "blue", "purple")
SHAPES = ("circle", "square", "triangle", "cross")
MOVES = ("left", "right", "up", "down")
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
