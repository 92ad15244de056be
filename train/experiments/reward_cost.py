"""What rewards cost in a training step, in memory and time: the table of ``t2v-turbo rewards cost``."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ...core.checkpoints.locations import family_folder
from ...core.device import WIDE_PRECISIONS, pick_device, pick_dtype
from ...core.diffusion.distillation import Batch, ConsistencyDistillation
from ...core.diffusion.schedule import NoiseSchedule
from ...core.families import SHAPES, FamilyConfig
from ...core.networks.unet import UNet3D
from ...core.networks.vae import VideoVAE
from ...core.rewards import PAPER_WEIGHTS, Reward, RewardMixture, build_reward
from ...core.rewards.loss import RewardLoss
from ...core.tables import markdown
from ..config import named_values
from ..memory import MEBIBYTE, AllocatedMemory, LiveTensors
from ..shapes.training.rewards import clip_config, new_internvideo2, write_vocabulary

CAPTION = "a red circle moves left"


@dataclass(frozen=True)
class Row:
    """One way to do a step; ``chunk`` None = without rewards, 0 = all frames at once."""

    name: str
    chunk: int | None
    checkpointing: bool = False


@dataclass
class Cost:
    """What one step took."""

    peak: int  # bytes beyond weights and inputs
    seconds: float


def rows_of(chunk: int) -> list[Row]:
    """The rows of the table; the first is what the others are compared with."""
    return [
        Row("without rewards", None),
        Row("rewards, all frames at once", 0),
        Row(f"rewards, {chunk} frame{'s' * (chunk > 1)} at a time", chunk),
        Row("the same, reward models checkpointed", chunk, True),
    ]


@dataclass(frozen=True)
class Workload:
    """The step to measure."""

    family: FamilyConfig
    batch: int = 3
    scored: int = 1  # samples of the batch that rewards score
    rewards: str = ",".join(PAPER_WEIGHTS)
    checkpointing: bool = False  # of the student
    device: str = "auto"
    dtype: str = "auto"


class Bench:
    """A student, a decoder and reward models with random weights, and a batch of noise."""

    def __init__(self, load: Workload, folder: Path):
        torch.manual_seed(0)
        family = load.family
        self.device, self.frames = pick_device(load.device), family.frames
        self.dtype = pick_dtype(load.dtype, self.device, WIDE_PRECISIONS)
        self.student = UNet3D(family.unet.as_student()).train().to(self.device)
        self.student.checkpointing = load.checkpointing
        self.distillation = ConsistencyDistillation(NoiseSchedule())
        self.batch = random_batch(family, load.batch, self.device)
        self.flags = torch.arange(load.batch) < load.scored
        self.vae = self._frozen(VideoVAE(family.vae))
        weights = {name: 1.0 for name in named_values(load.rewards, "--rewards")}
        plain = {name: self._frozen(random_reward(name, family.name, folder)) for name in weights}
        twins = {name: twin_of(model) for name, model in plain.items()}
        # By whether the models are checkpointed, which cannot be undone.
        self.mixtures = {False: RewardMixture(plain, weights), True: RewardMixture(twins, weights)}
        self.mixtures[True].enable_checkpointing()

    def _frozen(self, network: torch.nn.Module) -> torch.nn.Module:
        return network.requires_grad_(False).eval().to(self.device, self.dtype)

    def weights(self) -> str:
        """Sizes of the networks, in words."""
        parts = {"student": self.student, "decoder": self.vae} | self.mixtures[False].rewards
        return ", ".join(f"{name} {size_of(network) / MEBIBYTE:.0f} MiB" for name, network in parts.items())

    def step(self, row: Row) -> None:
        """Forward and backward pass, gradients left in place."""
        omega = torch.full((len(self.flags),), 7.0, device=self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.distillation(self.student, self.batch, omega)
        loss = output.loss
        if row.chunk is not None:
            rewards = RewardLoss(self.mixtures[row.checkpointing], self.vae.decode, chunk=row.chunk or self.frames)
            teacher, signal = self.distillation.teacher_x0(self.batch, omega), torch.ones(len(self.flags))
            captions, generator = [CAPTION] * len(self.flags), torch.Generator().manual_seed(0)
            loss = loss + rewards(output.prediction, captions, self.flags, teacher, signal, 0, generator)["reward_loss"]
        loss.backward()

    def clear(self) -> None:
        self.student.zero_grad(set_to_none=True)


def random_batch(family: FamilyConfig, count: int, device: torch.device) -> Batch:
    factor = family.vae.downsampling
    shape = (count, family.unet.in_channels, family.frames, family.height // factor, family.width // factor)
    z, cond, uncond = torch.randn(3, *shape, device=device)
    context = torch.randn(count, family.text.context_length, family.unet.context_dim, device=device)
    # Timesteps of little noise, where the clean latents stay in the decoder's range.
    return Batch(z, torch.full((count,), 10, device=device), cond, uncond, context)


def random_reward(name: str, family: str, folder: Path) -> Reward:
    """A reward model with random weights, of the embedded or the published sizes.

    Args:
        folder: where its vocabulary is written.

    Raises:
        ValueError: for a reward that the embedded family does not have.
    """
    if family != "shapes":
        write_vocabulary(folder / "vocab.txt")
        return build_reward(name, None, folder)
    if name not in PAPER_WEIGHTS:
        raise ValueError(f"--rewards {name}: has no embedded sizes; use {', '.join(PAPER_WEIGHTS)}, or another --model")
    if name == "internvideo2":
        return new_internvideo2(folder)
    return build_reward(name, clip_config(name, SHAPES.text), family_folder(family))


def twin_of(model: Reward) -> Reward:
    """A copy that shares the weights."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def size_of(network: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


# --- measuring ---------


def compare_rows(load: Workload, chunk: int, repeats: int) -> str:
    """The whole experiment; returns its table and what was measured, in words.

    Raises:
        ValueError: for a reward that the family does not have, or a device or precision that cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(load, Path(folder))
        table = cost_table(measure(bench, rows_of(chunk), repeats))
    scored = min(load.scored, load.batch)
    return f"{table}\n{load.batch} samples, {scored} of them scored; weights: {bench.weights()}."


def measure(bench: Bench, rows: list[Row], repeats: int) -> dict[Row, list[Cost]]:
    """Costs of every row, the rows in turn, so that what else the machine does meets all of them alike."""
    found = {row: [] for row in rows}
    with tqdm(total=len(rows) * (repeats + 1), desc="rewards cost", unit="step") as bar:
        peaks = {}
        for row in rows:  # warms up, too
            peaks[row] = peak_of(bench, row)
            bar.update()
        for _ in range(repeats):
            for row in rows:
                found[row].append(Cost(peaks[row], seconds_of(bench, row)))
                bar.update()
    return found


def peak_of(bench: Bench, row: Row) -> int:
    """Bytes at the peak of a step, beyond what there was before."""
    bench.clear()
    on_card = bench.device.type == "cuda"
    if on_card:
        bench.step(row)  # libraries keep workspaces from their first use on
        bench.clear()
    with AllocatedMemory(bench.device) if on_card else LiveTensors() as memory:
        bench.step(row)
    return memory.peak


def seconds_of(bench: Bench, row: Row) -> float:
    bench.clear()
    if bench.device.type == "cpu":  # CPU seconds: what else the machine does takes none of them
        started = time.process_time()
        bench.step(row)
        return time.process_time() - started
    torch.accelerator.synchronize(bench.device)
    started = time.perf_counter()
    bench.step(row)
    torch.accelerator.synchronize(bench.device)
    return time.perf_counter() - started


def cost_table(found: dict[Row, list[Cost]]) -> str:
    """Peak, time, and both over the first row, as Markdown."""
    table = [["step", "peak memory, MiB", "ratio", "seconds", "ratio"]]
    first = next(iter(found.values()))
    for row, costs in found.items():
        times = [cost.seconds for cost in costs]
        slower = statistics.median(mine / base.seconds for mine, base in zip(times, first))
        peak = costs[0].peak
        figures = f"{peak / MEBIBYTE:.1f}", f"{peak / first[0].peak:.2f}", f"{statistics.median(times):.3g}"
        table.append([row.name, *figures, f"{slower:.2f}"])
    return markdown(table)
