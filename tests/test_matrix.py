"""`.ci/matrix` tells what passed and what did not; whole sets are run by hand, for they take minutes."""

import os
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = ROOT / ".ci" / "matrix"


@pytest.fixture(scope="module")
def matrix():
    spec = spec_from_loader("matrix", SourceFileLoader("matrix", str(SCRIPT)))
    sys.modules["matrix"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["matrix"]


def start(*arguments, **environment):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize(
    ("body", "passed", "counts"),
    [
        ("def test_a(): pass\n@pytest.mark.skip\ndef test_b(): pass", True, "1 passed, 0 failed, 1 skipped"),
        ("def test_a(): pass\ndef test_b(): assert 0", False, "1 passed, 1 failed, 0 skipped"),
        ("@pytest.fixture\ndef a(): assert 0\ndef test_a(a): pass", False, "0 passed, 1 failed, 0 skipped"),
        ("import no_such_module", False, "0 passed, 1 failed, 0 skipped"),
        ("", False, "0 passed, 0 failed, 0 skipped"),  # a set that runs no test has not passed
    ],
)
def test_counts(matrix, body, passed, counts, tmp_path):
    (tmp_path / "test_it.py").write_text("import pytest\n" + body)
    assert matrix.run_tests(Path(sys.executable), tmp_path, tmp_path / "report.xml") == (passed, counts)


def test_a_set_is_tested_alone(matrix, tmp_path, monkeypatch):
    """Not with the modules of whoever starts it, but with the commands of its own environment."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = matrix.activated(tmp_path / "set" / "bin" / "python")
    assert "PYTHONPATH" not in found
    assert found["VIRTUAL_ENV"] == str(tmp_path / "set")
    assert found["PATH"].split(os.pathsep)[0] == str(tmp_path / "set" / "bin")


def test_what_is_missing_is_told(tmp_path):
    unknown = start("new27")
    assert unknown.returncode == 2 and "unknown set new27; there are new311," in unknown.stderr
    without_uv = start("new311", PATH=str(tmp_path))
    assert without_uv.returncode == 2 and without_uv.stderr == "uv is missing: pip install uv\n"


@pytest.mark.skipif(not shutil.which("uv"), reason="uv is not installed")
def test_a_missing_python_is_no_pass(matrix, tmp_path, monkeypatch):
    monkeypatch.setitem(matrix.SETS, "new39", matrix.Set("3.999"))
    passed, line = matrix.run("new39", tmp_path, tmp_path)
    assert not passed and "not run: no Python 3.999" in line


def test_sets_are_told(matrix):
    """The document names every set, and `--help` too."""
    document, shown = (ROOT / "docs" / "DEVELOPING.md").read_text(), start("--help").stdout
    for name in matrix.SETS:
        assert f"`{name}`" in document and name in shown
