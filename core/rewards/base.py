"""The one face of all reward models, and what it asks of frames and prompts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .long_captions import split_caption

log = logging.getLogger(__name__)

# How far frames may leave 0..1 (a decoder overshoots) before they are taken for another scale, such as -1..1.
OVERSHOOT = 0.25
LONG_CAPTIONS = ("segments", "truncate")


@dataclass(frozen=True)
class RewardInfo:
    """What a reward model says of itself.

    Attributes:
        name: its title.
        kind: "image" scores frames one by one, "video" sees the clip at its own frame count.
        unit: what one of its scores is.
        range: lowest and highest possible score.
        text_limit: tokens of a caption that it can read, with those at its start and end.
        licence: of the published weights or the code that they came with; the model's own card decides.
        source: the hub's name of the published weights.
    """

    name: str
    kind: Literal["image", "video"]
    unit: str
    range: tuple[float, float]
    text_limit: int
    licence: str
    source: str


class Reward(nn.Module):
    """Scores how well frames go with prompts.

    A model implements ``count_tokens``, ``encode_frames`` and either ``encode_text`` (where the score is the cosine of
    two features) or ``compare``.

    Attributes:
        info: name, kind, unit, range, text limit, licence.
        long_captions: "segments" = a caption beyond the text limit is cut at sentence ends and its segments' scores
            are averaged; "truncate" = the rest is cut off, as in the published method. Both warn once.
    """

    info: RewardInfo

    def __init__(self, info: RewardInfo):
        super().__init__()
        self.info = info
        self.long_captions = "segments"
        self._warned = False
        self._home: torch.device | None = None

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    # --- what a model implements ----------

    def count_tokens(self, caption: str) -> int:
        """Tokens that ``caption`` needs, uncut, with those at its start and end."""
        raise NotImplementedError

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) in 0..1, fp32, on the model's device -> features (B, K, …) of K views."""
        raise NotImplementedError

    def encode_text(self, captions: list[str]) -> Tensor:
        """Captions, cut at the limit -> L2-normalised features (S, E)."""
        raise NotImplementedError

    def compare(self, features: Tensor, captions: list[str]) -> Tensor:
        """Features (S, K, …) and one caption each -> scores (S,), fp32: the cosine, averaged over the K views."""
        with torch.no_grad():
            text = self.encode_text(captions)
        return (features * text[:, None]).sum(-1).mean(1)

    def chosen_frames(self, total: int) -> list[int]:
        """Which of ``total`` frames a video reward looks at; an image reward looks at all that it is given."""
        return list(range(total))

    def enable_checkpointing(self) -> None:
        """Recompute the vision tower's layers in the backward pass, which saves memory and costs time."""
        raise NotImplementedError

    # --- the face ----------

    def score(self, frames: Tensor, prompts: list[str]) -> Tensor:
        """Score clips, differentiable in the frames.

        Image rewards average over all given frames; video rewards take their own number of frames, evenly spaced
        (a shorter clip repeats frames; a single one counts as an image where the model knows images).

        Args:
            frames: (B, F, 3, H, W) in 0..1, any float type, on any device. A decoder's overshoot is clamped.
            prompts: B captions of any length.

        Returns:
            (B,) in ``info.unit``, fp32 (float64 for a float64 model), on the frames' device.

        Raises:
            ValueError: if shapes or counts do not fit, a prompt is blank, or frames are NaN, infinite or not in 0..1.
        """
        frames = checked_frames(frames)
        check_prompts(prompts, len(frames))
        self._come_home()
        return self.rate(self.encode_frames(widen(frames.to(self.device))), prompts).to(frames.device)

    def rate(self, features: Tensor, prompts: list[str]) -> Tensor:
        """Scores (B,) of clips that are encoded already, features (B, K, …), with a prompt each."""
        segments = [self.segments(prompt) for prompt in prompts]
        counts = [len(parts) for parts in segments]
        owner = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts)).to(features.device)
        scores = self.compare(features[owner], [part for parts in segments for part in parts])  # (S,)
        return torch.stack([part.mean() for part in scores.split(counts)])

    def segments(self, prompt: str) -> list[str]:
        """The pieces in which ``prompt`` is read: itself, or its segments where it is too long."""
        limit = self.info.text_limit
        needed = self.count_tokens(prompt)
        if needed <= limit:
            return [prompt]
        cut = self.long_captions == "truncate"
        if not self._warned:
            self._warned = True
            how = "cut off there" if cut else "scored in segments of whole sentences, whose mean counts"
            log.warning("%s reads %d tokens; captions beyond it (here %d) are %s", self.info.name, limit, needed, how)
        return [prompt] if cut else split_caption(prompt, limit, self.count_tokens)

    def offload(self) -> None:
        """Move to the CPU until the next score, which moves back. Call it after the backward pass, not before."""
        if self._home is None:
            self._home = self.device
            self.to("cpu")

    def _come_home(self) -> None:
        if self._home is not None:
            home, self._home = self._home, None
            self.to(home)


def widen(values: Tensor) -> Tensor:
    """To fp32; float64 stays, so that gradients can be checked."""
    return values if values.dtype == torch.float64 else values.float()


def checked_frames(frames: Tensor) -> Tensor:
    """Frames (B, F, 3, H, W), clamped to 0..1.

    Raises:
        ValueError: if they have another shape or type, are not finite, or leave 0..1 by more than ``OVERSHOOT``.
    """
    if frames.ndim != 5 or frames.shape[2] != 3 or 0 in frames.shape:
        raise ValueError(f"frames of shape {list(frames.shape)}: (B, F, 3, H, W) is needed, with nothing empty")
    if not frames.is_floating_point():
        raise ValueError(f"frames of type {frames.dtype}: floats in 0..1 are needed; divide bytes by 255")
    low, high = torch.stack(frames.detach().aminmax()).tolist()
    if not (-float("inf") < low <= high < float("inf")):  # aminmax hands NaN on
        raise ValueError(f"frames hold NaN or infinite values (min {low}, max {high}): what made them has diverged")
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(f"frames from {low:.3g} to {high:.3g}: 0..1 is needed; rescale them")
    return frames.clamp(0, 1) if low < 0 or high > 1 else frames


def check_prompts(prompts: list[str], batch: int) -> None:
    """Raises: ValueError: unless there are ``batch`` prompts and none is blank."""
    if isinstance(prompts, str) or len(prompts) != batch:
        given = "a single string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(f"{given} for {batch} clips: a list with one prompt per clip is needed")
    blank = [i for i, prompt in enumerate(prompts) if not prompt.strip()]
    if blank:
        raise ValueError(f"prompt {blank[0]} is empty: a score needs a caption; leave such clips out")
