"""What holds the package together: the layers, the package list, the README's commands."""

import ast
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

SOURCES = sorted(path for part in ("core", "nodes", "train") for path in (ROOT / part).rglob("*.py"))
# They read what the package itself or the machine has written, in its own encoding.
STATE_OF_A_RUN = (
    "checkpoint_files.py", "mapped.py", "comfyui.py", "devices.py", "versions.py", "kept.py", "records.py",
    "run_checkpoints.py", "score_answers.py", "rewards.py", "stats.py",
)  # fmt: skip
# "w" is a container's mode there.
OWN_MODES = ("video_writing.py",)
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers_look_downwards(path):
    layer = path.relative_to(ROOT).parts[0]
    forbidden = {"core": ("nodes", "train"), "nodes": ("train",), "train": ("nodes",)}[layer]
    for name in imports(path):
        assert not name.startswith(tuple(f"t2v_turbo.{other}" for other in forbidden)), name
        if path.name != "comfy_host.py":
            assert name.split(".")[0] not in ("comfy", "folder_paths", "latent_preview", "comfy_api"), name
        assert name.split(".")[0] not in ("core", "train", "nodes"), f"{name} is not relative"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_opened_in_one_way(path):
    """All else would fail at a byte-order mark, or read and write in the encoding of the machine."""
    if path.name in ("text_files.py", *STATE_OF_A_RUN):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert node.func.attr not in ("read_text", "write_text") and called != "json.load", ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("open"):
            text = [a.value for a in node.args if isinstance(a, ast.Constant) and a.value in ("r", "w", "a")]
            assert not text or "encoding" in {k.arg for k in node.keywords} or path.name in OWN_MODES, ast.unparse(node)


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
