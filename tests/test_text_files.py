"""Text as people's programs save it: byte-order marks, UTF-16, CR LF, Latin-1; and what is told of anything else."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from t2v_turbo.core.text_files import TextError, name_text, open_text, read_json, read_text, write_json, write_text

TEXT = "a café\n第二行\n"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_is_the_same_whatever_saved_it(tmp_path, encoding, end):
    (tmp_path / "a.txt").write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT
    assert read_text(tmp_path / "a.txt", "latin-1" if encoding != "utf-8" else None) == TEXT  # the mark says more


@pytest.mark.parametrize("order", ["le", "be"])
def test_both_orders_of_utf_16(tmp_path, order):
    (tmp_path / "a.txt").write_bytes(("\ufeff" + TEXT).encode(f"utf-16-{order}"))
    assert read_text(tmp_path / "a.txt") == TEXT


def test_another_encoding_is_asked_for_and_taken(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("a red circle, a café".encode("latin-1"))
    with pytest.raises(TextError) as told:
        read_text(path, option="encoding=")
    place = "byte 0xe9 after 'a red circle, a caf'"
    remedy = "save it as UTF-8, or name its encoding, such as encoding=latin-1"
    assert str(told.value) == f"{path}: is no UTF-8 text ({place}); {remedy}"
    with pytest.raises(TextError, match=r"save it as UTF-8$"):
        read_text(path)
    assert read_text(path, "latin-1") == "a red circle, a café"
    with pytest.raises(TextError, match="is no ASCII text"):
        read_text(path, "ascii")


def test_utf_16_without_a_mark_is_not_taken_for_utf_8(tmp_path):
    (tmp_path / "a.txt").write_bytes("a red circle".encode("utf-16-le"))
    with pytest.raises(TextError, match=r"holds zero bytes\); save it as UTF-8, or .* such as --encoding utf-16-le"):
        read_text(tmp_path / "a.txt", option="--encoding ")
    assert read_text(tmp_path / "a.txt", "utf-16-le") == "a red circle"


@pytest.mark.parametrize("name", ["klingon", "base64", "rot13"])
def test_an_unknown_encoding_is_refused(tmp_path, name):
    write_text(tmp_path / "a.txt", TEXT)
    with pytest.raises(TextError, match=f"encoding={name} is unknown; use utf-8"):
        read_text(tmp_path / "a.txt", name, "encoding=")


def test_a_pipe_is_read_once():
    ours, theirs = os.pipe()
    os.write(theirs, "\ufeffa café".encode())
    os.close(theirs)
    assert read_text(f"/dev/fd/{ours}") == "a café"
    os.close(ours)


def test_lines_come_one_at_a_time(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\u2028three\r\n".encode("utf-16-le"))
    with open_text(tmp_path / "a.txt") as file:
        assert list(file) == ["one\n", "two\u2028three\n"]


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000, "nan!"])
def test_what_is_no_json_says_so(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(TextError, match=r"a\.json: is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_what_is_written_comes_back_with_file_names_of_any_bytes(tmp_path):
    content = {"é": ["第", "caf\udce9.mp4"]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert b"\r" not in (tmp_path / "a.json").read_bytes() and "é".encode() in (tmp_path / "a.json").read_bytes()


@pytest.mark.parametrize(("raw", "text"), [("é 第.mp4".encode(), "é 第.mp4"), (b"caf\xe9.mp4", "caf\\xe9.mp4")])
def test_names_of_files_as_text(tmp_path, raw, text):
    assert name_text(tmp_path / os.fsdecode(raw)) == text


def test_a_full_disk_leaves_nothing(tmp_path):
    """The system's own limit of a file's size, in a process of its own; what was there before stays."""
    write_text(tmp_path / "a.txt", "before")
    code = (
        "import sys, resource, signal; sys.path.insert(0, sys.argv[1]); import conftest\n"
        "from t2v_turbo.core.text_files import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text('a.txt', 'x' * 100_000)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "tests")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "File too large" in result.stderr and result.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and read_text(tmp_path / "a.txt") == "before"


def test_json_is_for_people(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1]})
    assert (tmp_path / "a.json").read_text() == json.dumps({"a": [1]}, indent=1) + "\n"
