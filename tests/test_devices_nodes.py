"""What the nodes do keeps its tensors together on a card: see ``test_devices``."""

import pytest
import torch
from simulated_cuda import needs_simulated_card, on_card
from test_nodes import PROMPT, empty, encode, load, run

from t2v_turbo.nodes.host.plain import PlainHost
from t2v_turbo.nodes.runtime.motion_guidance import MotionGuide, motion_shift

TEACHER = "shapes teacher (embedded)"
TEACHING = {"seed": 3, "steps": 2, "cfg": 7.5, "fps": 0}


def images(frames=8):
    return torch.rand(frames, 64, 64, 3, generator=torch.Generator().manual_seed(0))


def student(device):
    model, clip, vae = load("shapes with motion guidance (embedded)")
    settings = {"seed": 3, "steps": 2, "guidance": 7.5, "fps": 0, "motion_strength": 500.0, "tau": 0.5}
    (latent,) = run("T2VTurboSampler", model=model, positive=encode(clip), latent=empty(), **settings)
    return vae.decode(latent["samples"])


def encoded(device):
    vae = load()[2]
    return vae.encode_tiled(images(2), 32, 32, 8)


def read_motion(model, clip, vae):
    reading = {"method": "noise", "inversion_steps": "50", "steps": 2, "tau": 1.0, "timestep": 999, "seed": 0}
    inputs = {"model": model, "vae": vae, "positive": encode(clip), "images": images(), "latent": empty()}
    return run("T2VTurboMotionPrior", **inputs, **reading)[0]


def teacher(device, guided=False):
    model, clip, vae = load(TEACHER)
    motion = {"motion": read_motion(model, clip, vae), "motion_strength": 500.0, "tau": 1.0} if guided else {}
    prompts = {"positive": encode(clip), "negative": encode(clip, "")}
    return run("T2VTurboTeacherSampler", model=model, **prompts, latent=empty(), **TEACHING, **motion)[0]["samples"]


def guided_teacher(device):
    return teacher(device, guided=True)


def guided_native_sampler(device):
    """A post-CFG function's arguments lie where ComfyUI samples."""
    model, clip, vae = load(TEACHER)
    network, guide = model.get_model_object("diffusion_model"), MotionGuide(read_motion(model, clip, vae), 500.0, 1.0)
    sigmas = torch.tensor([14.6, 5.0, 0.0], device=device)
    options = model.model_options
    options["transformer_options"]["sample_sigmas"] = sigmas
    args = {
        "sigma": sigmas[:1], "model_options": options,
        "input": images()[:, :8, :8].movedim(-1, 1)[:, [0, 1, 2, 0]].to(device),
        "cond": [{"cross_attn": encode(clip)[0][0].to(device)}],
    }  # fmt: skip
    return motion_shift(network, guide, args)


def scores(device):
    choice = {"reward": "shapes mixture (embedded)", "hps_weight": 1.0, "clip_weight": 1.0, "internvideo2_weight": 1.0}
    (reward,) = run("T2VTurboRewardLoader", **choice, long_prompts="segments", precision="fp32")
    return torch.tensor(run("T2VTurboRewardScorer", reward=reward, images=images(), prompt=PROMPT)[0])


PATHS = [student, encoded, teacher, guided_teacher, guided_native_sampler, scores]


@needs_simulated_card
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_devices_are_not_mixed(path, monkeypatch):
    def there(device):
        monkeypatch.setattr(PlainHost, "_device", lambda self: torch.device(device))
        return path(device)

    on_card(there)
