"""What the nodes take of ComfyUI's MODEL, CONDITIONING and LATENT, and what of these does not fit.

LATENT samples are (F, 4, h, w), unscaled.
"""

from __future__ import annotations

from torch import Tensor

from ..host import host
from .wrappers import SETTINGS, FramesAsBatch


def our_network(model, node: str) -> FramesAsBatch:
    """The network inside a MODEL of our loader, for the node of this name.

    Raises:
        ValueError: for a foreign MODEL.
    """
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, FramesAsBatch):
        raise ValueError(
            f"model: this is another kind of model ({type(network).__name__}); {node} takes one from T2V-Turbo Loader. "
            "Use KSampler for other models"
        )
    return network


def refuse_changes(model, node: str) -> None:
    """Refuse a MODEL whose changes a node that samples by itself would pass over; those of weights are heeded.

    Raises:
        ValueError: naming the changes, for the node of this name.
    """
    changes = host().changes(model) | model.model_options["transformer_options"]
    names = sorted(changes.keys() - {"transformer_options", SETTINGS})
    if names:
        raise ValueError(
            f"model: a node before has changed how it samples ({', '.join(names)}), which has no effect in {node}; "
            "take that node away, or sample with KSampler"
        )


def student_network(model) -> FramesAsBatch:
    """The student inside a MODEL.

    Raises:
        ValueError: for a foreign MODEL, or a teacher.
    """
    network = our_network(model, "T2V-Turbo Sampler")
    if not network.is_student:
        raise ValueError(
            "model: this is a teacher, which cannot sample in a few steps. Load a student, or use KSampler with "
            "sampler ddim, scheduler ddim_uniform, 50 steps and cfg 7.5, or T2V-Turbo Teacher Sampler"
        )
    return network


def teacher_network(model, node: str) -> FramesAsBatch:
    """The teacher inside a MODEL, for the node of this name.

    Raises:
        ValueError: for a foreign MODEL, or a student.
    """
    network = our_network(model, node)
    if network.is_student:
        raise ValueError(
            f"model: this is a student, whose guidance is built in, but {node} needs a teacher. Load its teacher "
            "(model.ckpt, or shapes teacher), or use T2V-Turbo Sampler"
        )
    return network


def frame_count(samples: Tensor, network: FramesAsBatch) -> int:
    channels = network.unet.config.in_channels
    if samples.ndim != 4 or samples.shape[1] != channels:
        raise ValueError(
            f"latent: has the shape {tuple(samples.shape)}, but (frames, {channels}, height, width) is needed; "
            "use T2V-Turbo Empty Latent Video"
        )
    return samples.shape[0]


def single_context(conditioning: list, network: FramesAsBatch, name: str = "positive") -> Tensor:
    """The prompt's embedding (1, L, D) out of the CONDITIONING of the input ``name``.

    Raises:
        ValueError: for several prompts, or one with settings, such as a mask, that would be passed over.
    """
    if len(conditioning) != 1 or conditioning[0][0].shape[0] != 1:
        raise ValueError(
            f"{name}: holds {len(conditioning)} prompts, but one is taken here; for combined or scheduled prompts use "
            "KSampler, with a student sampler lcm and cfg 1"
        )
    context, settings = conditioning[0]
    if names := sorted(settings.keys() - {"pooled_output"}):
        raise ValueError(
            f"{name}: carries settings ({', '.join(names)}) that have no effect here; take away the node that made "
            "them, or sample with KSampler"
        )
    return network.check_context(context, name)
