"""Sampling: a student in a few steps, its noise levels for native samplers, and a teacher with or without motion."""

from __future__ import annotations

from ..core.families import VIDEOCRAFTER2
from . import CATEGORY
from .inputs import (
    FPS,
    LATENT,
    MOTION,
    MOTION_STRENGTH,
    MOTION_TAU,
    SEED,
    STEPS,
    STRENGTH,
    TAU,
    TEACHER_STEPS,
    TEACHER_STRENGTH,
)

# --- inputs that several nodes share ----------


# --- students ----------


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
                "latent": LATENT,
                "seed": SEED,
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
                "fps": FPS,
            },
            "optional": {
                "motion_strength": (
                    "FLOAT",
                    STRENGTH
                    | {
                        "tooltip": "Amount of motion that a student with motion guidance (unet_mg) is asked for, the "
                        "paper's lambda: 500 is what it was trained with, 0 is none. Other students ignore it."
                    },
                ),
                "tau": TAU,
            },
        }

    def execute(
        self, model, positive, latent, seed, steps, guidance, fps, motion_strength=MOTION_STRENGTH, tau=MOTION_TAU
    ):
        from .runtime.sampling import clip_seed, sample_clip

        settings = {"omega": guidance - 1, "motion": motion_strength, "tau": tau} | ({"fps": fps} if fps else {})
        samples = sample_clip(model, positive, latent["samples"], clip_seed(latent, seed), steps, settings)
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
        from .runtime.sampling import student_sigmas

        return (student_sigmas(steps),)


# --- teachers ----------


class T2VTurboTeacherSampler:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Samples a teacher in many steps (DDIM) with a negative prompt and, where a motion is connected, with the "
        "motion of a reference video, step by step as the paper's authors do it."
    )
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The clip's latents, for VAE Decode.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A teacher from T2V-Turbo Loader."}),
                "positive": ("CONDITIONING", {"tooltip": "The prompt, encoded with the CLIP of the same loader."}),
                "negative": ("CONDITIONING", {"tooltip": "What to avoid, encoded alike; usually an empty prompt."}),
                "latent": LATENT,
                "seed": SEED,
                "steps": ("INT", TEACHER_STEPS),
                "cfg": (
                    "FLOAT",
                    {
                        "default": VIDEOCRAFTER2.guidance_scale,
                        "min": 1.0,
                        "max": 20.0,
                        "step": 0.5,
                        "tooltip": "How strictly the clip follows the prompt: 7.5 is usual; 1 ignores the negative "
                        "prompt and is twice as fast.",
                    },
                ),
                "fps": FPS,
            },
            "optional": {
                "motion": (MOTION, {"tooltip": "The motion to follow, of as many frames of the same size; or none."}),
                "motion_strength": TEACHER_STRENGTH,
                "tau": TAU,
            },
        }

    def execute(
        self,
        model,
        positive,
        negative,
        latent,
        seed,
        steps,
        cfg,
        fps,
        motion=None,
        motion_strength=MOTION_STRENGTH,
        tau=MOTION_TAU,
    ):
        from .runtime.sampling import MotionGuide, clip_seed, sample_teacher_clip

        guide = MotionGuide(motion, motion_strength, tau) if motion else None
        seed = clip_seed(latent, seed)
        samples = sample_teacher_clip(model, positive, negative, latent["samples"], seed, steps, cfg, fps, guide)
        return ({**latent, "samples": samples},)
