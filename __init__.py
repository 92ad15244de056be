"""T2V-Turbo for ComfyUI: fast text-to-video by consistency distillation, as nodes and as a training package.

The node modules only declare what an artist sees and import torch and the networks when a node runs, so that ComfyUI
and the command line both start at once.
"""

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

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
