"""Scenes to pictures."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .scene import CROSS, DIRECTIONS, PALETTE, SQUARE, TINTS, TRIANGLE, WORLD, Scene


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
