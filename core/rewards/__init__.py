"""Reward models behind one face: ``score(frames, prompts) -> (B,)``, differentiable in the frames (Eq. 10, 11)."""

from .base import Reward, RewardInfo
from .checkpoints import load_mixture, load_reward, present_rewards, reward_path, save_reward
from .mixture import MixtureScore, RewardMixture
from .registry import PAPER_WEIGHTS, REWARDS, build_reward

__all__ = [
    "PAPER_WEIGHTS",
    "REWARDS",
    "MixtureScore",
    "Reward",
    "RewardInfo",
    "RewardMixture",
    "build_reward",
    "load_mixture",
    "load_reward",
    "present_rewards",
    "reward_path",
    "save_reward",
]
