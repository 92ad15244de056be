"""The autoencoder's face: samples of the posterior."""

import torch
from conftest import randomize

from t2v_turbo.core.config import SHAPES
from t2v_turbo.core.vae import VideoVAE


def test_a_latent_is_the_mean_plus_the_deviation_times_noise():
    """From the moments that the network itself gives: mean and logarithm of the variance."""
    vae = randomize(VideoVAE(SHAPES.vae), 0)
    frames = torch.rand(1, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, log_variance = vae.model.quant_conv(vae.model.encoder(frames[0] * 2 - 1)).chunk(2, dim=1)
        sample = vae.encode(frames, torch.Generator().manual_seed(5))[0].transpose(0, 1)
        plain = vae.encode(frames)[0].transpose(0, 1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    deviation = (log_variance / 2).exp()
    assert (deviation - deviation**2).abs().max() > 0.05  # the test can tell deviation and variance apart
    scale = vae.config.scale_factor
    torch.testing.assert_close(sample, (mean + deviation * noise) * scale)
    torch.testing.assert_close(plain, mean * scale)
