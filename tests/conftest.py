"""Loads the repository root as the package ``t2v_turbo``, as ComfyUI does, whatever the checkout's folder is called."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

if "t2v_turbo" not in sys.modules:
    init = ROOT / "__init__.py"
    spec = importlib.util.spec_from_file_location("t2v_turbo", init, submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["t2v_turbo"] = module
    spec.loader.exec_module(module)


def randomize(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights in place of fresh ones, whose zero-initialised layers would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(noise * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return network.eval()


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Each test may train in another precision, which accelerate allows once a process."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(scope="session")
def random_shapes(tmp_path_factory):
    """A folder with the embedded family's files, of random weights and the real sizes."""
    from t2v_turbo.core.checkpoints import networks
    from t2v_turbo.core.checkpoints.locations import PACKAGED_WEIGHTS
    from t2v_turbo.core.families import SHAPES
    from t2v_turbo.core.networks.text import TextEncoder
    from t2v_turbo.core.networks.unet import UNet3D
    from t2v_turbo.core.networks.vae import VideoVAE

    folder = tmp_path_factory.mktemp("shapes")
    merges = folder / SHAPES.text.merges
    shutil.copy(PACKAGED_WEIGHTS / "shapes" / SHAPES.text.merges, merges)
    networks.save_unet(randomize(UNet3D(SHAPES.unet), 0), folder / "teacher.safetensors")
    networks.save_unet(randomize(UNet3D(SHAPES.unet.as_student()), 1), folder / "student.safetensors")
    networks.save_vae(randomize(VideoVAE(SHAPES.vae), 2), folder / "vae.safetensors")
    networks.save_text(randomize(TextEncoder(SHAPES.text, merges), 3), folder / "text.safetensors")
    return folder
