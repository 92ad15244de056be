"""Devices and precisions by name, and what loading does to memory."""

import argparse
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, randomize

from t2v_turbo.core import device as devices
from t2v_turbo.core import pipeline
from t2v_turbo.core.checkpoints.networks import load_unet, save_unet
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.pipeline import MAX_CHUNK, load
from t2v_turbo.train.commands.options import add_device_arguments


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cpu", None, "fp32"),
        ("mps", None, "fp16"),
        ("xpu", None, "bf16"),
        ("cuda", 9, "bf16"),
        ("cuda", 8, "bf16"),
        ("cuda", 7, "fp16"),
        ("cuda:1", 6, "fp16"),
    ],
)
def test_auto_is_what_a_device_is_fast_in(device, capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.setattr(torch, "version", SimpleNamespace(hip=None))
    device = torch.device(device)
    assert devices.dtype_name(devices.pick_dtype("auto", device)) == expected
    safe = "fp32" if expected == "fp16" else expected
    assert devices.dtype_name(devices.pick_dtype("auto", device, devices.WIDE_PRECISIONS)) == safe
    for name in devices.DTYPES:
        assert devices.dtype_name(devices.pick_dtype(name, device)) == name


def test_refusals():
    with pytest.raises(ValueError, match="precision 'fp8' is unknown; use auto, fp32, bf16, fp16"):
        devices.pick_dtype("fp8", torch.device("cpu"))
    with pytest.raises(ValueError, match="--device cuda:99 cannot be used here"):
        devices.pick_device("cuda:99")


def test_free_memory_of_this_machine():
    assert 2**20 < devices.free_memory(torch.device("cpu")) < 2**50


def test_every_command_with_a_precision_chooses_it_itself():
    """No command but those with a reason of their own declares --dtype by hand."""
    parser = argparse.ArgumentParser()
    add_device_arguments(parser)
    assert parser.parse_args([]).dtype == "auto"
    files = {path.relative_to(ROOT / "train").as_posix(): path.read_text() for path in (ROOT / "train").rglob("*.py")}
    declaring = {name for name, text in files.items() if '"--dtype"' in text}
    # The doctor looks at every precision unless one is named.
    assert declaring == {
        "commands/options.py", "commands/doctor.py", "commands/experiments/memory.py",
        "commands/experiments/reward_cost.py",
    }  # fmt: skip
    assert all('default="auto"' in files[name] for name in declaring - {"commands/doctor.py"})


def test_weights_arrive_in_the_precision_asked_for(tmp_path):
    unet = randomize(UNet3D(SHAPES.unet), 0)
    for stored in devices.DTYPES.values():
        save_unet(unet, tmp_path / "unet.safetensors", stored)
        for wanted in devices.DTYPES.values():
            found = load_unet(tmp_path / "unet.safetensors", SHAPES.unet, "cpu", wanted)
            assert {weight.dtype for weight in found.state_dict().values()} == {wanted}
            expected = unet.conv_in.weight.to(stored).to(wanted)
            assert torch.equal(found.conv_in.weight, expected)


LOAD = """
import sys, torch
from t2v_turbo.core.checkpoints.networks import load_unet
from t2v_turbo.core.families import UNetConfig

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

before = status("VmRSS")
unet = load_unet(sys.argv[1], UNetConfig(model_channels=160), dtype=torch.bfloat16)
stays = sum(weight.numel() * weight.element_size() for weight in unet.parameters())
print((status("VmHWM") - before) / stays, stays)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of a process's memory")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_loading_needs_little_more_than_what_stays(tmp_path, suffix):
    """A file of fp32 becomes bf16 with 1.3 times the bytes that stay at most, the file's own pages counted."""
    from t2v_turbo.core.checkpoints.key_maps import unet_key_map
    from t2v_turbo.core.networks.config import UNetConfig

    config = UNetConfig(model_channels=160)
    with torch.device("meta"):
        state = UNet3D(config).state_dict()
    state = {name: torch.zeros(value.shape) for name, value in state.items()}
    path = tmp_path / f"unet{suffix}"
    published = unet_key_map(config, list(state)).to_published(state)
    if suffix == ".pt":
        torch.save(published, path)
    else:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in published.items()}, path)
    code = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import conftest\n{LOAD}"]
    found = subprocess.run([*code, str(path)], capture_output=True, text=True, check=True).stdout.split()
    ratio, stays = float(found[0]), int(found[1])
    assert stays > 500 * 2**20
    assert ratio < 1.3


@torch.no_grad()
def test_the_text_encoder_visits_the_unets_device(random_shapes):
    """On a card it takes memory for the time of an encoding alone; the result is that of a tower which stays."""
    model = load("shapes", folder=random_shapes)
    expected = model.text.encode(["a red circle"])
    assert torch.equal(model.encode(["a red circle"]), expected)
    model.unet.to("meta")
    assert model.encode(["a red circle"]).device.type == "meta"
    assert model.text.device.type == "cpu"
    assert torch.equal(model.text.encode(["a red circle"]), expected)


@torch.no_grad()
def test_the_decoders_chunk_follows_the_free_memory(random_shapes, monkeypatch):
    model, asked = load("shapes", folder=random_shapes), []
    decode = model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda latents, chunk: asked.append(chunk) or decode(latents, chunk))
    latents = torch.zeros(1, 4, 8, 8, 8)
    frame = model.vae.frame_memory(8, 8)
    for free in (0, 2 * frame, 7 * frame, 1 << 50):
        monkeypatch.setattr(pipeline, "free_memory", lambda device, free=free: free)
        model.decode(latents)
    model.decode(latents, chunk=5)
    assert asked == [1, 1, 3, MAX_CHUNK, 5]
