"""`t2v-turbo doctor`: what it says of whole and of broken things, and that nothing can end it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, safe_open, save_file
from test_download import Hub

from t2v_turbo.core.checkpoints import key_maps
from t2v_turbo.core.checkpoints.locations import PACKAGED_WEIGHTS
from t2v_turbo.core.families import SHAPES, VIDEOCRAFTER2
from t2v_turbo.train.cli import main
from t2v_turbo.train.doctor import reference, running
from t2v_turbo.train.doctor.catalogue import FULL
from t2v_turbo.train.doctor.checks import (
    checkpoints,
    clips,
    comfyui,
    devices,
    folders,
    full_size,
    online,
    versions,
    video,
)
from t2v_turbo.train.doctor.findings import STATUSES, Finding, Options
from t2v_turbo.train.doctor.report import section, summary
from t2v_turbo.train.doctor.running import Check, Result, run_checks

CPU = Options(device="cpu", dtype="fp32")
STUDENT = "student.safetensors"


@pytest.fixture
def weights(tmp_path):
    """A copy of the embedded family, to be damaged."""
    return Path(shutil.copytree(PACKAGED_WEIGHTS / "shapes", tmp_path / "weights"))


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """A models folder of our own, which is not there yet."""
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def by_name(findings) -> dict[str, Finding]:
    findings = list(findings)
    named = {finding.name: finding for finding in findings}
    assert len(named) == len(findings), "two findings of one name"
    assert all(finding.remedy for finding in findings if finding.status == "fail"), "a problem without a remedy"
    return named


def failed(findings) -> dict[str, Finding]:
    return {name: finding for name, finding in by_name(findings).items() if finding.status == "fail"}


def raising(error: Exception):
    """A function that raises, whatever it is given."""

    def function(*_, **__):
        raise error

    return function


def change(path: Path, edit) -> None:
    """Edit the tensors of a safetensors file and keep its metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata)


# --- the command ----------


def test_json_is_all_there_is(capfd):
    """Every check, every finding, under the documented keys; standard output holds nothing else."""
    assert main(["doctor", "--device", "cpu", "--dtype", "fp32", "--json"]) == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert list(report) == ["format", "ok", "problems", "checks"]
    assert (report["format"], report["ok"], report["problems"]) == (1, True, 0)
    names = [check["name"] for check in report["checks"]]
    assert names == ["versions", "devices", "folders", "checkpoints", "video", "clips"]
    for check in report["checks"]:
        assert list(check) == ["name", "title", "seconds", "findings"]
        for finding in check["findings"]:
            assert list(finding) == ["name", "status", "value", "remedy", "data"]
            assert finding["status"] in STATUSES
    clip = report["checks"][-1]["findings"]
    assert [finding["name"] for finding in clip] == ["cpu fp32"]
    assert clip[0]["data"]["difference"] < 1e-4
    assert "cpu fp32: a clip" in err  # what takes long is told


def test_quick(capfd):
    assert main(["doctor", "--quick"]) == 0
    out, _ = capfd.readouterr()
    assert out.rstrip().endswith("No problems found.")
    assert "Devices" in out and "Clips of" not in out and "Video files" not in out


def test_a_device_that_cannot_be_used(capfd):
    """It is told once, with a remedy, and everything else is looked at."""
    assert main(["doctor", "--device", "abacus"]) == 1
    out, _ = capfd.readouterr()
    *_, counted, problem = out.rstrip().splitlines()
    assert counted == "1 problem found:"
    assert problem.startswith("  Devices, abacus: ValueError: --device abacus cannot be used here")
    assert "Remedy:" in problem
    assert "abacus  cannot be used here, see the devices" in out and "Video files" in out


def test_verbose_shows_tracebacks(capfd):
    main(["doctor", "--quick", "--device", "abacus"])
    assert "Traceback" not in capfd.readouterr().err
    main(["doctor", "--quick", "--device", "abacus", "-v"])
    assert "Traceback" in capfd.readouterr().err


def test_quick_and_full_exclude_each_other(capsys):
    assert main(["doctor", "--quick", "--full"]) == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--endpoint", "http://x"], ["--quick", "--dtype", "bf16"]])
def test_options_without_an_effect(capsys, given):
    assert main(["doctor", *given]) == 2
    assert "t2v-turbo doctor: " + given[-2] in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = "import sys; from t2v_turbo.train.cli import build_parser; build_parser('doctor')\n"
    code += "import t2v_turbo.train.doctor.catalogue\n"
    code += "print(sorted({'torch', 'numpy', 'av', 'huggingface_hub', 'packaging'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_a_bare_environment():
    """Without HOME, in the C locale."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    command = [sys.executable, "-m", "t2v_turbo.train", "doctor", "--quick", "--json"]
    told = subprocess.run(command, capture_output=True, env=kept | {"LC_ALL": "C"}, check=False)
    assert told.returncode == 0, told.stderr.decode(errors="replace")
    assert json.loads(told.stdout)["ok"]


def test_no_home_at_all(monkeypatch):
    """A user whom the system does not know has no home folder, which only downloads need."""
    monkeypatch.delenv("T2V_TURBO_MODELS")
    monkeypatch.setattr(Path, "home", raising(RuntimeError("Could not determine home directory.")))
    models = by_name(folders.examine(CPU))["models"]
    assert models.status == "warn" and "T2V_TURBO_MODELS" in models.remedy
    found = by_name(checkpoints.examine(CPU))
    assert found["published files"].status == "skip" and found[STUDENT].status == "ok"
    assert not [finding for finding in found.values() if finding.status == "fail"]
    monkeypatch.setattr(online, "reach", lambda endpoint: Finding("hub", "ok", "answers"))
    assert set(by_name(online.examine(CPU))) == {"hub"}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that cannot be read")
def test_a_home_that_is_closed(models, monkeypatch):
    models.mkdir(mode=0)
    monkeypatch.setenv("T2V_TURBO_MODELS", str(models / "below"))
    assert by_name(folders.examine(CPU))["models"].status == "warn"
    assert failed(checkpoints.examine(CPU)) == {}
    models.chmod(0o700)


# --- running ----------


def good(_):
    yield Finding("fine", "ok", "yes")


def bad(_):
    yield Finding("fine", "ok", "yes")
    raise RuntimeError("driver says no\nand more")


def killed(_):
    yield Finding("fine", "ok", "yes")
    os.kill(os.getpid(), signal.SIGKILL)


def chatty(_):
    os.write(1, b"this library greets you\n")
    print("and so does this one")
    yield Finding("fine", "ok", "yes")


def check(function) -> Check:
    return Check(function.__name__, function.__name__.title(), f"test_doctor:{function.__name__}", "call for help")


def test_a_check_that_raises_is_a_problem():
    results = list(run_checks([check(bad), check(good)], CPU))
    assert [[finding.status for finding in result.findings] for result in results] == [["ok", "fail"], ["ok"]]
    problem = results[0].findings[1]
    assert (problem.value, problem.remedy) == ("RuntimeError: driver says no", "call for help")


def test_a_library_that_does_not_load_is_a_problem():
    missing = Check("missing", "Missing", "no_such_library.at_all:examine", "install it")
    (result,) = run_checks([missing], CPU)
    (problem,) = result.findings
    assert problem.value.startswith("ModuleNotFoundError") and problem.remedy == running.NOT_LOADED


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_crash_costs_one_check():
    results = list(run_checks([check(killed), check(good)], CPU))
    assert [result.check.name for result in results] == ["killed", "good"]
    fine, crash = results[0].findings
    assert fine.status == "ok"
    assert crash.status == "fail" and "SIGKILL" in crash.value and "memory" in crash.remedy
    assert [finding.status for finding in results[1].findings] == ["ok"]


def test_what_libraries_print_is_no_part_of_the_report(capfd):
    assert len(list(run_checks([check(chatty)], CPU))) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "greets" in err and "and so does" in err


def test_without_a_process_of_its_own(monkeypatch):
    """Checks run here where no process can be started."""
    spawn = running.multiprocessing.get_context("spawn")
    monkeypatch.setattr(spawn.Process, "start", raising(OSError("no more processes")))
    results = list(run_checks([check(good), check(bad)], CPU))
    assert [result.findings[-1].status for result in results] == ["ok", "fail"]


def test_report():
    findings = [Finding("a", "ok", "1"), Finding("long name", "fail", "2", "do x"), Finding("c", "warn", "3", "do y")]
    result = Result(check(good), [*findings, Finding("d", "skip", "4", "do z")], 1.0)
    assert section(result).splitlines() == [
        "Good (1.0 s)",
        "  ok    a          1",
        "  FAIL  long name  2",
        "  note  c          3",
        "  -     d          4; do z",
    ]
    assert summary([result]).splitlines() == [
        "Note: Good, c: 3. Remedy: do y",
        "1 problem found:",
        "  Good, long name: 2. Remedy: do x",
    ]


# --- versions ----------


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installs distributions that consist of their metadata."""
    monkeypatch.syspath_prepend(tmp_path / "site")

    def install(name: str, *lines: str) -> None:
        folder = tmp_path / "site" / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", *lines]) + "\n")

    return install


@pytest.mark.parametrize(
    ("bound", "extra", "status"),
    [
        ("doctored>=1.0", None, "ok"),
        ("doctored>=2.0", None, "fail"),
        ("doctored>=2.0", "test", "warn"),
        ("doctored<1.0", None, "fail"),
        ("undoctored>=1.0", None, "fail"),
        ("undoctored>=1.0", "test", "skip"),
    ],
)
def test_requirements(site, bound, extra, status):
    site("doctored", "Version: 1.0")
    found = versions.installed(Requirement(bound), extra)
    assert found.status == status
    assert status == "ok" or bound in found.remedy


def test_a_damaged_installation(site, monkeypatch):
    site("doctored")
    monkeypatch.setattr(
        versions, "declared_by_checkout", lambda _: versions.Declared("1", ">=3.11", [(Requirement("doctored"), None)])
    )
    assert "force-reinstall doctored" in failed(versions.examine(CPU))["doctored"].remedy


def test_declared_by_what_is_installed(site, monkeypatch):
    """Extras are told from what is always needed, and what this system does not need is left out."""
    monkeypatch.setattr(versions, "PACKAGE", "doctored")
    monkeypatch.setattr(versions, "declared_by_checkout", lambda _: None)
    needs = ("torch>=2", 'torch>=2; sys_platform == "nowhere"', 'undoctored>=1; extra == "test"')
    lines = [f"Requires-Dist: {line}" for line in needs]
    site("doctored", "Version: 1.0", "Requires-Python: >=3.99", "Provides-Extra: test", *lines)
    found = by_name(versions.examine(CPU))
    assert set(found) == {"python", "system", "doctored", "torch", "undoctored", "environment"}
    assert found["python"].status == "fail"  # no such Python yet
    assert found["undoctored"].status == "skip"


def test_declared_by_this_checkout():
    declared = versions.declared_by_checkout(versions.ROOT / "pyproject.toml")
    needed = {requirement.name for requirement, extra in declared.needs if extra is None}
    assert {"torch", "numpy", "av"} <= needed
    assert "pytest" in {requirement.name for requirement, extra in declared.needs if extra == "test"}


def test_environment_variables(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "CUDA_VISIBLE_DEVICES=7" in versions.variables().value


# --- devices and folders ----------


def test_the_cpu():
    found = by_name(devices.examine(CPU))["cpu"]
    assert found.status == "ok"
    assert found.data["cores"] >= 1 and 0 < found.data["memory_free"] <= found.data["memory_total"]


def test_memory_of_a_container(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    for text, expected in (("1000000", 1000000), ("max", None)):
        limit.write_text(f"{text}\n")
        monkeypatch.setattr(devices, "CONTROL_GROUPS", (str(limit),))
        assert devices.memory_limit() == (expected or devices.memory_limit())
        assert (devices.room(torch.device("cpu")) <= 1000000) == (expected is not None)


def test_a_device_that_raises():
    """torch knows "meta", where nothing can be computed: every part of it is a problem with a remedy."""
    options = Options(device="meta", dtype="fp32")
    assert set(failed(devices.examine(options))) == {"meta"}
    assert set(failed(clips.examine(options))) == {"meta fp32"}


@pytest.mark.skipif(os.name == "nt" or torch.cuda.is_available(), reason="plays a card that torch cannot use")
def test_a_card_that_torch_cannot_use(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 NVL, 550.54.15'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = by_name(devices.examine(CPU))["nvidia driver"]
    assert found.status == "warn" and "550.54.15, for NVIDIA H100 NVL, which torch cannot use" in found.value
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in by_name(devices.examine(CPU))["nvidia driver"].value
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "unset that variable" in by_name(devices.examine(CPU))["nvidia driver"].remedy


def test_folders(models, monkeypatch):
    found = by_name(folders.examine(CPU))
    assert found["models"].status == "ok" and "not there yet" in found["models"].value
    assert not models.exists()  # nothing is made
    monkeypatch.setattr(folders, "DOWNLOAD", 10**18)
    assert "too little" in by_name(folders.examine(CPU))["models"].value
    models.write_text("a file")
    assert set(failed(folders.examine(CPU))) == {"models"}


def test_a_folder_that_cannot_be_written_to(models, monkeypatch):
    models.mkdir()

    monkeypatch.setattr(folders.tempfile, "TemporaryFile", raising(OSError(30, "Read-only file system")))
    found = by_name(folders.examine(CPU))
    assert found["models"].status == "warn" and "cannot be written to" in found["models"].value
    assert found["temporary files"].status == "fail" and "TMPDIR" in found["temporary files"].remedy


# --- checkpoints ----------


def test_the_reference_is_of_the_shipped_weights():
    """After new weights: `python -m t2v_turbo.train.doctor.reference`."""
    folder = PACKAGED_WEIGHTS / "shapes"
    with safe_open(folder / reference.FILE, "pt") as file:
        sums = json.loads(file.metadata()["weights"])
    assert set(sums) == {path.name for path in folder.glob("*.safetensors")} - {reference.FILE}
    assert set(checkpoints.embedded_files()) == set(sums)
    assert reference.altered(folder) == []


def test_the_reference_can_be_made_again(weights):
    shipped = reference.read_latents(weights)
    (weights / reference.FILE).unlink()
    reference.make(weights)
    torch.testing.assert_close(reference.read_latents(weights), shipped, rtol=1e-4, atol=1e-4)
    assert reference.altered(weights) == []


def test_whole_embedded_files(weights):
    found = by_name(checkpoints.examine(Options(weights=weights)))
    assert {name for name, finding in found.items() if finding.status == "ok"} == set(checkpoints.embedded_files())
    assert {finding.status for finding in found.values()} == {"ok", "skip"}


@pytest.mark.parametrize("name", ["teacher.safetensors", STUDENT, "vae.safetensors", "reward_hps.safetensors"])
def test_a_truncated_embedded_file(weights, name):
    whole = (weights / name).read_bytes()
    (weights / name).write_bytes(whole[: len(whole) // 2])
    (problem,) = failed(checkpoints.examine(Options(weights=weights))).values()
    assert problem.name == name and "not a complete safetensors file" in problem.value
    assert main_on(weights) == [name]


def main_on(weights: Path) -> list[str]:
    """Names of the problems that checkpoints and clips find together: each cause is told once."""
    options = replace(CPU, weights=weights)
    return [*failed(checkpoints.examine(options)), *failed(clips.examine(options))]


def test_a_flipped_bit(weights):
    content = bytearray((weights / "teacher.safetensors").read_bytes())
    content[-1000] ^= 64
    (weights / "teacher.safetensors").write_bytes(content)
    (problem,) = failed(checkpoints.examine(Options(weights=weights))).values()
    assert (problem.name, problem.value) == ("teacher.safetensors", "differs from the file that was shipped")


def test_a_library_that_fails_is_not_blamed_on_the_file(weights, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_vae", raising(RuntimeError("operator does not exist")))
    found = failed(checkpoints.examine(Options(weights=weights)))
    assert set(found) == {"vae.safetensors"} and found["vae.safetensors"].remedy == checkpoints.LIBRARY


def test_networks_that_were_mixed_up(weights):
    shutil.copy(weights / STUDENT, weights / "teacher.safetensors")
    assert "the other way round" in failed(checkpoints.examine(Options(weights=weights)))["teacher.safetensors"].value


def test_missing_merges(weights):
    (weights / "merges.txt.gz").unlink()
    assert set(failed(checkpoints.examine(Options(weights=weights)))) == {"text.safetensors"}


def test_no_embedded_weights_at_all(tmp_path):
    found = failed(checkpoints.examine(Options(weights=tmp_path / "nowhere")))
    assert set(found) == {reference.FILE, *checkpoints.embedded_files()}
    (clip,) = clips.examine(replace(CPU, weights=tmp_path / "nowhere"))
    assert (clip.status, clip.value) == ("skip", "cannot be loaded, see the checkpoints")


@pytest.fixture(scope="module")
def published_unets(tmp_path_factory):
    """Teacher and student as published, of the real sizes: names and shapes; a tensor's values share one zero."""
    folder = tmp_path_factory.mktemp("published")
    for name, config in (("teacher", VIDEOCRAFTER2.unet), ("mg", VIDEOCRAFTER2.unet.as_student(motion=True))):
        network = full_size.on_meta(lambda config=config: full_size.UNet3D(config)).state_dict()
        state = key_maps.unet_key_map(config, list(network)).to_published(network)
        torch.save({key: torch.zeros(1).expand(value.shape) for key, value in state.items()}, folder / f"{name}.pt")
    return folder


def published(models: Path, **options) -> dict[str, Finding]:
    return by_name(checkpoints.examine(Options(**options)))


def test_published_files(models, published_unets, tmp_path):
    place = models / "videocrafter2"
    place.mkdir(parents=True)
    shutil.copy(published_unets / "mg.pt", place / "unet_mg.pt")
    shutil.copy(published_unets / "teacher.pt", place / "unet_no_mg.pt")
    (place / ".model.ckpt.0123456789abcdef.part.ckpt").write_bytes(b"0" * 5_000_000)
    found = published(models)
    assert found["mg: unet_mg.pt"].status == "ok"
    assert "the other way round" in found["no-mg: unet_no_mg.pt"].value
    teacher = found["teacher: model.ckpt"]
    assert teacher.status == "warn" and "in part, 5.0 MB" in teacher.value
    assert teacher.remedy == "`t2v-turbo download teacher` goes on from there"
    hps = found["hps: HPS_v2.1_compressed.pt"]
    assert (hps.status, hps.value, hps.remedy) == ("skip", "not downloaded", "`t2v-turbo download hps`")


def test_damaged_published_files(models, published_unets):
    """In ComfyUI's folder, where --folder says."""
    models.mkdir()
    whole = (published_unets / "mg.pt").read_bytes()
    (models / "unet_mg.pt").write_bytes(whole[: len(whole) // 2])
    (models / "unet_no_mg.pt").write_text("<html>Access denied</html>")
    shutil.copy(published_unets / "teacher.pt", models / "model.ckpt")  # without autoencoder and text
    for name in ("hps", "imagereward"):
        (models / "rewards" / name).mkdir(parents=True)
    shutil.copy(published_unets / "mg.pt", models / "rewards" / "hps" / "HPS_v2.1_compressed.pt")
    (models / "rewards" / "imagereward" / "vocab.txt").write_text("<html>Access denied</html>")
    found = {name: finding for name, finding in published(models, folder=models).items() if finding.status == "fail"}
    assert set(found) == {
        "teacher: model.ckpt",
        "mg: unet_mg.pt",
        "no-mg: unet_no_mg.pt",
        "hps: HPS_v2.1_compressed.pt",
        "imagereward: vocab.txt",
    }
    assert "holds no vae" in found["teacher: model.ckpt"].value
    remedy = f"delete the file, then `t2v-turbo download mg` --folder {models}"
    assert found["mg: unet_mg.pt"].remedy == remedy


# --- clips ----------


def test_a_clip():
    (found,) = clips.examine(CPU)
    assert (found.name, found.status) == ("cpu fp32", "ok")
    assert found.data["difference"] < 1e-4 and len(found.data["seconds"]) in (1, 2)
    assert "shows a red circle that moves right" in found.value


def test_the_limits_are_near_what_a_good_device_gives():
    """bf16 on a CPU is well within, and not by orders of magnitude."""
    (found,) = clips.examine(replace(CPU, dtype="bf16"))
    assert found.status == "ok" and clips.LIMITS["bf16"] / 20 < found.data["difference"]


def test_dtype_auto():
    (found,) = clips.examine(replace(CPU, dtype="auto"))
    assert found.name == "cpu fp32"


def test_wrong_stored_latents(weights):
    """A device whose numbers are off by a hundredth is named, though its clip looks right."""
    change(weights / reference.FILE, lambda tensors: tensors["latents"].mul_(1.01))
    (problem,) = failed(clips.examine(replace(CPU, weights=weights))).values()
    assert "differs by 0.0099" in problem.value and "computes wrongly" in problem.remedy


def test_perturbed_weights(weights):
    """The clip differs too, and the remedy does not blame the device."""

    def perturb(tensors):
        generator = torch.Generator().manual_seed(0)
        for tensor in tensors.values():
            tensor += (0.05 * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)).to(tensor)

    change(weights / STUDENT, perturb)
    assert main_on(weights) == [STUDENT, "cpu fp32"]
    (problem,) = failed(clips.examine(replace(CPU, weights=weights))).values()
    assert problem.remedy == clips.ALTERED and "differs by 0" in problem.value


def test_not_a_number(weights):
    change(weights / STUDENT, lambda tensors: tensors["conv_in.bias"].fill_(float("nan")))
    (problem,) = failed(clips.examine(replace(CPU, weights=weights))).values()
    assert "; holds NaN" in problem.value and problem.remedy == clips.ALTERED


def test_a_clip_that_shows_something_else():
    """Latents alone do not tell that the decoder works."""
    expected = torch.randn(1, 4, 8, 8, 8)
    for frames, shown in ((torch.full((8, 3, 64, 64), 0.5), "nothing"), (square(), "a red square that moves right")):
        right, value, data = clips.judge(expected, frames, expected, 0.005)
        assert not right and data["shows"] == shown and shown in value


def square() -> torch.Tensor:
    return torch.from_numpy(video.moving_square()).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("CUDA out of memory. Tried to allocate", "close other programs"),
        ("CUDA error: no kernel image is available for execution", "not built for this device"),
        ("anything else", "driver"),
    ],
)
def test_remedies_of_devices(message, remedy):
    assert remedy in clips.remedy_for(RuntimeError(message))


# --- full size ----------


def test_full_size_on_a_small_family():
    """The same function on the embedded sizes."""
    found = by_name(full_size.examine(CPU, SHAPES))
    assert list(found) == ["cpu fp32", "weights", "first clip", "second clip", "peak memory"]
    assert {finding.status for finding in found.values()} == {"ok"}
    data = found["second clip"].data
    assert data["total"] == pytest.approx(data["sampling"] + data["decoding"], abs=0.002)
    assert found["peak memory"].data["bytes"] > 100e6


def test_full_size_needs_memory():
    large = replace(SHAPES, unet=replace(SHAPES.unet, model_channels=32 * 4096))
    (found,) = full_size.examine(CPU, large)
    assert found.status == "skip" and "are free" in found.value and "--dtype bf16" in found.remedy


def test_full_size_of_the_published_model():
    """Its weights are as many as the published ones, of which the estimate of memory is made."""
    assert 1.8e9 < full_size.parameters(VIDEOCRAFTER2) < 1.9e9
    work = full_size.workload(VIDEOCRAFTER2, torch.device("cuda"))
    assert work == (16, 320, 512, 4)
    needed = full_size.memory_needed(VIDEOCRAFTER2, torch.device("cuda"), torch.bfloat16, work)
    assert 4e9 < needed < 8e9


def test_random_weights_come_in_the_format_of_the_work():
    model = full_size.random_model(SHAPES, torch.device("cpu"), torch.bfloat16)
    for network in (model.unet, model.vae, model.text):
        assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    again = full_size.random_model(SHAPES, torch.device("cpu"), torch.bfloat16)
    assert torch.equal(model.unet.conv_in.weight, again.unet.conv_in.weight)


def test_full_size_that_is_not_finite(monkeypatch):
    monkeypatch.setattr(full_size, "GAIN", 1e30)
    found = failed(full_size.examine(CPU, SHAPES))
    assert set(found) == {"first clip", "second clip"} and "NaN or infinite" in found["first clip"].value


def test_full_size_on_a_device_that_raises():
    *_, problem = running.examine(FULL, Options(device="meta"))
    assert (problem.name, problem.status, problem.remedy) == ("full", "fail", FULL.remedy)


# --- video, hub, ComfyUI ----------


def test_video():
    found = by_name(video.examine(CPU))
    assert {name: finding.status for name, finding in found.items()} == {"H.264": "ok", "mp4": "ok", "gif": "ok"}


def test_no_encoder(monkeypatch):
    monkeypatch.setattr(video.av, "codecs_available", av.codecs_available - {"libx264"})
    assert "force-reinstall" in failed(video.examine(CPU))["H.264"].remedy


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda clip: clip[:-1], "(7, 64, 64, 3) read"),
        (lambda clip: clip[:, :-8], "(8, 56, 64, 3) read"),
        (lambda clip: clip // 2, "values differ by"),
        (lambda clip: 255 - clip, "values differ by"),
    ],
)
def test_video_that_comes_back_another(monkeypatch, broken, told):
    write = video.write_video
    monkeypatch.setattr(video, "write_video", lambda path, clip, fps: write(path, broken(clip), fps))
    found = failed(video.examine(CPU))
    assert set(found) == {"mp4", "gif"}
    assert all(told in problem.value for problem in found.values())


def test_video_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(video, "write_video", raising(av.FFmpegError(1, "Unknown encoder")))
    found = failed(video.examine(CPU))
    assert set(found) == {"mp4", "gif"} and "Unknown encoder" in found["mp4"].value


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_hub(hub, models):
    """It answers; what is here is compared with its sizes."""
    for repository, file in (("T2V-Turbo-v2", "unet_mg.pt"), ("T2V-Turbo-v2-no-MG", "unet_no_mg.pt")):
        hub.serve(f"jiachenli-ucsb/{repository}", b"")
        hub.serve(f"jiachenli-ucsb/{repository}/{file}", b"0" * 100)
    (models / "videocrafter2").mkdir(parents=True)
    for file, size in (("unet_mg.pt", 100), ("unet_no_mg.pt", 99)):
        (models / "videocrafter2" / file).write_bytes(b"0" * size)
    found = by_name(online.examine(Options(endpoint=hub.url)))
    assert {name: finding.status for name, finding in found.items()} == {
        "hub": "ok",
        "mg: unet_mg.pt": "ok",
        "no-mg: unet_no_mg.pt": "fail",
    }


def test_no_hub():
    (found,) = online.examine(Options(endpoint="http://127.0.0.1:9"))  # the discard port: nobody listens
    assert found.status == "fail" and "HF_ENDPOINT" in found.remedy


@pytest.fixture
def comfy(tmp_path):
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "custom_nodes" / "turbo").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('__version__ = "9.9.9"\n')
    (folder / "requirements.txt").write_text("torch\n# a comment\nnumpy>=1.0\n--extra-index-url x\n")
    shutil.copy(versions.ROOT / "pyproject.toml", folder / "custom_nodes" / "turbo")
    return folder


def test_comfyui(comfy):
    found = by_name(comfyui.examine(Options(comfyui=comfy)))
    assert {name: finding.status for name, finding in found.items()} == {
        "version": "ok",
        "nodes": "ok",
        "requirements": "ok",
    }


def test_old_and_lacking_comfyui(comfy):
    (comfy / "comfyui_version.py").write_text('__version__ = "0.2.1"\n')
    (comfy / "requirements.txt").write_text("torch\nnumpy>=99\nno-such-library-at-all\n")
    shutil.rmtree(comfy / "custom_nodes")
    found = by_name(comfyui.examine(Options(comfyui=comfy)))
    assert found["version"].status == "fail" and ">=" in found["version"].value
    assert found["nodes"].status == "warn"
    assert found["requirements"].data["lacking"] == ["numpy>=99", "no-such-library-at-all"]


def test_no_comfyui(tmp_path):
    (found,) = comfyui.examine(Options(comfyui=tmp_path))
    assert found.status == "fail" and "main.py" in found.remedy
