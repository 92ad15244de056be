"""The inputs that several nodes share, each as ComfyUI wants it declared: (type, options)."""

from __future__ import annotations

from ..core.families import VIDEOCRAFTER2

# What ComfyUI calls the types that only our nodes exchange.
MOTION_TYPE = "T2V_TURBO_MOTION"
REWARD_TYPE = "T2V_TURBO_REWARD"
# The paper's lambda and tau.
DEFAULT_MOTION_STRENGTH, DEFAULT_TAU = VIDEOCRAFTER2.motion_strength, VIDEOCRAFTER2.tau


def changed(shared: tuple, **options) -> tuple:
    """A shared input with other options, such as a tooltip of its own."""
    kind, usual = shared
    return kind, usual | options


# --- links from other nodes ----------

TEACHER = ("MODEL", {"tooltip": "A teacher from T2V-Turbo Loader."})
POSITIVE = ("CONDITIONING", {"tooltip": "The prompt, encoded with the CLIP of the same loader."})
LATENT = ("LATENT", {"tooltip": "Gives the size and length of the clip; its content is not used."})
MOTION = (MOTION_TYPE, {"tooltip": "The motion to follow, of as many frames of the same size."})

# --- values: sampling ----------

SEED = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 0xFFFFFFFFFFFFFFFF,
        "control_after_generate": True,
        "tooltip": "Chooses the noise: the same seed gives the same clip on every device. Of several clips, each takes "
        "the seed after that of the one before.",
    },
)
STUDENT_STEPS = (
    "INT",
    {
        "default": 4,
        "min": 1,
        "max": 16,
        "tooltip": "Evaluations of the network: 4 is usual, 8 and 16 are finer, 1 is a draft.",
    },
)
TEACHER_STEPS = (
    "INT",
    {"default": 50, "min": 1, "max": 1000, "tooltip": "Steps of the teacher's sampler: 50 is usual."},
)
GUIDANCE = ("FLOAT", {"default": VIDEOCRAFTER2.guidance_scale, "min": 1.0, "max": 20.0, "step": 0.5})
FPS = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 60,
        "tooltip": "Frame rate that the network is told, which sets the pace of the motion; "
        "0 is the model's own. The file's frame rate is set where the video is made.",
    },
)

# --- values: motion ----------

MOTION_STRENGTH = (
    "FLOAT",
    {
        "default": DEFAULT_MOTION_STRENGTH,
        "min": 0.0,
        "max": 10_000.0,
        "step": 0.25,
        "round": 0.01,
        "tooltip": "How strongly the reference's motion pulls, the paper's lambda: 500 is usual. Raise it if the "
        "motion is not followed, lower it if the picture breaks up; 0 is none.",
    },
)
TAU = (
    "FLOAT",
    {
        "default": DEFAULT_TAU,
        "min": 0.0,
        "max": 1.0,
        "step": 0.05,
        "tooltip": "Part of the sampling that is guided by the motion, from its noisy start on: 0.5 is the paper's, "
        "1 is all, 0 is none.",
    },
)

# --- values: loaders ----------

PRECISIONS = ["auto", "fp32", "bf16", "fp16"]


def precision(auto: str) -> tuple:
    """The number format of what a loader loads; ``auto`` tells what the first entry does."""
    tooltip = (
        f"Number format of the weights. {auto} for your device; fp32 is the most exact, bf16 and fp16 need half the "
        "memory."
    )
    return PRECISIONS, {"default": "auto", "tooltip": tooltip}
