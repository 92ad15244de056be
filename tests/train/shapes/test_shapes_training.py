"""The recipes of the embedded family, in a few steps each: they run, export, resume and learn."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip import SimpleTokenizer

from t2v_turbo.core.checkpoints import networks
from t2v_turbo.core.checkpoints.locations import PACKAGED_WEIGHTS
from t2v_turbo.core.diffusion.schedule import NoiseSchedule
from t2v_turbo.core.families import SHAPES
from t2v_turbo.train.shapes.evaluation import evaluate_text
from t2v_turbo.train.shapes.training import autoencoder, recipes, teacher, text_tower
from t2v_turbo.train.shapes.world.captions import all_words
from t2v_turbo.train.shapes.world.dataset import render_clip
from t2v_turbo.train.training.trainer import read_stats


@pytest.fixture
def short(monkeypatch):
    """Every recipe cut to 3 steps on a handful of clips."""
    for name, recipe in recipes.RECIPES.items():
        config = replace(
            recipe.config, steps=3, batch_size=4, log_every=1, save_every=2, precision="no", compile=False
        )
        monkeypatch.setitem(recipes.RECIPES, name, replace(recipe, config=config, clips=6))


def test_recipes_in_order(short, tmp_path):
    """vae, text and teacher write a family's files, one after the other, from nothing."""
    weights = tmp_path / "weights"
    for name in ("vae", "text", "teacher"):
        recipes.train(name, tmp_path / name, weights)
        assert [line["step"] for line in read_stats(tmp_path / name)] == [1, 2, 3]
    assert {file.name for file in weights.iterdir()} == {
        "vae.safetensors", "text.safetensors", "teacher.safetensors", "merges.txt.gz",
    }  # fmt: skip
    assert networks.load_unet(weights / "teacher.safetensors", SHAPES.unet).config == SHAPES.unet
    assert networks.load_vae(weights / "vae.safetensors", SHAPES.vae).config.scale_factor != SHAPES.vae.scale_factor
    assert networks.load_text(weights / "text.safetensors", SHAPES.text).config.vocab_size == SHAPES.text.vocab_size


def test_recipe_goes_on(short, tmp_path, random_shapes):
    """Raising the steps prolongs a run; the latents are rendered once."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("vae.safetensors", "text.safetensors", "merges.txt.gz"):
        (weights / name).write_bytes((random_shapes / name).read_bytes())
    recipes.train("teacher", tmp_path / "run", weights)
    latents = (tmp_path / "run" / "latents.safetensors").stat().st_mtime_ns
    recipes.train("teacher", tmp_path / "run", weights, steps=5)
    assert [line["step"] for line in read_stats(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert (tmp_path / "run" / "latents.safetensors").stat().st_mtime_ns == latents


def test_unknown_recipe(tmp_path):
    with pytest.raises(ValueError, match="no recipe for 'gan'; there are vae, text, teacher"):
        recipes.train("gan", tmp_path, tmp_path)


def test_vocabulary(tmp_path):
    """Every word of the world is one token, spelled by CLIP's own merges; the packaged list is this one."""
    size = text_tower.write_merges(tmp_path / "merges.txt.gz")
    assert size == SHAPES.text.vocab_size
    tokenizer = SimpleTokenizer(str(tmp_path / "merges.txt.gz"))
    clip = SimpleTokenizer()
    for word in all_words():
        assert len(tokenizer.encode(word)) == len(clip.encode(word)) or len(tokenizer.encode(word)) == 1
        assert tokenizer.decode(tokenizer.encode(word)).strip() == word
    assert tokenizer.decode(tokenizer.encode("zebra")).strip() == "zebra"
    packaged = PACKAGED_WEIGHTS / "shapes" / SHAPES.text.merges
    # The list, not the file: the header that gzip writes depends on the version of Python.
    assert gzip.decompress(packaged.read_bytes()) == gzip.decompress((tmp_path / "merges.txt.gz").read_bytes())


def test_packaged_text_tower_hears_every_kind_of_word():
    """Changing one word alone moves the context by a good part of what changing all of them does."""
    text = networks.load_text(PACKAGED_WEIGHTS / "shapes" / "text.safetensors", SHAPES.text)
    distances = evaluate_text(text)
    assert set(distances) == {"color", "shape", "direction", "speed"}
    assert min(distances.values()) > 0.15, distances


def test_noise_loss_is_the_error_of_v():
    """Equal to the mean squared error of v = alpha·eps − sigma·x0, where x0 follows from the predicted noise."""
    schedule, generator = NoiseSchedule(), torch.Generator().manual_seed(0)
    x0, noise, guess = torch.randn(3, 5, 4, 2, 2, 2, generator=generator)
    t = torch.tensor([3, 250, 500, 750, 999])
    x = schedule.add_noise(x0, noise, t)
    alpha, sigma = schedule.coefficients(t, x0)
    error = (alpha * guess - sigma * schedule.predict_x0(x, guess, t)) - (alpha * noise - sigma * x0)
    torch.testing.assert_close(teacher.noise_loss(guess, noise, t, schedule), error.square().mean(), rtol=1e-4, atol=0)


def test_packaged_autoencoder_keeps_what_the_oracle_sees():
    """On reconstructions of clean clips the oracle still finds colour, shape and direction."""
    from t2v_turbo.core.video import from_uint8, to_uint8
    from t2v_turbo.train.shapes.world.oracle import score

    vae = networks.load_vae(PACKAGED_WEIGHTS / "shapes" / "vae.safetensors", SHAPES.vae)
    clips = [render_clip(123, i, "dense") for i in range(16)]
    with torch.no_grad():
        frames = vae.decode(vae.encode(torch.stack([from_uint8(clip.frames) for clip in clips])))
    scores = [score(to_uint8(video), clip.scene.expected()) for video, clip in zip(frames, clips)]
    assert np.mean([one.semantic for one in scores]) >= 0.99
    assert np.mean([one.sharpness for one in scores]) > 0.8


def test_unit_variance():
    frames = autoencoder.render_frames(64, 5)
    vae = networks.load_vae(PACKAGED_WEIGHTS / "shapes" / "vae.safetensors", SHAPES.vae)
    scaled = autoencoder.with_unit_variance(vae, frames)
    with torch.no_grad():
        latents = scaled.encode(frames[None].float() / 255)
    assert latents.std().item() == pytest.approx(1, abs=0.01)
