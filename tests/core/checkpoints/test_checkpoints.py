"""Every file format in, ours out, and the errors that a bad file gets."""

import argparse
import json
import pickle
import shutil
import sys
import types
import zipfile
from collections import defaultdict
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
import torch
from conftest import randomize
from omegaconf import OmegaConf
from published import SMALL, TEXT, UNET, VAE, published_keys, published_parts, published_unet, same
from safetensors.torch import load_file, save_file

from t2v_turbo.core.checkpoints import networks as checkpoints
from t2v_turbo.core.checkpoints import wrappers
from t2v_turbo.core.checkpoints.networks import CheckpointError
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.pipeline import load
from t2v_turbo.nodes.runtime import models


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as a user downloads it: model.ckpt, unet_mg.pt and unet_no_mg.pt, of a small size."""
    folder = tmp_path_factory.mktemp("published")
    networks, states = published_parts()
    torch.save({"state_dict": published_keys(states)}, folder / "model.ckpt")
    torch.save(published_unet(UNET.as_student(motion=True))[1], folder / "unet_mg.pt")
    torch.save(published_unet(UNET.as_student())[1], folder / "unet_no_mg.pt")
    return folder, *networks


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
    ("content", "found"),
    [
        ([torch.zeros(2, 1), torch.zeros(1, 2)], "a bare list of 2 factors"),
        ({"input_blocks.0.0.lora_up.weight": torch.zeros(2, 1)}, "a LoRA of 1 tensors"),
    ],
)
def test_a_lora_is_no_unet(tmp_path, content, found):
    path = tmp_path / "unet_lora.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"is a LoRA.*{found[-9:]}; give it with --lora, or.*--student"):
        checkpoints.load_unet(path, UNET)


def nested(depth):
    return {"in": nested(depth - 1)} if depth else {"weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([], "a list of 0"),
        ({}, "nothing"),
        ({"step": 3, "args": "x"}, "the entries step, args"),
        (torch.zeros(3), r"one tensor of shape \[3\]"),
        ({"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1.0}]}, "an optimiser's state"),
        (nested(100), "dictionaries nested more than 8 deep"),
    ],
)
def test_not_a_state_dict(tmp_path, content, found):
    path = tmp_path / "unet.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"no state dict of tensors but {found}"):
        checkpoints.load_unet(path, UNET)


def test_foreign_model(tmp_path):
    path = tmp_path / "sd.safetensors"
    save_file({"model.diffusion_model.middle.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"holds no unet of VideoCrafter2's.*an unknown model.*use model.ckpt"):
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


# --- wrappers ----------


class Settings:
    """As a trainer pickles its options beside the weights."""


def lightning(state):
    callbacks = {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}}
    optimiser = {"state": {0: {"step": torch.tensor(3), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": callbacks,
        "optimizer_states": [optimiser],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(lr=1e-4, folder=PurePosixPath("runs")),
    }


def foreign_class(monkeypatch):
    """A class of a library that need not be there when the file is read; older trainers kept some as keys."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for each in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, each, types.ModuleType(each))
    sys.modules[name].ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    return sys.modules[name].ModelCheckpoint


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def compiled_inside(state):
    return {key.replace("blocks.0.", "blocks.0._orig_mod.", 1): value for key, value in state.items()}


WRAPPERS = {
    "ddp": prefixed("module."),
    "compile": prefixed("_orig_mod."),
    "ddp of compile": prefixed("module._orig_mod."),
    "compile inside": compiled_inside,
    "fsdp": lambda state: {f"_fsdp_wrapped_module.{part}._fsdp_wrapped_module._checkpoint_wrapped_module.{rest}": value
                           for key, value in state.items() for part, _, rest in [key.partition(".")]},
    "comfyui": prefixed("diffusion_model."),
    "model": prefixed("model."),
    "unet": prefixed("unet."),
    "own name": prefixed("model.diffusion_model.unet."),
    "entry model": lambda state: {"model": state},
    "entry module": lambda state: {"module": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 1},
    "entry unet": lambda state: {"unet": state, "step": torch.tensor(3)},
    "entry in entry": lambda state: {"model": {"state_dict": state}},
    "same twice": lambda state: {"model": state, "state_dict": state},
    "lightning": lambda state: lightning(prefixed("model.")(state)),
    "lightning, ddp, compile": lambda state: lightning(prefixed("model.module._orig_mod.")(state)),
    "averaged model": lambda state: {"n_averaged": torch.tensor(7)} | prefixed("module.")(state),
}


@pytest.mark.parametrize("names", ["published", "ours"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_unets(tmp_path, wrapper, names):
    unet, state = published_unet(UNET.as_student(motion=True))
    torch.save(WRAPPERS[wrapper](state if names == "published" else unet.state_dict()), tmp_path / "unet.pt")
    loaded = checkpoints.load_unet(tmp_path / "unet.pt", UNET)
    assert loaded.takes_motion
    assert same(loaded.state_dict(), unet.state_dict())


@pytest.mark.parametrize("wrapper", ["ddp", "compile", "lightning", "entry module", "entry in entry"])
def test_wrapped_parts(published, tmp_path, wrapper):
    _, unet, vae, text = published
    state = torch.load(published[0] / "model.ckpt", weights_only=True)["state_dict"]
    torch.save(WRAPPERS[wrapper](state), tmp_path / "model.ckpt")
    model = load(SMALL, student=None, folder=tmp_path)
    assert same(model.unet.state_dict(), unet.state_dict())
    assert same(model.vae.model.state_dict(), vae.model.state_dict())
    assert same(model.text.tower.state_dict(), text.tower.state_dict())


@pytest.mark.parametrize("part", ["vae", "text"])
@pytest.mark.parametrize("wrapper", ["ddp", "compile", "entry model"])
def test_wrapped_single_parts(published, tmp_path, part, wrapper):
    """A bare autoencoder or text tower by its published names, and by ours."""
    network, loader, config = {
        "vae": (published[2].model, checkpoints.load_vae, VAE),
        "text": (published[3].tower, checkpoints.load_text, TEXT),
    }[part]
    for state in (published_parts()[1][part], network.state_dict()):
        torch.save(WRAPPERS[wrapper](state), tmp_path / "part.pt")
        loaded = loader(tmp_path / "part.pt", config)
        assert same(getattr(loaded, "model" if part == "vae" else "tower").state_dict(), network.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".PT"])
def test_other_precisions_and_suffixes(tmp_path, dtype, suffix):
    state = {f"module.{key}": value.to(dtype) for key, value in published_unet(UNET)[1].items()}
    path = tmp_path / f"unet{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    expected = {key: value.to(dtype).float() for key, value in published_unet(UNET)[0].state_dict().items()}
    assert same(checkpoints.load_unet(path, UNET).state_dict(), expected)


def test_files_of_before_torch_16(tmp_path):
    unet, state = published_unet(UNET)
    torch.save({"model": state}, tmp_path / "unet.pth", _use_new_zipfile_serialization=False)
    assert same(checkpoints.load_unet(tmp_path / "unet.pth", UNET).state_dict(), unet.state_dict())


def doubled(state):
    return {key: 2 * value for key, value in state.items()}


def latent_diffusion(raw):
    """Its average goes by the model's keys without dots, beside the raw weights."""
    full = prefixed("model.diffusion_model.")(raw)
    average = {"model_ema." + key[len("model.") :].replace(".", ""): value for key, value in doubled(full).items()}
    counters = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(1)}
    return {"state_dict": full | average | counters}


@pytest.mark.parametrize(
    "wrapper",
    [
        *(lambda raw, name=name: {"state_dict": raw, name: doubled(raw)}
          for name in ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "params_ema")),
        lambda raw: {"model": prefixed("model.diffusion_model.")(raw), "ema": prefixed("module.")(doubled(raw))},
        lambda raw: {"unet": raw, "unet_ema": doubled(raw)},
        lambda raw: lightning(prefixed("unet.")(raw) | prefixed("ema_model.")(doubled(raw))),
        lambda raw: {"ema": doubled(raw), "optimizer": {"state": {}, "param_groups": []}},
        latent_diffusion,
    ],
)  # fmt: skip
def test_the_moving_average_is_preferred_and_told_once(tmp_path, caplog, wrapper):
    unet, raw = published_unet(UNET)
    wrappers._tell.cache_clear()  # the folders of tests have the same name one after another
    torch.save(wrapper(raw), tmp_path / "run.ckpt")
    for _ in range(2):
        loaded = checkpoints.load_unet(tmp_path / "run.ckpt", UNET)
    assert same(loaded.state_dict(), doubled(unet.state_dict()))
    told = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert "moving average of the unet's weights" in told[0].getMessage()


def test_what_an_average_leaves_out_is_raw(tmp_path):
    """Frozen weights are in no average."""
    unet, raw = published_unet(UNET)
    average = {key: value for key, value in doubled(raw).items() if not key.startswith("out.")}
    torch.save({"model": raw, "ema": average}, tmp_path / "run.pt")
    loaded = checkpoints.load_unet(tmp_path / "run.pt", UNET).state_dict()
    assert torch.equal(loaded["conv_out.weight"], unet.conv_out.weight)
    assert torch.equal(loaded["conv_in.weight"], 2 * unet.conv_in.weight)


@pytest.mark.parametrize(
    ("wrapper", "refusal"),
    [
        (lambda raw: {"model": raw, "module": doubled(raw)}, "entries model, module, and no rule says which"),
        (lambda raw: {"unet": raw, "teacher": doubled(raw)}, "2 networks of the kind unet, under 'teacher.', 'unet.'"),
        (lambda raw: {"ema": raw, "ema_unet": raw.copy()}, "2 networks of the kind unet, under 'ema.', 'ema_unet.'"),
        (lambda raw: raw | prefixed("module.")(raw), r"\d+ weights twice, with and without 'module.'"),
    ],
)
def test_what_could_be_meant_twice_is_refused(tmp_path, wrapper, refusal):
    torch.save(wrapper(published_unet(UNET)[1]), tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=refusal):
        checkpoints.load_unet(tmp_path / "run.pt", UNET)


def test_settings_beside_the_weights_are_neither_built_nor_trusted(tmp_path, monkeypatch):
    """Known classes of settings are passed over; any other is named, and nothing is loaded."""
    unet, state = published_unet(UNET)
    torch.save({"state_dict": state, "hyper_parameters": defaultdict(list, a=[1])}, tmp_path / "a.ckpt")
    assert same(checkpoints.load_unet(tmp_path / "a.ckpt", UNET).state_dict(), unet.state_dict())
    config = OmegaConf.create({"unet": {"channels": [32, 64]}, "lr": 1e-4})
    with monkeypatch.context() as patch:
        callbacks = {foreign_class(patch): {"best": 1}}
        torch.save({"state_dict": state, "hyper_parameters": config, "callbacks": callbacks}, tmp_path / "c.ckpt")
    assert same(checkpoints.load_unet(tmp_path / "c.ckpt", UNET).state_dict(), unet.state_dict())
    torch.save({"state_dict": state, "args": Settings()}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match=r"other than tensors \(test_checkpoints\.Settings\).*\.safetensors"):
        checkpoints.load_unet(tmp_path / "b.ckpt", UNET)


def test_stand_ins_do_not_stay(tmp_path):
    torch.save({"state_dict": published_unet(UNET)[1], "args": argparse.Namespace(a=1)}, tmp_path / "a.ckpt")
    before = set(torch.serialization.get_safe_globals())
    checkpoints.load_unet(tmp_path / "a.ckpt", UNET)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (("time_embed.0.weight", "input_blocks.1.1.norm.weight"), "a UNet of latent diffusion"),
        (("model.diffusion_model.label_emb.0.0.weight", "model.diffusion_model.time_embed.0.weight"), "an SDXL"),
        (("down_blocks.0.attentions.0.norm.weight", "time_embedding.linear_1.weight"), "a diffusers UNet2DCondition"),
        (("down_blocks.0.temp_convs.0.conv1.0.weight", "time_embedding.linear_1.bias"), "a diffusers UNet3DCondition"),
        (("first_stage_model.encoder.down.0.block.0.norm1.weight",), "an autoencoder"),
        (("visual.conv1.weight", "transformer.resblocks.0.ln_1.weight"), "an OpenCLIP model of two towers"),
        (("layers.0.weight",), r"an unknown model \(its 1 keys begin with \['layers.0.weight'\]\)"),
    ],
)
def test_other_models_are_named(tmp_path, keys, found):
    save_file({key: torch.zeros(2) for key in keys}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=f"holds no unet of VideoCrafter2's architecture but {found}.*; use"):
        checkpoints.load_unet(tmp_path / "other.safetensors", UNET)


# --- shards ----------


def shard(folder, state, suffix=".safetensors", name="model", parts=3):
    """Save a state dict in parts with their index, as transformers and diffusers do; returns the index."""
    keys = sorted(state)
    names = [f"{name}-{i + 1:05}-of-{parts:05}{suffix}" for i in range(parts)]
    for i, file in enumerate(names):
        part = {key: state[key] for key in keys[i::parts]}
        save_file(part, folder / file) if suffix == ".safetensors" else torch.save(part, folder / file)
    weight_map = {key: names[i % parts] for i, key in enumerate(keys)}
    index = folder / f"{name}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize(("suffix", "name"), [(".safetensors", "model"), (".bin", "pytorch_model")])
def test_shards(tmp_path, suffix, name):
    unet, state = published_unet(UNET)
    index = shard(tmp_path, state, suffix, name)
    for path in (index, tmp_path, tmp_path / f"{name}-00002-of-00003{suffix}"):
        assert same(checkpoints.load_unet(path, UNET).state_dict(), unet.state_dict())


def test_broken_shards(tmp_path):
    index = shard(tmp_path, published_unet(UNET)[1])
    second, third = (tmp_path / f"model-0000{i}-of-00003.safetensors" for i in (2, 3))
    save_file({"other": torch.zeros(1)}, third)
    with pytest.raises(CheckpointError, match=r"00003-of-00003.safetensors: lacks \d+ of the \d+ weights that model\."):
        checkpoints.load_unet(index, UNET)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"1 of its 3 parts are missing \(first: model-00002-of-00003"):
        checkpoints.load_unet(third, UNET)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"part 3 of 3 of a checkpoint, and its index model\.safetensors\.index"):
        checkpoints.load_unet(third, UNET)


def test_a_single_part_needs_no_index(tmp_path):
    unet, state = published_unet(UNET)
    shard(tmp_path, state, parts=1).unlink()
    assert same(checkpoints.load_unet(tmp_path, UNET).state_dict(), unet.state_dict())


@pytest.mark.parametrize(
    "name", ["../secret.pt", "/etc/passwd.pt", "sub/a.pt", "..\\a.pt", "C:a.pt", "passwd", 3, ["a.pt"]]
)
def test_an_index_stays_in_its_folder(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(published_unet(UNET)[1], tmp_path / "secret.pt")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"time_embed.0.weight": name}}))
    with pytest.raises(CheckpointError, match="which is no checkpoint beside it"):
        checkpoints.load_unet(index, UNET)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000, "\udcff"]
)
def test_an_index_that_is_none(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"index\.json: (is|the file is|has|holds|cannot)"):
        checkpoints.load_unet(index, UNET)


def test_a_folder_must_say_which_file(published, tmp_path):
    with pytest.raises(CheckpointError, match=r"3 checkpoints \(model.ckpt, unet_mg.pt, unet_no_mg.pt\); name one"):
        checkpoints.load_unet(published[0], UNET)
    with pytest.raises(CheckpointError, match="is a folder without a checkpoint"):
        checkpoints.load_unet(tmp_path, UNET)


# --- hostile files ----------


def zip_of(path, name="notes.txt"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "hello")


def torchscript(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n", "is a git-lfs pointer.*git lfs pull"),
        (b"  <!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not a checkpoint"),
        (b"<html>Entry not found</html>", "is a web page, not a checkpoint"),
        (b"GGUF" + bytes(100), "is a GGUF file"),
    ],
)
def test_other_files_under_our_suffixes(tmp_path, suffix, content, found):
    path = write(tmp_path / f"model{suffix}", content)
    with pytest.raises(CheckpointError, match=f"model{suffix}: {found}"):
        checkpoints.load_unet(path, UNET)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (zip_of, r"is a zip archive of notes.txt, which torch did not write"),
        (lambda path: torch.save({"model": Trap(path.with_name("ran"))}, path), r"other than tensors \(_?io\.open\)"),
        (torchscript, "is a TorchScript program, not weights"),
        (lambda path: write(path, bytes(range(256)) * 20), "other than tensors, or is no checkpoint|damaged"),
        (lambda path: zip_of(path, "archive/data.pkl"), "damaged or truncated|other than tensors"),
    ],
)
def test_hostile_torch_files(tmp_path, make, found):
    path = tmp_path / "model.pt"
    make(path)
    with pytest.raises(CheckpointError, match=found) as refused:
        checkpoints.load_unet(path, UNET)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("length", [1 << 62, (1 << 64) - 1, 100_000_001, 3])
def test_absurd_safetensors_headers(tmp_path, length):
    path = write(tmp_path / "model.safetensors", length.to_bytes(8, "little") + b"{}      ")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        checkpoints.load_unet(path, UNET)


def test_a_dictionary_that_holds_itself_often_ends(tmp_path):
    content = {"weight": 1}
    for _ in range(7):
        content = {f"a{i}": content for i in range(200)}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="no state dict of tensors but the entries a0, a1"):
        checkpoints.load_unet(tmp_path / "model.pt", UNET)


# --- judged before anything is missed ----------


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("unet_mg.pt", None, r"unet_mg\.pt needs model\.ckpt of videocrafter2: put it beside"),
        ("page.ckpt", b"<html>Sign in</html>", "is a web page"),
        ("cut.pt", b"PK\x03\x04" + bytes(50), r"other than tensors|damaged or truncated"),
        ("empty.pt", b"", "is empty"),
    ],
)
def test_a_chosen_file_is_judged_before_the_teacher_is_missed(tmp_path, monkeypatch, name, content, found):
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path))
    if content is None:
        torch.save(published_unet(UNET.as_student(motion=True))[1], tmp_path / name)
    else:
        write(tmp_path / name, content)
    with pytest.raises(ValueError, match=found):
        models.load_model(name)
    if content is not None:
        with pytest.raises(ValueError, match=found):
            load(SMALL, student=tmp_path / name, folder=tmp_path)


def test_parts_and_foreign_models_are_no_students(random_shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path))
    save_file({"visual.conv1.weight": torch.zeros(2)}, tmp_path / "clip.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no unet.*an OpenCLIP model of two towers"):
        models.load_model("clip.safetensors")
    shutil.copy(random_shapes / "vae.safetensors", tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match="holds a vae, but a unet was expected"):
        models.load_model("mine.safetensors")
