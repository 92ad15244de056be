"""Versions: of Python, of the system, of this package and of what it depends on, without importing any of it."""

from __future__ import annotations

import os
import platform
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ..findings import TORCH, Finding, Options, attempt

PACKAGE = "t2v-turbo"
ROOT = Path(__file__).parents[3]
# Settings from outside that change what is found.
VARIABLES = (
    *("T2V_TURBO_MODELS", "HF_HUB_OFFLINE", "HF_HOME"),
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "PYTORCH_ENABLE_MPS_FALLBACK"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING", "OMP_NUM_THREADS"),
)


class Declared(NamedTuple):
    """What a package says that it needs.

    Attributes:
        needs: requirements, each with the extra that it belongs to; None = always needed.
    """

    version: str
    python: str
    needs: list[tuple[Requirement, str | None]]


def examine(options: Options) -> Iterator[Finding]:
    declared = declared_by_checkout(ROOT / "pyproject.toml") or declared_by_installation()
    yield python(declared.python)
    bits = platform.architecture()[0]
    yield Finding("system", "ok", f"{platform.platform()}, {platform.machine()}, {bits}", data={"system": sys.platform})
    yield Finding(PACKAGE, "ok", f"{declared.version}, {ROOT}", data={"version": declared.version})
    for requirement, extra in declared.needs:
        if applies(requirement, extra):
            again = f"its installation is damaged: `python -m pip install --force-reinstall {requirement.name}`"
            yield attempt(requirement.name, partial(installed, requirement, extra), again)
    yield variables()


def python(bound: str) -> Finding:
    found = platform.python_version()
    fits = SpecifierSet(bound).contains(found, prereleases=True)
    value = f"{found} {platform.python_implementation()}, {sys.executable}"
    remedy = "" if fits else f"install Python {bound} and this package into it"
    return Finding("python", "ok" if fits else "fail", value, remedy, {"version": found})


def declared_by_checkout(file: Path) -> Declared | None:
    """What the pyproject.toml says that lies beside the package's modules: newer than what was installed once."""
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.is_file() else {}
    if project.get("name") != PACKAGE:
        return None
    groups = {None: project["dependencies"]} | project.get("optional-dependencies", {})
    needs = [(Requirement(line), extra) for extra, lines in groups.items() for line in lines]
    return Declared(project["version"], project["requires-python"], needs)


def declared_by_installation() -> Declared:
    about = metadata.metadata(PACKAGE)
    extras = about.get_all("Provides-Extra") or []
    requirements = [Requirement(line) for line in metadata.requires(PACKAGE) or []]
    needs = [(requirement, extra_of(requirement, extras)) for requirement in requirements]
    return Declared(about["Version"], about["Requires-Python"], needs)


def extra_of(requirement: Requirement, extras: list[str]) -> str | None:
    """The extra that a requirement's marker asks for, if any."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return None
    return next((extra for extra in extras if requirement.marker.evaluate({"extra": extra})), None)


def applies(requirement: Requirement, extra: str | None) -> bool:
    """Whether it is needed on this system and Python."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""})


def installed(requirement: Requirement, extra: str | None = None) -> Finding:
    """Whether a requirement is there in a version within its bound."""
    name, bound = requirement.name, str(requirement.specifier)
    remedy = f'python -m pip install "{name}{bound}"' + (f", or {TORCH}" if name == "torch" else "")
    purpose = f", for {PACKAGE}[{extra}]" if extra else ""
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        if extra:
            return Finding(name, "skip", f"optional{purpose}, not installed", remedy, {"wanted": bound})
        return Finding(name, "fail", f"not installed; {bound or 'any version'} is needed", remedy, {"wanted": bound})
    fits = requirement.specifier.contains(Version(found), prereleases=True)
    status = "ok" if fits else "warn" if extra else "fail"
    value = f"{found} ({bound}{purpose})" if fits else f"{found}, but {bound} is needed{purpose}"
    return Finding(name, status, value, "" if fits else remedy, {"version": found, "wanted": bound})


def variables() -> Finding:
    """The environment variables that are set and matter."""
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    value = ", ".join(f"{name}={text}" for name, text in given.items()) or "none that matter here"
    return Finding("environment", "ok", value, data=given)
