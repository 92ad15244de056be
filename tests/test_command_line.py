"""What both command lines share: mistakes in one line, faults as tracebacks, output that fails at no character."""

import argparse
import errno
import io
import logging
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors import SafetensorError

from t2v_turbo.core.command_line import exit_code, mistake
from t2v_turbo.nodes.graph import cli as headless
from t2v_turbo.train import cli


def raising(error):
    def work():
        raise error

    return work


def an_error_of(work, *arguments):
    with pytest.raises(Exception) as raised:
        work(*arguments)
    return raised.value


FORESEEN = {
    "a mistake": (ValueError("a.mp4:  is\n broken"), "a.mp4: is broken"),
    "no library": (ImportError("No module named 'hpsv2'"), "No module named 'hpsv2'"),
    "no file": (an_error_of(open, "/nowhere/a"), "/nowhere/a: No such file or directory"),
    "full disk": (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.tar"),
        "a.tar: No space left on device; free some space and run the same command again",
    ),
    "no permission": (
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a"), "a: Permission denied; choose another folder"
    ),
    "nowhere to write": (
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
        "No usable temporary directory found in ['/tmp']; set TMPDIR (TEMP on Windows) to a folder where you may write",
    ),
    "our own OSError": (ConnectionError("the hub is away"), "the hub is away"),
    "safetensors": (SafetensorError("No space left on device"), "No space left on device"),
    "memory": (MemoryError(), "not enough memory (MemoryError); take a smaller size"),
    "memory of torch": (an_error_of(torch.empty, 1 << 60), "not enough memory ("),
    "memory of a card": (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory (CUDA out of"),
    "a worker's": (
        ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback:\n  File\nValueError: a: b\n"), "a: b"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "line"), FORESEEN.values(), ids=FORESEEN)
def test_what_was_to_be_expected_is_one_line(error, line, capsys):
    assert exit_code(raising(error), "t2v-turbo x") == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"t2v-turbo x: {line}")


@pytest.mark.parametrize("error", [KeyError("a"), ZeroDivisionError(), RuntimeError("shapes do not fit"), TypeError()])
def test_faults_of_ours_stay_visible(error):
    assert mistake(error) is None
    with pytest.raises(type(error)):
        exit_code(raising(error), "t2v-turbo x")


def test_verbose_tells_where_a_mistake_was_found(capsys):
    assert exit_code(raising(ValueError("a is b")), "x", verbose=True) == 2
    told = capsys.readouterr().err
    assert "in work" in told and told.endswith("x: a is b\n")


def test_interrupted(capsys):
    assert exit_code(raising(KeyboardInterrupt()), "x") == 130
    assert capsys.readouterr().err == "\nx: interrupted\n"


def test_exit_codes_of_the_work():
    assert [exit_code(lambda code=code: code, "x") for code in (None, 0, 1)] == [0, 0, 1]


# --- output ----------


class Latin:
    """Standard output and error as a pipe on Windows has them, while the block runs."""

    def __enter__(self):
        self.before, self.streams = (sys.stdout, sys.stderr), [io.TextIOWrapper(io.BytesIO(), "cp1252") for _ in "oe"]
        sys.stdout, sys.stderr = self.streams
        return self

    def __exit__(self, *_):
        sys.stdout, sys.stderr = self.before

    @property
    def texts(self):
        for stream in self.streams:
            stream.flush()
        return [stream.buffer.getvalue().decode("cp1252").replace("\r", "") for stream in self.streams]


def test_what_cannot_be_printed_is_escaped():
    def work():
        print("é 猫.mp4")
        raise ValueError("no 猫")

    with Latin() as latin:
        assert exit_code(work, "x") == 2
    assert latin.texts == ["é \\u732b.mp4\n", "x: no \\u732b\n"]


def test_the_commands_print_any_character(monkeypatch, tmp_path):
    def register(subparsers):
        parser = subparsers.add_parser("shapes", description="é 猫")
        parser.set_defaults(func=lambda args: print("猫.mp4"))

    monkeypatch.setattr("t2v_turbo.train.commands.shapes.register", register)
    graph = tmp_path / "graph.json"
    graph.write_text('{"1": {"class_type": "PreviewAny", "inputs": {"source": "猫"}}}', encoding="utf-8")
    with Latin() as latin:
        assert cli.main(["shapes"]) == headless.main([str(graph)]) == 0
        with pytest.raises(SystemExit):
            cli.main(["shapes", "--help"])
    out = latin.texts[0]
    assert "\\u732b.mp4" in out and out.count("\\u732b") == 3


def child(code, tmp_path, **options):
    """A command of its own process; ``code`` is the work."""
    start = "import sys; sys.path.insert(0, sys.argv[1]); import conftest; "
    start += "from t2v_turbo.core.command_line import exit_code\n"
    command = [sys.executable, "-c", f"{start}def work():\n  {code}\nsys.exit(exit_code(work, 'x'))"]
    return subprocess.Popen([*command, str(ROOT / "tests")], cwd=tmp_path, stderr=subprocess.PIPE, **options)


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(tmp_path):
    process = child("[print(i) for i in range(100_000)]", tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_output_that_cannot_be_written_is_told(tmp_path):
    with open("/dev/full", "w") as full:
        process = child("print(1)", tmp_path, stdout=full)
        assert process.stderr.read() == b"x: No space left on device; free some space and run the same command again\n"
        assert process.wait() == 2
    process.stderr.close()


# --- options ----------


def test_wrong_options_are_one_line(capsys):
    assert cli.main([]) == 2
    assert cli.main(["gnerate"]) == 2
    assert cli.main(["shapes", "render"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0].startswith("t2v-turbo: the following arguments are required: command; see `")
    assert "invalid choice: 'gnerate'" in lines[1]
    assert lines[2].endswith("folder; see `t2v-turbo shapes render --help`")


def test_every_seed_is_checked():
    """No command has a seed of its own kind."""
    parsers, seeds = [cli.build_parser()], []
    while parsers:
        for action in parsers.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.dest.endswith("seed"):
                seeds.append(action.type)
    assert len(seeds) > 10
    for kind in seeds:
        assert kind(str(2**64 - 1)) == 2**64 - 1 and kind("0") == 0
        for wrong in ("-1", str(2**64), "1.5", ""):
            with pytest.raises(argparse.ArgumentTypeError, match="is no whole number from 0 to"):
                kind(wrong)


@pytest.fixture(autouse=True)
def quiet():
    """The commands set the level of the log once a process."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)
