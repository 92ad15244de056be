"""Training and its data keep their tensors together on a card: see ``test_devices``."""

from pathlib import Path

import pytest
import torch
from simulated_cuda import needs_simulated_card, on_card
from test_devices import family, image_reward, noise

from t2v_turbo.core.pipeline import load
from t2v_turbo.core.rewards import RewardMixture, load_reward
from t2v_turbo.core.rewards.loss import Guards, RewardLoss
from t2v_turbo.train.config import PreprocessConfig
from t2v_turbo.train.data.clips import DecodedClip
from t2v_turbo.train.data.sources import Clip
from t2v_turbo.train.preprocess import RecordMaker
from t2v_turbo.train.shapes.world.dataset import render_clip


def record(device, **settings):
    """A record's tensors, one beside the other."""
    model = load("shapes", None, device=device)
    rendered = render_clip(0, 0)
    frames = torch.from_numpy(rendered.frames).permute(0, 3, 1, 2)
    clip = DecodedClip(0, Clip("0.mp4", Path("0.mp4"), None), "short", rendered.short_caption, frames=frames)
    settings |= {"dtype": "fp32", "precision": "no"}
    config = PreprocessConfig(videos="", records="", records_per_clip=2, motion_grid=10, **settings)
    made = RecordMaker(config, model)([clip])
    assert all(tensor.device.type == "cpu" for one in made for tensor in one.tensors.values())
    return torch.cat([one.tensors[name].flatten() for one in made for name in ("z", "cond", "uncond", "context")])


def record_with_motion(device):
    return record(device, motion=True, tau=1.0)


def reward_loss(device):
    model = family(device)
    video = load_reward("internvideo2", None, "shapes", device, torch.float32)
    rewards = {"clip": image_reward(device), "internvideo2": video}
    loss = RewardLoss(RewardMixture(rewards, {"clip": 0.5, "internvideo2": 1.0}), model.vae.decode, Guards(teacher=0.1))
    flags, alpha_bar = torch.tensor([True, False]), torch.tensor([0.5, 0.5])
    both = torch.cat([noise(device), -noise(device)])
    captions, generator = ["a red circle", "a blue cross"], torch.Generator().manual_seed(6)
    values = loss(both, captions, flags, both.flip(0), alpha_bar, 0, generator)
    return torch.stack([values["reward_loss"], values["teacher_loss"]])


@needs_simulated_card
@pytest.mark.parametrize("path", [record, record_with_motion, reward_loss], ids=lambda path: path.__name__)
def test_devices_are_not_mixed(path):
    on_card(path)
