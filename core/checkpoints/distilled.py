"""What a student's own file says about how it was distilled."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .files import CheckpointError


def distilled_motion(path: str | Path) -> dict[str, float]:
    """``motion_strength`` (lambda, in the paper's unit) and ``tau`` that a student was distilled with.

    Returns:
        As much of the two as the file says: {} for published weights, and for a student without motion guidance.

    Raises:
        CheckpointError: if what it says makes no sense, or the file cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {}).get("distill", "{}"))
        found = {name: settings[name] for name in ("motion_strength", "tau") if settings.get(name) is not None}
        if not (0 <= found.get("motion_strength", 0) < math.inf and 0 <= found.get("tau", 0) <= 1):
            raise ValueError(f"{found} is out of range")
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its settings of distillation cannot be read ({error}); export it again"
        ) from error
    return found if settings.get("motion") else {}
