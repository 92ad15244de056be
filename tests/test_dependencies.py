"""Every library that is imported is declared: as a dependency, or in an extra that its error names."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT
from test_structure import PROJECT, SOURCES

# ComfyUI's own modules, which no registry has.
HOST = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "latent_preview", "nodes"}
LOADERS = ("find_spec", "import_module")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DISTRIBUTIONS = packages_distributions()


def distribution(requirement: str) -> str:
    """The canonical name of what a requirement asks for: "open_clip_torch>=2.32" -> "open-clip-torch"."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


EXTRAS = PROJECT["project"]["optional-dependencies"]
LINES = [*PROJECT["project"]["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
REQUIRED = {distribution(line) for line in PROJECT["project"]["dependencies"]}
FOR_TESTS = {distribution(line) for line in EXTRAS["test"]}
OPTIONAL = {distribution(line): extra for extra, lines in EXTRAS.items() if extra != "test" for line in lines}
MANAGER = {distribution(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()}


def imported(node: ast.AST) -> list[str]:
    """Names of the top-level modules that a statement or a call imports, without relative ones."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module.split(".")[0]]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        return [node.args[0].value.split(".")[0]] if called in LOADERS else []
    return []


def third_party(tree: ast.AST, function: ast.AST | None = None) -> list[tuple[str, ast.AST | None]]:
    """(top-level module, the outermost function that imports it or None) of everything outside Python and ComfyUI."""
    found = [(name, function) for name in imported(tree) if name not in sys.stdlib_module_names | HOST | {"t2v_turbo"}]
    if function is None and isinstance(tree, FUNCTIONS):
        function = tree
    for child in ast.iter_child_nodes(tree):
        found += third_party(child, function)
    return found


def undeclared(source: str, required: set[str], extras: dict[str, str]) -> list[str]:
    """What is wrong with the imports of a module, one sentence each."""
    problems = []
    for module, function in third_party(ast.parse(source)):
        names = {distribution(name) for name in DISTRIBUTIONS.get(module, [module])}
        extra = next((extras[name] for name in names if name in extras), None)
        if names & required:
            continue
        if extra is None:
            problems.append(f"{module} is no dependency")
        elif function is None:
            problems.append(f"{module} comes with the extra {extra}: import it where it is used")
        elif not any(f"[{extra}]" in ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Raise)):
            problems.append(f"{module} comes with the extra {extra}: raise an error that names [{extra}]")
    return problems


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import os, torch\nfrom PIL import Image\nfrom . import comfy", None),
        ("import undeclared.part", "undeclared is no dependency"),
        ("def f():\n    from undeclared import part", "undeclared is no dependency"),
        ("import importlib\nimportlib.import_module('undeclared.part')", "undeclared is no dependency"),
        ("from importlib.util import find_spec\nfind_spec('undeclared')", "undeclared is no dependency"),
        ("import optional", "import it where it is used"),
        ("class A:\n    import optional", "import it where it is used"),
        ("def f():\n    'pip install t2v-turbo[fast]'\n    import optional", "names [fast]"),
        (
            "def f():\n    try:\n        import optional\n    except ImportError as error:\n"
            "        raise ValueError('pip install t2v-turbo[fast]') from error",
            None,
        ),
    ],
)
def test_what_counts_as_declared(source, problem):
    found = undeclared(source, {"torch", "pillow"}, {"optional": "fast"})
    assert (problem in found[0]) if problem else found == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_declared(path):
    assert undeclared(path.read_text(), REQUIRED, OPTIONAL) == []
    if path.relative_to(ROOT).parts[0] != "train":  # the Manager installs requirements.txt, and ComfyUI brings torch
        assert undeclared(path.read_text(), MANAGER | {"torch"}, OPTIONAL) == []


def test_imports_of_the_tests_are_declared():
    tests = sorted((ROOT / "tests").rglob("*.py"))
    known = REQUIRED | FOR_TESTS | set(OPTIONAL) | {distribution(path.stem) for path in tests}
    assert {path.name: found for path in tests if (found := undeclared(path.read_text(), known, {}))} == {}


def test_every_dependency_has_one_lowest_version():
    """Without one, `.ci/matrix low311` would test against the oldest release that there is."""
    assert [line for line in LINES if ">=" not in line] == []
    assert len({distribution(line) for line in LINES}) == len(LINES)


def test_tried_versions_are_told():
    """The table that `.ci/matrix --versions` prints is of these dependencies."""
    rows = [row.split("|") for row in (ROOT / "docs" / "DEVELOPING.md").read_text().splitlines() if row[:1] == "|"]
    tried = {f"{row[1].strip()}>={row[2].strip()}" for row in rows}
    assert {*PROJECT["project"]["dependencies"], *EXTRAS["test"]} <= tried


def test_tensorboard_starts():
    """A run's curves can be looked at: versions before 2.21 need a part of setuptools that is gone."""
    command = [sys.executable, "-m", "tensorboard.main", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
