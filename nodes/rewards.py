"""Reward models: score a clip, or choose the best of several."""

from __future__ import annotations

from .base import Node
from .choices import EMBEDDED_REWARDS, PUBLISHED_MIXTURE
from .host import host
from .host.files import is_reward_file
from .inputs import REWARD_TYPE, precision

# `core.rewards.PAPER_WEIGHTS` and `core.rewards.checkpoints.LONG_CAPTIONS`, which cannot be had without torch.
PAPER_WEIGHTS = {"hps": 0.2, "clip": 0.2, "internvideo2": 0.5}
LONG_PROMPTS = ["segments", "truncate"]


class RewardNode(Node):
    """A node about rewards."""

    CATEGORY = f"{Node.CATEGORY}/rewards"


# --- loading ----------


def weight(name: str, what: str) -> tuple:
    """The input for a reward's weight; ``what`` tells what the reward is."""
    usual = PAPER_WEIGHTS[name]
    about = f"Weight of {what} in a mixture: {usual} is the paper's, 0 leaves it out. A single reward ignores it."
    return ("FLOAT", {"default": usual, "min": 0.0, "max": 10.0, "step": 0.05, "round": 0.001, "tooltip": about})


class T2VTurboRewardLoader(RewardNode):
    DISPLAY_NAME = "T2V-Turbo Reward Loader"
    DESCRIPTION = (
        "Loads models that score how well a clip looks and fits its prompt. The embedded ones know Moving Shapes and "
        "work at once; the published ones appear when they lie in models/t2v_turbo/rewards."
    )
    RETURN_TYPES = (REWARD_TYPE,)
    RETURN_NAMES = ("reward",)
    OUTPUT_TOOLTIPS = ("One reward or a mixture, for T2V-Turbo Reward Scorer and T2V-Turbo Best Of.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "reward": (
                    list_rewards(),
                    {
                        "tooltip": "One reward, or the paper's mixture. Files of models/t2v_turbo/rewards/hps, clip, "
                        "internvideo2, pickscore and imagereward are listed here."
                    },
                ),
                "hps_weight": weight("hps", "HPSv2.1, people's taste in pictures,"),
                "clip_weight": weight("clip", "CLIP, which tells whether frames show what the prompt says,"),
                "internvideo2_weight": weight("internvideo2", "InternVideo2, which sees the motion too,"),
                "long_prompts": (
                    LONG_PROMPTS,
                    {
                        "default": "segments",
                        "tooltip": "A prompt longer than a reward can read: segments scores it in parts and takes "
                        "their mean, truncate cuts it off as the paper does.",
                    },
                ),
                "precision": precision("auto chooses"),
            }
        }

    @classmethod
    def IS_CHANGED(cls, reward, hps_weight, clip_weight, internvideo2_weight, long_prompts, precision):
        from .runtime.reward_loading import reward_files

        weights = by_name(hps_weight, clip_weight, internvideo2_weight)
        return [path.stat().st_mtime for path in reward_files(reward, weights).values()]

    def execute(self, reward, hps_weight, clip_weight, internvideo2_weight, long_prompts, precision):
        import torch

        from .runtime.reward_loading import load_rewards

        weights = by_name(hps_weight, clip_weight, internvideo2_weight)
        # Weights made in inference mode could never take part in a gradient.
        with torch.inference_mode(False):
            return (load_rewards(reward, weights, long_prompts, precision),)


def list_rewards() -> list[str]:
    """The dropdown: the embedded rewards, then, where there are any, the files of the models folder and their mix."""
    files = sorted(name for name in host().model_files() if is_reward_file(name))
    return [*EMBEDDED_REWARDS, *([PUBLISHED_MIXTURE] if files else []), *files]


def by_name(*weights: float) -> dict[str, float]:
    """The weights of the loader's inputs, in their order, by the rewards' names."""
    return dict(zip(PAPER_WEIGHTS, weights, strict=True))


# --- scoring ----------

REWARD = (REWARD_TYPE, {"tooltip": "From T2V-Turbo Reward Loader."})
PROMPT = ("STRING", {"default": "", "multiline": True, "tooltip": "What the clip shall show, of any length."})


class T2VTurboRewardScorer(RewardNode):
    DISPLAY_NAME = "T2V-Turbo Reward Scorer"
    DESCRIPTION = "Scores a clip against a prompt, and shows which of its frames score high or low."
    RETURN_TYPES = ("FLOAT", "STRING", "IMAGE")
    RETURN_NAMES = ("score", "table", "plot")
    OUTPUT_TOOLTIPS = (
        "The weighted sum of the rewards' scores; higher is better.",
        "Each reward's score, weight and unit as a Markdown table, for Preview Any.",
        "Each reward's score over the frames; a video reward has one for the whole clip.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "reward": REWARD,
                "images": ("IMAGE", {"tooltip": "The frames of one clip; a single image is scored too."}),
                "prompt": PROMPT,
            }
        }

    def execute(self, reward, images, prompt):
        from .runtime.score_plot import plot_scores
        from .runtime.score_tables import score_table, titles
        from .runtime.scoring import score_clips, total_score

        (scores,) = score_clips(reward, [images], [prompt])
        curves = {title: scores[name] for name, title in titles(reward).items()}
        return total_score(reward, scores), score_table(reward, scores, prompt), plot_scores(curves)[None]


class T2VTurboBestOf(RewardNode):
    DISPLAY_NAME = "T2V-Turbo Best Of"
    DESCRIPTION = (
        "Takes the clip with the highest score out of several: those of T2V-Turbo Empty Latent Video with more than "
        "one clip, or clips that Batch Images put one after the other."
    )
    INPUT_IS_LIST = True
    RETURN_TYPES = ("IMAGE", "INT", "FLOAT", "STRING")
    RETURN_NAMES = ("images", "index", "score", "table")
    OUTPUT_TOOLTIPS = (
        "The frames of the best clip.",
        "Which clip it is, from 0 on; T2V-Turbo Sampler makes it again with this added to the seed.",
        "Its score, the weighted sum of the rewards' scores.",
        "All clips' scores as a Markdown table, for Preview Any.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "reward": REWARD,
                "images": ("IMAGE", {"tooltip": "A list of clips, or one batch of clips one after the other."}),
                "prompt": PROMPT,
                "frames": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 4096,
                        "tooltip": "Length of each clip in a batch of several; 0 if every batch is one clip, as from "
                        "T2V-Turbo Empty Latent Video.",
                    },
                ),
            }
        }

    def execute(self, reward, images, prompt, frames):
        from .runtime.score_tables import best_table
        from .runtime.scoring import prompts_for, score_clips, separate_clips, total_score

        (rewards,) = reward
        clips = separate_clips(images, frames[0])
        scores = score_clips(rewards, clips, prompts_for(clips, prompt))
        totals = [total_score(rewards, clip) for clip in scores]
        best = totals.index(max(totals))
        return clips[best], best, totals[best], best_table(rewards, scores, best)
