"""Sampling: a student in a few steps, its noise levels for native samplers, and a teacher with or without motion."""

from __future__ import annotations

from .base import Node
from .inputs import (
    DEFAULT_MOTION_STRENGTH,
    DEFAULT_TAU,
    FPS,
    GUIDANCE,
    LATENT,
    MOTION,
    MOTION_STRENGTH,
    POSITIVE,
    SEED,
    STUDENT_STEPS,
    TAU,
    TEACHER,
    TEACHER_STEPS,
    changed,
)


class SamplingNode(Node):
    """A node that turns noise into the latents of a clip."""

    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The clip's latents, for VAE Decode.",)


# --- students ----------


class T2VTurboSampler(SamplingNode):
    DISPLAY_NAME = "T2V-Turbo Sampler"
    DESCRIPTION = (
        "Turns noise into a clip in a few steps with a distilled student (consistency sampling). "
        "Guidance is built into the student, so there is no negative prompt."
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A student from T2V-Turbo Loader."}),
                "positive": POSITIVE,
                "latent": LATENT,
                "seed": SEED,
                "steps": STUDENT_STEPS,
                "guidance": changed(
                    GUIDANCE,
                    tooltip="How strictly the clip follows the prompt. Students know 6 to 16; 7.5 is usual.",
                ),
                "fps": FPS,
            },
            "optional": {
                "motion_strength": changed(
                    MOTION_STRENGTH,
                    tooltip="Amount of motion that a student with motion guidance (unet_mg) is asked for, the "
                    "paper's lambda: 500 is what it was trained with, 0 is none. Other students ignore it.",
                ),
                "tau": TAU,
            },
        }

    def execute(
        self,
        model,
        positive,
        latent,
        seed,
        steps,
        guidance,
        fps,
        motion_strength=DEFAULT_MOTION_STRENGTH,
        tau=DEFAULT_TAU,
    ):
        from .runtime.sampling import clip_seed, sample_clip

        settings = {"omega": guidance - 1, "motion": motion_strength, "tau": tau} | ({"fps": fps} if fps else {})
        samples = sample_clip(model, positive, latent["samples"], clip_seed(latent, seed), steps, settings)
        return ({**latent, "samples": samples},)


class T2VTurboSigmas(Node):
    DISPLAY_NAME = "T2V-Turbo Sigmas"
    DESCRIPTION = (
        "The noise levels that a student was distilled for. Connect them to SamplerCustom with the sampler lcm and "
        "cfg 1; the usual schedulers miss some of them by one timestep."
    )
    RETURN_TYPES = ("SIGMAS",)
    RETURN_NAMES = ("sigmas",)
    OUTPUT_TOOLTIPS = ("Descending noise levels, one more than steps; the last is 0.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"steps": STUDENT_STEPS}}

    def execute(self, steps):
        from .runtime.sampling import student_sigmas

        return (student_sigmas(steps),)


# --- teachers ----------


class T2VTurboTeacherSampler(SamplingNode):
    DISPLAY_NAME = "T2V-Turbo Teacher Sampler"
    DESCRIPTION = (
        "Samples a teacher in many steps (DDIM) with a negative prompt and, where a motion is connected, with the "
        "motion of a reference video, step by step as the paper's authors do it."
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": TEACHER,
                "positive": POSITIVE,
                "negative": ("CONDITIONING", {"tooltip": "What to avoid, encoded alike; usually an empty prompt."}),
                "latent": LATENT,
                "seed": SEED,
                "steps": TEACHER_STEPS,
                "cfg": changed(
                    GUIDANCE,
                    tooltip="How strictly the clip follows the prompt: 7.5 is usual; 1 ignores the negative prompt and "
                    "is twice as fast.",
                ),
                "fps": FPS,
            },
            "optional": {
                "motion": changed(MOTION, tooltip="The motion to follow, of as many frames of the same size; or none."),
                "motion_strength": MOTION_STRENGTH,
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
        motion_strength=DEFAULT_MOTION_STRENGTH,
        tau=DEFAULT_TAU,
    ):
        from .runtime.motion_guidance import MotionGuide
        from .runtime.sampling import clip_seed, sample_teacher_clip

        guide = MotionGuide(motion, motion_strength, tau) if motion else None
        seed = clip_seed(latent, seed)
        samples = sample_teacher_clip(model, positive, negative, latent["samples"], seed, steps, cfg, fps, guide)
        return ({**latent, "samples": samples},)
