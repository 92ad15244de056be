"""ComfyUI: its version, what it needs of this Python, and whether this pack lies among its nodes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from ..findings import Finding, Options, attempt
from .versions import PACKAGE, ROOT, installed


def examine(options: Options) -> Iterator[Finding]:
    folder = options.comfyui
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        yield Finding("folder", "fail", f"{folder} is not ComfyUI", "name the folder that holds ComfyUI's main.py")
        return
    yield attempt("version", lambda: version(folder), "bring ComfyUI up to date")
    yield pack(folder)
    yield from requirements(folder)


def version(folder: Path) -> Finding:
    """The version that its own file tells, which is read and not run."""
    file = folder / "comfyui_version.py"
    told = re.search(r'__version__\s*=\s*"([^"]+)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    bound = wanted()
    if told is None:
        return Finding("version", "warn", f"tells none; {bound or 'a new one'} is needed", "bring ComfyUI up to date")
    fits = SpecifierSet(bound).contains(told[1], prereleases=True)
    value = told[1] + (f" ({bound})" if fits and bound else "" if fits else f", but {bound} is needed")
    return Finding("version", "ok" if fits else "fail", value, "" if fits else "bring ComfyUI up to date")


def wanted() -> str:
    """The bound on ComfyUI's version that this pack declares; "" where its pyproject.toml is not there."""
    file = ROOT / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return project.get("tool", {}).get("comfy", {}).get("requires-comfyui", "")


def pack(folder: Path) -> Finding:
    """Whether a folder of its custom nodes is this pack."""
    for file in sorted(folder.glob("custom_nodes/*/pyproject.toml")):
        if re.search(rf'^name\s*=\s*"{PACKAGE}"', file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
            return Finding("nodes", "ok", f"in {file.parent}")
    remedy = f"put the folder of this pack into {folder / 'custom_nodes'}, or install it with the Manager"
    return Finding("nodes", "warn", "this pack is not among the custom nodes", remedy)


def requirements(folder: Path) -> Iterator[Finding]:
    """What ComfyUI needs and this Python lacks: a hint only, for ComfyUI may run in another Python."""
    file = folder / "requirements.txt"
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    lacking = []
    for line in filter(None, lines):
        try:
            found = installed(Requirement(line))
        except InvalidRequirement:
            continue  # an option of pip, or an address
        lacking += [line] if found.status != "ok" else []
    if lacking:
        value = f"this Python lacks {len(lacking)} of {len(lines)}: {', '.join(lacking[:5])}"
        remedy = f"run this command with ComfyUI's Python, or `python -m pip install -r {file}`"
        yield Finding("requirements", "warn", value, remedy, {"lacking": lacking})
    else:
        yield Finding("requirements", "ok", f"all of {file} are met")
