"""README and docs say what is there: files, names, links, anchors, commands."""

import ast
import re
import shlex

import pytest
from conftest import ROOT

from t2v_turbo.train.cli import build_parser

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "weights/shapes/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
PLACE = re.compile(r"`((?:core|nodes|train|tests|web|docs|weights|workflows)/[\w./]*)`")


def anchors(page) -> set[str]:
    """Those that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        place, _, anchor = target.partition("#")
        there = (page.parent / place) if place else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_places_exist(page):
    for place in PLACE.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / place).exists(), place


def test_names_are_in_their_files():
    """Of every line of the map: the names after the files are defined in one of these."""
    lines = [line for line in ARCHITECTURE.split("\n") if line.startswith("|") and ".py`" in line]
    checked = 0
    for line in lines:
        files = [ROOT / place for place in PLACE.findall(line) if place.endswith(".py")]
        defined = {getattr(node, "name", "") for file in files for node in ast.walk(ast.parse(file.read_text()))}
        for name in re.findall(r"`(\w+)`", line):
            assert name in defined, f"{name}: not in {line}"
            checked += 1
    assert checked > 25


def test_every_folder_is_on_the_map():
    folders = {path.parent for top in ("core", "nodes", "train") for path in (ROOT / top).rglob("*.py")}
    told = {(ROOT / place).resolve() for place in PLACE.findall(ARCHITECTURE)}
    below = {"core/rewards/models", "nodes/runtime/wrappers", "train/commands/experiments", "train/doctor/checks",
             "train/shapes/world", "train/shapes/training"}  # fmt: skip
    missing = {folder.relative_to(ROOT).as_posix() for folder in folders - told} - below
    assert not missing


def commands(page) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = (line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").split("\n"))
    return [part for line in lines for part in line.split(" && ") if part.startswith("t2v-turbo ") and "$" not in part]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page):
    for command in commands(page):
        words = shlex.split(command)[1:]
        named = next(word for word in words if not word.startswith("-"))
        build_parser(named).parse_args(words)
