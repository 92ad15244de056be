"""Scores as Markdown tables."""

from __future__ import annotations

from ...core.rewards import Reward
from ...core.tables import markdown
from .reward_loading import Rewards
from .scoring import FrameScores, total_score


def titles(rewards: Rewards) -> dict[str, str]:
    return {name: reward.network.info.name for name, reward in rewards.items()}


def score_table(rewards: Rewards, scores: FrameScores, prompt: str) -> str:
    """A clip's scores as Markdown, with a note for each reward that could not read the prompt at once."""
    rows = [["reward", "score", "weight", "unit"]]
    for name, reward in rewards.items():
        info = reward.network.info
        rows.append([info.name, f"{scores[name].mean():.4f}", f"{reward.weight:g}", info.unit])
    rows.append(["**weighted sum**", f"**{total_score(rewards, scores):.4f}**", "", ""])
    notes = [note for reward in rewards.values() if (note := long_prompt_note(reward.network, prompt))]
    return "\n".join([markdown(rows), *([""] if notes else []), *notes])


def long_prompt_note(reward: Reward, prompt: str) -> str:
    """How a prompt beyond the reward's limit was read; "" for one within it."""
    needed, info = reward.count_tokens(prompt), reward.info
    if needed <= info.text_limit:
        return ""
    parts = len(reward.segments(prompt))
    how = "cut off there" if parts == 1 else f"scored in {parts} parts, whose mean counts"
    return f"- {info.name} reads {info.text_limit} tokens: the prompt of {needed} was {how}."


def best_table(rewards: Rewards, scores: list[FrameScores], best: int) -> str:
    """The clips' scores as Markdown, the best one in bold."""
    names = [f"{title} × {rewards[name].weight:g}" for name, title in titles(rewards).items()]
    rows = [["clip", "weighted sum", *names]]
    for i, clip in enumerate(scores):
        values = [total_score(rewards, clip), *(float(clip[name].mean()) for name in rewards)]
        cells = [str(i), *(f"{value:.4f}" for value in values)]
        rows.append([f"**{cell}**" for cell in cells] if i == best else cells)
    return markdown(rows)
