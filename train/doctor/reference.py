"""The clip that every machine must be able to make: its latents as they were made once, beside the embedded weights.

Recipe, on a CPU: ``python -m t2v_turbo.train.doctor.reference`` writes weights/shapes/doctor.safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...core.checkpoints.locations import family_folder
from ...core.checkpoints.networks import CheckpointError, save_tensors
from ...core.families import SHAPES
from ...core.pipeline import Pipeline, load

FILE = "doctor.safetensors"
PROMPT, SEED, STEPS = "a red circle moves right", 0, 4


def sample(model: Pipeline, callback: Callable | None = None) -> Tensor:
    """Latents (1, 4, F, h, w) of the reference's prompt and seed, by any student."""
    generator = torch.Generator().manual_seed(SEED)
    noise = model.noise(1, generator)
    return model.sample([PROMPT], noise, STEPS, generator=generator, callback=callback)


def make(folder: Path) -> Path:
    """Sample the reference on the CPU in fp32 and write it beside the weights, with their check sums."""
    latents = sample(load(SHAPES.name, folder=folder))
    weights = sorted(path for path in folder.glob("*.safetensors") if path.name != FILE)
    sums = {path.name: check_sum(path) for path in weights}
    about = {"prompt": PROMPT, "seed": str(SEED), "steps": str(STEPS), "weights": json.dumps(sums)}
    save_tensors({"latents": latents}, folder / FILE, about)
    return folder / FILE


def read_latents(folder: Path) -> Tensor:
    """Raises: CheckpointError: if the file is missing, damaged or of another prompt."""
    with _opened(folder) as file:
        about = file.metadata() or {}
        if (about.get("prompt"), about.get("seed"), about.get("steps")) != (PROMPT, str(SEED), str(STEPS)):
            raise CheckpointError(f"{folder / FILE}: holds another clip; install the package again")
        return file.get_tensor("latents")


def altered(folder: Path) -> list[str]:
    """Names of the weights that are there, but not those that the reference was made with.

    Raises:
        CheckpointError: if the file of the reference is missing or damaged.
    """
    with _opened(folder) as file:
        sums = json.loads((file.metadata() or {}).get("weights", "{}"))
    return [name for name, known in sums.items() if (folder / name).is_file() and check_sum(folder / name) != known]


def check_sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _opened(folder: Path):
    try:
        return safe_open(folder / FILE, "pt")
    except Exception as error:  # the library has several of its own
        raise CheckpointError(f"{folder / FILE}: cannot be read ({error}); install the package again") from error


if __name__ == "__main__":
    print(make(family_folder(SHAPES.name)))
