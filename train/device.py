"""The device that a command runs on."""

from __future__ import annotations

import torch


def pick_device(name: str, option: str = "--device ") -> torch.device:
    """The device that ``name`` means; "auto" takes an accelerator if there is one.

    Args:
        option: how the user wrote it, for the error.

    Raises:
        ValueError: if torch cannot use it here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{option}{name} cannot be used here ({reason}); use cpu or auto") from error
