"""Reward models: score a clip, or choose the best of several."""

from __future__ import annotations

from . import CATEGORY
from .host import host
from .host.files import is_reward_file
from .inputs import EMBEDDED_REWARDS, LONG_PROMPTS, PRECISIONS, PUBLISHED_MIXTURE, REWARD

SUBCATEGORY = f"{CATEGORY}/rewards"
# The paper's mixture; `core.rewards.PAPER_WEIGHTS`, which cannot be had without the networks.
WEIGHTS = {"hps": 0.2, "clip": 0.2, "internvideo2": 0.5}


def weight(name: str, what: str) -> tuple:
    """The input for a reward's weight; ``what`` tells what the reward is."""
    usual = WEIGHTS[name]
    about = f"Weight of {what} in a mixture: {usual} is the paper's, 0 leaves it out. A single reward ignores it."
    return ("FLOAT", {"default": usual, "min": 0.0, "max": 10.0, "step": 0.05, "round": 0.001, "tooltip": about})


LOADED = (REWARD, {"tooltip": "From T2V-Turbo Reward Loader."})
PROMPT = ("STRING", {"default": "", "multiline": True, "tooltip": "What the clip shall show, of any length."})


class T2VTurboRewardLoader:
    CATEGORY = SUBCATEGORY
    DESCRIPTION = (
        "Loads models that score how well a clip looks and fits its prompt. The embedded ones know Moving Shapes and "
        "work at once; the published ones appear when they lie in models/t2v_turbo/rewards."
    )
    RETURN_TYPES = (REWARD,)
    RETURN_NAMES = ("reward",)
    OUTPUT_TOOLTIPS = ("One reward or a mixture, for T2V-Turbo Reward Scorer and T2V-Turbo Best Of.",)
    FUNCTION = "execute"

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
                "precision": (
                    PRECISIONS,
                    {
                        "default": "auto",
                        "tooltip": "Number format of the weights. auto chooses for your device; fp32 is the most "
                        "exact, bf16 and fp16 need half the memory.",
                    },
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, reward, hps_weight, clip_weight, internvideo2_weight, long_prompts, precision):
        from .runtime.rewards import reward_files

        weights = dict(zip(WEIGHTS, (hps_weight, clip_weight, internvideo2_weight)))
        return [path.stat().st_mtime for path in reward_files(reward, weights).values()]

    def execute(self, reward, hps_weight, clip_weight, internvideo2_weight, long_prompts, precision):
        import torch

        from .runtime.rewards import load_rewards

        weights = dict(zip(WEIGHTS, (hps_weight, clip_weight, internvideo2_weight)))
        # Weights made in inference mode could never take part in a gradient.
        with torch.inference_mode(False):
            return (load_rewards(reward, weights, long_prompts, precision),)


def list_rewards() -> list[str]:
    """The dropdown: the embedded rewards, then, where there are any, the files of the models folder and their mix."""
    files = sorted(name for name in host().model_files() if is_reward_file(name))
    return [*EMBEDDED_REWARDS, *([PUBLISHED_MIXTURE] if files else []), *files]


class T2VTurboRewardScorer:
    CATEGORY = SUBCATEGORY
    DESCRIPTION = "Scores a clip against a prompt, and shows which of its frames score high or low."
    RETURN_TYPES = ("FLOAT", "STRING", "IMAGE")
    RETURN_NAMES = ("score", "table", "plot")
    OUTPUT_TOOLTIPS = (
        "The weighted sum of the rewards' scores; higher is better.",
        "Each reward's score, weight and unit as a Markdown table, for Preview Any.",
        "Each reward's score over the frames; a video reward has one for the whole clip.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "reward": LOADED,
                "images": ("IMAGE", {"tooltip": "The frames of one clip; a single image is scored too."}),
                "prompt": PROMPT,
            }
        }

    def execute(self, reward, images, prompt):
        from .runtime.plot import plot_scores
        from .runtime.rewards import score_clips, score_table, titles, total_score

        (scores,) = score_clips(reward, [images], [prompt])
        curves = {title: scores[name] for name, title in titles(reward).items()}
        return total_score(reward, scores), score_table(reward, scores, prompt), plot_scores(curves)[None]


class T2VTurboBestOf:
    CATEGORY = SUBCATEGORY
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
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "reward": LOADED,
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
        from .runtime.rewards import best_table, prompts_for, score_clips, separate_clips, total_score

        (rewards,) = reward
        clips = separate_clips(images, frames[0])
        scores = score_clips(rewards, clips, prompts_for(clips, prompt))
        totals = [total_score(rewards, clip) for clip in scores]
        best = totals.index(max(totals))
        return clips[best], best, totals[best], best_table(rewards, scores, best)
