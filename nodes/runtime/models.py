"""From an entry of the loader's dropdown to a loaded model."""

from __future__ import annotations

from pathlib import Path

from ...core.checkpoints.files import CheckpointError
from ...core.checkpoints.locations import BASE_FILES, family_folder
from ...core.checkpoints.lora import guidance_dim
from ...core.checkpoints.lora_files import find_lora
from ...core.checkpoints.networks import check_unet, read_state
from ...core.families import FAMILIES, VIDEOCRAFTER2, FamilyConfig
from ...core.pipeline import Pipeline, load
from ..choices import EMBEDDED_MODELS
from ..host import host

# How the key ends of a weight that reads the prompt, in the UNet's own names.
PROMPT_WEIGHT = "spatial.blocks.0.attn2.to_k.weight"


def load_model(name: str) -> Pipeline:
    """Load what the dropdown calls ``name``, fp32, on the CPU.

    Raises:
        ValueError: if the model's other files are missing.
        CheckpointError: for a file that is none of a model, which is told before anything that is missing.
    """
    if name in EMBEDDED_MODELS:
        return load("shapes", EMBEDDED_MODELS[name])
    path = host().model_path(name)
    family = family_of(path)
    if path.name == BASE_FILES[family.name][0]:
        return load(family, None, path.parent)
    check_student(path, family)
    return load(family, path, base_folder(family, path))


def check_student(path: Path, family: FamilyConfig) -> None:
    """Open a chosen file far enough to say whether it holds a UNet, or a LoRA that makes a student of the teacher.

    Raises:
        ValueError: for a LoRA of another kind; ``CheckpointError`` for any other file.
    """
    lora = find_lora(path)
    if lora is None:
        check_unet(path)
    elif not guidance_dim(lora, family.unet):
        raise ValueError(
            f"{path.name} is {lora}, not a model: choose the model it is for; `t2v-turbo generate --lora` merges it"
        )


def family_of(path: Path) -> FamilyConfig:
    """The family whose text encoder fits a UNet file; VideoCrafter2 where the file does not tell."""
    try:
        state, _ = read_state(path)
    except CheckpointError:
        return VIDEOCRAFTER2  # loading the file will say what is wrong with it
    # Widths of the prompts that a UNet attends to, by our own names; files with published names are VideoCrafter2's.
    widths = {tensor.shape[-1] for key, tensor in state.items() if key.endswith(PROMPT_WEIGHT)}
    return next((family for family in FAMILIES.values() if family.unet.context_dim in widths), VIDEOCRAFTER2)


def base_folder(family: FamilyConfig, student: Path) -> Path:
    """The folder with the autoencoder and the text encoder that a student needs: its own, or a models folder.

    Raises:
        ValueError: if they are nowhere.
    """
    needed = BASE_FILES[family.name]
    folders = [student.parent, *host().model_folders(), family_folder(family.name)]
    for folder in folders:
        if all((folder / file).is_file() for file in needed[1:]):
            return folder
    files = " and ".join(sorted(set(needed[1:])))
    raise ValueError(f"{student.name} needs {files} of {family.name}: put it beside the student or into {folders[1]}")
