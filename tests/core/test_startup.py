"""Commands start at once: what is heavy is imported by those who need it."""

import subprocess
import sys

import pytest
from conftest import ROOT

from t2v_turbo.train.cli import COMMANDS

# Each takes seconds to import.
HEAVY = ("diffusers", "open_clip", "timm", "torchvision", "transformers", "matplotlib", "tensorboard")
RUN = """
import sys
sys.path.insert(0, {tests!r})
import conftest
from t2v_turbo.train.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
found = [name for name in {heavy!r} if name in sys.modules]
print("imported", *found)
sys.exit(code)
"""


def imported(*words: str) -> list[str]:
    """Which heavy libraries a command has imported at its end."""
    code = RUN.format(tests=str(ROOT / "tests"), heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1].split()[1:]


def test_a_clip_needs_none_of_them(tmp_path):
    assert imported("generate", "a red circle", "--steps", "1", "--out", str(tmp_path / "clip.mp4")) == []
    assert (tmp_path / "clip.mp4").exists()


@pytest.mark.parametrize("command", ["generate", "score", "download", "preprocess", "distill", "motion"])
def test_help_needs_none_of_them(command):
    assert command in COMMANDS
    assert imported(command, "--help") == []
