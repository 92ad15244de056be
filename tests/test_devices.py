"""Everything that runs on a card keeps its tensors together: on a card that is simulated, and on one if there is one.

Under FakeTensorMode a CUDA tensor exists without a card, and an operation that mixes devices raises, as on a card. What
reads values is tried on ``simulated_cuda``, whose tensors have some.
"""

from contextlib import nullcontext

import pytest
import torch
from conftest import randomize
from simulated_cuda import needs_simulated_card, on_card, simulated_card
from torch._subclasses.fake_tensor import FakeTensorMode

from t2v_turbo.core import pipeline
from t2v_turbo.core.checkpoints.locations import PACKAGED_WEIGHTS
from t2v_turbo.core.diffusion.distillation import Batch, ConsistencyDistillation
from t2v_turbo.core.diffusion.guidance import COMBINATIONS
from t2v_turbo.core.diffusion.schedule import NoiseSchedule
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.motion.inversion import prior_latents
from t2v_turbo.core.motion.prior import Origin, make_prior
from t2v_turbo.core.motion.probe import read_reference
from t2v_turbo.core.motion.score import motion_score
from t2v_turbo.core.networks.text import TextEncoder
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.networks.vae import VideoVAE
from t2v_turbo.core.pipeline import Pipeline
from t2v_turbo.core.rewards import RewardMixture, build_reward, load_reward
from t2v_turbo.core.rewards.loss import Guards, RewardLoss
from t2v_turbo.core.rewards.models.config import CLIPConfig, ViTConfig

MERGES = PACKAGED_WEIGHTS / "shapes" / SHAPES.text.merges
SIZE = (1, 4, 4, 8, 8)


def family(device, student=True, motion=False) -> Pipeline:
    """The embedded family's networks on a device, the text encoder on the CPU."""
    config = SHAPES.unet.as_student(motion) if student else SHAPES.unet
    with torch.device(device):  # fake modules cannot be moved
        unet, vae = UNet3D(config), VideoVAE(SHAPES.vae)
    text = TextEncoder(SHAPES.text, MERGES)
    for network in (unet, vae, text):
        randomize(network, 0).requires_grad_(False)
    return Pipeline(SHAPES, unet, vae, text)


def noise(device) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(0)).to(device)


def student(device):
    model, generator = family(device), torch.Generator().manual_seed(1)
    return model.sample(["a red circle"], noise(device), 2, generator=generator)


def student_with_motion(device):
    model, generator = family(device, motion=True), torch.Generator().manual_seed(1)
    return model.sample(["a red circle"], noise(device), 2, generator=generator, motion=500.0)


def teacher(device):
    return family(device, student=False).sample(["a red circle"], noise(device), 2)


def initial_noise(device):
    return family(device).noise(2, [torch.Generator().manual_seed(i) for i in range(2)])


def encode_and_decode(device):
    vae = family(device).vae
    frames = torch.rand(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return vae.decode(vae.encode(frames, torch.Generator().manual_seed(1)), chunk=2)


def decode_to_the_cpu(device):
    frames = family(device).decode(noise(device))
    assert frames.device.type == "cpu"
    return frames


def text(device):
    return family(device).encode(["a red circle", "a blue cross"])


def read_attention(device):
    model = family(device, student=False)
    found = read_reference(model.unet, noise(device), torch.tensor([500]), model.encode(["a red circle"]))
    return next(iter(found.values())).value


def inverted_latents(device):
    model = family(device, student=False)
    context = model.encode(["a red circle"])

    def eps_model(x, t):
        return model.unet(x, t.to(x.device), context)

    return prior_latents(eps_model, noise(device), [19, 35], model.schedule, "ddim", 50).latents[35]


def noised_latents(device):
    generator = torch.Generator().manual_seed(2)
    return prior_latents(None, noise(device), [400], NoiseSchedule(), "noise", generator=generator).latents[400]


def prior_of(model, device):
    origin = Origin("shapes", method="noise")
    generator, context = torch.Generator().manual_seed(2), model.encode(["a red circle"])
    return make_prior(model.unet, noise(device), context, [999], model.schedule, origin, generator=generator)


def prior(device):
    return next(iter(prior_of(family(device, student=False), device).at(999).values())).value


def batch_on(device, score=True) -> Batch:
    drawn = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(3)).to(device)
    context = torch.randn(1, 77, SHAPES.unet.context_dim, generator=torch.Generator().manual_seed(4)).to(device)
    flags = torch.tensor([True]).to(device) if score else None
    index = torch.tensor([150]).to(device)
    return Batch(drawn[0], index, drawn[1], drawn[2], context, drawn[3] if score else None, flags)


def distillation_step(device, motion=True, target=False):
    net = family(device, motion=motion).unet
    loss = ConsistencyDistillation(NoiseSchedule(), motion=500.0 if motion else None)
    omega = torch.tensor([7.0]).to(device)
    return loss(net, batch_on(device, motion), omega, family(device, motion=motion).unet if target else None).loss


def distillation_step_with_target(device):
    return distillation_step(device, target=True)


def plain_distillation_step(device):
    return distillation_step(device, motion=False)


def image_reward(device, name="clip"):
    vision = ViTConfig(image_size=16, patch_size=8, width=16, heads=2, layers=1)
    square = {"clip": "squash", "hps": "pad", "pickscore": "crop"}[name]
    config = CLIPConfig(vision, SHAPES.text, square)
    with torch.device(device):
        model = build_reward(name, config, MERGES.parent)
    return randomize(model, 0).requires_grad_(False)


def reward(device, name="clip"):
    frames = torch.rand(2, 3, 3, 24, 32, generator=torch.Generator().manual_seed(5)).to(device)
    model = image_reward(device, name)
    encoded = model.encode_frames(frames)
    return model.rate(encoded, ["a red circle", "a blue cross"])


def hps(device):
    return reward(device, "hps")


def pickscore(device):
    return reward(device, "pickscore")


def video_reward(device):
    frames = torch.rand(1, 8, 3, 64, 64, generator=torch.Generator().manual_seed(5)).to(device)
    model = load_reward("internvideo2", None, "shapes", device, torch.float32)
    return model.score(frames, ["a red circle moves left"])


def reward_loss(device):
    model = family(device)
    mixture = RewardMixture({"clip": image_reward(device)}, {"clip": 1.0})
    loss = RewardLoss(mixture, model.vae.decode, Guards(teacher=0.1))
    latents = noise(device).requires_grad_()
    flags, alpha_bar = torch.tensor([True]), torch.tensor([0.5])
    values = loss(latents, ["a red circle"], flags, noise(device), alpha_bar, 0, torch.Generator().manual_seed(6))
    (values["reward_loss"] + values["teacher_loss"]).backward()
    return latents.grad


def score(device):
    model = family(device, student=False)
    context, t = model.encode(["a red circle"]), torch.tensor([999])
    reference = prior_of(model, device).at(999)
    return motion_score(model.unet, noise(device), t, context, reference).score


def guided_teacher(device, combination="released"):
    model = family(device, student=False)
    guide = {"prior": prior_of(model, device), "motion": 100.0, "combination": combination}
    return model.sample(["a blue cross"], noise(device), 2, **guide)


def guided_teacher_by_equation8(device):
    assert "equation8" in COMBINATIONS
    return guided_teacher(device, "equation8")


PATHS = [
    initial_noise, encode_and_decode, decode_to_the_cpu, text, read_attention,
    noised_latents, prior, distillation_step, distillation_step_with_target, plain_distillation_step,
]  # fmt: skip
# These read values, which fake tensors have not.
WITH_VALUES = [
    student, student_with_motion, teacher, inverted_latents, reward, hps, pickscore, video_reward, score,
    guided_teacher, guided_teacher_by_equation8,
]  # fmt: skip
# Autograd asks the driver for a stream.
ON_A_CARD_ALONE = [reward_loss]
ALL = [*PATHS, *WITH_VALUES, *ON_A_CARD_ALONE]


@needs_simulated_card
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_fake_devices_are_not_mixed(path, monkeypatch):
    monkeypatch.setattr(pipeline, "free_memory", lambda device: 1 << 40)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        found = path("cuda")
    assert found.device.type == ("cpu" if path in (decode_to_the_cpu, prior) else "cuda")


@needs_simulated_card
@pytest.mark.parametrize("path", [*PATHS, *WITH_VALUES], ids=lambda path: path.__name__)
def test_devices_are_not_mixed(path):
    assert on_card(path).device.type == ("cpu" if path in (decode_to_the_cpu, prior) else "cuda")


def test_mixing_is_noticed():
    """The harness itself can fail."""
    for simulation in (FakeTensorMode(), simulated_card()):
        with simulation, pytest.raises(RuntimeError, match="device"):
            torch.ones(2, device="cuda") + torch.ones(2)


class WithoutFloat64(torch.utils._python_dispatch.TorchDispatchMode):
    """Raises where a result is float64 or complex128, which mps does not have."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for one in torch.utils._pytree.tree_leaves(found):
            if isinstance(one, torch.Tensor) and not one.is_meta and one.dtype in (torch.float64, torch.complex128):
                raise AssertionError(f"{func} makes {one.dtype}, which mps does not have")
        return found


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.__name__)
def test_no_numbers_that_mps_lacks(path):
    grad = nullcontext() if path in (*WITH_VALUES, *ON_A_CARD_ALONE) else torch.no_grad()
    with WithoutFloat64(), grad:
        assert path("cpu").isfinite().all()


def test_float64_is_noticed():
    with WithoutFloat64(), pytest.raises(AssertionError, match="mps does not have"):
        torch.ones(2).double()


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator here")
@pytest.mark.parametrize("path", ALL, ids=lambda path: path.__name__)
def test_an_accelerator_gives_what_the_cpu_gives(path):
    device = torch.accelerator.current_accelerator()
    grad = nullcontext() if path in (*WITH_VALUES, *ON_A_CARD_ALONE) else torch.no_grad()
    with grad:
        found, expected = path(device).float().cpu(), path("cpu").float()
    assert found.isfinite().all()
    assert (found - expected).norm() <= 2e-2 * expected.norm() + 1e-6
