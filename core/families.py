"""Architectures as data: what a model family is made of, apart from its weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from .networks.config import TextConfig, UNetConfig, VAEConfig

# The paper's motion guidance: lambda with the energy "mean", and the fraction of the sampling that is guided.
MOTION_STRENGTH, TAU = 500.0, 0.5


@dataclass(frozen=True)
class FamilyConfig:
    """A model family: the three networks and the video format that it was trained on."""

    name: str
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    frames: int = 16
    height: int = 320
    width: int = 512
    # Rate at which clips are written.
    fps: int = 8
    # Value of the network's fps condition at sampling (the authors train with 8 and sample with 16).
    fps_condition: int = 16
    # Usual teacher scale, 1 = no guidance; the student's omega is this minus 1.
    guidance_scale: float = 7.5
    # Usual lambda of motion guidance with the energy "mean", the paper's unit; it depends on the size of the clips.
    motion_strength: float = MOTION_STRENGTH
    # Usual fraction of the sampling that is guided by motion, from the noisiest step on.
    tau: float = TAU


VIDEOCRAFTER2 = FamilyConfig(name="videocrafter2")

SHAPES = FamilyConfig(
    name="shapes",
    unet=UNetConfig(
        model_channels=32,
        channel_mult=(2, 2),
        num_res_blocks=1,
        attention_resolutions=(2, 1),
        head_channels=16,
        context_dim=64,
        temporal_dropout=0.0,
        norm_groups=8,
    ),
    vae=VAEConfig(channels=(32, 32, 64, 64), num_res_blocks=1, norm_groups=8),
    text=TextConfig(width=64, heads=4, layers=3, vocab_size=955, embed_dim=64, merges="merges.txt.gz"),
    frames=8,
    height=64,
    width=64,
    fps_condition=8,
)

FAMILIES = {family.name: family for family in (VIDEOCRAFTER2, SHAPES)}


def resolve_family(family: str | FamilyConfig) -> FamilyConfig:
    """A family by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if isinstance(family, FamilyConfig):
        return family
    if family not in FAMILIES:
        raise ValueError(f"unknown model '{family}'; known are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[family]
