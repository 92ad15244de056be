"""The models that experiments measure, and what their rows are bound to."""

from __future__ import annotations

from pathlib import Path

import torch

from ...core.checkpoints.locations import family_folder, student_path, weights_of
from ...core.device import dtype_name
from ...core.files import file_hash
from ...core.pipeline import Pipeline, load


def load_measured(
    family: str, student: str | None, folder: Path | None, device: torch.device, dtype: torch.dtype
) -> tuple[Pipeline, dict]:
    """A model, and as JSON values what is measured of it depends on: hashes of its files, and the precision.

    Args:
        student: a name or a checkpoint file; None = the teacher.
        folder: of the model's files; None = the family's own.

    Raises:
        ValueError: for an unknown family or student, or files that are missing or damaged.
    """
    model = load(family, student, folder, device, dtype)
    made_from = {"weights": weights_of(family, folder), "dtype": dtype_name(dtype)}
    if student:
        made_from |= {"student": file_hash(student_path(family, student, folder or family_folder(family)))}
    return model, made_from
