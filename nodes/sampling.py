"""Few-step sampling of a student: in one node, and as SIGMAS for the native samplers."""

from __future__ import annotations

from ..core.config import VIDEOCRAFTER2
from . import CATEGORY

STEPS = {
    "default": 4,
    "min": 1,
    "max": 16,
    "tooltip": "Evaluations of the network: 4 is usual, 8 and 16 are finer, 1 is a draft.",
}


class T2VTurboSampler:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Turns noise into a clip in a few steps with a distilled student (consistency sampling). "
        "Guidance is built into the student, so there is no negative prompt."
    )
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The clip's latents, for VAE Decode.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A student from T2V-Turbo Loader."}),
                "positive": ("CONDITIONING", {"tooltip": "The prompt, encoded with the CLIP of the same loader."}),
                "latent": ("LATENT", {"tooltip": "Gives the size and length of the clip; its content is not used."}),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 0xFFFFFFFFFFFFFFFF,
                        "control_after_generate": True,
                        "tooltip": "Chooses the noise: the same seed gives the same clip on every device.",
                    },
                ),
                "steps": ("INT", STEPS),
                "guidance": (
                    "FLOAT",
                    {
                        "default": VIDEOCRAFTER2.guidance_scale,
                        "min": 1.0,
                        "max": 20.0,
                        "step": 0.5,
                        "tooltip": "How strictly the clip follows the prompt. Students know 6 to 16; 7.5 is usual.",
                    },
                ),
                "fps": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 60,
                        "tooltip": "Frame rate that the network is told, which sets the pace of the motion; "
                        "0 is the model's own. The file's frame rate is set where the video is made.",
                    },
                ),
            }
        }

    def execute(self, model, positive, latent, seed, steps, guidance, fps):
        from .clip_sampling import sample_clip

        samples = sample_clip(model, positive, latent["samples"], seed, steps, guidance, fps or None)
        return ({**latent, "samples": samples},)


class T2VTurboSigmas:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "The noise levels that a student was distilled for. Connect them to SamplerCustom with the sampler lcm and "
        "cfg 1; the usual schedulers miss some of them by one timestep."
    )
    RETURN_TYPES = ("SIGMAS",)
    RETURN_NAMES = ("sigmas",)
    OUTPUT_TOOLTIPS = ("Descending noise levels, one more than steps; the last is 0.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"steps": ("INT", STEPS)}}

    def execute(self, steps):
        from .clip_sampling import student_sigmas

        return (student_sigmas(steps),)
