"""The wheel: it holds what git does, and works for a user who has little: no home, no network, nothing to write to."""

import functools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from test_structure import PROJECT

from t2v_turbo.core import video
from t2v_turbo.core.checkpoints.locations import models_folder
from t2v_turbo.core.command_line import typed_text
from t2v_turbo.nodes.graph import cli as graph
from t2v_turbo.nodes.host.files import listed
from t2v_turbo.train.cli import main

# What git tracks and the wheel leaves out; all else is installed.
NOT_INSTALLED = {
    *(".ci", "docs", "tests", ".gitignore", "LICENSE", "README.md"),
    *("MANIFEST.in", "pyproject.toml", "requirements.txt", "setup.cfg"),
}
# Left behind by a build of an earlier version.
OLD = "build/lib/t2v_turbo/core/renamed_since.py"
PROMPT = "a red circle, ∘ 红"
BUILD = PROJECT["build-system"]


def known_to_git() -> set[str]:
    """Files of the working tree, the new ones too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False) if shutil.which("git") else None
    if not done or done.returncode:
        pytest.skip("needs a git checkout, to know which files there are")
    return {name for name in os.fsdecode(done.stdout).split("\0") if name and (ROOT / name).is_file()}


@functools.cache
def backend_problem() -> str:
    """Why no wheel can be built here, "" if one can: tests have no network to fetch what builds it."""
    for requirement in map(Requirement, BUILD["requires"]):
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found = None
        if not found or not requirement.specifier.contains(found, prereleases=True):
            return f'{requirement} builds the wheel, here is {found}: pip install "{requirement}"'
    return ""


def build(kind: str, source: Path, target: Path) -> Path:
    """A "wheel" or an "sdist" of the folder ``source``, as pip and others have it built."""
    if problem := backend_problem():
        pytest.skip(problem)
    code = f"import sys, {BUILD['build-backend']} as backend; backend.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = target.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[kind])
    return made


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the working tree, in which an earlier version was built once."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in [*known_to_git(), OLD]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name in known_to_git():
        shutil.copy2(ROOT / name, folder / name)
    (folder / OLD).touch()
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    return build("wheel", checkout, tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> dict[str, int]:
    """Check sums of a wheel's files by name."""
    with ZipFile(wheel) as file:
        return {entry.filename: entry.CRC for entry in file.infolist()}


# --- what is in it ----------


def test_a_wheel_holds_what_git_does(wheel):
    """Every module and data file, and neither tests nor what an earlier build left."""
    held = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert held == {f"t2v_turbo/{name}" for name in known_to_git() if name.split("/")[0] not in NOT_INSTALLED}
    assert wheel.stat().st_size < 30e6 and wheel.name.endswith("-py3-none-any.whl")


def test_the_source_archive_is_whole(checkout, wheel, tmp_path):
    """A wheel that is built from it is the same, and its tests have what they need."""
    with tarfile.open(build("sdist", checkout, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    made = {"PKG-INFO", *(name for name in held if name.startswith("t2v_turbo.egg-info/"))}
    assert held - made == known_to_git() - {".gitignore"}
    again = contents(build("wheel", unpacked, tmp_path))
    assert again == contents(wheel)


# --- an installation ----------

# Stands for a machine on which this user may write into two folders only and has no home and no network.
LITTLE = """
import os, sys
from importlib import metadata
site, *writable = sys.argv[1:4]
writable = tuple(os.path.realpath(folder) + os.sep for folder in writable) + ("/dev/", "/proc/")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
os.environ.pop("HOME", None)
try:
    import pwd
    def unknown(user):
        raise KeyError(user)
    pwd.getpwuid = unknown
except ImportError:
    pass

def refuse(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        raise OSError("there is no network")
    opened = event == "open" and not isinstance(arguments[0], int) and (arguments[2] or 0) & WRITES
    if opened or event in ("os.mkdir", "os.rename", "os.remove"):
        place = os.path.realpath(os.fsdecode(arguments[0]))
        if not (place + os.sep).startswith(writable):
            raise PermissionError(13, "Permission denied", place)

sys.addaudithook(refuse)
sys.path.insert(0, site)
import t2v_turbo
assert t2v_turbo.__file__.startswith(site), t2v_turbo.__file__
"""
COMMAND = """
(command,) = metadata.distribution("t2v-turbo").entry_points.select(name="t2v-turbo")
sys.exit(command.load()(sys.argv[4:]))
"""
EVERY_MODULE = """
import importlib, pkgutil
for found in pkgutil.walk_packages(t2v_turbo.__path__, "t2v_turbo."):
    if found.name not in ("t2v_turbo.nodes.host.comfy", "t2v_turbo.train.__main__"):
        print(importlib.import_module(found.name).__name__)
"""


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel as ``pip install --target`` puts it."""
    folder = tmp_path_factory.mktemp("site")
    with ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


@pytest.fixture
def temporary():
    """A folder for temporary files, on another disk than all else where there is one."""
    other = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=other) as folder:
        yield folder


@pytest.fixture
def run(installed, temporary, tmp_path):
    """Runs code with the installed package, by default its command, in an empty folder of a machine with little."""
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
    poor |= {"TMPDIR": temporary, "TEMP": temporary, "HF_HUB_OFFLINE": "1"}
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "OMP_NUM_THREADS") if name in os.environ}

    def run(*words, code=COMMAND):
        start = [sys.executable, "-c", LITTLE + code, str(installed), str(tmp_path), temporary]
        return subprocess.run([*start, *words], cwd=tmp_path, env=kept | poor, capture_output=True, check=False)

    return run


def test_a_clip(run, tmp_path, temporary):
    """In a locale that knows neither the prompt's characters nor the file's."""
    done = run("generate", PROMPT, "--steps", "1", "--out", "ü.mp4", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ü.mp4"] and os.listdir(temporary) == []
    assert video.read_metadata(tmp_path / "ü.mp4")["prompt"] == PROMPT


def test_every_module(run, tmp_path):
    """None writes, or asks for a home or the network, when it is imported."""
    done = run(code=EVERY_MODULE)
    assert done.returncode == 0, done.stderr
    sources = (path for part in ("core", "nodes", "train") for path in (ROOT / part).rglob("*.py"))
    assert done.stdout.count(b"\n") == len(list(sources)) - 2
    assert list(tmp_path.iterdir()) == []


def test_a_download_without_network(run, tmp_path):
    done = run("download", "mg", "--folder", "models")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert b"unet_mg.pt: cannot be fetched" in done.stderr and b"HF_HUB_OFFLINE" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- a user without a home folder ----------


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """As in a container that is run for a user whom it does not know."""
    pwd = pytest.importorskip("pwd", reason="Windows tells the home by variables alone")

    def unknown(user):
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "T2V_TURBO_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words",
    [["download"], ["generate", "a", "--model", "videocrafter2"], ["score", "a.mp4", "a", "--model", "videocrafter2"]],
)
def test_what_needs_a_models_folder_says_so(no_home, words, capsys, tmp_path):
    video.write_video("a.mp4", np.zeros((2, 16, 16, 3), np.uint8))
    assert main(words) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith("this user has no home folder, so none of models: set T2V_TURBO_MODELS to one")


def test_help_needs_no_home(no_home, capsys):
    with pytest.raises(SystemExit):
        main(["download", "--help"])
    assert "T2V_TURBO_MODELS" in capsys.readouterr().out


def test_a_saved_graph_needs_no_home(no_home, tmp_path):
    """The embedded model lies in the package."""
    preset = ROOT / "workflows" / "api" / "text_to_video.json"
    assert graph.main([str(preset), "--out", "videos", "--set", "4.steps=1", "3.frames=2"]) == 0
    assert len(list(tmp_path.rglob("*.mp4"))) == 1


def test_the_models_folder_can_be_named(no_home, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="set T2V_TURBO_MODELS"):
        models_folder()
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path))
    assert models_folder() == tmp_path
    monkeypatch.delenv("T2V_TURBO_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".cache" / "t2v-turbo"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that cannot be read")
def test_a_closed_models_folder_has_no_files(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.pt").touch()
    assert list(listed([tmp_path / "closed" / "models", tmp_path / "open"], (".pt",))) == ["a.pt"]
    (tmp_path / "closed").chmod(0o700)


# --- words of the command line ----------


@pytest.mark.parametrize(
    ("raw", "text"),
    [("a red circle", "a red circle"), ("∘ 红", "∘ 红"), (os.fsdecode("café".encode("latin-1")), None)],
)
def test_words_are_utf8(raw, text):
    """Others are left as they are, and refused by those who need text."""
    assert typed_text(raw) == (raw if text is None else text)


def test_words_in_a_locale_of_ascii(monkeypatch):
    """Python has then put each byte into a character of its own."""
    monkeypatch.setattr(os, "fsencode", lambda word: word.encode("ascii", "surrogateescape"))
    assert typed_text(PROMPT.encode().decode("ascii", "surrogateescape")) == PROMPT
