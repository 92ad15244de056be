"""The reward models that score, and all that scores depend on but for the clip and its prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...core.device import WIDE_PRECISIONS, dtype_name, pick_device, pick_dtype
from ...core.families import resolve_family
from ...core.rewards import Reward, load_reward, present_rewards, reward_path


@dataclass(frozen=True)
class ScoreSettings:
    """How clips are scored.

    Attributes:
        rewards: names of reward models, NAME,…; None = those that are there.
        frames: how many evenly spaced ones image rewards see; None = all, as far as memory holds them.
        long_captions: "segments" or "truncate", see ``Reward``.
        model: family of the rewards; ``checkpoints`` is the folder of its files, None = the usual one.
        device, dtype: names, as ``pick_device`` and ``pick_dtype`` take them; "auto" is never fp16.

    Raises:
        ValueError: for no frames.
    """

    rewards: str | None
    frames: int | None
    long_captions: str
    model: str
    checkpoints: Path | None
    device: str
    dtype: str

    def __post_init__(self):
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"--frames {self.frames} must be 1 or more")

    def load(self) -> dict[str, Reward]:
        """The rewards asked for, else those that are there.

        Raises:
            ValueError: for an unknown one, or a file that is missing or damaged; if none is there.
        """
        family = resolve_family(self.model).name
        asked = filter(None, map(str.strip, (self.rewards or "").split(",")))
        names = list(dict.fromkeys(asked)) or present_rewards(family, self.checkpoints)
        if not names:
            raise ValueError(
                f"no reward model is there, such as {reward_path('hps', family, self.checkpoints)}: fetch the "
                "published ones with `t2v-turbo download hps clip internvideo2` for --model videocrafter2, or name a "
                "folder with --checkpoints"
            )
        device = pick_device(self.device)
        dtype = pick_dtype(self.dtype, device, WIDE_PRECISIONS)
        options = {"device": device, "dtype": dtype, "long_captions": self.long_captions}
        return {name: load_reward(name, family=family, folder=self.checkpoints, **options) for name in names}

    def provenance(self, names: Iterable[str]) -> dict:
        """What the scores of these rewards depend on but for the clip and its prompts, as JSON values."""
        family = resolve_family(self.model).name
        files = {name: stamp(Path(reward_path(name, family, self.checkpoints))) for name in names}
        dtype = dtype_name(pick_dtype(self.dtype, pick_device(self.device), WIDE_PRECISIONS))
        return {"rewards": files, "frames": self.frames, "long_captions": self.long_captions, "dtype": dtype}


def stamp(path: Path) -> list:
    """Path, bytes and time of change of a file: another file has another."""
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]
