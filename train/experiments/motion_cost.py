"""What motion scores cost and how exact they are, by the way they are made: the table of ``t2v-turbo motion cost``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...core.diffusion.ddim import DDIMSolver
from ...core.diffusion.schedule import NoiseSchedule
from ...core.pipeline import Pipeline
from ...core.tables import markdown
from ..config import PreprocessConfig
from ..data.clips import ClipDataset, DecodedClip
from ..data.sources import Clip, list_clips
from ..motion.scores import ScoreSettings, is_guided
from ..preprocess import RecordMaker
from ..results import KeptRows
from ..shapes.world.dataset import render_clip

# The authors' scheme: what the others are compared with.
EXACT = ScoreSettings("ddim", 200)


@dataclass(frozen=True)
class CostPlan:
    """What is compared on which clips."""

    clips: int
    videos: str | None  # folder or table, None = rendered clips
    grids: tuple[int, ...]  # steps of the inversions
    records: tuple[int, ...]  # per clip and inversion
    tau: float
    seed: int
    gradient_checkpointing: bool

    @property
    def settings(self) -> list[ScoreSettings]:
        return [*(ScoreSettings("ddim", steps) for steps in self.grids), ScoreSettings("noise")]

    @property
    def config(self) -> PreprocessConfig:
        """How records are made, apart from the settings."""
        return PreprocessConfig(
            videos="", records="", motion=True, tau=self.tau, records_per_clip=max(self.records), seed=self.seed,
            gradient_checkpointing=self.gradient_checkpointing, dtype="fp32",
        )  # fmt: skip

    def open_clips(self, model: Pipeline) -> Iterator[DecodedClip]:
        if self.videos:
            return read_clips(model, self.videos, self.clips, self.seed)
        return rendered_clips(model, self.clips, self.seed)


@dataclass(frozen=True)
class CostRow:
    """One way to make scores."""

    settings: ScoreSettings
    records: int  # per clip, and so per inversion
    evaluations: float  # of the UNet per guided record, the teacher's two included
    cosine: float  # mean over guided records between these scores and the exact ones
    low: float  # the tenth of the records with the lowest cosines is below this


def rendered_clips(model: Pipeline, count: int, seed: int) -> Iterator[DecodedClip]:
    """Clips of both styles of the embedded world in turn, with captions of their kind.

    Raises:
        ValueError: for a family whose frames are not square.
    """
    family = model.family
    if family.height != family.width:
        raise ValueError(f"no clips are rendered for {family.name}: name a folder or table of videos with --videos")
    for i in range(count):
        style = ("short", "dense")[i % 2]
        clip = render_clip(seed, i, style, family.frames, family.height)
        caption = clip.short_caption if style == "short" else clip.dense_caption
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
        yield DecodedClip(i, Clip(f"{style}-{i}", Path(), None), style, caption, frames=frames)


def read_clips(model: Pipeline, videos: str, count: int, seed: int) -> Iterator[DecodedClip]:
    """The usable ones among the first ``count`` videos, read as for preprocessing."""
    config = PreprocessConfig(videos=videos, records="", limit=count, seed=seed)
    family = model.family
    dataset = ClipDataset(list_clips(config), config, family.fps, (family.frames, family.height, family.width))
    yield from (clip for clip in (dataset[i] for i in range(len(dataset))) if not clip.problem)


def compare_settings(model: Pipeline, plan: CostPlan, kept: KeptRows, made_from: dict) -> str:
    """The whole experiment; returns its ``report``.

    Raises:
        ValueError: if no clip can be used, or no draw of them is guided.
    """
    made_from = made_from | {"videos": plan.videos}
    measured = measure(model, plan.open_clips(model), plan.clips, plan.settings, plan.config, kept, made_from)
    return report(measured, plan.settings, plan.records, plan.tau)


def measure_clip(model: Pipeline, clip: DecodedClip, config: PreprocessConfig, settings: list[ScoreSettings]) -> dict:
    """Of one clip: the draws' grid points, and per setting the evaluations and the cosines of the guided draws."""
    exact, found = None, {}
    for setting in [EXACT, *(one for one in settings if one != EXACT)]:
        same = {"motion_method": setting.method, "motion_grid": setting.grid}
        maker = RecordMaker(replace(config, **same), model)
        records = maker([clip])
        scores = {record.key: record.tensors["score"] for record in records if "score" in record.tensors}
        exact = scores if exact is None else exact
        # The unguided draws, two evaluations each, are not what is compared.
        evaluations = maker.evaluations - 2 * (len(records) - len(scores))
        cosines = [cosine(score, exact[key]) for key, score in scores.items()]
        found[name_of(setting)] = {"evaluations": evaluations, "cosines": cosines}
    return {"index": [record.about["index"] for record in records], "settings": found}


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def name_of(setting: ScoreSettings) -> str:
    return "noise" if setting.method == "noise" else f"ddim {setting.grid}"


def measure(
    model: Pipeline,
    clips: Iterator[DecodedClip],
    total: int,
    settings: list[ScoreSettings],
    config: PreprocessConfig,
    kept: KeptRows,
    made_from: dict,
) -> list[dict]:
    """What ``measure_clip`` says of every clip; it is kept, so that a stopped run goes on.

    Args:
        config: how records are made, apart from the settings.
        made_from: the weights and the clips.

    Raises:
        ValueError: if no clip can be used.
    """
    same = ("tau", "seed", "records_per_clip")
    made_from = made_from | {name: getattr(config, name) for name in same}
    made_from |= {"settings": [asdict(one) for one in settings]}
    measured = []
    for clip in tqdm(clips, desc="motion cost", unit="clip", total=total):
        measured.append(
            kept.get(made_from | {"clip": clip.clip.name}, partial(measure_clip, model, clip, config, settings))
        )
    if not measured:
        raise ValueError("none of the clips could be used; give others with --videos")
    return measured


def plan(setting: ScoreSettings, index: list[int], tau: float, solver: DDIMSolver) -> tuple[int, int]:
    """UNet evaluations for the guided ones among draws of one clip at ``index``, and how many they are."""
    timesteps = [int(solver.timesteps[i]) for i in index if is_guided(i, tau, solver)]
    # Beside the scores, the teacher is asked about the empty prompt.
    return setting.evaluations(timesteps) + len(timesteps), len(timesteps)


def per_record(measured: list[dict], setting: ScoreSettings, records: int, tau: float, solver: DDIMSolver) -> float:
    """UNet evaluations per guided record, if every ``records`` draws of a clip share an inversion.

    Raises:
        ValueError: if no draw is guided.
    """
    groups = [row["index"][i : i + records] for row in measured for i in range(0, len(row["index"]), records)]
    spent, guided = map(sum, zip(*(plan(setting, group, tau, solver) for group in groups)))
    if not guided:
        raise ValueError(f"none of the draws is guided at tau={tau}: take more clips, or a larger tau")
    return spent / guided


def cost_table(
    measured: list[dict], settings: list[ScoreSettings], records: Sequence[int], tau: float, solver: DDIMSolver
) -> list[CostRow]:
    """A row per setting and number of records per clip."""
    rows = []
    for setting in settings:
        found = [row["settings"][name_of(setting)] for row in measured]
        counted = [plan(setting, row["index"], tau, solver)[0] for row in measured]
        assert counted == [one["evaluations"] for one in found], "what was planned is what was counted"
        cosines = [value for one in found for value in one["cosines"]]
        for k in records:
            evaluations = per_record(measured, setting, k, tau, solver)
            rows.append(CostRow(setting, k, evaluations, float(np.mean(cosines)), float(np.quantile(cosines, 0.1))))
    return rows


def report(measured: list[dict], settings: list[ScoreSettings], records: Sequence[int], tau: float) -> str:
    """The table as Markdown, and what it is compared with."""
    solver = DDIMSolver(NoiseSchedule())
    base = per_record(measured, EXACT, 1, tau, solver)
    table = [["inversion", "records per clip", "UNet evaluations per guided record", "times fewer", "mean cosine",
              "lowest tenth"]]  # fmt: skip
    for row in cost_table(measured, settings, records, tau, solver):
        figures = f"{row.evaluations:.1f}", f"{base / row.evaluations:.1f}", f"{row.cosine:.3f}", f"{row.low:.3f}"
        table.append([name_of(row.settings), row.records, *figures])
    count = sum(len(row["settings"][name_of(EXACT)]["cosines"]) for row in measured)
    told = f"{count} guided records of {len(measured)} clips. The authors' way, {name_of(EXACT)} for each record, takes"
    return f"{markdown(table)}\n{told} {base:.1f} evaluations. Every guided record takes one backward pass too."
