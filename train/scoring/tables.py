"""Scores of clips as a person, a script or a spreadsheet reads them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten

from ...core.files import replacing
from ...core.rewards import RewardInfo
from ...core.tables import markdown
from .results import ScoreResult

# Characters of a prompt in a table.
PROMPT_WIDTH = 48


def as_text(results: list[ScoreResult], infos: Mapping[str, RewardInfo]) -> str:
    """Markdown: a row per reward of one score, a matrix per reward of clips × prompts, else a row per clip and prompt.

    Args:
        infos: what the rewards say of themselves.
    """
    if len(results) == 1:
        rows = [[name, _number(results[0].scores[name]), info.unit, _range(info)] for name, info in infos.items()]
        return markdown([["reward", "score", "unit", "range"], *rows])
    clips, prompts = {one.name for one in results}, {one.prompt for one in results}
    pairs = {(one.name, one.prompt) for one in results}
    if min(len(clips), len(prompts)) > 1 and len(pairs) == len(clips) * len(prompts):
        tables = [f"{name}\n\n{markdown(matrix(results, name))}" for name in infos]
    else:
        rows = [[one.name, _short(one.prompt), *map(_number, one.scores.values())] for one in results]
        last = [["mean", "", *means(results).values()]] if len(clips) > 1 else []
        tables = [markdown([["clip", "prompt", *infos], *rows, *last])]
    units = "\n".join(f"{name}: {info.unit}, {_range(info)}" for name, info in infos.items())
    return "\n\n".join([*tables, units])


def matrix(results: list[ScoreResult], name: str) -> list[list[str]]:
    """The scores of one reward: a row per clip, a column per prompt."""
    scores = {(one.name, one.prompt): one.scores[name] for one in results}
    clips, prompts = (list(dict.fromkeys(keys)) for keys in zip(*scores))
    rows = [[clip, *(_number(scores[clip, prompt]) for prompt in prompts)] for clip in clips]
    return [["clip", *map(_short, prompts)], *rows]


def means(results: list[ScoreResult]) -> dict[str, str]:
    """The mean of each reward."""
    return {name: _number(sum(one.scores[name] for one in results) / len(results)) for name in results[0].scores}


def _range(info: RewardInfo) -> str:
    low, high = info.range
    return "unlimited" if math.isinf(high) else f"{low:g} to {high:g}"


def _number(score: float) -> str:
    return f"{score:.4f}"


def _short(prompt: str) -> str:
    return shorten(prompt, PROMPT_WIDTH, placeholder=" …").replace("|", "\\|")


def as_json(results: list[ScoreResult], infos: Mapping[str, RewardInfo]) -> dict:
    """What the rewards are, ``scores`` [{"file", "prompt", reward: score}] and ``problems`` [{"file", "problem"}]."""
    return {
        "rewards": {
            name: {
                "name": info.name,
                "kind": info.kind,
                "unit": info.unit,
                "range": [bound if math.isfinite(bound) else None for bound in info.range],
            }
            for name, info in infos.items()
        },
        "scores": [{"file": one.name, "prompt": one.prompt, **one.scores} for one in results if not one.problem],
        "problems": [{"file": one.name, "problem": one.problem} for one in results if one.problem],
    }


def write_csv(path: Path, results: list[ScoreResult], names: list[str]) -> None:
    """Columns file, prompt, a score per reward, problem; the file is written whole or not at all."""
    # A name of bytes that are no UTF-8 is written by its escapes.
    text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with replacing(path) as partial, partial.open("w", **text) as file:
        writer = csv.DictWriter(file, ["file", "prompt", *names, "problem"])
        writer.writeheader()
        for one in results:
            writer.writerow({"file": one.name, "prompt": one.prompt, "problem": one.problem} | one.scores)
