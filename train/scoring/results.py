"""What scoring gives: scores of clips with prompts, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.rewards import RewardInfo


@dataclass(frozen=True)
class ScoreResult:
    """The scores of a clip with a prompt, by reward, or why there are none."""

    name: str
    prompt: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def complaint(self) -> str:
        """The problem, with the clip's name in it."""
        return self.problem if self.name in self.problem else f"{self.name}: {self.problem}"


@dataclass(frozen=True)
class Scores:
    """All results in the order of the clips, and what the rewards say of themselves, by name."""

    results: list[ScoreResult]
    infos: dict[str, RewardInfo]

    @property
    def scored(self) -> list[ScoreResult]:
        return [one for one in self.results if not one.problem]

    @property
    def broken(self) -> list[ScoreResult]:
        return [one for one in self.results if one.problem]
