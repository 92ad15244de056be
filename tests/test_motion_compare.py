"""``t2v-turbo motion compare`` and ``motion memory``, on random weights, few steps and small sizes."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import randomize

from t2v_turbo.core.checkpoints.networks import save_unet
from t2v_turbo.core.families import SHAPES, VIDEOCRAFTER2
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.pipeline import load
from t2v_turbo.train import memory
from t2v_turbo.train.cli import main
from t2v_turbo.train.experiments import motion_memory, student_comparison
from t2v_turbo.train.experiments.motion_memory import Setting
from t2v_turbo.train.experiments.motion_transfer import Guidance, judge
from t2v_turbo.train.experiments.student_comparison import STILL, Plan, Student
from t2v_turbo.train.results import KeptRows
from t2v_turbo.train.shapes.world.captions import parse_prompt
from t2v_turbo.train.shapes.world.oracle import measure
from t2v_turbo.train.shapes.world.rendering import render
from t2v_turbo.train.shapes.world.scene import Scene

SCENE = Scene("circle", "red", "right", 2.5, radius=8, x=20, y=32)


# --- what moves ----------


def test_displacement_is_the_length_of_the_path():
    there = np.concatenate([render(SCENE), render(SCENE)[::-1]])  # there and back, resting a frame at the turn
    seen = measure(there)
    assert seen.displacement == pytest.approx(2.5 * 14 / 15, abs=0.05) and seen.moves
    assert seen.speed is None or seen.speed < 1  # which is of a uniform motion
    slow = measure(render(replace(SCENE, speed=1.0), size=32))
    assert slow.displacement == pytest.approx(1, abs=0.05) and slow.moves
    gap = render(SCENE)
    gap[3] = render(replace(SCENE, x=-9, y=-9, radius=1e-3))[3]  # not seen in one frame
    assert measure(gap).displacement == pytest.approx(2.5, abs=0.05)


def test_noise_is_no_motion():
    rng = np.random.default_rng(0)
    still = replace(SCENE, direction="still", speed=0.0, noise=0.05, blur=1.0)
    for i in range(5):
        seen = measure(render(replace(still, x=20 + i), rng=rng))
        assert 0 < seen.displacement < 0.2 and not seen.moves
    nothing = measure(np.full((8, 64, 64, 3), 90, np.uint8))
    assert (nothing.displacement, nothing.moves) == (0, False)


def test_judged_clips_tell_what_moves():
    found = judge(render(SCENE), {"direction": "right"})
    assert found["moves"] is True and found["displacement"] == pytest.approx(2.5, abs=0.05) and found["direction"]
    json.dumps(found)


def test_still_prompts_ask_for_no_motion():
    prompts = student_comparison.still_prompts(96)
    assert len({text for text, _ in prompts}) == 96  # every object in every wording
    assert all(parse_prompt(text) == expected | {"speed": None} for text, expected in prompts)
    assert student_comparison.still_prompts(5) == prompts[:5]
    assert len({(expected["color"], expected["shape"]) for _, expected in prompts[:24]}) == 24


# --- comparison ----------


def clips(**measures):
    """Judged clips with these measures and zeros elsewhere."""
    count = len(next(iter(measures.values())))
    rest = {name: [0.0] * count for name in student_comparison.MEASURES if name not in measures}
    columns = measures | rest
    return [{name: columns[name][i] for name in columns} for i in range(count)]


def test_differences_are_paired_by_prompt():
    """Prompts differ much, students little: only the paired difference is certain."""
    hard = [i / 20 for i in range(20)]
    better = [value + 0.1 + 0.01 * (-1) ** i for i, value in enumerate(hard)]
    results = {"a": clips(total=hard), "b": clips(total=better), "c": clips(total=better[::-1])}
    found = {one.measure: one for one in student_comparison.compare(results, 20)}["total"]
    assert found.means["a"].high > found.means["b"].low  # of the means the intervals overlap
    assert found.gains["b"].mean == pytest.approx(0.1) and found.gains["b"].excludes_zero
    assert found.gains["c"].mean == pytest.approx(0.1) and not found.gains["c"].excludes_zero
    table = student_comparison.table_of(list(student_comparison.compare(results, 20)))
    row = next(row for row in table if row[0] == "total")
    assert table[0] == ["", "a", "b", "c", "b − a", "c − a"]
    assert re.fullmatch(r"\+10\.0 \(\+9\.\d to \+10\.\d\) \*", row[4]) and not row[5].endswith("*")


def test_measures_are_of_the_prompts_that_ask_for_them():
    results = {name: clips(speed=[None, True, None, False], displacement=[1.0, 2.0, 3.0, 4.0]) for name in "ab"}
    found = {one.measure: one for one in student_comparison.compare(results, 4)}
    assert found["speed"].means["a"].mean == 0.5 and found["displacement"].means["a"].mean == 2.5
    unasked = {name: clips(speed=[None, None]) for name in "ab"}
    assert "speed" not in [one.measure for one in student_comparison.compare(unasked, 2)]
    table = {row[0]: row for row in student_comparison.table_of(list(student_comparison.compare(results, 4)))}
    assert table["displacement (pixels per frame)"][1].startswith("2.50 (")


def test_rates_at_their_limits_are_not_certain():
    results = {name: clips(moves=[True] * 10) for name in "ab"}
    found = {one.measure: one for one in student_comparison.compare(results, 10)}["moves"]
    assert found.means["a"].high == 1 and found.means["a"].low == pytest.approx(0.72, abs=0.01)


def test_clips_of_one_prompt_are_no_independent_samples():
    once = clips(total=[0.1, 0.5, 0.9])
    alone, thrice = (student_comparison.by_prompt(found, "total", 3) for found in (once, once * 3))
    np.testing.assert_allclose(alone, thrice)
    means = student_comparison.by_prompt(clips(total=[0.0, 0.2, 1.0, 0.4]), "total", 2)
    assert means.tolist() == [0.5, pytest.approx(0.3)]


# --- students ----------


@pytest.fixture(scope="module")
def mg_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("students") / "mg.safetensors"
    told = json.dumps({"motion": True, "motion_strength": 300, "tau": 0.7})
    save_unet(randomize(UNet3D(SHAPES.unet.as_student(motion=True)), 5), path, distill=told)
    return path


@pytest.fixture(scope="module")
def student(random_shapes, mg_file):
    family = replace(SHAPES, frames=4, height=32, width=32)
    return Student("mg", load(family, mg_file, random_shapes), Guidance(300.0, 0.7), {"weights": "w"})


def test_a_student_is_sampled_with_what_it_was_trained_with(random_shapes, student):
    of = student_comparison.guidance_of
    assert of(student.model, None, None) == Guidance(300.0, 0.7)
    assert of(student.model, 50.0, None) == Guidance(50.0, 0.7)
    assert of(student.model, None, 0.2) == Guidance(300.0, 0.2)
    assert of(student.model, 0.0, 0.2) == Guidance(0.0, 0.2)
    plain = load("shapes", "no-mg", random_shapes)
    assert of(plain, 50.0, 0.7) == Guidance(0.0)


def test_clips_depend_on_prompt_and_draw_alone(student, tmp_path, monkeypatch):
    """A comparison goes on, a longer one reuses the clips, and lambda reaches the network."""
    calls, judge_student = [], student_comparison.judge_student

    def counted(model, pairs, *rest):
        calls.append(len(pairs))
        return judge_student(model, pairs, *rest)

    monkeypatch.setattr(student_comparison, "judge_student", counted)
    monkeypatch.setattr(student_comparison, "BATCH", 2)
    kept, plan = KeptRows(tmp_path / "rows.json"), Plan(STILL, 3, 1, 2, None, 0)
    first = student_comparison.judge_clips(student, plan, kept)
    assert calls == [2, 1] and student_comparison.judge_clips(student, plan, kept) == first and calls == [2, 1]
    both = student_comparison.judge_clips(student, replace(plan, draws=2), kept)
    assert calls == [2, 1, 2, 1] and both[:3] == first != both[3:]
    monkeypatch.setattr(student_comparison, "BATCH", 3)
    whole = student_comparison.judge_clips(student, plan, kept)
    assert [one["sharpness"] for one in whole] == pytest.approx([one["sharpness"] for one in first], abs=1e-3)
    plain = student_comparison.judge_clips(replace(student, guidance=Guidance(0.0)), plan, kept)
    other = student_comparison.judge_clips(student, replace(plan, seed=1), kept)
    assert calls[4:] == [3, 3, 3] and plain != whole != other


def test_the_first_student_gets_the_noise_of_the_others(student, tmp_path):
    """The same student under two names differs in nothing."""
    students = [student, replace(student, name="again", made_from={"weights": "others"})]
    plan, kept = Plan(STILL, 2, 1, 1, None, 0), KeptRows(tmp_path / "rows.json")
    section = student_comparison.compare_students(students, plan, kept)
    gains = [row[3] for row in section.table[1:]]
    assert len(gains) > 5 and set(gains) <= {"+0.0 (+0.0 to +0.0)", "+0.00 (+0.00 to +0.00)"}
    assert section.svg.startswith("<svg")


def test_compare_command(random_shapes, mg_file, tmp_path, capsys):
    options = ["--students", "no-mg", mg_file, "--prompts", 2, "--still", 1, "--steps", 1, 2, "--out", tmp_path / "out"]
    command = ["motion", "compare", *options, "--checkpoints", random_shapes, "--device", "cpu"]
    assert main(list(map(str, command))) == 0
    told = capsys.readouterr().out
    assert f"no-mg: lambda 0, tau 0.5. {mg_file}: lambda 300, tau 0.7." in told
    for steps, asks in ((1, "2 prompts that ask for motion"), (2, "1 prompts that ask for no motion")):
        assert f"{steps} steps, {asks}\n|  | no-mg | {mg_file} | {mg_file} − no-mg |" in told
    assert told.count("| dynamic degree |") == 4
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    assert len(rows) == 8 and {row["made_from"]["strength"] for row in rows} == {0, 300}
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<svg") == 4 and "one in twenty" in page


# --- memory ----------


def test_memory_command(monkeypatch, capsys):
    """The system's own measure sees what chunking and checkpointing save."""
    monkeypatch.setattr(motion_memory, "ROWS", [(True, False), (False, True)])
    sizes = ["--batch", "4", "--frames", "4", "--height", "16", "--width", "16", "--channels", "40"]
    assert main(["motion", "memory", *sizes]) == 0
    told = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told.splitlines()[2:4]]
    assert [row[:2] for row in rows] == [["4", "off"], ["1", "on"]]
    before, after = (float(row[2]) for row in rows)
    # Without the libraries that torch loads at its first checkpoint, which would be more than the score takes.
    assert 20 < after < 0.25 * before and rows[1][3] == f"{100 * after / before:.0f} %"
    assert rows[0][6] == "equal" and (rows[1][6] == "equal" or float(rows[1][6].split()[-1]) < 1e-4)
    assert "4 clips of 4 frames of 16x16 latents; UNet of 25 M random weights, fp32, on cpu." in told


def test_a_row_is_measured_with_its_settings(monkeypatch):
    seen, motion_score = [], motion_memory.motion_score

    def recorded(*args, **settings):
        seen.append(settings)
        return motion_score(*args, **settings)

    monkeypatch.setattr(motion_memory, "motion_score", recorded)
    costs = []
    for chunk, checkpointing in ((2, True), (1, False)):
        levels = iter([100, 200, 1000])  # held before, earlier peak, peak
        monkeypatch.setattr(memory, "resident", lambda field, levels=levels: next(levels))
        row = Setting(motion_memory.scaled(20), 2, 2, 8, 8, chunk=chunk, checkpointing=checkpointing)
        costs.append(motion_memory.measure(row))
    assert seen == [{"chunk": 2, "checkpointing": True}, {"chunk": 1, "checkpointing": False}]
    assert [cost.peak for cost in costs] == [900, 900] and costs[0].score.shape == (2, 4, 2, 8, 8)
    np.testing.assert_allclose(costs[0].score, costs[1].score, atol=1e-3 * np.abs(costs[1].score).max())
    assert (costs[0].score != 0).all()


def test_the_measured_unet_is_videocrafter2s_but_narrower():
    assert motion_memory.scaled(320) == VIDEOCRAFTER2.unet
    narrow = motion_memory.scaled(80)
    assert (narrow.model_channels, narrow.head_channels, narrow.norm_groups) == (80, 16, 8)
    unet = motion_memory.random_unet(motion_memory.scaled(20), 0)
    assert all(parameter.any() for parameter in unet.parameters())
    again = motion_memory.random_unet(motion_memory.scaled(20), 0)
    assert all(map(torch.equal, unet.parameters(), again.parameters()))


def test_scores_are_compared():
    score = np.float32([1, -4])
    assert motion_memory.deviation(score, score.copy()) == "equal"
    assert motion_memory.deviation(score + np.float32([0.5, 0]), score) == "differs by 1e-01"


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_memory_of_a_card_is_beyond_what_was_there(monkeypatch, kind):
    """As the allocator tells it; its earlier peak is forgotten first."""
    card, peaks = getattr(torch, kind), [5000]
    monkeypatch.setattr(card, "reset_peak_memory_stats", lambda device: peaks.append(100))
    monkeypatch.setattr(card, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(card, "max_memory_allocated", lambda device: peaks[-1])
    with memory.AllocatedMemory(torch.device(kind)) as taken:
        peaks[-1] = 1000
    assert taken.peak == 900


def test_a_score_too_small_to_see_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda field: {"VmRSS": 100, "VmHWM": 200}[field])
    with pytest.raises(ValueError, match="too little memory to be measured"):
        motion_memory.measure(Setting(motion_memory.scaled(20), 2, 2, 8, 8))
