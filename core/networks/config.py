"""Architectures as data: the sizes of the three networks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

# How the published UNet configurations spell our fields, and what their switches must say for this class to apply.
_PUBLISHED_NAMES = {
    "num_head_channels": "head_channels",
    "time_cond_proj_dim": "guidance_dim",
    "motion_cond_proj_dim": "motion_dim",
}
_PUBLISHED_SWITCHES = {
    "use_linear": True,
    "temporal_conv": True,
    "temporal_attention": True,
    "temporal_selfatt_only": True,
    "use_relative_position": False,
    "use_causal_attention": False,
    "addition_attention": True,
    "fps_cond": True,
}


@dataclass(frozen=True)
class UNetConfig:
    """The 3D UNet of VideoCrafter2; teacher and student differ only in the two condition widths."""

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    # Downsampling factors at which a level carries spatial and temporal attention.
    attention_resolutions: tuple[int, ...] = (4, 2, 1)
    head_channels: int = 64
    transformer_depth: int = 1
    context_dim: int = 1024
    temporal_dropout: float = 0.1
    # Groups of every group norm; as many groups as channels would erase a frame's mean, so small models have fewer.
    norm_groups: int = 32
    # Width of the embedding of omega (guidance scale) and of lambda (motion guidance); None = no such input.
    guidance_dim: int | None = None
    motion_dim: int | None = None

    @property
    def embed_dim(self) -> int:
        """Width of the time embedding that every residual block receives."""
        return 4 * self.model_channels

    @property
    def num_levels(self) -> int:
        return len(self.channel_mult)

    def has_attention(self, level: int) -> bool:
        """Whether resolution level ``level`` (0 = full) carries attention."""
        return 2**level in self.attention_resolutions

    def as_teacher(self) -> UNetConfig:
        return replace(self, guidance_dim=None, motion_dim=None)

    def as_student(self, motion: bool = False, dim: int = 256) -> UNetConfig:
        """The same UNet with an input for omega and, with ``motion``, for lambda."""
        return replace(self, guidance_dim=dim, motion_dim=dim if motion else None)


@dataclass(frozen=True)
class VAEConfig:
    """A KL autoencoder of Stable Diffusion's type; ``channels`` per level, one ×2 downsampling between levels."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    num_res_blocks: int = 2
    latent_channels: int = 4
    norm_groups: int = 32
    # Latents are multiplied by this to have about unit variance.
    scale_factor: float = 0.18215

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class TextConfig:
    """OpenCLIP's text tower; the context is the penultimate layer followed by the final norm."""

    width: int = 1024
    heads: int = 16
    layers: int = 24
    vocab_size: int = 49408
    context_length: int = 77
    embed_dim: int = 1024
    # File name of a BPE merges list beside the weights; None = CLIP's own vocabulary.
    merges: str | None = None


def unet_config_from_published(published: dict) -> UNetConfig:
    """Read a UNet configuration written with the published names (VideoCrafter's YAML, minus the class path).

    Raises:
        ValueError: if a switch asks for a variant of the UNet that VideoCrafter2 does not use.
    """
    for name, wanted in _PUBLISHED_SWITCHES.items():
        if published.get(name, wanted) != wanted:
            raise ValueError(f"UNet option {name}={published[name]} is not supported; VideoCrafter2 has {wanted}")
    known = {f.name for f in fields(UNetConfig)}
    renamed = {_PUBLISHED_NAMES.get(key, key): value for key, value in published.items()}
    return UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in renamed.items() if k in known})


def unet_config_from_dict(values: dict) -> UNetConfig:
    """A UNet configuration out of ``dataclasses.asdict`` and JSON, which turns tuples into lists.

    Raises:
        ValueError: if a field is unknown.
    """
    known = {f.name for f in fields(UNetConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown UNet fields {unknown}; known are {sorted(known)}")
    return UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
