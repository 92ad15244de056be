"""``t2v-turbo preprocess``: videos and captions to records (Algorithm 1), so that training never runs the teacher."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..core.checkpoints.locations import weights_of
from ..core.device import DTYPES, pick_autocast, pick_device
from ..core.diffusion.ddim import DDIMSolver
from ..core.families import resolve_family
from ..core.pipeline import Pipeline, load
from ..core.video.decord_reading import decord_version, resolve_reader
from .config import PreprocessConfig
from .data.clips import ClipDataset, DecodedClip
from .data.records import Record, ShardWriter, begin, finish, shard_path
from .data.sources import Clip, fingerprint, list_clips
from .motion.scores import MotionScorer, ScoreSettings, is_guided
from .seeds import generator_for


@dataclass
class Summary:
    """What one call of ``preprocess`` did."""

    records: int = 0
    clips: int = 0
    skipped: int = 0
    evaluations: int = 0  # of the UNet, one per sample
    guided: int = 0  # records with a motion score
    total: tuple[int, int] | None = None  # records and skipped clips of the whole set; None = not complete yet

    @property
    def guided_evaluations(self) -> int:
        """Of the evaluations, those for records with a motion score; each of the others takes two."""
        return self.evaluations - 2 * (self.records - self.guided)


def share_of_work(rank: int | None, world: int | None) -> tuple[int, int]:
    """(rank, number of processes): as given, else the launcher's, else the only one.

    Raises:
        ValueError: if the rank is outside 0..world − 1.
    """
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank
    world = int(os.environ.get("WORLD_SIZE", 1)) if world is None else world
    if not 0 <= rank < world:
        raise ValueError(f"--rank {rank} is outside 0..{world - 1} for --world-size {world}")
    return rank, world


def preprocess(config: PreprocessConfig, rank: int = 0, world: int = 1) -> Summary:
    """Write this rank's missing shards, and complete the set if they were the last.

    Raises:
        ValueError: for a wrong setting, or a folder of records that were made from something else.
    """
    precision = pick_autocast(config.precision, pick_device(config.model.device))
    config = replace(config, precision=precision, reader=resolve_reader(config.reader))
    clips, folder = list_clips(config), Path(config.records)
    family = resolve_family(config.model.family)
    size = (config.frames or family.frames, config.height or family.height, config.width or family.width)
    begin(folder, made_from(config, clips, size, family.fps))
    shards = -(-len(clips) // config.clips_per_shard)
    missing = [i for i in range(rank, shards, world) if not shard_path(folder, i).exists()]
    summary = Summary()
    if missing:
        write_shards(config, clips, missing, size, summary)
    summary.total = finish(folder, shards)
    if summary.total and not summary.total[0]:
        raise ValueError(f"videos={config.videos}: none of its clips could be used; {folder}/skipped.jsonl tells why")
    return summary


def made_from(config: PreprocessConfig, clips: list[Clip], size: tuple[int, int, int], fps: int) -> dict:
    """Everything that the records depend on, as JSON values."""
    family = resolve_family(config.model.family)
    same = ("caption", "start", "solver_steps", "records_per_clip", "clips_per_shard", "precision", "dtype", "seed")
    return {
        "family": family.name,
        "weights": weights_of(family.name, config.model.folder),
        "clips": len(clips),
        "clips_hash": fingerprint(clips),
        "fps": fps,
        **dict(zip(("frames", "height", "width"), size)),
        **{name: getattr(config, name) for name in same},
        # Decord lets clips with damaged frames pass.
        "reader": f"decord {decord_version()}" if config.reader == "decord" else None,
        "motion": {"tau": config.tau} | asdict(ScoreSettings.of(config)) if config.motion else None,
    }


def write_shards(
    config: PreprocessConfig, clips: list[Clip], numbers: list[int], size: tuple[int, int, int], summary: Summary
) -> None:
    """Write the shards of these numbers; shard i holds the clips from i · clips_per_shard on."""
    maker = RecordMaker(config, load_teacher(config))
    per_shard = config.clips_per_shard
    parts = {i: range(i * per_shard, min((i + 1) * per_shard, len(clips))) for i in numbers}
    positions = [position for part in parts.values() for position in part]
    dataset = ClipDataset(clips, config, maker.model.family.fps, size)
    # One loader over all shards, so that decoding goes on while a shard is closed.
    decoded = iter(DataLoader(dataset, batch_size=None, sampler=positions, num_workers=config.workers))
    with tqdm(total=len(positions), desc="preprocess", unit="clip") as bar:
        for number, part in parts.items():
            with ShardWriter(Path(config.records), number) as writer:
                for group in grouped(islice(decoded, len(part)), max(1, config.batch_size // config.records_per_clip)):
                    write_group(maker, group, writer)
                    bar.update(len(group))
            summary.records += writer.records
            summary.skipped += len(writer.skipped)
            summary.clips += len(part) - len(writer.skipped)
            bar.set_postfix(skipped=summary.skipped)
    summary.evaluations, summary.guided = maker.evaluations, maker.guided


def load_teacher(config: PreprocessConfig) -> Pipeline:
    device = pick_device(config.model.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return load(config.model.family, None, config.model.folder, device)


def grouped(items: Iterator, size: int) -> Iterator[list]:
    while group := list(islice(items, size)):
        yield group


def write_group(maker: RecordMaker, group: list[DecodedClip], writer: ShardWriter) -> None:
    for clip in group:
        if clip.problem:
            writer.skip(clip.clip.name, clip.problem)
    usable = [clip for clip in group if not clip.problem]
    for record in maker(usable) if usable else []:
        writer.write(record)


@dataclass(eq=False)
class Draw:
    """One record to be made of a clip: where on the grid, with which noise, against which reference."""

    row: int  # of the clip in its group
    number: int  # among the draws of the clip
    index: int  # of the solver's grid point
    generator: torch.Generator  # of the noise
    z_ref: Tensor | None = None  # the clip's own latents at this grid point (1, C, F, h, w); None = not guided

    @property
    def guided(self) -> bool:
        return self.z_ref is not None


class RecordMaker:
    """Algorithm 1 on a few clips: noisy latents at random grid points, and what the teacher says there.

    Every random number depends on (seed, position of the clip, draw) alone, not on the batch a clip is in.

    Attributes:
        guided: records with a motion score so far.
    """

    def __init__(self, config: PreprocessConfig, model: Pipeline):
        self.config, self.model, self.solver = config, model, DDIMSolver(model.schedule, config.solver_steps)
        self.dtype, self.guided, self._asked = DTYPES[config.dtype], 0, 0
        self.scorer = MotionScorer(model, ScoreSettings.of(config), config.motion_batch, config.gradient_checkpointing)
        with self._inference():
            self.empty = self._stored(model.encode([""]))  # (1, L, D)

    @property
    def evaluations(self) -> int:
        """UNet evaluations so far, one per sample."""
        return self._asked + self.scorer.evaluations

    def __call__(self, clips: list[DecodedClip]) -> list[Record]:
        with self._inference():
            latents = torch.cat([self._encode(clip) for clip in clips])
            context = self._stored(self.model.encode([clip.caption for clip in clips]))
            draws = []
            for row, clip in enumerate(clips):
                own = [self._draw(clip, row, k) for k in range(self.config.records_per_clip)]
                self._add_references(clip, own, latents[row, None], context[row, None])
                draws += own
            records = []
            for part in grouped(iter(draws), self.config.batch_size):
                rows = [draw.row for draw in part]
                batch = self._sample(latents[rows], context[rows], part)
                records += [self._record(clips[draw.row], draw, batch, i) for i, draw in enumerate(part)]
        return records

    def _encode(self, clip: DecodedClip) -> Tensor:
        """A sample of the posterior, (1, C, F, h, w)."""
        generator = generator_for("posterior", self.config.seed, clip.position)
        return self.model.vae.encode(clip.frames[None].float() / 255, generator).float()

    def _draw(self, clip: DecodedClip, row: int, number: int) -> Draw:
        generator = generator_for("draw", self.config.seed, clip.position, number)
        return Draw(row, number, int(torch.randint(len(self.solver), (1,), generator=generator)), generator)

    def _add_references(self, clip: DecodedClip, draws: list[Draw], x0: Tensor, context: Tensor) -> None:
        """Give the guided ones among a clip's draws their z_ref, all from one inversion."""
        if not (self.config.motion and clip.clip.use_motion_guide):
            return
        guided = [draw for draw in draws if is_guided(draw.index, self.config.tau, self.solver)]
        if guided:
            timesteps = {draw: int(self.solver.timesteps[draw.index]) for draw in guided}
            generator = generator_for("reference", self.config.seed, clip.position)
            found = self.scorer.references(x0, context.float(), list(timesteps.values()), generator)
            for draw, t in timesteps.items():
                draw.z_ref = found[t]

    def _sample(self, x0: Tensor, context: Tensor, draws: list[Draw]) -> dict[str, Tensor]:
        """The records' tensors with a batch axis, as stored, on the CPU; the score is zero where there is none."""
        index = torch.tensor([draw.index for draw in draws])  # (B,)
        noise = torch.stack([torch.randn(x0.shape[1:], generator=draw.generator) for draw in draws]).to(x0)
        t = self.solver.timesteps[index]
        # The teacher sees what will be stored, so that a record is consistent whatever its precision.
        z = self._stored(self.model.schedule.add_noise(x0, noise, t))
        cond, score = torch.empty_like(z), torch.zeros_like(z)
        guided = torch.tensor([draw.guided for draw in draws])
        if guided.any():
            z_ref = torch.cat([draw.z_ref for draw in draws if draw.guided])
            cond[guided], score[guided] = self._score(z[guided], t[guided], context[guided], z_ref)
        if not guided.all():
            cond[~guided] = self._teacher(z[~guided], t[~guided], context[~guided])
        uncond = self._teacher(z, t, self.empty.expand_as(context))
        batch = {"z": z, "index": index, "cond": cond, "uncond": uncond, "context": context, "score": score}
        return {name: value.cpu() for name, value in batch.items()}

    def _teacher(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self._asked += len(z)
        eps = self.model.unet(z.float(), t.to(z.device), context.float(), fps=self.model.family.fps)
        return self._stored(eps)

    def _score(self, z: Tensor, t: Tensor, context: Tensor, z_ref: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's noise for the prompt, a by-product of the score, and the score."""
        found = self.scorer(z.float(), t, context.float(), z_ref)
        score = self._stored(found.score)
        if not score.isfinite().all():
            raise ValueError(f"dtype={self.config.dtype} is too narrow for these motion scores: use bf16 or fp32")
        self.guided += len(z)
        return self._stored(found.noise), score

    def _record(self, clip: DecodedClip, draw: Draw, batch: dict[str, Tensor], row: int) -> Record:
        about = {
            "caption": clip.caption,
            "kind": clip.kind,
            "clip": clip.clip.name,
            "start": clip.start,
            "use_motion_guide": clip.clip.use_motion_guide,
            "use_reward": clip.kind == "short",
            "index": draw.index,
            "draw": draw.number,
            "seed": self.config.seed,
        }
        stored = [name for name in batch if name != "score" or draw.guided]
        tensors = {name: batch[name][row] for name in stored}
        return Record(f"{clip.position:09d}-{draw.number:03d}", tensors, about)

    def _stored(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        precision = pick_autocast(self.config.precision, self.model.device)
        autocast = torch.autocast(self.model.device.type, DTYPES.get(precision), enabled=precision != "no")
        with torch.inference_mode(), autocast:
            yield
