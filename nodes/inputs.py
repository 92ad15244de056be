"""What several nodes declare alike: shared inputs, the names of our types, the usual values."""

from __future__ import annotations

from ..core.families import VIDEOCRAFTER2

# The embedded family, by what the dropdown says; saved workflows hold these names.
EMBEDDED_MODELS = {
    "shapes (embedded)": "default",
    "shapes with motion guidance (embedded)": "mg",
    "shapes teacher (embedded)": None,
}
PRECISIONS = ["auto", "fp32", "bf16", "fp16"]
# The type of loaded rewards between nodes.
REWARD = "T2V_TURBO_REWARD"
# The embedded rewards, by what the dropdown says; saved workflows hold these names. None = the mixture.
EMBEDDED_REWARDS = {
    "shapes mixture (embedded)": None,
    "shapes hps (embedded)": "hps",
    "shapes clip (embedded)": "clip",
    "shapes internvideo2 (embedded)": "internvideo2",
}
PUBLISHED_MIXTURE = "published mixture"
LONG_PROMPTS = ["segments", "truncate"]
# The type of a motion prior between nodes.
MOTION = "T2V_TURBO_MOTION"
# The paper's lambda and tau.
MOTION_STRENGTH, MOTION_TAU = VIDEOCRAFTER2.motion_strength, 0.5
STEPS = {
    "default": 4,
    "min": 1,
    "max": 16,
    "tooltip": "Evaluations of the network: 4 is usual, 8 and 16 are finer, 1 is a draft.",
}
TEACHER_STEPS = {
    "default": 50,
    "min": 1,
    "max": 1000,
    "tooltip": "Steps of the teacher's sampler: 50 is usual.",
}
LATENT = ("LATENT", {"tooltip": "Gives the size and length of the clip; its content is not used."})
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
STRENGTH = {"default": MOTION_STRENGTH, "min": 0.0, "max": 10_000.0, "step": 0.25, "round": 0.01}
TEACHER_STRENGTH = (
    "FLOAT",
    STRENGTH
    | {
        "tooltip": "How strongly the reference's motion pulls, the paper's lambda: 500 is usual. Raise it if the "
        "motion is not followed, lower it if the picture breaks up; 0 is none."
    },
)
TAU = (
    "FLOAT",
    {
        "default": MOTION_TAU,
        "min": 0.0,
        "max": 1.0,
        "step": 0.05,
        "tooltip": "Part of the sampling that is guided by the motion, from its noisy start on: 0.5 is the paper's, "
        "1 is all, 0 is none.",
    },
)
