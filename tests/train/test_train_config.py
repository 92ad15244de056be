"""Settings: defaults, file, command line, and what a mistake is told."""

import argparse
from dataclasses import fields

import pytest

from t2v_turbo.train import config
from t2v_turbo.train.commands import distill, preprocess
from t2v_turbo.train.config import DistillConfig, PreprocessConfig, TrainerConfig, load_config

GIVEN = ["records=r", "out=o"]


def test_the_command_line_goes_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {folder: weights}\ndistill: {lr: 3e-4, steps: 7}\npreprocess: {seed: 5}\n")
    read = load_config("distill", file, [*GIVEN, "steps=9", "model.device=cpu", "max_grad_norm=null"])
    assert isinstance(read, DistillConfig)
    assert (read.lr, read.steps, read.seed, read.warmup) == (3e-4, 9, 0, 100)
    assert (read.model.folder, read.model.device, read.max_grad_norm) == ("weights", "cpu", None)
    assert load_config("preprocess", file, ["videos=v", "records=r"]).seed == 5


@pytest.mark.parametrize("name, family", [("paper", "videocrafter2"), ("shapes", "shapes")])
def test_packaged_files_fit_their_stages(name, family):
    assert load_config("distill", name, GIVEN).model.family == family
    assert load_config("preprocess", name, ["videos=v", "records=r"]).model.family == family


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_another_program_saved(tmp_path, encoding):
    (tmp_path / "mine.yaml").write_bytes("distill:\r\n  lr: 3e-4\r\n  out: café\r\n".encode(encoding))
    read = load_config("distill", tmp_path / "mine.yaml", ["records=r"])
    assert (read.lr, read.out) == (3e-4, "café")
    config.save_config(read, tmp_path / "kept.yaml")
    assert "café" in (tmp_path / "kept.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_bytes("distill: {out: café}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine\.yaml: is no UTF-8 text"):
        load_config("distill", tmp_path / "mine.yaml")


@pytest.mark.parametrize("stage", ["preprocess", "distill"])
def test_seeds_are_those_of_torch(stage):
    given = ["videos=v", "records=r"] if stage == "preprocess" else GIVEN
    assert load_config(stage, None, [*given, f"seed={2**64 - 1}"]).seed == 2**64 - 1
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=f"seed={seed} is too "):
            load_config(stage, None, [*given, f"seed={seed}"])


def test_paper_settings():
    read = load_config("distill", "paper", GIVEN)
    assert (read.lr, read.batch_size, read.huber_c) == (1e-5, 3, 0.001)
    assert (read.omega_min, read.omega_max) == (5, 15)
    assert load_config("preprocess", "paper", ["videos=v", "records=r"]).solver_steps == 200


@pytest.mark.parametrize(
    "settings, told",
    [
        (["stepz=3"], "did you mean steps"),
        (["model.famly=shapes"], "did you mean model.family"),
        (["steps=many"], "steps"),
        (["steps=0"], "steps=0 is too small"),
        (["lr=-1"], "lr=-1"),
        (["decay=1.5"], "decay=1.5 is too large"),
        (["beta2=1"], "beta2=1.0 is too large"),
        (["ema_decay=1.1"], "ema_decay=1.1 is too large"),
        (["target_decay=2"], "target_decay=2.0 is too large"),
        (["precision=fp8"], "choose auto, no, bf16, fp16"),
        (["target=teacher"], "choose online, ema"),
        (["omega_min=9", "omega_max=8"], "omega_min=9"),
        (["steps"], "write key=value"),
        (["lr=[1"], "lr=[1"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(settings, told):
    with pytest.raises(ValueError) as error:
        load_config("distill", None, [*GIVEN, *settings])
    assert told in str(error.value)


def test_required_settings_are_named_together():
    with pytest.raises(ValueError, match=r"out, records.*out=… records=…"):
        load_config("distill")


@pytest.mark.parametrize(
    "text, told",
    [
        ("distil: {lr: 1}", "distil"),
        ("distill: {lrr: 1}", "did you mean lr"),
        ("distill: {lr: [1, 2]}", "lr"),
        ("- a", "unknown sections"),
        ("distill: {lr: 1", "not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path, text, told):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        load_config("distill", file, GIVEN)
    assert told in str(error.value) and "mine.yaml" in str(error.value)


def test_a_bare_no_is_no_and_not_false(tmp_path):
    (tmp_path / "mine.yaml").write_text("distill: {precision: no}\n")
    assert load_config("distill", tmp_path / "mine.yaml", GIVEN).precision == "no"
    assert load_config("distill", None, [*GIVEN, "precision=no"]).precision == "no"


def test_an_unknown_file_lists_the_packaged_ones():
    with pytest.raises(ValueError, match="paper, shapes"):
        load_config("distill", "papr", GIVEN)


def test_settings_survive_a_file(tmp_path):
    read = load_config("distill", "shapes", [*GIVEN, "lr=1e-3"])
    config.save_config(read, tmp_path / "config.yaml")
    (tmp_path / "again.yaml").write_text(
        "distill:\n" + "".join(f"  {line}\n" for line in (tmp_path / "config.yaml").read_text().splitlines())
    )
    assert load_config("distill", tmp_path / "again.yaml") == read


@pytest.mark.parametrize(
    "stage, module, cls", [("distill", distill, DistillConfig), ("preprocess", preprocess, PreprocessConfig)]
)
def test_help_tells_every_setting(stage, module, cls):
    parser = argparse.ArgumentParser()
    module.register(parser.add_subparsers())
    text = parser._subparsers._group_actions[0].choices[stage].format_help()
    assert "examples:" in text and "required" in text
    for f in fields(cls):
        assert (f.metadata["about"] if f.metadata else f"{f.name}.") in text and f.name in text


def test_trainer_settings_are_checked_without_a_file():
    with pytest.raises(ValueError, match="batch_size=0"):
        TrainerConfig(batch_size=0)
