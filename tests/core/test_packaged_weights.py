"""The embedded family as it is shipped: every file loads and does what its card says, measured on a few clips."""

import pytest
import torch

from t2v_turbo.core.checkpoints.locations import PACKAGED_WEIGHTS
from t2v_turbo.core.pipeline import load
from t2v_turbo.core.rewards import PAPER_WEIGHTS, load_reward
from t2v_turbo.train.shapes.evaluation import sample_clips
from t2v_turbo.train.shapes.reward_accuracy import attribute_accuracy, clip_features, frames_of, moves
from t2v_turbo.train.shapes.training.contrastive import draw_clip
from t2v_turbo.train.shapes.world.captions import evaluation_prompts
from t2v_turbo.train.shapes.world.oracle import score, summarize

FOLDER = PACKAGED_WEIGHTS / "shapes"


def test_size():
    """A pack that is cloned with its weights stays small."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 25e6


@pytest.mark.parametrize("student", ["default", "mg"])
def test_students(student):
    pairs = evaluation_prompts(12)
    clips = sample_clips(load("shapes", student), [prompt for prompt, _ in pairs], steps=4)
    found = summarize([score(clip, expected) for clip, (_, expected) in zip(clips, pairs)])
    assert found["color"] > 0.95 and found["shape"] > 0.95 and found["direction"] > 0.9 and found["smoothness"] > 0.7


@pytest.mark.parametrize("name", PAPER_WEIGHTS)
@torch.no_grad()
def test_rewards(name):
    """Each hears the words that it can know; the image rewards see no motion."""
    clips = [clip for clip in (draw_clip(999, i) for i in range(40)) if moves(clip)]
    reward = load_reward(name, family="shapes", dtype=torch.float32)
    rates = attribute_accuracy(reward, clip_features(reward, frames_of(clips), "clips"), clips)
    assert rates["color"] > 0.95 and rates["shape"] > 0.9
    assert (rates["direction"] > 0.9) == (reward.info.kind == "video")
