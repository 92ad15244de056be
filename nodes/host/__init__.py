"""What the nodes ask of their host, answered by ComfyUI or, without it, by plain torch."""

from __future__ import annotations

import sys

from .comfy import ComfyHost
from .plain import PlainHost


def host() -> ComfyHost | PlainHost:
    """ComfyUI if this process is a ComfyUI; it has always loaded its memory management before any pack."""
    return ComfyHost() if "comfy.model_management" in sys.modules else PlainHost()
