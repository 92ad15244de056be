"""The report: for people as aligned lines, for programs as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from .findings import Finding
from .running import Result

FORMAT = 1
MARKS = {"ok": "ok", "warn": "note", "fail": "FAIL", "skip": "-"}
# Longest name that other lines are aligned to.
WIDEST = 46


def section(result: Result) -> str:
    """What one check found, a line a finding."""
    width = min(WIDEST, max((len(finding.name) for finding in result.findings), default=0))
    return "\n".join([f"{result.check.title} ({result.seconds:.1f} s)", *(line(f, width) for f in result.findings)])


def line(finding: Finding, width: int) -> str:
    hint = f"; {finding.remedy}" if finding.remedy and finding.status == "skip" else ""
    return f"  {MARKS[finding.status]:<5} {finding.name:<{width}}  {finding.value}{hint}"


def summary(results: Sequence[Result]) -> str:
    """A line a problem and a line a note, each with its remedy."""
    problems, notes = (list(told(results, status)) for status in ("fail", "warn"))
    counted = f"{len(problems)} problem{'s' * (len(problems) > 1)} found:" if problems else "No problems found."
    return "\n".join([*(f"Note: {text}" for text in notes), counted, *(f"  {text}" for text in problems)])


def told(results: Iterable[Result], status: str) -> Iterable[str]:
    for result in results:
        for finding in result.findings:
            if finding.status == status:
                remedy = f". Remedy: {finding.remedy}" if finding.remedy else ""
                yield f"{result.check.title}, {finding.name}: {finding.value}{remedy}"


def problems(results: Iterable[Result]) -> int:
    return sum(finding.status == "fail" for result in results for finding in result.findings)


def as_json(results: Sequence[Result]) -> str:
    """Everything, under keys that stay."""
    checks = [
        {
            "name": result.check.name,
            "title": result.check.title,
            "seconds": round(result.seconds, 2),
            "findings": [vars(finding) for finding in result.findings],
        }
        for result in results
    ]
    count = problems(results)
    report = {"format": FORMAT, "ok": count == 0, "problems": count, "checks": checks}
    return json.dumps(report, indent=2, default=str)
