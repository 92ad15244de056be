"""What holds the package together: the layers, the package list, the README's commands."""

import ast
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

SOURCES = sorted(path for part in ("core", "nodes", "train") for path in (ROOT / part).rglob("*.py"))
# They read what the package itself or the machine has written, in its own encoding.
STATE_OF_A_RUN = (
    "core/checkpoints/files.py", "core/checkpoints/mapped.py", "train/doctor/checks/comfyui.py",
    "train/doctor/checks/devices.py", "train/doctor/checks/versions.py", "train/results.py", "train/data/reader.py",
    "train/data/records.py", "train/training/run_checkpoints.py", "train/training/stats.py", "train/scoring/tables.py",
    "train/shapes/training/rewards.py",
)  # fmt: skip
# "w" is a container's mode there.
OWN_MODES = ("core/video/writing.py",)
# What imports what: a module may import its own layer and those above it in the list. The longest name counts.
LAYERS = [
    ("core.tables", "core.command_line", "core.files", "core.text_files", "core.device"),
    ("core.networks", "core.video"),
    ("core.families",),
    ("core.checkpoints", "core.diffusion"),
    ("core.motion", "core.rewards"),
    ("core.sampling",),
    ("core.pipeline",),
    ("core.python_api",),
    ("core.diffusers_pipeline",),
    ("nodes", "nodes.base", "nodes.choices", "nodes.inputs", "nodes.host"),
    ("nodes.runtime",),
    ("nodes.latent", "nodes.loader", "nodes.motion", "nodes.rewards", "nodes.sampling"),
    ("nodes.graph",),
    ("train.seeds", "train.results", "train.timing", "train.memory"),
    ("train.config",),
    ("train.data", "train.training", "train.scoring"),
    ("train.generation",),
    ("train.motion", "train.preprocess", "train.distill_rewards", "train.distill"),
    ("train.shapes", "train.download"),
    ("train.experiments", "train.doctor"),
    ("train.demo",),
    ("train.commands",),
    ("train.cli", "train.__main__"),
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MOST_FILES = 12
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imports(path: Path) -> list[str]:
    """Absolute names of what a module imports, relative imports resolved to t2v_turbo.…"""
    package = ["t2v_turbo", *path.relative_to(ROOT).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            found.append(".".join(filter(None, (base, node.module))))
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever it does: at its top, in a function, for types alone."""
    found = set()
    for name in names_imported(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", module_of(path)}


def names_imported(path: Path) -> list[str]:
    """Absolute names, without the package's, of all that a file imports relatively."""
    package = list(path.relative_to(ROOT).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            found += [".".join(filter(None, [*base, alias.name])) for alias in node.names]
    return found


def rank(module: str) -> int:
    """Of the longest name of a layer that a module's name begins with."""
    while module not in RANKS:
        assert module, "a module of no layer"
        module = module.rpartition(".")[0]
    return RANKS[module]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers_look_downwards(path):
    top = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        if path.relative_to(ROOT).as_posix() != "nodes/host/comfy.py":
            assert name.split(".")[0] not in ("comfy", "folder_paths", "latent_preview", "comfy_api"), name
        assert name.split(".")[0] not in ("core", "train", "nodes"), f"{name} is not relative"
    if path.name == "__init__.py" and len(path.relative_to(ROOT).parts) == 2:
        return
    for other in imported_modules(path):
        assert other.split(".")[0] in (top, "core"), f"{other} is of another host"
        assert rank(other) <= rank(module_of(path)), f"{other} is a layer above"


def test_nothing_writes_to_the_options():
    """What a command was asked for is what its work is told."""
    for path in (path for path in SOURCES if path.relative_to(ROOT).parts[0] == "train"):
        for node in ast.walk(ast.parse(path.read_text())):
            written = isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)
            assert not (written and ast.unparse(node.value) == "args"), f"{path}: {ast.unparse(node)}"
            assert not (isinstance(node, ast.Call) and ast.unparse(node).startswith("setattr(args")), f"{path}"


def test_options_stay_at_the_door():
    """Below the commands nothing knows how an option was written."""
    for path in SOURCES:
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(("train/commands/", "nodes/graph/")) and place != "train/cli.py":
            assert "argparse" not in imports(path), place


# Names by which torch, the system and Python tell how much memory was taken.
PEAKS = ("max_memory_allocated", "ru_maxrss", "peak_wset", "VmHWM", "TorchDispatchMode")


def test_memory_is_measured_in_one_place():
    for path in SOURCES:
        if module_of(path) != "train.memory":
            text = path.read_text(encoding="utf-8")
            assert not [name for name in PEAKS if name in text], f"{path}: see train/memory.py"


def test_no_circles():
    """Not for types either."""
    below = {module: imported_modules(path) for module, path in MODULES.items()}
    while leaves := [module for module, others in below.items() if not others & below.keys()]:
        for module in leaves:
            del below[module]
    assert not below, f"in circles, or above one: {sorted(below)}"


def test_no_folder_is_a_drawer():
    for folder in {path.parent for path in SOURCES}:
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MOST_FILES, f"{folder} has {len(files)} files"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_opened_in_one_way(path):
    """All else would fail at a byte-order mark, or read and write in the encoding of the machine."""
    place = path.relative_to(ROOT).as_posix()
    if place in ("core/text_files.py", *STATE_OF_A_RUN):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert node.func.attr not in ("read_text", "write_text") and called != "json.load", ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("open"):
            text = [a.value for a in node.args if isinstance(a, ast.Constant) and a.value in ("r", "w", "a")]
            assert not text or "encoding" in {k.arg for k in node.keywords} or place in OWN_MODES, ast.unparse(node)


def test_every_package_is_installed():
    packages = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {"t2v_turbo"} | {".".join(("t2v_turbo", *path.parent.relative_to(ROOT).parts)) for path in SOURCES}
    assert packages == folders


def test_manager_requirements_are_a_part_of_ours():
    """The ComfyUI Manager installs requirements.txt: run-time only, without torch and without caps."""
    lines = (ROOT / "requirements.txt").read_text().split("\n")
    needed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert set(needed) <= set(PROJECT["project"]["dependencies"])
    assert not any(line.startswith("torch") or "<" in line or "==" in line for line in needed)


def test_readme_commands():
    """CI runs exactly the README's test command."""
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -e . && t2v-turbo demo" in readme
    command = 'pip install -e ".[test]" && pytest'
    assert command in readme
    assert ci.rstrip().endswith(command)
