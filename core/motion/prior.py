"""A reference video as a motion prior: its latents at any timestep, its attention there, and the file of it.

At full size one inversion is 97 % of what guidance costs, so everything here says how many UNet evaluations it spent.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.networks import CheckpointError, read_state, save_tensors
from ..diffusion.ddim import Callback
from ..diffusion.guidance import cfg_model
from ..diffusion.schedule import SOLVER_STEPS, TRAIN_TIMESTEPS, NoiseSchedule
from ..networks.attention import Attention
from ..networks.config import UNetConfig, unet_config_from_dict
from ..networks.unet import UNet3D
from .energies import Reference, TopEntries
from .inversion import inversion_steps, prior_latents
from .probe import read_reference

logger = logging.getLogger(__name__)

FORMAT, VERSION = "t2v-turbo motion prior", 1
# Tensors of a layer in the file, the fields of TopEntries.
PARTS = ("index", "value")
# Of several readings the nearest serves a timestep; where they are sparse, it should be as near as this.
REACH = 100
MAKE = "make one with `t2v-turbo motion extract`"


# --- latents ----------


# --- the prior ----------


@dataclass(frozen=True)
class Origin:
    """What a prior is made from and how; kept in its file."""

    family: str  # of the model that read the reference
    caption: str = ""  # of the reference, under which it was read
    source: str = ""  # free text, for example the video's file name
    method: str = "ddim"
    grid: int = SOLVER_STEPS
    fps: int = 8


@dataclass
class MotionPrior:
    """The attention of one reference clip at a set of timesteps.

    Attributes:
        references: timestep -> layer -> largest entries of its attention, with a batch axis of 1.
        config: architecture of the UNet that read them, as a teacher.
        size: frames, height and width of the reference's latents.
        evaluations: of the UNet, spent on making it.
    """

    references: dict[int, Reference]
    config: UNetConfig
    size: tuple[int, int, int]
    origin: Origin
    evaluations: int = 0

    @property
    def timesteps(self) -> list[int]:
        return sorted(self.references)

    @property
    def layers(self) -> list[str]:
        return list(self.references[self.timesteps[0]])

    @property
    def keep(self) -> int:
        """Entries kept per row of attention."""
        return self.references[self.timesteps[0]][self.layers[0]].kept

    def at(self, t: int) -> Reference:
        """The reference's attention at the timestep nearest to ``t``, the noisier of two equally near."""
        return self.references[min(self.timesteps, key=lambda there: (abs(there - t), -there))]

    def warn_of_gaps(self, timesteps: Sequence[int], steps: int) -> None:
        """Warn if a sampling of ``steps`` is guided at timesteps that are far from every reading.

        Far is more than a step of the sampling and more than two steps of the readings, for two grids of one tau end
        less than that apart; of sparse readings, more than ``REACH``. A single reading is meant for all timesteps.
        """
        read = self.timesteps
        if len(read) == 1 or not timesteps:
            return
        spacing = min(later - earlier for earlier, later in pairwise(read))
        distances = {t: min(abs(t - there) for there in read) for t in timesteps}
        worst = max(distances, key=distances.get)
        if distances[worst] > max(TRAIN_TIMESTEPS / steps, min(2 * spacing, REACH)):
            logger.warning(
                "the sampling is guided at timestep %d, but the nearest of the motion prior's %d readings, %d to %d, "
                "is %d away: guidance is rough there; make the prior anew with the steps and tau of this sampling",
                *(worst, len(read), read[0], read[-1], distances[worst]),
            )

    def check(self, unet: UNet3D, shape: Sequence[int] | None = None) -> None:
        """Whether it fits a UNet, its layers and, if given, the shape (B, C, F, H, W) of latents.

        Raises:
            ValueError: naming both sides and the remedy.
        """
        here = unet.config.as_teacher()
        if here != self.config:
            there, now = asdict(self.config), asdict(here)
            pairs = ((name, there[name], now[name]) for name in now if there[name] != now[name])
            differing = ", ".join(f"{name} {old} there, {new} here" for name, old, new in pairs)
            raise ValueError(
                f"the motion prior was read by '{self.origin.family}' of architecture {fingerprint(self.config)}, this "
                f"UNet is of {fingerprint(here)} ({differing}): make the prior anew with the model that it shall guide"
            )
        modules = dict(unet.named_modules())
        for layer in self.layers:
            if not isinstance(modules.get(layer), Attention):
                raise ValueError(f"the motion prior has a layer '{layer}' that this UNet lacks: make the prior anew")
        if shape is not None and tuple(shape[2:]) != self.size:
            raise ValueError(
                f"the motion prior is of {_told(self.size)}, the video of {_told(shape[2:])}: make the prior anew from "
                "as many frames of the same size, or sample at the prior's"
            )

    def save(self, path: str | Path) -> None:
        """Write as safetensors; what it was made from is JSON in the metadata."""
        about = {
            "version": VERSION,
            "architecture": fingerprint(self.config),
            "config": asdict(self.config),
            "size": self.size,
            "origin": asdict(self.origin),
            "evaluations": self.evaluations,
            "timesteps": self.timesteps,
            "layers": self.layers,
        }
        tensors = {
            f"{t}/{layer}/{part}": getattr(top, part)
            for t, reference in self.references.items()
            for layer, top in reference.items()
            for part in PARTS
        }
        save_tensors(tensors, path, {"format": FORMAT, "about": json.dumps(about, ensure_ascii=False)})

    @classmethod
    def load(cls, path: str | Path) -> MotionPrior:
        """Read a prior.

        Raises:
            CheckpointError: if the file is missing, damaged, or no motion prior of this version.
        """
        tensors, metadata = _read_tensors(Path(path))
        try:
            prior = cls._from_file(tensors, json.loads(metadata["about"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: not a readable motion prior ({error!r}); make it anew") from error
        return prior

    @classmethod
    def _from_file(cls, tensors: dict[str, Tensor], about: dict) -> MotionPrior:
        if about["version"] != VERSION:
            raise ValueError(f"version {about['version']}, known is {VERSION}")
        references = {
            t: {layer: TopEntries(*(tensors[f"{t}/{layer}/{part}"] for part in PARTS)) for layer in about["layers"]}
            for t in about["timesteps"]
        }
        config, (frames, height, width) = unet_config_from_dict(about["config"]), about["size"]
        prior = cls(references, config, (frames, height, width), Origin(**about["origin"]), about["evaluations"])
        prior._validate()
        return prior

    def _validate(self) -> None:
        """What a file may get wrong and a device would only answer with a crash."""
        if not self.references or not self.layers:
            raise ValueError("no timestep or no layer")
        frames = self.size[0]
        for t, reference in self.references.items():
            if not (isinstance(t, int) and 0 <= t < TRAIN_TIMESTEPS):
                raise ValueError(f"timestep {t} is outside 0..{TRAIN_TIMESTEPS - 1}")
            for layer, top in reference.items():
                if not top.indexes(frames):
                    raise ValueError(f"layer '{layer}' at timestep {t} does not index {frames} frames")


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name a motion prior, a .safetensors, in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such motion prior; check the path, or {MAKE}")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: is no motion prior, which is a .safetensors; {MAKE}")
    try:
        tensors, metadata = read_state(path)
    except CheckpointError as error:
        reason = error.__cause__ or ("it is no tensors" if path.stat().st_size else "it is empty")
        raise CheckpointError(f"{path}: cut off, damaged or of another kind ({reason}); {MAKE}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is no motion prior; {MAKE}")
    return tensors, metadata


def _told(size: Sequence[int]) -> str:
    frames, height, width = size
    return f"{frames} frames of {width}x{height} latents"


def fingerprint(config: UNetConfig) -> str:
    """Short name of an architecture; its conditions do not count, so teacher and student share it."""
    return hashlib.sha256(json.dumps(asdict(config.as_teacher()), sort_keys=True).encode()).hexdigest()[:8]


@torch.no_grad()
def make_prior(
    unet: UNet3D,
    x0: Tensor,
    context: Tensor,
    timesteps: Sequence[int],
    schedule: NoiseSchedule,
    origin: Origin,
    keep: int | None = 1,
    layers: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float16,
    callback: Callback | None = None,
) -> MotionPrior:
    """Read the motion of one reference clip.

    Args:
        x0: clean latents (1, C, F, H, W).
        context: embedding (1, L, D) of the origin's caption.
        timesteps: where it will guide: the sampler's guided ones, or a single one for all.
        origin: names the method, the grid and the fps condition as well.
        keep: entries kept of every row of attention, None = all; the energies by top entries need 1.
        layers: names of temporal attention layers; None = ``motion_layers``.
        generator: for the method "noise".
        dtype: of the kept probabilities.
        callback: called after every UNet evaluation with {"i", "steps", "t", "x", "denoised"}.

    Raises:
        ValueError: for more than one clip, an unknown method or layer, or a timestep outside the grid.
    """
    if len(x0) != 1:
        raise ValueError(f"a motion prior is of one clip, {len(x0)} were given")
    timesteps = sorted(set(timesteps))
    inverting = inversion_steps(timesteps, origin.method, origin.grid)
    steps = inverting + len(timesteps)

    def relay(info: dict) -> None:
        if callback:
            callback(info | {"steps": steps})

    eps_model = cfg_model(unet, context, context, 1, origin.fps)
    found = prior_latents(eps_model, x0, timesteps, schedule, origin.method, origin.grid, generator, relay)
    references = {}
    for i, (t, x_ref) in enumerate(found.latents.items(), start=inverting):
        reference = read_reference(unet, x_ref, torch.tensor([t]), context, keep, origin.fps, layers)
        references[t] = {name: top.to("cpu", dtype) for name, top in reference.items()}
        relay({"i": i, "t": t, "x": x_ref, "denoised": x0})
    evaluations = found.evaluations + len(timesteps)
    return MotionPrior(references, unet.config.as_teacher(), tuple(x0.shape[2:]), origin, evaluations)
