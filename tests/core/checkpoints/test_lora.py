"""LoRA files of every naming, matched to the UNet and merged into it; T2V-Turbo v1 as a student."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from published import ALL_LAYERS, SMALL, UNET, published_keys, published_parts, published_unet, same
from safetensors.torch import save_file
from torch import nn

from t2v_turbo.core.checkpoints import networks
from t2v_turbo.core.checkpoints.key_maps import unet_key_map
from t2v_turbo.core.checkpoints.lora import merge_lora, split_strength
from t2v_turbo.core.checkpoints.lora_files import Factors, load_lora
from t2v_turbo.core.checkpoints.networks import CheckpointError
from t2v_turbo.core.families import FAMILIES, SHAPES
from t2v_turbo.core.networks.config import UNetConfig
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.pipeline import load
from t2v_turbo.core.video import read_metadata
from t2v_turbo.nodes.runtime import models
from t2v_turbo.train.cli import main

STUDENT = replace(SMALL, unet=ALL_LAYERS)
GUIDANCE = "guidance_proj.weight"


# --- what the published code does, told independently ----------


def reference_tree(shapes):
    """Modules on the meta device that register parameters of these published keys and shapes, in their order."""
    root = nn.Module()
    for key, shape in shapes.items():
        if not key.endswith(".weight"):
            continue
        *path, name = key.removesuffix(".weight").split(".")
        parent = root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        kind = {1: nn.Module, 2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
        sizes = [(shape[1], shape[0])] + ([tuple(shape[2:])] if len(shape) > 2 else []) if len(shape) > 1 else []
        flat = [*sizes[0], *sizes[1:]] if sizes else []
        parent.add_module(name, kind(*flat, **({"device": "meta"} if flat else {})))
    return root


def walk(shapes):
    """Keys of the layers that v1's injection comes to, in its order: all but convolutions over one axis."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return [f"{name}.weight" for name, m in reference_tree(shapes).named_modules() if isinstance(m, kinds)]


def pair(shape, generator, rank=4):
    """Factors of a weight as the injection makes them: of no more rank than channels; up has kernels of 1."""
    rank = min(rank, shape[0], shape[1])
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
    return up, torch.randn(rank, *shape[1:], generator=generator) / rank


def product(up, down):
    """up · down in fp64, of the shape of the weight."""
    return torch.einsum("or,r...->o...", up.flatten(1).double(), down.double())


def published_order(config):
    """Shapes of a small UNet with all layers by the published keys, in the order of the published file."""
    manifest = json.loads((ROOT / "tests" / "golden" / "manifests" / "unet_no_mg.json").read_text())
    state = published_unet(config)[1]
    return {key: state[key].shape for key in manifest if key in state}


def v1_list(config):
    """A bare list as v1's trainer saves it, and its products in fp64 by the published keys."""
    shapes, generator = published_order(config), torch.Generator().manual_seed(5)
    keys = walk(shapes)
    pairs = {key: pair(shapes[key], generator) for key in keys}
    return [factor for key in keys for factor in pairs[key]], {key: product(*pairs[key]) for key in keys}


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    """A folder with a small model.ckpt and its unet_lora.pt; the teacher; the products by the published keys."""
    folder = tmp_path_factory.mktemp("v1")
    (teacher, *_), states = published_parts(ALL_LAYERS)
    torch.save({"state_dict": published_keys(states)}, folder / "model.ckpt")
    factors, products = v1_list(ALL_LAYERS.as_student())
    torch.save([nn.Parameter(factors[0]), *factors[1:]], folder / "unet_lora.pt")
    return folder, teacher, products


def check_merged(unet, base, products, strength=1.0):
    """Every weight of ``unet`` is that of ``base`` with the products, by our keys, and nothing else differs."""
    before, after = base.state_dict(), unet.state_dict()
    for key, weight in after.items():
        expected = before[key].double() if key in before else torch.zeros_like(weight).double()
        if key in products:
            expected = expected + strength * products[key].reshape(weight.shape)
            torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(weight.double(), expected), key


def by_our_keys(products, config):
    names = unet_key_map(config, list(UNet3D(config).state_dict())).names
    ours = {published: key for key, published in names.items()}
    return {ours[key]: value for key, value in products.items()}


# --- T2V-Turbo v1 ----------


@pytest.mark.parametrize("name", ["unet_vc2", "unet_no_mg", "unet_mg"])
def test_the_walk_of_the_published_unets(name, tmp_path):
    """A list of factors for the real sizes, by the published list of keys, finds each its layer."""
    shapes = json.loads((ROOT / "tests" / "golden" / "manifests" / f"{name}.json").read_text())
    keys = walk(shapes)
    assert len(keys) == {"unet_vc2": 574, "unet_no_mg": 575, "unet_mg": 577}[name]
    config = {"unet_vc2": UNetConfig(), "unet_no_mg": UNetConfig().as_student(),
              "unet_mg": UNetConfig().as_student(motion=True)}[name]  # fmt: skip
    factors = [torch.full((shapes[key][0] if i == 0 else 1, 1 if i == 0 else shapes[key][1]), float(n))
               for n, key in enumerate(keys) for i in (0, 1)]  # fmt: skip
    torch.save(factors, tmp_path / "list.pt")
    from t2v_turbo.core.checkpoints.lora import _fit_walk

    fitted = by_published(_fit_walk(load_lora(tmp_path / "list.pt"), config), config)
    assert [int(fitted[key].up[0, 0]) for key in keys] == list(range(len(keys)))


def by_published(fitted, config):
    names = unet_key_map(config, list(fitted)).names
    return {names[key]: factors for key, factors in fitted.items()}


def test_the_size_of_the_published_file():
    """At rank 64 in fp32 the walk's factors are 469 MB, as unet_lora.pt is."""
    shapes = json.loads((ROOT / "tests" / "golden" / "manifests" / "unet_no_mg.json").read_text())
    numbers = 0
    for key in walk(shapes):
        out, *inner = shapes[key]
        numbers += min(64, out, inner[0]) * (out + torch.Size(inner).numel())
    assert round(4 * numbers / 1e6) == 469


@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_v1_is_a_student_of_its_teacher(v1, strength):
    folder, teacher, products = v1
    given = folder / "unet_lora.pt" if strength == 1 else f"{folder / 'unet_lora.pt'}:{strength}"
    model = load(STUDENT, student=given, folder=folder)
    assert model.is_student and not model.unet.takes_motion
    assert model.loras == (f"unet_lora.pt:{strength:g}",)
    products = by_our_keys(products, model.unet.config)
    assert GUIDANCE in products and "entry.proj_in.weight" not in products
    check_merged(model.unet, teacher, products, strength)
    generator = torch.Generator().manual_seed(0)
    latents = model.sample(["a cat"], model.noise(1, generator) * 0.1, 1, generator=generator)
    assert latents.shape == (1, 4, 2, 2, 2)


def test_v1_by_its_name_and_as_the_only_student(v1):
    folder = v1[0]
    by_name, by_default = (load(STUDENT, student=name, folder=folder) for name in ("v1", "default"))
    assert same(by_name.unet.state_dict(), by_default.unet.state_dict())
    assert by_name.is_student


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merged_weight_is_rounded_once(v1, dtype):
    """Merged in fp32 from the file's precision: a change smaller than bf16 can tell beside the weight counts too."""
    folder, teacher, products = v1
    model = load(STUDENT, student=f"{folder / 'unet_lora.pt'}:0.001", folder=folder, dtype=dtype)
    key = "down.1.blocks.0.temporal.blocks.0.ff.proj_in.weight"
    exact = teacher.state_dict()[key].double() + 0.001 * by_our_keys(products, model.unet.config)[key]
    step = torch.finfo(dtype).eps / 2
    assert ((model.unet.state_dict()[key].double() - exact).abs() <= exact.abs() * step * 1.01 + 1e-7).all()


def test_a_file_in_bf16_is_merged_in_fp32(tmp_path, teacher_file):
    state = {key: value.bfloat16() for key, value in published_unet(UNET)[1].items()}
    torch.save(state, tmp_path / "half.pt")
    pairs, products = named_pairs()
    save_file(lora_state("kohya", pairs), tmp_path / "lora.safetensors")
    loras = [(load_lora(tmp_path / "lora.safetensors"), 1.0)]
    unet = networks.load_unet(tmp_path / "half.pt", UNET, loras=loras)
    check_merged(unet, published_unet(UNET)[0].bfloat16().float(), by_our_keys(products, UNET))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3), (6, 5, 3, 1, 1)])
def test_the_product_of_factors_is_their_composition(shape):
    """Down, then up, as the trainers' layers do, for a linear layer and convolutions over two and three axes."""
    up, down = pair(shape, torch.Generator().manual_seed(0), rank=3)
    x = torch.randn(2, 5, *[7] * (len(shape) - 2), generator=torch.Generator().manual_seed(1))
    layer = {2: F.linear, 4: F.conv2d, 5: F.conv3d}[len(shape)]
    weight = Factors(up, down, 0.5).delta().reshape(shape)
    torch.testing.assert_close(layer(x, weight), 0.5 * layer(layer(x, down), up), rtol=1e-4, atol=1e-5)


def test_v1_without_its_teacher_says_what_is_needed(v1, tmp_path, monkeypatch):
    (tmp_path / "unet_lora.pt").write_bytes((v1[0] / "unet_lora.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"is a LoRA of 575 layers, rank 4, which makes a student of model\.ckpt"):
        load(STUDENT, student=tmp_path / "unet_lora.pt", folder=tmp_path)
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "VIDEOCRAFTER2", STUDENT)
    with pytest.raises(ValueError, match=r"unet_lora\.pt needs model\.ckpt of videocrafter2: put it beside"):
        models.load_model("unet_lora.pt")


def test_v1_in_the_loader_node(v1, monkeypatch):
    monkeypatch.setenv("T2V_TURBO_MODELS", str(v1[0]))
    monkeypatch.setattr(models, "VIDEOCRAFTER2", STUDENT)
    assert models.load_model("unet_lora.pt").is_student
    assert not models.load_model("model.ckpt").is_student


def test_a_list_for_another_unet_is_refused(v1, tmp_path):
    factors = torch.load(v1[0] / "unet_lora.pt", weights_only=True)
    path = tmp_path / "unet_lora.pt"
    for content, refusal in (
        (factors[:-2], r"a LoRA of 574 layers, rank 4, which brings no guidance input.*--lora, or name the model"),
        (factors[:-1], r"a bare list of 1149 tensors that are no pairs"),
        ([*factors[2:], *factors[:2]], r"\d+ of 575 layers have another shape, for example 'time_mlp.0.weight'"),
        ([*factors[:-1], torch.full_like(factors[-1], torch.nan)], "factors of 'conv_out.weight' hold NaN"),
        ([factors[0][:, 0], *factors[1:]], "tensors that are no pairs of factors"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=refusal):
            load(STUDENT, student=path, folder=v1[0])


def test_a_list_for_the_teacher_itself(v1, tmp_path):
    """A LoRA trained by the same code without a guidance input is none of a student, and merges into the teacher."""
    folder, teacher, _ = v1
    factors, products = v1_list(ALL_LAYERS)
    torch.save(factors, tmp_path / "style.pt")
    model = load(STUDENT, student=None, folder=folder, loras=[(tmp_path / "style.pt", 0.25)])
    assert not model.is_student
    check_merged(model.unet, teacher, by_our_keys(products, ALL_LAYERS), 0.25)
    with pytest.raises(CheckpointError, match="a bare list of factors for 574 layers, but this UNet has 575"):
        load(STUDENT, student="v1", folder=folder, loras=[(tmp_path / "style.pt", 1.0)])


# --- files with names ----------

# Layers of every kind: linear, convolutions over two and three axes, one that is a convolution of kernel 1 there.
KEYS = (
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    "output_blocks.2.2.transformer_blocks.0.ff.net.0.proj",
    "middle_block.0.in_layers.2",
    "output_blocks.0.0.temopral_conv.conv3.3",
    "init_attn.0.proj_in",
    "time_embed.0",
)


def named_pairs(config=UNET):
    """Factors by published names without ``.weight``, and their products in fp64 by the published keys."""
    state, generator = published_unet(config)[1], torch.Generator().manual_seed(7)
    pairs = {key: pair(state[f"{key}.weight"].shape, generator) for key in KEYS}
    return pairs, {f"{key}.weight": product(*factors) for key, factors in pairs.items()}


def ours(key, config=UNET):
    names = unet_key_map(config, list(UNet3D(config).state_dict())).names
    return {published: own for own, published in names.items()}[f"{key}.weight"].removesuffix(".weight")


NAMINGS = {
    "peft": "base_model.model.{key}.lora_{AB}.weight",
    "peft with an adapter's name": "base_model.model.{key}.lora_{AB}.default.weight",
    "diffusers": "unet.{key}.lora_{AB}.weight",
    "older diffusers": "unet.{key}.lora.{down_up}.weight",
    "comfyui": "diffusion_model.{key}.lora_{down_up}.weight",
    "comfyui, A and B": "diffusion_model.{key}.lora_{AB}.weight",
    "kohya": "lora_unet_{key_}.lora_{down_up}.weight",
    "bare": "{key}.lora_{AB}.weight",
    "ddp": "module.model.diffusion_model.{key}.lora_{AB}.weight",
}


def named(naming, key, role):
    return NAMINGS[naming].format(
        key=key, key_=key.replace(".", "_"), AB="B" if role == "up" else "A", down_up=role
    )  # fmt: skip


def lora_state(naming, pairs, name=lambda key: key):
    return {named(naming, name(key), role): factor
            for key, factors in pairs.items() for role, factor in zip(("up", "down"), factors)}  # fmt: skip


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "model.pt"
    unet, state = published_unet(UNET)
    torch.save(state, path)
    return path, unet


def load_merged(path, teacher_file, strength=1.0):
    return networks.load_unet(teacher_file[0], UNET, loras=[(load_lora(path), strength)])


@pytest.mark.parametrize("names", ["published", "ours"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming(tmp_path, teacher_file, naming, names):
    pairs, products = named_pairs()
    if (naming, names) == ("kohya", "ours"):  # mid_res_conv1 could be mid_res.conv1 as well
        del pairs["middle_block.0.in_layers.2"], products["middle_block.0.in_layers.2.weight"]
    state = lora_state(naming, pairs, ours if names == "ours" else str)
    torch.save({"state_dict": state}, tmp_path / "lora.pt")
    unet = load_merged(tmp_path / "lora.pt", teacher_file, 0.7)
    check_merged(unet, teacher_file[1], by_our_keys(products, UNET), 0.7)


@pytest.mark.parametrize("naming", ["kohya", "comfyui"])
def test_alpha_beside_the_factors(tmp_path, teacher_file, naming):
    """Some layers with an alpha of their own, the others with none, which is alpha = r."""
    pairs, products = named_pairs()
    state = lora_state(naming, pairs)
    for key in KEYS[:3]:
        state[named(naming, key, "up").rpartition(".lora_")[0] + ".alpha"] = torch.tensor(1.0)
        products[f"{key}.weight"] /= 4
    save_file(state, tmp_path / "lora.safetensors")
    check_merged(load_merged(tmp_path / "lora.safetensors", teacher_file), teacher_file[1], by_our_keys(products, UNET))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8, "r": 4}, 2.0),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True}, 4.0),
        ({"lora_alpha": 2.0, "peft_type": "LORA", "target_modules": ["to_k"], "alpha_pattern": {}}, 0.5),
        ({}, 1.0),
    ],
)
def test_alpha_in_the_adapters_configuration(tmp_path, teacher_file, config, scale):
    pairs, products = named_pairs()
    save_file(lora_state("peft", pairs), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    expected = {key: scale * value for key, value in by_our_keys(products, UNET).items()}
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        check_merged(load_merged(path, teacher_file), teacher_file[1], expected)


def test_alpha_of_single_layers(tmp_path, teacher_file):
    pairs, products = named_pairs()
    save_file(lora_state("peft", pairs), tmp_path / "adapter_model.safetensors")
    config = {"lora_alpha": 4, "alpha_pattern": {"attn2.to_k": 12, "time_embed.0": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    products[f"{KEYS[0]}.weight"] *= 3
    products["time_embed.0.weight"] /= 2
    check_merged(load_merged(tmp_path, teacher_file), teacher_file[1], by_our_keys(products, UNET))


def test_alpha_in_the_metadata_of_diffusers(tmp_path, teacher_file):
    pairs, products = named_pairs()
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.r": 4})}
    save_file(lora_state("diffusers", pairs), tmp_path / "lora.safetensors", metadata)
    expected = {key: value / 2 for key, value in by_our_keys(products, UNET).items()}
    check_merged(load_merged(tmp_path / "lora.safetensors", teacher_file), teacher_file[1], expected)


def test_pefts_file_without_its_configuration_is_told(tmp_path, caplog):
    save_file(lora_state("peft", named_pairs()[0]), tmp_path / "lora.safetensors")
    load_lora(tmp_path / "lora.safetensors")
    assert "no adapter_config.json lies beside it; alpha is taken to be the rank" in caplog.text


@pytest.mark.parametrize(
    ("config", "refusal"),
    [
        ({"use_dora": True}, "says use_dora, which is not supported"),
        ({"peft_type": "LOHA"}, "says peft_type LOHA"),
        ({"lora_alpha": "8"}, "lora_alpha of adapter_config.json is no number"),
        ({"lora_alpha": -1}, "alpha -1 and rank 4"),
        ({"lora_alpha": 4, "alpha_pattern": {"to_z": 3}}, "no layer ends with 'to_z'"),
        ({"alpha_pattern": ["to_k"]}, "is no number"),
    ],
)
def test_refused_configurations(tmp_path, config, refusal):
    save_file(lora_state("peft", named_pairs()[0]), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=refusal):
        load_lora(tmp_path)


LAYER = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("extra", "refusal"),
    [
        ({f"{LAYER}.lora_mid.weight": torch.zeros(4, 4, 3, 3)}, r"is a LoCon with a Tucker core"),
        ({f"{LAYER}.dora_scale": torch.zeros(32)}, "is a DoRA"),
        ({"base_model.model.x.lora_magnitude_vector.weight": torch.zeros(3)}, "is a DoRA"),
        ({f"{LAYER}.hada_w1_a": torch.zeros(4, 4)}, "is a LoHa"),
        ({f"{LAYER}.lokr_w1": torch.zeros(4, 4)}, "is a LoKr"),
        ({f"{LAYER}.oft_blocks": torch.zeros(4, 4)}, "is an OFT"),
        ({f"{LAYER}.diff": torch.zeros(4, 4)}, "is a file of whole differences"),
        ({"base_model.model.x.lora_B.bias": torch.zeros(4)}, "is a LoRA with biases"),
        ({"x.lora_up.weight": torch.zeros(4, 4)}, r"holds 1 layers with half a pair \(first: 'x'\)"),
        ({"x.alpha": torch.tensor(4.0)}, r"holds 1 layers with half a pair \(first: 'x'\)"),
        ({f"{LAYER}.alpha": torch.tensor(0.0)}, "alpha 0 and rank 4"),
        ({f"{LAYER}.alpha": torch.tensor(torch.nan)}, "alpha nan and rank 4"),
        ({"x.weight": torch.zeros(4)}, r"holds 1 keys that are no factors \(first: 'x.weight'\)"),
        ({f"{LAYER}.lora_A.weight": torch.zeros(4, 4)}, f"holds several LoRAs for '{LAYER}'"),
    ],
)
def test_refused_kinds(tmp_path, extra, refusal):
    save_file(lora_state("kohya", named_pairs()[0]) | extra, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=refusal):
        load_lora(tmp_path / "lora.safetensors")


def factors(name, up, down):
    return {f"{name}.lora_up.weight": torch.zeros(up), f"{name}.lora_down.weight": torch.zeros(down)}


@pytest.mark.parametrize(
    ("extra", "refusal"),
    [
        (factors("lora_unet_down_blocks_0", (4, 2), (2, 4)), r"1 of its 7 layers are unknown to this UNet"),
        (factors("lora_unet_mid_res_conv1", (64, 2, 1, 1), (2, 64, 3, 3)), r"\(first: \['lora_unet_mid_res_conv1'\]\)"),
        (factors("lora_te_text_model_encoder_x", (4, 2), (2, 4)), "unknown to this UNet.*text encoders take no LoRA"),
        (factors("motion_cond_proj", (32, 2), (2, 256)), "unknown to this UNet"),
        (factors("time_embed.2", (128, 2), (2, 64)), r"'time_mlp.2.weight': up \[128, 2\] and down \[2, 64\] for"),
        (factors("time_embed.2", (128, 2), (3, 128)), "1 of 7 layers have another shape"),
        (factors("input_blocks.0.0", (32, 2), (2, 4)), r"have another shape, for example 'conv_in.weight'"),
        (factors("diffusion_model.time_embed.0", (128, 4), (4, 32)), "names a layer twice, in two ways"),
    ],
)
def test_layers_without_a_place_are_refused(tmp_path, teacher_file, extra, refusal):
    save_file(lora_state("comfyui" if "time_embed.0" not in str(list(extra)) else "kohya", named_pairs()[0]) | extra,
              tmp_path / "lora.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match=refusal):
        load_merged(tmp_path / "lora.safetensors", teacher_file)


def test_every_name_of_a_layer_means_one():
    """Also with underscores for dots, as kohya's are."""
    from t2v_turbo.core.checkpoints.lora import _layer_names

    for config in (UNetConfig().as_student(motion=True), SHAPES.unet.as_student(motion=True)):
        keys = [key for key, value in UNet3D(replace(config, model_channels=64)).state_dict().items() if value.ndim > 1]
        names = unet_key_map(config, keys).names
        table = _layer_names(config)
        for key in keys:
            own, published = key.removesuffix(".weight"), names[key].removesuffix(".weight")
            assert table[own] == table[published] == table[published.replace(".", "_")] == key
            assert own.startswith("mid") or table[own.replace(".", "_")] == key


def test_whole_weights_are_no_lora(teacher_file):
    with pytest.raises(CheckpointError, match="is no LoRA but a UNet of latent diffusion"):
        load_lora(teacher_file[0])


def test_a_student_with_names(v1, tmp_path):
    """v1's factors under names make the same student as the list; without those of the guidance input, none."""
    folder = v1[0]
    shapes = published_order(ALL_LAYERS.as_student())
    listed = torch.load(folder / "unet_lora.pt", weights_only=True)
    state = {}
    for i, key in enumerate(walk(shapes)):
        state |= {f"{key.removesuffix('.weight')}.lora_{ab}.weight": listed[2 * i + j].detach().clone()
                  for j, ab in enumerate("BA")}  # fmt: skip
    save_file(state, tmp_path / "named.safetensors")
    named_student, listed_student = (load(STUDENT, path, folder) for path in (tmp_path / "named.safetensors", "v1"))
    assert same(named_student.unet.state_dict(), listed_student.unet.state_dict())
    with pytest.raises(CheckpointError, match="makes a teacher a student; give it as --student"):
        load(STUDENT, None, folder, loras=[(tmp_path / "named.safetensors", 1.0)])
    save_file({k: v for k, v in state.items() if "time_cond" not in k}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"brings no guidance input.*; give it with --lora"):
        load(STUDENT, tmp_path / "plain.safetensors", folder)


# --- merging ----------


def test_several_loras_add_up(tmp_path, teacher_file):
    pairs, products = named_pairs()
    for naming in ("kohya", "peft"):
        save_file(lora_state(naming, pairs), tmp_path / f"{naming}.safetensors")
    loras = [(load_lora(tmp_path / f"{naming}.safetensors"), strength) for naming, strength in
             (("kohya", 0.5), ("peft", 2.0))]  # fmt: skip
    unet = networks.load_unet(teacher_file[0], UNET, loras=loras)
    check_merged(unet, teacher_file[1], by_our_keys(products, UNET), 2.5)


def test_merging_in_place_and_out_again(tmp_path):
    unet, before = published_unet(UNET)[0], published_unet(UNET)[0]
    pairs, products = named_pairs()
    save_file(lora_state("kohya", pairs), tmp_path / "lora.safetensors")
    lora = load_lora(tmp_path / "lora.safetensors")
    merge_lora(unet, lora, 0.5)
    check_merged(unet, before, by_our_keys(products, UNET), 0.5)
    merge_lora(unet, lora, -0.5)
    for a, b in zip(unet.parameters(), before.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_lora_that_does_not_fit_leaves_the_unet_as_it_is(tmp_path):
    unet, before = published_unet(UNET)[0], published_unet(UNET)[0]
    save_file(lora_state("kohya", named_pairs()[0]) | factors("x", (4, 2), (2, 4)), tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="unknown to this UNet"):
        merge_lora(unet, load_lora(tmp_path / "lora.safetensors"))
    assert same(unet.state_dict(), before.state_dict())


def test_what_is_not_changed_stays_mapped_from_the_file(tmp_path, teacher_file):
    """Merging makes new tensors of the changed weights alone."""
    save_file(lora_state("kohya", named_pairs()[0]), tmp_path / "lora.safetensors")
    state = networks.select(networks.read_state(teacher_file[0])[0], "unet", teacher_file[0])
    from t2v_turbo.core.checkpoints.lora import merging

    change = merging([(load_lora(tmp_path / "lora.safetensors"), 1.0)], UNET)
    kept, changed = state["out.2.weight"], state["time_embed.0.weight"]
    assert change("conv_out.weight", kept) is kept
    assert change("time_mlp.0.weight", changed) is not changed


# --- the command line ----------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.pt", ("a.pt", 1.0)),
        ("a.pt:0.5", ("a.pt", 0.5)),
        ("a.pt:-1", ("a.pt", -1.0)),
        ("C:\\a.pt", ("C:\\a.pt", 1.0)),
        ("C:\\a.pt:.25", ("C:\\a.pt", 0.25)),
        ("7", ("7", 1.0)),
    ],
)
def test_file_and_strength(text, expected):
    path, strength = split_strength(text)
    assert (str(path), strength) == expected


def test_a_colon_in_the_name_of_a_file(tmp_path):
    (tmp_path / "a:2").touch()
    assert split_strength(tmp_path / "a:2") == (tmp_path / "a:2", 1.0)


def shapes_lora(folder, name, seed):
    """A LoRA over our own names for the embedded family."""
    generator = torch.Generator().manual_seed(seed)
    state = UNet3D(SHAPES.unet).state_dict()
    tensors = {}
    for key in ("down.0.blocks.0.spatial.blocks.0.attn1.to_q.weight", "mid.res.conv1.weight"):
        up, down = pair(state[key].shape, generator)
        tensors |= {key.replace("weight", "lora_B.weight"): up, key.replace("weight", "lora_A.weight"): down}
    save_file(tensors, folder / name)
    return folder / name


@pytest.mark.parametrize("unet", [["--teacher"], []])
def test_generate_with_loras(random_shapes, tmp_path, unet):
    one, two = (shapes_lora(tmp_path, f"{name}.safetensors", seed) for seed, name in enumerate(("one", "two")))
    common = ["generate", "a red circle", "--steps", "1", "--checkpoints", str(random_shapes), "--dtype", "fp32", *unet]
    loras = ["--lora", f"{one}:0.5", "--lora", str(two)]
    assert main([*common, "--out", str(tmp_path / "plain.mp4")]) == 0
    assert main([*common, *loras, "--out", str(tmp_path / "merged.mp4")]) == 0
    settings = json.loads(read_metadata(tmp_path / "merged.mp4")["settings"])
    assert settings["loras"] == ["one.safetensors:0.5", "two.safetensors:1"]
    assert "loras" not in json.loads(read_metadata(tmp_path / "plain.mp4")["settings"])
    expected = load("shapes", None if unet else "default", random_shapes).unet
    for path, strength in ((one, 0.5), (two, 1.0)):
        merge_lora(expected, load_lora(path), strength)
    loaded = load("shapes", None if unet else "default", random_shapes, loras=[(one, 0.5), (two, 1.0)]).unet
    assert same(loaded.state_dict(), expected.state_dict())
    assert (tmp_path / "merged.mp4").read_bytes() != (tmp_path / "plain.mp4").read_bytes()


def test_generate_with_v1(v1, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "videocrafter2", STUDENT)
    out, student = tmp_path / "clip.mp4", f"{v1[0] / 'unet_lora.pt'}:0.05"
    command = ["generate", "a cat", "--model", "videocrafter2", "--checkpoints", str(v1[0]), "--steps", "1"]
    assert main([*command, "--student", student, "--dtype", "fp32", "--out", str(out)]) == 0
    settings = json.loads(read_metadata(out)["settings"])
    assert (settings["unet"], settings["loras"]) == ("student", ["unet_lora.pt:0.05"])


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (["--lora", "missing.safetensors"], "missing.safetensors: no such checkpoint file"),
        (["--lora", "a.safetensors:nan"], "strength nan of a.safetensors is no finite number"),
        (["--student", "{student}:0.5"], "holds whole weights, which take no strength (0.5)"),
        (["--lora", "{student}"], "is no LoRA but"),
        (["--student", "{lora}"], "so makes no student; give it with --lora"),
    ],
)
def test_generate_refuses(random_shapes, tmp_path, capsys, options, refusal):
    places = {"student": random_shapes / "student.safetensors", "lora": shapes_lora(tmp_path, "a.safetensors", 0)}
    options = [option.format(**places) for option in options]
    command = ["generate", "a red circle", "--checkpoints", str(random_shapes), "--out", str(tmp_path / "a.mp4")]
    assert main([*command, *options]) == 2
    assert refusal in capsys.readouterr().err
    assert not (tmp_path / "a.mp4").exists()


def test_a_lora_is_no_model_in_the_loader(tmp_path, monkeypatch):
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path))
    shapes_lora(tmp_path, "style.safetensors", 0)
    with pytest.raises(ValueError, match=r"style.safetensors is a LoRA of 2 layers, rank 4, not a model"):
        models.load_model("style.safetensors")
