"""Motion transfer: read the motion of a reference video, keep it in a file, guide native samplers by it."""

from __future__ import annotations

from .base import Node
from .choices import MOTION_METHODS
from .host import host
from .inputs import (
    LATENT,
    MOTION,
    MOTION_STRENGTH,
    MOTION_TYPE,
    POSITIVE,
    SEED,
    TAU,
    TEACHER,
    TEACHER_STEPS,
    changed,
)

INVERSION_STEPS = ["200", "100", "50", "25"]
MOTION_TOOLTIP = "The motion, for T2V-Turbo Teacher Sampler or T2V-Turbo Motion Guidance."


class MotionNode(Node):
    """A node about the motion of a reference video."""

    CATEGORY = f"{Node.CATEGORY}/motion"


class T2VTurboMotionPrior(MotionNode):
    DISPLAY_NAME = "T2V-Turbo Motion Prior"
    DESCRIPTION = (
        "Reads the motion of a reference video: how the frames attend to each other inside a teacher. Its look is not "
        "kept. The reference is cut to the size and length of the latent, its frames spread evenly."
    )
    RETURN_TYPES = (MOTION_TYPE, "IMAGE")
    RETURN_NAMES = ("motion", "preview")
    OUTPUT_TOOLTIPS = (
        MOTION_TOOLTIP,
        "Which frame attends to which, per layer: colour is the frame, brightness how much.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": changed(TEACHER, tooltip="A teacher from T2V-Turbo Loader, the one that shall be guided."),
                "vae": ("VAE", {"tooltip": "The VAE of the same loader."}),
                "positive": changed(POSITIVE, tooltip="A caption of the reference video, not of the new one."),
                "images": ("IMAGE", {"tooltip": "The frames of the reference, at least as many as the latent has."}),
                "latent": changed(LATENT, tooltip="The empty latent that will be sampled: gives size and length."),
                "method": (
                    list(MOTION_METHODS),
                    {
                        "default": "inversion",
                        "tooltip": "inversion follows the reference back into noise, as the paper does; noise adds "
                        "random noise to it instead, which is rougher but takes no time.",
                    },
                ),
                "inversion_steps": (
                    INVERSION_STEPS,
                    {
                        "default": "200",
                        "tooltip": "Steps of a whole inversion: 200 are the paper's, fewer are faster and less exact.",
                    },
                ),
                "steps": changed(TEACHER_STEPS, tooltip="Steps of the sampler that will be guided: as there."),
                "tau": TAU,
                "timestep": (
                    "INT",
                    {
                        "default": -1,
                        "min": -1,
                        "max": 999,
                        "tooltip": "-1 reads the motion at every step that steps and tau say will be guided. A "
                        "timestep of 0 to 999 reads it once, there: with noise, 400 is usual.",
                    },
                ),
                # Without the usual change after every run, upon which the reference would be read anew.
                "seed": changed(SEED, control_after_generate=False, tooltip="Chooses the noise of the method noise."),
            }
        }

    def execute(self, model, vae, positive, images, latent, method, inversion_steps, steps, tau, timestep, seed):
        from ..core.diffusion.guidance import guided_timesteps
        from ..core.motion.preview import preview
        from .runtime.motion_reading import read_motion

        timesteps = guided_timesteps(steps, tau) if timestep < 0 else [timestep]
        if not timesteps:
            raise ValueError(f"tau={tau} of {steps} steps guides no step: raise tau, or choose a timestep")
        method, grid = MOTION_METHODS[method], int(inversion_steps)
        prior = read_motion(model, vae, positive, images, latent["samples"], timesteps, method, grid, seed)
        return prior, preview(prior)[None]


class T2VTurboMotionGuidance(MotionNode):
    DISPLAY_NAME = "T2V-Turbo Motion Guidance"
    DESCRIPTION = (
        "Makes a teacher follow a motion in any native sampler, KSampler for one. ddim and euler give what T2V-Turbo "
        "Teacher Sampler gives. A guided step takes about three times as long."
    )
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model that follows the motion, for KSampler and its kin.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": TEACHER,
                "motion": MOTION,
                "motion_strength": MOTION_STRENGTH,
                "tau": TAU,
            }
        }

    def execute(self, model, motion, motion_strength, tau):
        from .runtime.motion_guidance import MotionGuide, follow_motion

        return (follow_motion(model, MotionGuide(motion, motion_strength, tau)),)


# --- files ----------


class T2VTurboSaveMotionPrior(MotionNode):
    DISPLAY_NAME = "T2V-Turbo Save Motion Prior"
    DESCRIPTION = "Saves a motion into the output folder, so that the reference need not be read again."
    RETURN_TYPES = RETURN_NAMES = OUTPUT_TOOLTIPS = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "motion": changed(MOTION, tooltip="A motion of T2V-Turbo Motion Prior."),
                "filename_prefix": (
                    "STRING",
                    {
                        "default": "motion/T2V-Turbo",
                        "tooltip": "Name below the output folder; a number is added. T2V-Turbo Load Motion Prior lists "
                        "what lies in its folder motion.",
                    },
                ),
            }
        }

    def execute(self, motion, filename_prefix):
        path, subfolder = host().new_output(filename_prefix, ".safetensors")
        motion.save(path)
        return {"ui": {"motion": [{"filename": path.name, "subfolder": subfolder, "type": "output"}]}}


class T2VTurboLoadMotionPrior(MotionNode):
    DISPLAY_NAME = "T2V-Turbo Load Motion Prior"
    DESCRIPTION = "Loads a saved motion out of models/t2v_turbo_motion, the input folder, or output/motion."
    RETURN_TYPES = (MOTION_TYPE,)
    RETURN_NAMES = ("motion",)
    OUTPUT_TOOLTIPS = (MOTION_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "motion": (
                    sorted(host().motion_files()),
                    {"tooltip": "A file of T2V-Turbo Save Motion Prior; new ones appear after a press of R."},
                )
            }
        }

    @classmethod
    def IS_CHANGED(cls, motion):
        return host().motion_path(motion).stat().st_mtime

    def execute(self, motion):
        from ..core.motion.prior import MotionPrior

        return (MotionPrior.load(host().motion_path(motion)),)
