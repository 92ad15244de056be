"""The loader: a model out of the package, or out of the user's models folder."""

from __future__ import annotations

from .base import Node
from .choices import EMBEDDED_MODELS
from .host import host
from .host.files import is_reward_file
from .inputs import precision

# Files of the models folder that are parts of a model, not a model to choose.
PARTS = ("vae.safetensors", "text.safetensors")


class T2VTurboLoader(Node):
    DISPLAY_NAME = "T2V-Turbo Loader"
    DESCRIPTION = (
        "Loads a text-to-video model with its text encoder and autoencoder. The embedded model works at once; "
        "VideoCrafter2 and T2V-Turbo-v2 appear when their files lie in models/t2v_turbo."
    )
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    RETURN_NAMES = ("model", "clip", "vae")
    OUTPUT_TOOLTIPS = (
        "The video model, for T2V-Turbo Sampler or any native sampler.",
        "The text encoder, for CLIP Text Encode.",
        "The autoencoder, for VAE Decode and VAE Encode.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": (
                    list_models(),
                    {
                        "tooltip": "Students need a few steps. Teachers (model.ckpt) need about 50 with KSampler. "
                        "Files of models/t2v_turbo and its subfolders are listed here; a student of VideoCrafter2 "
                        "needs model.ckpt there too."
                    },
                ),
                "precision": precision("auto lets ComfyUI choose"),
            }
        }

    @classmethod
    def IS_CHANGED(cls, model, precision):
        return model if model in EMBEDDED_MODELS else host().model_path(model).stat().st_mtime

    def execute(self, model, precision):
        import torch

        from .runtime.models import load_model
        from .runtime.wrappers import native_parts

        # Weights made or converted in inference mode could never take part in a gradient, which motion guidance needs.
        with torch.inference_mode(False):
            return native_parts(load_model(model), precision)


def list_models() -> list[str]:
    """The dropdown: the embedded models, then the files of the models folder."""
    files = (name for name in host().model_files() if not (name.endswith(PARTS) or is_reward_file(name)))
    return [*EMBEDDED_MODELS, *sorted(files)]
