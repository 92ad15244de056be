"""Every file format in, ours out, and the errors that a bad file gets."""

import pickle
from dataclasses import replace

import pytest
import torch
from conftest import randomize
from safetensors.torch import load_file, save_file

from t2v_turbo.core import checkpoints
from t2v_turbo.core.checkpoints import CheckpointError
from t2v_turbo.core.config import FamilyConfig, TextConfig, UNetConfig, VAEConfig
from t2v_turbo.core.keymaps import text_key_map, unet_key_map, vae_key_map
from t2v_turbo.core.model import load
from t2v_turbo.core.text import TextEncoder
from t2v_turbo.core.unet import UNet3D
from t2v_turbo.core.vae import VideoVAE

UNET = UNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2, 1),
                  head_channels=16, context_dim=32)  # fmt: skip
VAE = VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1)
TEXT = TextConfig(width=32, heads=2, layers=2, embed_dim=32)
SMALL = FamilyConfig("videocrafter2", UNET, VAE, TEXT, frames=2, height=16, width=16)


def published_unet(config):
    unet = randomize(UNet3D(config), 0)
    return unet, unet_key_map(config, list(unet.state_dict())).to_published(unet.state_dict())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as a user downloads it: model.ckpt, unet_mg.pt and unet_no_mg.pt, of a small size."""
    folder = tmp_path_factory.mktemp("published")
    teacher, unet_state = published_unet(UNET)
    vae, text = randomize(VideoVAE(VAE), 1), randomize(TextEncoder(TEXT), 2)
    vae_state = vae_key_map(VAE, list(vae.model.state_dict())).to_published(vae.model.state_dict())
    text_state = text_key_map(list(text.tower.state_dict())).to_published(text.tower.state_dict())
    merged = {"betas": torch.zeros(1000), "scale_arr": torch.zeros(1400)}
    for kind, state in (("unet", unet_state), ("vae", vae_state), ("text", text_state)):
        merged |= {checkpoints.PUBLISHED_PREFIXES[kind] + key: value for key, value in state.items()}
    torch.save({"state_dict": merged}, folder / "model.ckpt")
    torch.save(published_unet(UNET.as_student(motion=True))[1], folder / "unet_mg.pt")
    torch.save(published_unet(UNET.as_student())[1], folder / "unet_no_mg.pt")
    return folder, teacher, vae, text


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_videocrafter2_checkpoint(published):
    folder, teacher, vae, text = published
    model = load(SMALL, student=None, folder=folder)
    assert not model.is_student
    assert same(model.unet.state_dict(), teacher.state_dict())
    assert same(model.vae.model.state_dict(), vae.model.state_dict())
    assert same(model.text.tower.state_dict(), text.tower.state_dict())


@pytest.mark.parametrize(
    ("student", "motion"), [("mg", True), ("no-mg", False), ("default", True), ("unet_no_mg.pt", False)]
)
def test_students_and_their_conditions(published, student, motion):
    folder = published[0]
    model = load(SMALL, student=folder / student if "." in student else student, folder=folder)
    assert model.is_student
    assert model.unet.takes_motion is motion


def test_loaded_model_samples(published):
    model = load(SMALL, folder=published[0])
    generator = torch.Generator().manual_seed(0)
    latents = model.sample(["a cat"], model.noise(1, generator), steps=2, generator=generator)
    frames = model.decode(latents)
    assert frames.shape == (1, 2, 3, 16, 16)
    assert frames.isfinite().all()


def test_teacher_is_no_student(published):
    with pytest.raises(CheckpointError, match="is a teacher"):
        load(SMALL, student=published[0] / "model.ckpt", folder=published[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_own_format(tmp_path, dtype):
    """What is saved comes back with its sizes, whatever configuration the reader expected."""
    config = replace(UNET, norm_groups=8).as_student(motion=True)
    unet, path = randomize(UNet3D(config), 0), tmp_path / "student.safetensors"
    checkpoints.save_unet(unet, path, dtype, note="a test")
    loaded = checkpoints.load_unet(path, UNET)
    assert loaded.config == config
    assert loaded.dtype == torch.float32
    assert same(loaded.state_dict(), {k: v.to(dtype).float() for k, v in unet.state_dict().items()})
    assert checkpoints.read_state(path)[1]["note"] == "a test"
    assert [file.name for file in tmp_path.iterdir()] == ["student.safetensors"]


def test_own_vae_and_text(random_shapes):
    model = load("shapes", folder=random_shapes)
    assert model.vae.config.norm_groups == 8
    tokens = model.text.tokenize(["a red circle moves right"])
    assert (tokens != 0).sum() == 7  # start, five words that are one token each, end


def test_wrong_kind_of_own_file(random_shapes):
    with pytest.raises(CheckpointError, match="holds a vae, but a unet was expected"):
        checkpoints.load_unet(random_shapes / "vae.safetensors", UNET)


# --- bad files ----------


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.safetensors"])
def test_missing_empty_and_garbage(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"no such checkpoint file"):
        checkpoints.load_unet(tmp_path / name, UNET)
    with pytest.raises(CheckpointError, match=r"is empty \(0 bytes\)"):
        checkpoints.load_unet(write(tmp_path / name, b""), UNET)
    with pytest.raises(CheckpointError, match=name):
        checkpoints.load_unet(write(tmp_path / name, b"<html>Entry not found</html>" * 10), UNET)


@pytest.mark.parametrize("name", ["model.ckpt", "unet_mg.pt"])
def test_truncated(published, tmp_path, name):
    content = (published[0] / name).read_bytes()
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoints.load_unet(write(tmp_path / name, content[: len(content) // 2]), UNET)


def test_truncated_safetensors(random_shapes, tmp_path):
    content = (random_shapes / "student.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoints.load_unet(write(tmp_path / "s.safetensors", content[:-100]), UNET)


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("writer", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_pickled_code_does_not_run(tmp_path, writer):
    path, target = tmp_path / "evil.ckpt", tmp_path / "ran"
    writer({"state_dict": Trap(target)}, path)
    with pytest.raises(CheckpointError, match="other than tensors"):
        checkpoints.load_unet(path, UNET)
    assert not target.exists()


@pytest.mark.parametrize(
    "content", [[torch.zeros(2, 1), torch.zeros(1, 2)], {"input_blocks.0.0.lora_up.weight": torch.zeros(2, 1)}]
)
def test_lora_is_recognised(tmp_path, content):
    path = tmp_path / "unet_lora.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"T2V-Turbo v1.*not supported yet"):
        checkpoints.load_unet(path, UNET)


@pytest.mark.parametrize("content", [[], {}, {"step": 3}, torch.zeros(3)])
def test_not_a_state_dict(tmp_path, content):
    path = tmp_path / "unet.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="no state dict of tensors"):
        checkpoints.load_unet(path, UNET)


def test_foreign_model(tmp_path):
    path = tmp_path / "sd.safetensors"
    save_file({"model.diffusion_model.middle.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"holds no unet of VideoCrafter2's architecture.*use model.ckpt"):
        checkpoints.load_unet(path, UNET)


def test_other_size_and_missing_keys(published, tmp_path):
    path = published[0] / "unet_mg.pt"
    with pytest.raises(CheckpointError, match="have another shape"):
        checkpoints.load_unet(path, replace(UNET, context_dim=64))
    state = torch.load(path, weights_only=True)
    state.pop("out.2.bias")
    torch.save(state, tmp_path / "unet_mg.pt")
    with pytest.raises(CheckpointError, match=r"1 weights are missing \(first: \['conv_out.bias'\]\)"):
        checkpoints.load_unet(tmp_path / "unet_mg.pt", UNET)


def test_a_failed_save_leaves_nothing(tmp_path):
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError):
        checkpoints.save_tensors({"a": shared, "b": shared}, tmp_path / "x.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_the_folder_shows_them(tmp_path):
    tmp_path.chmod(0o755)
    checkpoints.save_tensors({"a": torch.zeros(4)}, tmp_path / "x.safetensors", {})
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown model 'sora'; known are shapes, videocrafter2"):
        load("sora")
    with pytest.raises(ValueError, match="unknown student 'fast'"):
        load("shapes", student="fast")


def test_half_precision_files_are_half_the_size(tmp_path):
    unet = UNet3D(UNET)
    checkpoints.save_unet(unet, tmp_path / "a.safetensors")
    checkpoints.save_unet(unet, tmp_path / "b.safetensors", torch.float16)
    assert (tmp_path / "b.safetensors").stat().st_size < 0.6 * (tmp_path / "a.safetensors").stat().st_size
    assert next(iter(load_file(tmp_path / "b.safetensors").values())).dtype == torch.float16
