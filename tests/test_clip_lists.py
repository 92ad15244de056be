"""Lists of clips: tables as people's programs save them, rows that cannot be used, and folders with links."""

import json
import os

import pytest

from t2v_turbo.train.config import PreprocessConfig
from t2v_turbo.train.data.clips import ClipDataset
from t2v_turbo.train.data.sources import ClipError, fingerprint, list_clips, read_captions
from t2v_turbo.train.data.tables import BadRow, RowError, read_table
from t2v_turbo.train.scoring.requests import clip_requests, table_requests
from t2v_turbo.train.scoring.scoring import score_request

CAPTION = 'a red circle, then; "a blue\tone"\nover two lines, café'
ROWS = [{"relpath": "v/a.mp4", "text": CAPTION}, {"relpath": "v/b.mp4", "text": "a cat; a dog, a bird"}]


def clips_of(table, **settings):
    clips = list_clips(PreprocessConfig(videos=str(table), records="r", **settings))
    return {clip.name: clip.captions.get("short") for clip in clips if not clip.problem}


def problems_of(table, **settings):
    clips = list_clips(PreprocessConfig(videos=str(table), records="r", **settings))
    return {clip.name: clip.problem for clip in clips if clip.problem}


def delimited(delimiter, rows=ROWS):
    """As a spreadsheet writes it: quotes where they are needed, CR LF at the ends."""

    def cell(text):
        text = text.replace('"', '""')
        return f'"{text}"' if set(text) & {delimiter, '"', "\n"} else text

    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(delimiter.join(map(cell, line)) + "\r\n" for line in lines)


TABLES = {
    "comma.csv": delimited(","),
    "semicolon.csv": delimited(";"),
    "tab.csv": delimited("\t"),
    "tab.tsv": delimited("\t"),
    "list.json": json.dumps(ROWS, indent=1),
    "lines.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\r\n\r\n" for row in ROWS),
    "lines.txt": "".join(json.dumps(row) + "\n" for row in ROWS),
    "list.txt": "\r\n" + json.dumps(ROWS),
    "blank lines.csv": "\n\n" + delimited(",").replace("\r\nv/b", "\r\n\r\nv/b"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_same_whatever_saved_it(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(TABLES[name].encode(encoding))
    expected = {row["relpath"]: row["text"] for row in ROWS}
    assert clips_of(tmp_path / name) == expected


@pytest.mark.parametrize("name", ["comma.csv", "semicolon.csv", "list.json", "lines.jsonl"])
def test_a_table_in_another_encoding(tmp_path, name):
    text = TABLES[name] if "lines" in name or "csv" in name else json.dumps(ROWS, ensure_ascii=False)
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"is no UTF-8 text .* name its encoding, such as encoding=latin-1"):
        clips_of(tmp_path / name)
    assert clips_of(tmp_path / name, encoding="latin-1")["v/a.mp4"] == CAPTION


def test_captions_beside_the_videos_in_any_encoding(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "a.txt").write_bytes("\ufeffa café".encode())
    (tmp_path / "b.json").write_bytes(json.dumps({"short": "a café"}).encode("utf-8-sig"))
    (tmp_path / "c.txt").write_bytes("a café".encode("utf-16"))
    (tmp_path / "d.txt").write_bytes("a café".encode("latin-1"))
    clips = {clip.name: clip for clip in list_clips(PreprocessConfig(videos=str(tmp_path), records="r"))}
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        assert read_captions(clips[name], "short") == {"short": "a café"}
    with pytest.raises(ClipError, match=r"d\.txt: is no UTF-8 text .*, such as encoding=latin-1"):
        read_captions(clips["d.mp4"], "short")
    assert read_captions(clips["d.mp4"], "short", "latin-1") == {"short": "a café"}


def test_the_encoding_reaches_the_captions(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "a.txt").write_bytes("a café".encode("latin-1"))
    for encoding, problem in ((None, "is no UTF-8 text"), ("latin-1", "cannot be read as a video")):
        config = PreprocessConfig(videos=str(tmp_path), records="r", encoding=encoding)
        clip = ClipDataset(list_clips(config), config, 8, (2, 16, 16))[0]
        assert problem in clip.problem
    with pytest.raises(ValueError, match="encoding=klingon is unknown"):
        PreprocessConfig(videos="v", records="r", encoding="klingon")


# --- rows that cannot be used ----------

BAD = {
    "../secret.mp4,a,1": "the path ../secret.mp4 leaves the folder",
    "a/../../secret.mp4,a,1": "leaves the folder",
    "/etc/secret.mp4,a,1": "the path /etc/secret.mp4 leaves the folder {root}; set video_root to a folder above both",
    ",a,1": "the path is empty",
    "b.mp4,a,offf": "use_motion_guide=offf is neither yes nor no",
    "b.mp4,a,1,more": "has 4 values for 3 columns: put a caption that holds ',' in quotes",
    "b\0.mp4,a,1": "holds a zero byte",
}


@pytest.mark.parametrize(("row", "told"), BAD.items(), ids=map(ascii, BAD))
def test_a_bad_row_is_named_and_the_others_go_on(tmp_path, row, told):
    table = tmp_path / "t.csv"
    table.write_text(f"relpath,text,use_motion_guide\na.mp4,a wall,1\n{row}\nc.mp4,a wall,0\n")
    ((name, problem),) = problems_of(table).items()
    assert name == "row 2" and told.format(root=tmp_path) in problem
    assert clips_of(table) == {"a.mp4": "a wall", "c.mp4": "a wall"}
    table.write_text(f"relpath,text,use_motion_guide\n{row}\n{row}\n")
    with pytest.raises(ValueError) as refused:
        clips_of(table)
    assert str(refused.value).startswith(f"{table}: none of its 2 rows can be used; row 1: {problem[:20]}")


BAD_JSON = {
    '{"text": "a"}': "nothing fits video_column=relpath",
    '{"relpath": null, "text": "a"}': "a value is missing",
    '{"relpath": "b.mp4"}': "has no column text_column=text; it has relpath",
    '{"relpath": "b.mp4", "text": ["a"]}': "text=['a'] is no text",
    '{"relpath": "b\\ud800.mp4", "text": "a"}': "cannot be a file's name here",
    '["b.mp4", "a"]': "is no JSON object",
    '"b.mp4"': "is no JSON object",
    "{oops}": "is no JSON object on one line",
    "[" * 5000: "is no JSON object on one line",
}


@pytest.mark.parametrize(("row", "told"), BAD_JSON.items(), ids=lambda text: text[:20])
def test_a_bad_json_row_is_named_and_the_others_go_on(tmp_path, row, told):
    table, good = tmp_path / "t.jsonl", '{"relpath": "a.mp4", "text": "a wall"}'
    table.write_text(f"{good}\n{row}\n")
    assert told in problems_of(table)["row 2"] and clips_of(table) == {"a.mp4": "a wall"}
    if row[0] != "[" and row != "{oops}":
        table.write_text(f"[{good}, {row}]")
        assert told.replace(" on one line", "") in problems_of(table)["row 2"]


def test_a_quote_that_is_not_closed_swallows_nothing_in_silence(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text('relpath,text\na.mp4,a wall\nb.mp4,"a wall\nc.mp4,a wall\nd.mp4,a wall\n')
    told = "lines 3 to 5: a quote is not closed or not doubled (unexpected end of data)"
    assert problems_of(table) == {"row 2": told} and clips_of(table) == {"a.mp4": "a wall"}
    table.write_text('relpath,text\na.mp4,a wall\nb.mp4,"' + "a wall\n" * 30_000 + "c.mp4,a wall\n")
    assert "row 2" in problems_of(table) and clips_of(table)["c.mp4"] == "a wall"


def test_bad_rows_do_not_move_the_others(tmp_path):
    """The place of a clip, from which its random numbers come, is that of its row."""
    rows = [f"{i}.mp4,a wall" for i in range(20)]
    (tmp_path / "good.csv").write_text("\n".join(["relpath,text", *rows]))
    rows[7] = "../7.mp4,a wall"
    (tmp_path / "bad.csv").write_text("\n".join(["relpath,text", *rows]))
    good, bad = (
        list_clips(PreprocessConfig(videos=str(tmp_path / n), records="r")) for n in ("good.csv", "bad.csv")
    )
    assert len(good) == len(bad) == 20
    assert [b.name for b in bad] == [g.name if g.name != "7.mp4" else "row 8" for g in good]


def test_what_an_older_version_made_of_a_table_stays(tmp_path):
    """Records are bound to this hash and this order."""
    rows = "".join(f'v/{i}.mp4,"a ""red"", circle {i}",{"" if i % 3 else f"short {i}"},{i % 2}\n' for i in range(50))
    (tmp_path / "t.csv").write_text("relpath,text,short_text,use_motion_guide\n" + rows)
    clips = list_clips(PreprocessConfig(videos=str(tmp_path / "t.csv"), records="r", seed=3))
    assert [clip.name for clip in clips][:3] == ["v/37.mp4", "v/9.mp4", "v/11.mp4"]
    assert fingerprint(clips) == "94c2826cf91e18ce"


@pytest.mark.parametrize("text", ["hello", "relpath", "(relpath,text)"])
def test_a_json_file_of_something_else(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=r"t\.json: is no table; it must be a list of JSON objects, or an object on"):
        clips_of(tmp_path / "t.json")
    (tmp_path / "t.json").write_text('[{"relpath": "a.mp4"')
    with pytest.raises(ValueError, match=r"t\.json: cannot be read as a table"):
        clips_of(tmp_path / "t.json")


def test_an_empty_table_and_a_film_are_no_tables(tmp_path):
    (tmp_path / "t.csv").write_text("relpath,text\n")
    with pytest.raises(ValueError, match="holds no videos"):
        clips_of(tmp_path / "t.csv")
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    with pytest.raises(ValueError, match=r"film\.mp4: is no UTF-8 text"):
        clips_of(tmp_path / "film.mp4")


@pytest.mark.parametrize("template", ["{relpath", "{relpath}}", "{relpath!x}"])
def test_a_template_that_is_none(tmp_path, template):
    (tmp_path / "t.csv").write_text("relpath,text\na.mp4,a wall\n")
    with pytest.raises(ValueError, match="video_column="):
        clips_of(tmp_path / "t.csv", video_column=template)


def test_a_row_is_freed_once_it_is_read(tmp_path):
    """Of a list of a million rows no two copies are held."""
    (tmp_path / "t.json").write_text(json.dumps([{"n": i} for i in range(5)]))
    held = []

    def make(row):
        held.append(row)
        if row["n"] == 3:
            raise RowError("three")
        return row["n"]

    assert read_table(tmp_path / "t.json", make, ["n"]) == [0, 1, 2, BadRow(4, "three"), 4]


# --- absolute paths ----------


def test_absolute_paths_inside_the_folder_are_taken(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    names = {"real": "real/a.mp4", "link": "link/b.mp4", "up": "real/../c.mp4"}
    table = tmp_path / "t.csv"
    table.write_text("relpath,text\n" + "".join(f"{tmp_path / name},a wall\n" for name in names.values()))
    plain = {os.path.normpath(name): "a wall" for name in names.values()}
    assert clips_of(table) == plain
    everywhere = str(tmp_path).lstrip("/")
    assert clips_of(table, video_root="/") == {f"{everywhere}/{name}": "a wall" for name in plain}
    # A folder that is named by a link, and the other way round.
    assert set(clips_of(table, video_root=str(tmp_path / "link"))) == {"a.mp4", "b.mp4"}
    assert set(clips_of(table, video_root=str(tmp_path / "real"))) == {"a.mp4", "b.mp4"}
    (problem,) = problems_of(table, video_root=str(tmp_path / "real")).values()
    assert problem.endswith(f"leaves the folder {tmp_path / 'real'}; set video_root to a folder above both")


def test_relative_folders_take_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(f"relpath,text\n{tmp_path}/a.mp4,a wall\n{tmp_path}x/b.mp4,a wall\n")
    assert clips_of("t.csv") == {"a.mp4": "a wall"}
    assert "row 2" in problems_of("t.csv")


@pytest.mark.parametrize("name", ["comma.csv", "semicolon.csv", "lines.jsonl"])
def test_a_table_of_prompts_to_score(tmp_path, name):
    text = TABLES[name].replace("relpath", "file").replace("text", "prompt")
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    asked = table_requests(tmp_path / name, None)
    assert [(one.name, one.path, one.prompts) for one in asked] == [
        (row["relpath"], tmp_path / row["relpath"], (row["text"],)) for row in ROWS
    ]


def test_bad_rows_of_a_table_to_score(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(f"file,prompt\n{tmp_path}/a.mp4,a wall\n../b.mp4,a wall\n/b.mp4,a wall\n")
    first, *bad = table_requests(table, None)
    assert first.path == tmp_path / "a.mp4" and not first.problem
    for number, one in enumerate(bad, 2):
        (result,) = score_request(one, {})
        assert result.name == f"{table}, row {number}"
        assert result.problem.endswith("give a folder above both as the folder of the clips")
    table.write_bytes("file,prompt\na.mp4,a café\n".encode("latin-1"))
    with pytest.raises(ValueError, match="such as --encoding latin-1"):
        table_requests(table, None)
    (one,) = table_requests(table, None, "latin-1")
    assert one.prompts == ("a café",)


# --- folders ----------


@pytest.fixture
def folder(tmp_path):
    """Videos here and there: {top: [a], top/sub: [b], elsewhere: [c, inner: [d]]}."""
    for name in ("top/a", "top/sub/b", "elsewhere/c", "elsewhere/inner/d"):
        path = tmp_path / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "top"


def listed(folder):
    config = PreprocessConfig(videos=str(folder), records="r")
    clips = list_clips(config)
    names = [clip.name for clip in clips]
    assert len(set(names)) == len(names)
    return {clip.name: clip.problem for clip in clips}


def test_links_to_folders_are_followed(folder):
    (folder / "more").symlink_to(folder.parent / "elsewhere")
    (folder / "e.mp4").symlink_to(folder.parent / "elsewhere" / "c.mp4")  # a file of two names is two clips
    assert listed(folder) == dict.fromkeys(["a.mp4", "e.mp4", "sub/b.mp4", "more/c.mp4", "more/inner/d.mp4"])
    (folder.parent / "link").symlink_to(folder)
    assert set(listed(folder.parent / "link")) == set(listed(folder))


def test_links_in_a_circle_end_and_a_folder_counts_once(folder):
    elsewhere = folder.parent / "elsewhere"
    (folder / "again").symlink_to("sub")
    (folder / "itself").symlink_to(".")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "above").symlink_to("../..")
    (folder / "root").symlink_to("/")
    (folder / "m1").symlink_to(elsewhere)
    (folder / "m2").symlink_to(elsewhere / "inner")
    (elsewhere / "back").symlink_to(folder)
    (elsewhere / "inner" / "back").symlink_to(elsewhere)
    assert listed(folder) == dict.fromkeys(["a.mp4", "sub/b.mp4", "m1/c.mp4", "m1/inner/d.mp4"])


def test_what_is_called_like_a_video_and_is_none_is_named(folder):
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    (folder / "round.mp4").symlink_to("round.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "notes.txt").symlink_to("nowhere")
    (folder / ".hidden.mp4").touch()
    found = listed(folder)
    assert set(found) == {"a.mp4", "sub/b.mp4", "gone.mp4", "round.mp4", "pipe.mp4"}
    assert found["gone.mp4"] == f"{folder}/gone.mp4: a link that leads nowhere"
    assert found["pipe.mp4"] == f"{folder}/pipe.mp4: is no file" and found["a.mp4"] is None
    config = PreprocessConfig(videos=str(folder), records="r")
    clips = ClipDataset(list_clips(config), config, 8, (2, 16, 16))
    assert {clips[i].clip.name: clips[i].problem for i in range(5)}["pipe.mp4"] == found["pipe.mp4"]
    asked = clip_requests(folder, ("a",), True, None)
    assert {one.name: one.problem for one in asked} == found


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator may read everything")
def test_a_folder_that_cannot_be_opened_is_named(folder):
    (folder / "sub").chmod(0)
    assert listed(folder) == {"a.mp4": None, "sub": f"{folder}/sub: Permission denied"}
    (folder / "sub").chmod(0o700)
