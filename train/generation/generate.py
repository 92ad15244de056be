"""Clips of all prompts, each as it is written: of one seed, or the best of several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ...core.checkpoints.lora import split_strength
from ...core.device import pick_device, pick_dtype
from ...core.motion.prior import MotionPrior
from ...core.pipeline import load
from ...core.rewards import RewardMixture
from ...core.rewards.best_of import Candidate, best_of
from ...core.tables import markdown
from ...core.video import check_rate
from ..scoring.best_of import REMEDY, best_of_tags, load_mixture_of
from ..seeds import seeds_from
from ..timing import stage, tell_peak
from .motion import settle_motion
from .outputs import beside, output_files
from .request import GenerateRequest
from .sampling import ClipSampler


@dataclass(frozen=True)
class GeneratedClip:
    """A clip that was written; ``scores`` is the table of all seeds, where the best of several was kept."""

    path: Path
    scores: str = ""


def generate(request: GenerateRequest) -> Iterator[GeneratedClip]:
    """Write a clip for every prompt, one after the other.

    Raises:
        ValueError: for a file that cannot be written, settings that the model cannot take, or a clip that holds NaN.
    """
    targets = output_files(request.prompts, request.out, request.format)
    if request.fps is not None:
        check_rate(request.fps, targets[0].suffix, "--fps ")
    device = pick_device(request.device)
    clips, judges = load_sampler(request, device)
    count = request.best_of or 1
    for i, (prompt, target) in enumerate(zip(request.prompts, targets)):
        seeds = seeds_from(request.seed + i * count, count)
        if judges:
            yield GeneratedClip(target, write_best(clips, judges, prompt, seeds, target))
        else:
            clips.write(target, clips.sample(prompt, seeds[0]), prompt, seeds[0])
            yield GeneratedClip(target)
    tell_peak(device)


def load_sampler(request: GenerateRequest, device: torch.device) -> tuple[ClipSampler, RewardMixture | None]:
    """The model as asked for, and the rewards that choose among several clips; what costs least is loaded first."""
    dtype = pick_dtype(request.dtype, device)
    prior = MotionPrior.load(request.motion) if request.motion else None
    judges = None
    if request.best_of:
        judges = load_mixture_of(request.reward, request.model, request.checkpoints, device, request.dtype)
    with stage("load the model", device):
        loras = [split_strength(lora) for lora in request.loras]
        model = load(request.model, request.student, request.checkpoints, device, dtype, loras)
    return ClipSampler(request, model, settle_motion(request, model, prior)), judges


def write_best(clips: ClipSampler, judges: RewardMixture, prompt: str, seeds: list[int], target: Path) -> str:
    """Write the best of the seeds' clips to ``target``, the others beside it if asked for; returns the scores."""

    def write(path: Path, clip: Candidate) -> None:
        clips.write(path, clip.frames, prompt, clip.seed, **best_of_tags(clip, judges.weights, seeds))

    others = (lambda clip: write(beside(target, clip.seed), clip)) if clips.request.keep_all else None
    bar = tqdm(seeds, desc="seeds", unit="clip", leave=False)
    best, table = best_of(judges, partial(clips.sample, prompt), prompt, bar, others, REMEDY)
    write(target, best)
    return markdown(table)
