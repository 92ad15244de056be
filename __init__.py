"""T2V-Turbo for ComfyUI: fast text-to-video by consistency distillation, as nodes and as a training package.

The node modules only declare what an artist sees and import torch and the networks when a node runs, so that ComfyUI
and the command line both start at once. For Python there are ``load``, ``Pipeline`` and ``T2VTurboPipeline``
(docs/PYTHON.md), imported when they are asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .core.diffusers_pipeline import T2VTurboPipeline
    from .core.pipeline import Pipeline
    from .core.python_api import load

WEB_DIRECTORY = "./web"
NODE_CLASS_MAPPINGS = {}
NODE_DISPLAY_NAME_MAPPINGS = {}

# Without a package there is nothing to be relative to: a test collector, for one, imports this file by itself.
if __package__:
    from .nodes.latent import T2VTurboEmptyLatentVideo
    from .nodes.loader import T2VTurboLoader
    from .nodes.motion import (
        T2VTurboLoadMotionPrior,
        T2VTurboMotionGuidance,
        T2VTurboMotionPrior,
        T2VTurboSaveMotionPrior,
    )
    from .nodes.rewards import T2VTurboBestOf, T2VTurboRewardLoader, T2VTurboRewardScorer
    from .nodes.sampling import T2VTurboSampler, T2VTurboSigmas, T2VTurboTeacherSampler

    NODE_CLASS_MAPPINGS = {
        "T2VTurboLoader": T2VTurboLoader,
        "T2VTurboEmptyLatentVideo": T2VTurboEmptyLatentVideo,
        "T2VTurboSampler": T2VTurboSampler,
        "T2VTurboSigmas": T2VTurboSigmas,
        "T2VTurboTeacherSampler": T2VTurboTeacherSampler,
        "T2VTurboMotionPrior": T2VTurboMotionPrior,
        "T2VTurboMotionGuidance": T2VTurboMotionGuidance,
        "T2VTurboSaveMotionPrior": T2VTurboSaveMotionPrior,
        "T2VTurboLoadMotionPrior": T2VTurboLoadMotionPrior,
        "T2VTurboRewardLoader": T2VTurboRewardLoader,
        "T2VTurboRewardScorer": T2VTurboRewardScorer,
        "T2VTurboBestOf": T2VTurboBestOf,
    }
    NODE_DISPLAY_NAME_MAPPINGS = {name: node.DISPLAY_NAME for name, node in NODE_CLASS_MAPPINGS.items()}

# Names for Python, and the modules that have them.
_PYTHON = {"load": "python_api", "Pipeline": "pipeline", "T2VTurboPipeline": "diffusers_pipeline"}


def __getattr__(name: str):
    if name not in _PYTHON or not __package__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".core.{_PYTHON[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PYTHON})


__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "WEB_DIRECTORY",
    "Pipeline",
    "T2VTurboPipeline",
    "load",
]
