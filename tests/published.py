"""A small VideoCrafter2 as it is published: the layers of the real one, few channels, random weights."""

import torch
from conftest import randomize

from t2v_turbo.core.checkpoints.key_maps import text_key_map, unet_key_map, vae_key_map
from t2v_turbo.core.checkpoints.networks import PUBLISHED_PREFIXES
from t2v_turbo.core.families import FamilyConfig
from t2v_turbo.core.networks.config import TextConfig, UNetConfig, VAEConfig
from t2v_turbo.core.networks.text import TextEncoder
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.networks.vae import VideoVAE

UNET = UNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2, 1),
                  head_channels=16, context_dim=32)  # fmt: skip
# The same layers as the published UNet's, so that its list of keys is this one's too.
ALL_LAYERS = UNetConfig(model_channels=16, head_channels=8, context_dim=32, norm_groups=8)
VAE = VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1)
TEXT = TextConfig(width=32, heads=2, layers=2, embed_dim=32)
SMALL = FamilyConfig("videocrafter2", UNET, VAE, TEXT, frames=2, height=16, width=16)


def published_unet(config, seed=0):
    """A UNet and its state dict by the published keys."""
    unet = randomize(UNet3D(config), seed)
    return unet, unet_key_map(config, list(unet.state_dict())).to_published(unet.state_dict())


def published_parts(config=UNET):
    """The three networks, and their state dicts by the published keys, without prefixes."""
    unet, unet_state = published_unet(config)
    vae, text = randomize(VideoVAE(VAE), 1), randomize(TextEncoder(TEXT), 2)
    vae_state = vae_key_map(VAE, list(vae.model.state_dict())).to_published(vae.model.state_dict())
    text_state = text_key_map(list(text.tower.state_dict())).to_published(text.tower.state_dict())
    return (unet, vae, text), {"unet": unet_state, "vae": vae_state, "text": text_state}


def published_keys(states):
    """The keys of model.ckpt."""
    merged = {"betas": torch.zeros(1000), "scale_arr": torch.zeros(1400)}
    for kind, state in states.items():
        merged |= {PUBLISHED_PREFIXES[kind] + key: value for key, value in state.items()}
    return merged


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)
