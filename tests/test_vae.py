"""The autoencoder against diffusers' class, and in tiles."""

import pytest
import torch
from conftest import randomize

from t2v_turbo.core.networks.config import VAEConfig
from t2v_turbo.core.networks.tiling import tiled
from t2v_turbo.core.networks.vae import VideoVAE

CONFIG = VAEConfig(channels=(16, 32, 32, 48), num_res_blocks=2, norm_groups=8)


@pytest.fixture(scope="module")
def vae():
    return randomize(VideoVAE(CONFIG), 0)


@pytest.fixture(scope="module")
def theirs(vae):
    from diffusers import AutoencoderKL

    levels = len(CONFIG.channels)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=CONFIG.channels,
        layers_per_block=CONFIG.num_res_blocks,
        latent_channels=CONFIG.latent_channels,
        norm_num_groups=CONFIG.norm_groups,
    )
    model.load_state_dict(vae.model.state_dict(), strict=True)
    return model.eval()


@torch.no_grad()
def test_agrees_with_diffusers(vae, theirs):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 48, 64, generator=generator) * 2 - 1
    expected = theirs.encode(pixels).latent_dist
    found = vae.model.encode(pixels)
    torch.testing.assert_close(found.mean, expected.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.std, expected.std, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.kl(), expected.kl(), atol=1e-3, rtol=1e-5)
    z = torch.randn(2, 4, 6, 8, generator=generator)
    torch.testing.assert_close(vae.model.decode(z), theirs.decode(z).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_sample_has_the_posterior_deviation(vae):
    """Drawn twice with one seed the same, and as far from the mean as the deviation, not the variance, says."""
    frames = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    posterior = vae.model.encode(frames[0] * 2 - 1)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    variance = posterior.log_variance.double().exp()
    expected = (posterior.mean + variance.sqrt() * noise).float() * CONFIG.scale_factor
    found = vae.encode(frames, generator)
    torch.testing.assert_close(found[0].transpose(0, 1), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(variance, variance.sqrt(), rtol=0.05)


@torch.no_grad()
def test_chunks_change_nothing(vae):
    latents = torch.randn(1, 4, 5, 4, 4, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(vae.decode(latents, chunk=2), vae.decode(latents, chunk=5), atol=1e-5, rtol=1e-5)
    frames = torch.rand(1, 5, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(vae.encode(frames, chunk=2), vae.encode(frames, chunk=5), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(7, 9), (16, 16), (5, 40), (3, 3)])
@pytest.mark.parametrize(("tile", "overlap"), [(4, 2), (5, 0), (8, 3), (1, 0), (64, 8)])
def test_tiles_put_a_picture_together(size, tile, overlap):
    """What acts on every point alone is the same in tiles, larger or smaller outputs included."""
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(tiled(lambda part: 2 * part, x, tile, overlap), 2 * x)
    bigger = tiled(lambda part: part.repeat_interleave(8, -1).repeat_interleave(8, -2), x, tile, overlap)
    torch.testing.assert_close(bigger, x.repeat_interleave(8, -1).repeat_interleave(8, -2))
    smaller = tiled(lambda part: part[..., ::8, ::8], bigger, 8 * tile, 8 * overlap)
    torch.testing.assert_close(smaller, x)


def test_tiles_blend_without_a_seam():
    """Where tiles disagree, one becomes the other step by step."""
    calls = iter(range(10))
    x = torch.zeros(1, 1, 1, 12)
    found = tiled(lambda part: torch.full_like(part, float(next(calls))), x, 8, 4)[0, 0, 0]
    assert found[0] == 0 and found[-1] == 1
    assert ((found.diff() >= 0) & (found.diff() < 0.3)).all()


@torch.no_grad()
def test_tiled_decoding_is_close_to_the_whole(vae):
    latents = torch.randn(1, 4, 1, 12, 16, generator=torch.Generator().manual_seed(7))
    whole = vae.decode(latents)
    vae.tile, vae.overlap = 8, 4
    try:
        found = vae.decode(latents)
    finally:
        vae.tile, vae.overlap = None, 0
    assert found.shape == whole.shape and not torch.equal(found, whole)
    assert (found - whole).abs().mean() < 0.1


@pytest.mark.parametrize(("tile", "overlap"), [(None, 0), (8, 4), (5, 3), (64, 8)])
@torch.no_grad()
def test_evaluations_are_counted_beforehand(vae, tile, overlap):
    calls = []
    hooks = [part.register_forward_hook(lambda *_: calls.append(1)) for part in (vae.model.decoder, vae.model.encoder)]
    vae.tile, vae.overlap = tile, overlap
    try:
        frames = vae.decode(torch.zeros(1, 4, 3, 12, 16), chunk=2)
        assert len(calls) == vae.evaluations(3, 12, 16, chunk=2)
        calls.clear()
        vae.encode(frames, chunk=2)
        assert len(calls) == vae.evaluations(3, 96, 128, chunk=2, unit=8)
    finally:
        vae.tile, vae.overlap = None, 0
        for hook in hooks:
            hook.remove()


def test_refusals(vae):
    with pytest.raises(ValueError, match="36x32 is not divisible by 8"):
        vae.encode(torch.zeros(1, 1, 3, 32, 36))
    with pytest.raises(ValueError, match="tile=0"):
        tiled(lambda part: part, torch.zeros(1, 1, 4, 4), 0, 0)
