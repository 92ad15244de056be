"""A picture of a motion prior: which frame attends to which, in the mean over the clip and at every place of it."""

from __future__ import annotations

import re
from colorsys import hsv_to_rgb

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..networks.config import UNetConfig
from .energies import TopEntries
from .prior import MotionPrior

# Pixels.
TILE, GAP, LABEL, HEADER = 64, 4, 120, 36
LINE = 16
BACKGROUND, INK = 0.08, (230, 230, 230)
# From red, the first frame, to violet, the last: a full turn would show both ends in one colour.
HUES = 0.78


def preview(prior: MotionPrior, timestep: int | None = None) -> Tensor:
    """Draw what a prior holds at one timestep.

    One row of tiles per layer, the mean of all layers first. The first tile is a matrix: row = a frame, column = the
    frame that it attends to. Then one tile per frame, a map over its picture. In all of them the colour tells the frame
    attended to, as in the header's numbers, and the brightness how much attention goes there.

    Args:
        timestep: the nearest of the prior's is drawn; None = the least noisy, where motion shows best.

    Returns:
        Image (H, W, 3) in 0..1, float32.

    Raises:
        ValueError: if a layer's attention does not fit the clip's size, as a damaged file may have it.
    """
    reference = prior.at(min(prior.timesteps) if timestep is None else timestep)
    drawn = next(t for t, there in prior.references.items() if there is reference)
    colours = frame_colours(prior.size[0])
    layers = {
        name: (attention_matrix(top), attention_maps(top, layer_grid(name, top, prior.config, prior.size), colours))
        for name, top in reference.items()
    }
    rows = {"mean of layers": mean_of_layers(list(layers.values())), **layers}
    width = round(TILE * prior.size[2] / prior.size[1])
    canvas = torch.cat([tile_row(matrix, maps, colours, width) for matrix, maps in rows.values()])
    canvas = F.pad(canvas.movedim(-1, 0), (LABEL, 0, HEADER, 0), value=BACKGROUND).movedim(0, -1)
    return write_labels(canvas, [short_name(name) for name in rows], drawn, colours, width)


# --- numbers ----------


def frame_colours(frames: int) -> Tensor:
    """One colour per frame (F, 3)."""
    return torch.tensor([hsv_to_rgb(HUES * i / max(1, frames - 1), 0.75, 1.0) for i in range(frames)])


def layer_grid(name: str, top: TopEntries, config: UNetConfig, size: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of the grid on which a temporal layer attends, by its name in the UNet.

    Raises:
        ValueError: if the layer's rows of attention are no multiple of the grid's positions.
    """
    place = re.match(r"(?:(entry)|(mid)|down\.(\d+)|up\.(\d+))\.", name)
    deepest = config.num_levels - 1
    entry, mid, down, up = place.groups() if place else ("entry", None, None, None)
    level = 0 if entry else deepest if mid else int(down) if down else deepest - int(up)
    height, width = (-(-side // 2 ** min(max(level, 0), deepest)) for side in size[1:])
    if top.index.shape[1] % (height * width):
        raise ValueError(
            f"the motion prior's layer '{name}' holds {top.index.shape[1]} rows of attention, which do not fit "
            f"{height}x{width} positions: make the prior anew"
        )
    return height, width


def attention_matrix(top: TopEntries) -> Tensor:
    """Mean attention (F, F) of a frame (row) to another (column), over all positions and heads; of what is kept."""
    index, value = top.index[0].long(), top.value[0].float()  # (R, F, k)
    rows, frames, _ = index.shape
    by_frame = (part.movedim(1, 0).flatten(1) for part in (index, value))
    return torch.zeros(frames, frames).scatter_add(1, *by_frame) / rows


def attention_maps(top: TopEntries, grid: tuple[int, int], colours: Tensor) -> Tensor:
    """Per frame, the colours of the frames attended to, weighted by the attention: (F, 3, h, w)."""
    index, value = top.index[0].long(), top.value[0].float()  # (R, F, k)
    # One kept entry after another, for all at once would be gigabytes where a whole row is kept.
    mixed = sum(colours[index[..., i]] * value[..., i, None] for i in range(top.kept))  # (R, F, 3)
    return mixed.unflatten(0, (*grid, -1)).mean(dim=2).permute(2, 3, 0, 1)


def mean_of_layers(layers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Matrix and maps in the mean over layers, at the finest grid."""
    matrices, maps = zip(*layers)
    finest = max((found.shape[-2:] for found in maps), key=lambda grid: grid[0] * grid[1])
    return torch.stack(matrices).mean(0), torch.stack([F.interpolate(found, finest) for found in maps]).mean(0)


# --- drawing ----------


def tile_row(matrix: Tensor, maps: Tensor, colours: Tensor, width: int) -> Tensor:
    """The matrix (F, F) and the maps (F, 3, h, w) beside each other, each as bright as its largest value allows."""
    painted = (matrix[..., None] * colours).permute(2, 0, 1)[None]  # (1, 3, F, F)
    tiles = [F.interpolate(brightest(painted), (TILE, TILE)), *F.interpolate(brightest(maps), (TILE, width)).split(1)]
    framed = [F.pad(tile[0], (0, GAP, 0, GAP), value=BACKGROUND) for tile in tiles]
    return torch.cat(framed, dim=-1).movedim(0, -1)


def brightest(image: Tensor) -> Tensor:
    return (image / image.amax().clamp(min=1e-12)).clamp(0, 1)


def write_labels(canvas: Tensor, names: list[str], timestep: int, colours: Tensor, width: int) -> Tensor:
    """Layer names at the left, frame numbers in their colours at the top."""
    image = Image.fromarray((canvas * 255).round().to(torch.uint8).numpy())
    draw = ImageDraw.Draw(image)
    draw.text((GAP, GAP), f"timestep {timestep}: colour = frame attended to, brightness = how much", fill=INK)
    for i, colour in enumerate(colours):
        left = LABEL + TILE + GAP + i * (width + GAP)
        draw.text((left, HEADER - LINE), str(i + 1), fill=tuple(round(255 * part) for part in colour.tolist()))
    for i, name in enumerate(names):
        draw.text((GAP, HEADER + i * (TILE + GAP)), name, fill=INK)
    return torch.from_numpy(np.array(image)).float() / 255


def short_name(layer: str) -> str:
    return layer.removesuffix(".temporal.blocks.0.attn1")
