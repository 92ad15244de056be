"""What the entries of dropdowns stand for; saved workflows hold these names."""

from __future__ import annotations

# The students of the embedded family, as `core.pipeline.load` calls them; None = its teacher.
EMBEDDED_MODELS = {
    "shapes (embedded)": "default",
    "shapes with motion guidance (embedded)": "mg",
    "shapes teacher (embedded)": None,
}
# The embedded rewards by their names; None = the mixture.
EMBEDDED_REWARDS = {
    "shapes mixture (embedded)": None,
    "shapes hps (embedded)": "hps",
    "shapes clip (embedded)": "clip",
    "shapes internvideo2 (embedded)": "internvideo2",
}
PUBLISHED_MIXTURE = "published mixture"
# The methods of a motion prior, as `core.motion.prior.Origin` calls them.
MOTION_METHODS = {"inversion": "ddim", "noise": "noise"}
