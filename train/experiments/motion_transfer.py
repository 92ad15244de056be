"""Does a clip take over the motion of a reference? Measured on the embedded world, where an oracle sees directions.

A pair is a rendered reference, such as "a blue square moves left", and a prompt of another colour and shape that names
no direction, "a red circle". Sampled twice from the same noise, with and without motion guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...core.diffusion.ddim import sample_ddim
from ...core.diffusion.guidance import cfg_model, guided_timesteps
from ...core.families import TAU
from ...core.motion.energies import Attention, Energy, Reference, find_energy
from ...core.motion.guidance import motion_model
from ...core.motion.inversion import prior_latents
from ...core.motion.prior import MotionPrior, Origin
from ...core.motion.probe import read_reference
from ...core.pipeline import Pipeline
from ...core.video import from_uint8, to_uint8
from ..results import KeptRows
from ..seeds import generator_for
from ..shapes.world.oracle import compare, measure
from ..shapes.world.rendering import render
from ..shapes.world.scene import COLORS, MOVES, SHAPES, sample_scene
from .intervals import Interval, difference, wilson

BATCH = 10  # pairs that are sampled at once and kept together
# A lambda that guides nothing, so that the energy of unguided sampling is measured too.
UNFELT = 1e-12
COLUMNS = ("color", "shape", "smoothness", "steadiness", "sharpness", "total")


@dataclass(frozen=True)
class Pair:
    """A reference clip and a prompt that says nothing of its motion."""

    number: int
    frames: np.ndarray  # of the reference, uint8 (F, H, W, 3)
    caption: str  # of the reference
    prompt: str
    expected: dict  # for the oracle: colour and shape of the prompt, direction of the reference


@dataclass(frozen=True)
class Guidance:
    """Strength of motion guidance and the part of the sampling that it acts in."""

    strength: float  # lambda in the paper's unit, 0 = none
    tau: float = TAU


@dataclass(frozen=True)
class Sampling:
    """What all compared samplings share."""

    steps: int = 50
    scale: float | None = None  # guidance scale, None = the family's
    method: str = "ddim"  # of the prior
    grid: int = 50
    seed: int = 0


def make_pair(seed: int, number: int, frames: int = 8, size: int = 64) -> Pair:
    """Pair ``number`` of a seed; the directions take turns."""
    rng = np.random.default_rng((seed, number))
    direction = MOVES[number % len(MOVES)]
    while (scene := sample_scene(rng, "dense", frames)).direction != direction:
        pass
    color = str(rng.choice([one for one in COLORS if one != scene.color]))
    shape = str(rng.choice([one for one in SHAPES if one != scene.shape]))
    expected = {"color": color, "shape": shape, "direction": direction}
    caption = f"a {scene.color} {scene.shape} moves {direction}"
    return Pair(number, render(scene, frames, size), caption, f"a {color} {shape}", expected)


# --- sampling ----------


@dataclass
class Recorded:
    """An energy that remembers its values, (B,) per call."""

    energy: Energy
    values: list[Tensor] = field(default_factory=list)

    @property
    def keep(self) -> int | None:
        return self.energy.keep

    def __call__(self, attention: Attention, reference: Reference) -> Tensor:
        value = self.energy(attention, reference)
        self.values.append(value.detach().cpu())
        return value


@torch.no_grad()
def read_pairs(model: Pipeline, pairs: list[Pair], sampling: Sampling, tau: float) -> MotionPrior:
    """The references' motion, one sample per pair, wherever a sampling with at most ``tau`` is guided."""
    x0 = model.vae.encode(torch.stack([from_uint8(pair.frames) for pair in pairs])).to(model.device).float()
    captions = [pair.caption for pair in pairs]
    context, fps = model.encode(captions), model.family.fps_condition
    generators = [generator_for("reference", sampling.seed, pair.number) for pair in pairs]
    predict, timesteps = cfg_model(model.unet, context, context, 1, fps), guided_timesteps(sampling.steps, tau)
    found = prior_latents(predict, x0, timesteps, model.schedule, sampling.method, sampling.grid, generators)
    references = {
        t: read_reference(model.unet, x_ref, torch.full((len(x0),), t), context, fps=fps)
        for t, x_ref in found.latents.items()
    }
    origin = Origin(model.family.name, "; ".join(captions), method=sampling.method, grid=sampling.grid, fps=fps)
    return MotionPrior(references, model.unet.config.as_teacher(), tuple(x0.shape[2:]), origin, found.evaluations)


@torch.no_grad()
def sample_pairs(
    model: Pipeline, pairs: list[Pair], prior: MotionPrior, guidance: Guidance, sampling: Sampling
) -> tuple[list[np.ndarray], Tensor]:
    """The teacher's clips, uint8 (F, H, W, 3) per pair, and the energy at every guided step (steps, B)."""
    scale = model.family.guidance_scale if sampling.scale is None else sampling.scale
    context, empty = model.encode([pair.prompt for pair in pairs]), model.encode([""])
    noise = model.noise(len(pairs), [generator_for("noise", sampling.seed, pair.number) for pair in pairs])
    energy = Recorded(find_energy("mean"))
    predict = motion_model(
        model.unet, prior, context.to(model.device), empty.to(model.device), scale, model.schedule, sampling.steps,
        guidance.strength or UNFELT, guidance.tau, energy, fps=model.family.fps_condition, chunk=len(pairs),
        checkpointing=False,
    )  # fmt: skip
    latents = sample_ddim(predict, noise, model.schedule, sampling.steps)
    return [to_uint8(frames) for frames in model.decode(latents, chunk=64)], torch.stack(energy.values)


def judge(clip: np.ndarray, expected: dict) -> dict:
    """The oracle's score as JSON values, with how far and whether the object moves at all."""
    seen = measure(clip)
    found = asdict(compare(seen, expected)) | {"displacement": seen.displacement, "moves": seen.moves}
    # The measures are numpy's numbers, which JSON does not know.
    return {name: value if value is None or isinstance(value, bool) else float(value) for name, value in found.items()}


# --- the experiment ----------


def run_pairs(
    model: Pipeline, guidances: list[Guidance], pairs: int, sampling: Sampling, kept: KeptRows, made_from: dict
) -> dict[Guidance, list[dict]]:
    """Per guidance, the oracle's score of every pair, with its energies by timestep.

    Every batch of pairs is kept when it is done, so that a stopped run goes on, and a longer one goes on from it.

    Args:
        made_from: the weights.

    Raises:
        ValueError: if a guidance has no guided step.
    """
    for one in guidances:
        if not guided_timesteps(sampling.steps, one.tau):
            raise ValueError(f"tau={one.tau:g} of {sampling.steps} steps guides none of them: raise tau")
    tau, results = max(one.tau for one in guidances), {one: [] for one in guidances}
    size = model.family.frames, model.family.height
    with tqdm(total=pairs * len(guidances), desc="motion transfer", unit="clip") as bar:
        for first in range(0, pairs, BATCH):
            part = [make_pair(sampling.seed, i, *size) for i in range(first, min(first + BATCH, pairs))]
            prior = cache(partial(read_pairs, model, part, sampling, tau))  # where all is kept, none is read
            for one in guidances:
                origin = made_from | asdict(sampling) | asdict(one) | {"pairs": [first, len(part)]}
                row = kept.get(origin, partial(_judge_part, model, part, prior, one, sampling))
                results[one] += row["results"]
                bar.update(len(part))
    return results


def _judge_part(
    model: Pipeline, pairs: list[Pair], prior: Callable[[], MotionPrior], guidance: Guidance, sampling: Sampling
) -> dict:
    clips, energies = sample_pairs(model, pairs, prior(), guidance, sampling)
    timesteps = guided_timesteps(sampling.steps, guidance.tau)
    judged = [
        judge(clip, pair.expected) | {"energy": dict(zip(map(str, timesteps), course.tolist()))}
        for clip, pair, course in zip(clips, pairs, energies.T)
    ]
    return {"results": judged}


# --- what came out ----------


def rate(results: list[dict], name: str) -> float:
    """Mean of a field over the results."""
    return float(np.mean([result[name] for result in results]))


def direction_gain(unguided: list[dict], guided: list[dict]) -> Interval:
    """By how much guidance raises the share of clips with the reference's direction; both are of the same pairs."""
    return difference(*([result["direction"] for result in results] for results in (guided, unguided)))


def transfer_table(results: dict[Guidance, list[dict]]) -> list[list]:
    """Header and a row per guidance, in per cent: how often the direction is the reference's, and what else it does."""
    table = [["lambda", "tau", "direction", "95 % interval", *COLUMNS]]
    for guidance, found in results.items():
        low, high = wilson(sum(result["direction"] for result in found), len(found))
        rates = [round(100 * rate(found, name), 1) for name in ("direction", *COLUMNS)]
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        table.append([f"{guidance.strength:g}", f"{guidance.tau:g}", rates[0], interval, *rates[1:]])
    return table
