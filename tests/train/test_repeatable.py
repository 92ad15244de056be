"""One seed means one result, bit by bit: every command that trains, run twice without a stop in fresh processes."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from repeatable_commands import family

from t2v_turbo.train.shapes.world.dataset import write_dataset

SCRIPT = ROOT / "tests" / "repeatable_commands.py"
COMMANDS = [
    "preprocess", "preprocess motion", "distill", "distill motion", "distill rewards", "distill ema",
    "distill accumulate", *(f"shapes train {name}" for name in (
        "vae", "text", "teacher", "reward_clip", "reward_hps", "reward_internvideo2")), "shapes train",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What all commands left in two processes, whose sets and dictionaries of strings are ordered differently."""
    given, started = tmp_path_factory.mktemp("given"), []
    write_dataset(given / "clips", 4, seed=0, style="dense")
    family(given / "family")
    for hashing in ("1", "2"):
        folder = tmp_path_factory.mktemp("run")
        environment = os.environ | {"PYTHONHASHSEED": hashing, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        call = [sys.executable, str(SCRIPT), str(given), str(folder)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(call, env=environment, **pipes))
    answers = [process.communicate(timeout=600) for process in started]
    for process, (_, told) in zip(started, answers):
        assert process.returncode == 0, told[-3000:]
    return [json.loads(answer) for answer, _ in answers]


@pytest.mark.parametrize("command", COMMANDS)
def test_two_runs_are_equal_bit_by_bit(command, runs):
    first, second = runs
    assert len(first[command]) >= 2
    assert first[command] == second[command]


def test_every_command_is_compared(runs):
    assert set(runs[0]) == {*COMMANDS, "preprocess seed", "distill seed", "distill motion seed"}


@pytest.mark.parametrize(
    "command, files",
    [("preprocess", ["000000.tar"]), ("distill", ["student", "model.safetensors"]), ("distill motion", ["student"])],
)
def test_another_seed_gives_another_result(command, files, runs):
    for name in files:
        assert runs[0][command][name] != runs[0][f"{command} seed"][name]
