"""What every subset of the rewards does: the paper's Table 3 in miniature, ``t2v-turbo rewards table``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ...core.checkpoints.locations import family_folder, student_path, weights_of
from ...core.files import file_hash
from ...core.pipeline import load
from ...core.rewards import PAPER_WEIGHTS, Reward, load_reward, reward_path
from ...core.rewards.checkpoints import EMBEDDED
from ...core.video import from_uint8
from ..config import DistillConfig
from ..data.reader import RecordSet
from ..distill import STUDENT, distill
from ..preprocess import share_of_work
from ..results import KeptRows
from ..shapes.evaluation import COLUMNS, sample_clips
from ..shapes.world.captions import evaluation_prompts
from ..shapes.world.oracle import score, summarize
from ..training.trainer import read_stats
from .report import Section, curves, write_report

INTRODUCTION = [
    "The same student, distilled on with every subset of the reward models; the seed, the records and the number of "
    "steps are the same. The counterpart in miniature of Table 3 of T2V-Turbo-v2.",
    "The oracle measures in the pixels whether a clip shows the colour, the shape and the direction of its prompt, and "
    "how well. The rewards are means of raw scores on the same clips; prompts and noise are not those of training.",
]
NONE = "none"
# What the page shows of the training: signs of reward hacking.
COURSES = ("cd", "dynamics", "teacher_distance")
PAGE, ROWS = "table.html", "rows.json"


@dataclass(frozen=True)
class Judged:
    """How students are sampled and on what."""

    prompts: int
    sampling_steps: int
    sampling_seed: int


def all_subsets() -> list[str]:
    """Names of the eight subsets, the smaller first."""
    names = list(PAPER_WEIGHTS)
    return ["+".join(part) or NONE for size in range(len(names) + 1) for part in combinations(names, size)]


def chosen_subsets(text: str | None) -> list[str]:
    """The subsets that ``text`` names, in the order of ``all_subsets``; None = all.

    Raises:
        ValueError: for an unknown one.
    """
    known = {frozenset(name.split("+")): name for name in all_subsets()}
    wanted = [frozenset(part.strip().split("+")) for part in text.split(",")] if text else list(known)
    for names in wanted:
        if names not in known:
            raise ValueError(f"--subsets {'+'.join(sorted(names))}: is unknown; use {', '.join(known.values())}")
    return [name for names, name in known.items() if names in wanted]


def settings_of(config: DistillConfig, subset: str, origin: dict) -> DistillConfig:
    """The run of one subset, in a folder of its own, which other settings do not share.

    Args:
        origin: see ``origin_of``.

    Raises:
        ValueError: if rewards are named that are in no subset.
    """
    weights = config.rewards.weights() or PAPER_WEIGHTS
    if set(weights) != set(PAPER_WEIGHTS):
        raise ValueError(f"rewards.models={config.rewards.models}: name all of {', '.join(PAPER_WEIGHTS)} and no other")
    names = [] if subset == NONE else subset.split("+")
    models = ",".join(f"{name}:{weights[name]:g}" for name in names) or None
    files = ",".join(f"{name}:{path}" for name, path in config.rewards.files().items() if name in names) or None
    limits = ",".join(f"{name}:{limit:g}" for name, limit in config.rewards.limits().items() if name in names) or None
    rewards = replace(config.rewards, models=models, paths=files, ceilings=limits)
    digest = hashlib.sha256(json.dumps(origin | {"models": models}).encode()).hexdigest()[:8]
    return replace(config, out=str(Path(config.out) / f"{subset}-{digest}"), rewards=rewards)


def start_of(config: DistillConfig) -> str:
    """The student that all subsets start from: ``init``, or the family's with or without motion guidance."""
    folder = Path(config.model.folder) if config.model.folder else family_folder(config.model.family)
    return config.init or str(student_path(config.model.family, "mg" if config.motion else "no-mg", folder))


def subset_rows(config: DistillConfig, subsets: list[str], judged: Judged) -> list[dict]:
    """Per subset its oracle scores, the mean of every reward, and the seconds of its training; kept in ``config.out``.

    Raises:
        ValueError: for a family other than the embedded one, or anything that ``distill`` refuses.
    """
    if config.model.family != EMBEDDED:
        raise ValueError(f"model.family={config.model.family}: the oracle measures {EMBEDDED} alone; use that")
    config = replace(config, init=start_of(config))
    # All of them score, whatever a subset trains with; loaded first, so that a missing file costs no training.
    rewards = load_rewards(config)
    kept, origin, rows = KeptRows(Path(config.out) / ROWS), origin_of(config), []
    for subset in tqdm(subsets, desc="rewards table", unit="subset", disable=not is_main()):
        one = settings_of(config, subset, origin)
        made_from = origin | asdict(judged) | {"subset": subset, "models": one.rewards.models}
        row = kept.find(made_from)
        if row is None:
            distill(one)
            if is_main():
                row = kept.get(made_from, partial(judge, one, rewards, judged))
        rows.append(row)
    return rows


def load_rewards(config: DistillConfig) -> dict[str, Reward]:
    files, folder = config.rewards.files(), config.model.folder
    return {
        name: load_reward(name, files.get(name), EMBEDDED, dtype=torch.float32, folder=folder) for name in PAPER_WEIGHTS
    }


def origin_of(config: DistillConfig) -> dict:
    """What all rows depend on, as JSON values."""
    files = config.rewards.files()
    paths = {name: files.get(name) or reward_path(name, EMBEDDED, config.model.folder) for name in PAPER_WEIGHTS}
    ignored = ("out", "records", "init", "model", "log_every", "save_every", "keep_checkpoints", "prefetch", "cache_gb")
    settings = {name: value for name, value in asdict(config).items() if name not in ignored}
    settings["rewards"] |= {"models": None, "paths": None}
    records = RecordSet(config.records)
    return {
        "settings": settings,
        "start": file_hash(Path(config.init)),
        "weights": weights_of(EMBEDDED, config.model.folder),
        "rewards": {name: file_hash(Path(path)) for name, path in paths.items()},
        "records": records.made_from | {"shards": [shard.records for shard in records.shards]},
    }


def is_main() -> bool:
    """Whether this is the only process or the first; known before accelerate is told which device to use."""
    return share_of_work(None, None)[0] == 0


# --- judging ----------


def judge(config: DistillConfig, rewards: dict[str, Reward], judged: Judged) -> dict:
    """Scores of the student in ``config.out`` on the fixed prompts."""
    model = load(EMBEDDED, Path(config.out) / STUDENT, config.model.folder)
    pairs = evaluation_prompts(judged.prompts)
    prompts, title = [prompt for prompt, _ in pairs], f"sampling {Path(config.out).name}"
    clips = list(sample_clips(model, prompts, judged.sampling_steps, seed=judged.sampling_seed, title=title))
    means = {name: mean_score(reward, clips, prompts) for name, reward in rewards.items()}
    stats = read_stats(Path(config.out))
    return {
        "oracle": summarize(score(clip, expected) for clip, (_, expected) in zip(clips, pairs)),
        "rewards": means,
        "seconds": training_seconds(stats),
        "course": {name: course(stats, name) for name in COURSES},
    }


@torch.no_grad()
def mean_score(reward: Reward, clips: list, prompts: list[str], batch: int = 16) -> float:
    """Mean raw score of clips, uint8 (F, H, W, 3), with their prompts; all frames."""
    total = 0.0
    for first in range(0, len(clips), batch):
        frames = torch.stack([from_uint8(clip) for clip in clips[first : first + batch]])
        total += reward.score(frames, prompts[first : first + batch]).sum().item()
    return total / len(clips)


def training_seconds(stats: list[dict]) -> float:
    """Seconds of a whole run, stopped or not, from the time per step of every line of its log."""
    steps = [0, *(line["step"] for line in stats)]
    return sum((step - before) * line["seconds_per_step"] for before, step, line in zip(steps, steps[1:], stats))


def course(stats: list[dict], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in stats if name in line]


# --- what came out ----------


def table_of(rows: list[dict]) -> list[list]:
    """A row per subset: oracle scores in per cent, raw rewards, minutes of training."""
    table = [["rewards", *COLUMNS, *(f"reward {name}" for name in PAPER_WEIGHTS), "minutes"]]
    for row in rows:
        oracle = [round(100 * row["oracle"][name], 1) for name in COLUMNS]
        rewards = [round(row["rewards"][name], 4) for name in PAPER_WEIGHTS]
        table.append([row["made_from"]["subset"], *oracle, *rewards, round(row["seconds"] / 60, 1)])
    return table


def write_page(out: Path, rows: list[dict]) -> Path:
    """The table, every reward by subset, and the courses that tell of reward hacking."""
    sections = [Section("Scores", ["Oracle scores in per cent, rewards raw."], table=table_of(rows))]
    names = [row["made_from"]["subset"] for row in rows]
    lines = {f"reward {name}": (names, [row["rewards"][name] for row in rows]) for name in PAPER_WEIGHTS}
    sections.append(Section("Rewards by subset", svg=curves(lines, ylabel="mean raw score")))
    lines = {name: (names, [100 * row["oracle"][name] for row in rows]) for name in ("total", "color", "direction")}
    sections.append(Section("Oracle scores by subset", svg=curves(lines, ylabel="per cent")))
    for name in COURSES:
        if lines := dict(_courses(rows, name)):
            sections.append(Section(f"{name} during the training", svg=curves(lines, xlabel="step", ylabel=name)))
    return write_report(out / PAGE, "Which rewards do what", INTRODUCTION, sections)


def _courses(rows: list[dict], name: str) -> Iterator[tuple[str, tuple]]:
    for row in rows:
        if points := row["course"][name]:
            yield row["made_from"]["subset"], tuple(zip(*points))
