"""Motion guidance: probe, energies, score, motion priors and the guided sampler, on a small random UNet."""

import copy
import gc
import json
import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import randomize
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from t2v_turbo.core.checkpoints.networks import CheckpointError, read_state
from t2v_turbo.core.diffusion import guidance
from t2v_turbo.core.diffusion.ddim import DDIMSolver, Trajectory, sample_ddim
from t2v_turbo.core.diffusion.guidance import COMBINATIONS, cfg_model, find_combination, guided_timesteps
from t2v_turbo.core.diffusion.schedule import NoiseSchedule
from t2v_turbo.core.motion.energies import ENERGIES, TopEntries, find_energy, squares
from t2v_turbo.core.motion.guidance import motion_model
from t2v_turbo.core.motion.inversion import METHODS, prior_latents
from t2v_turbo.core.motion.prior import MotionPrior, Origin, make_prior
from t2v_turbo.core.motion.probe import by_sample, motion_layers, probe_attention, read_reference
from t2v_turbo.core.motion.score import motion_score
from t2v_turbo.core.networks import attention
from t2v_turbo.core.networks.config import UNetConfig
from t2v_turbo.core.networks.unet import LAMBDA_UNIT, UNet3D

CONFIG = UNetConfig(
    model_channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2, 1),
    head_channels=8,
    context_dim=12,
    temporal_dropout=0.0,
    norm_groups=4,
)
SHAPE = (3, 4, 4, 4, 6)  # (B, C, F, H, W)
T = torch.tensor([904, 504, 104])
# The paper's 500, in proportion to the number of latents: what moves a latent of this clip as far.
LAMBDA = 500 * torch.Size(SHAPE[1:]).numel() / (4 * 16 * 40 * 64)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def new_unet():
    return randomize(UNet3D(CONFIG), 0)


@pytest.fixture(scope="module")
def unet():
    return new_unet()


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule()


@pytest.fixture
def clip():
    """Latents, timesteps and context of three samples."""
    return tensor(*SHAPE), T, tensor(SHAPE[0], 5, CONFIG.context_dim, seed=1)


@pytest.fixture(scope="module")
def reference(unet):
    return read_reference(unet, tensor(*SHAPE, seed=2), T, tensor(SHAPE[0], 5, CONFIG.context_dim, seed=3))


def energy_at(unet, x, t, context, reference, energy="mean"):
    with torch.no_grad(), probe_attention(unet) as found:
        unet(x, t, context)
    return ENERGIES[energy]({name: by_sample(p, len(x)) for name, p in found.items()}, reference)


# --- the probe ----------


def test_probe_gives_what_the_forward_used(unet, clip, monkeypatch):
    """Each layer's q·k is computed once, the chosen layers' is seen, and the output is the same number."""
    calls = []
    original = attention.attention_probabilities
    monkeypatch.setattr(attention, "attention_probabilities", lambda q, k: calls.append(1) or original(q, k))
    with torch.no_grad():
        plain = unet(*clip)
        unprobed = len(calls)
        with probe_attention(unet) as found:
            assert torch.equal(unet(*clip), plain)
    assert len(calls) == 2 * unprobed > 0
    assert list(found) == motion_layers(unet)
    for probabilities in found.values():
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))


def test_only_the_chosen_layers_leave_the_fast_kernel(unet, clip, monkeypatch):
    fast = []
    original = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *qkv: fast.append(1) or original(*qkv))
    with torch.no_grad():
        unet(*clip)
        everywhere = len(fast)
        with probe_attention(unet, motion_layers(unet)[:1]):
            unet(*clip)
    assert everywhere == sum(isinstance(module, attention.Attention) for module in unet.modules())
    assert len(fast) == 2 * everywhere - 1


def test_probe_leaves_nothing_behind(unet, clip):
    with pytest.raises(KeyError, match="stop"), probe_attention(unet) as found:
        unet(*clip)
        watched = [weakref.ref(probabilities) for probabilities in found.values()]
        assert watched and all(probabilities.requires_grad for probabilities in found.values())
        raise KeyError("stop")
    assert all(module.probe is None for module in unet.modules() if isinstance(module, attention.Attention))
    del found
    gc.collect()
    assert not any(reference() is not None for reference in watched)


def test_probe_refuses_an_unknown_layer(unet):
    with (
        pytest.raises(ValueError, match=r"no attention layer 'up\.9'; it has .*up\.0\.blocks"),
        probe_attention(unet, ["up.9"]),
    ):
        pass


def test_a_decoder_without_temporal_attention_is_refused():
    with pytest.raises(ValueError, match="no temporal attention in its decoder"):
        motion_layers(UNet3D(replace(CONFIG, attention_resolutions=())))


# --- energies ----------


def test_equal_entries_are_ordered():
    ties = torch.tensor([[0.3, 0.2, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]]).expand(1, 5, 2, 4)
    top = TopEntries.of(ties, None)
    assert top.index[0, 0].tolist() == [[2, 0, 3, 1], [3, 2, 1, 0]]
    assert torch.equal(top.value, ties.gather(-1, top.index.long()))
    assert TopEntries.of(ties).index[0, 4, :, 0].tolist() == [2, 3]


def test_unmasked_energy_compares_every_entry():
    ours, reference = tensor(2, 3, 4, 4).softmax(-1), tensor(2, 3, 4, 4, seed=1).softmax(-1)
    found = ENERGIES["mean-unmasked"]({"a": ours}, {"a": TopEntries.of(reference, None)})
    torch.testing.assert_close(found, (ours - reference).square().flatten(1).mean(1))
    assert ENERGIES["mean-unmasked"]({"a": ours}, {"a": TopEntries.of(ours, None)}).tolist() == [0, 0]


def test_an_energy_that_needs_more_than_was_kept_is_refused():
    ours = tensor(1, 3, 4, 4).softmax(-1)
    with pytest.raises(ValueError, match=r"compares 4 of 4 entries .* keeps 1: make the reference with keep=4"):
        ENERGIES["mean-unmasked"]({"a": ours}, {"a": TopEntries.of(ours)})
    with pytest.raises(ValueError, match=r"keep=5 .* use 1 to 4"):
        TopEntries.of(ours, 5)


def test_an_energy_of_ones_own(unet, clip, reference):
    """Nothing but a callable object is needed."""

    @dataclass
    class Worst:
        keep: int = 1

        def __call__(self, attention, reference):
            return torch.stack([layer.amax(dim=1) for layer in squares(attention, reference, 1)]).amax(dim=0)

    found = motion_score(unet, *clip, reference, Worst())
    assert found.energy.shape == (3,)
    assert (found.energy > motion_score(unet, *clip, reference).energy).all()
    assert found.score.abs().flatten(1).amax(1).min() > 0


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown energy 'l1'; known are mean"):
        find_energy("l1")
    with pytest.raises(ValueError, match=r"unknown combination 'eq9' .* released, equation8"):
        find_combination("eq9")


# --- the score ----------


@pytest.mark.parametrize("energy", ["mean", "squared-norm"])
def test_score_is_the_derivative_of_the_energy(unet, clip, reference, energy):
    x, t, context = (value.double() if value.is_floating_point() else value for value in clip)
    exact = copy.deepcopy(unet).double()
    found = motion_score(unet, *clip, reference, energy)
    direction, step = tensor(*SHAPE, seed=5).double(), 1e-4
    above, below = (energy_at(exact, x + sign * step * direction, t, context, reference, energy) for sign in (1, -1))
    expected = LAMBDA_UNIT * (above - below) / (2 * step)
    slope = (found.score * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_batch_gives_exactly_the_single_scores(unet, clip, reference):
    x, t, context = clip
    whole = motion_score(unet, x, t, context, reference)
    together = motion_score(unet, x, t, context, reference, chunk=3, checkpointing=False)
    for i in range(len(x)):
        rows = {name: top.rows(i, i + 1) for name, top in reference.items()}
        one = motion_score(unet, x[i : i + 1], t[i : i + 1], context[i : i + 1], rows)
        for part, single, chunked in zip(whole, one, together):
            assert torch.equal(part[i : i + 1], single)
            torch.testing.assert_close(chunked[i : i + 1], single, rtol=1e-3, atol=1e-3 * float(single.abs().max()))


def test_one_reference_serves_a_batch(unet, clip, reference):
    x, t, context = clip[0], clip[1][:1].expand(3), clip[2]
    first = {name: top.rows(0, 1) for name, top in reference.items()}
    thrice = {
        name: TopEntries(top.index.repeat(3, 1, 1, 1), top.value.repeat(3, 1, 1, 1)) for name, top in first.items()
    }
    for chunk in (1, 2):
        once, copied = (motion_score(unet, x, t, context, given, chunk=chunk) for given in (first, thrice))
        assert torch.equal(once.score, copied.score)


def test_the_noise_is_the_networks_own(unet, clip, reference):
    with torch.no_grad():
        torch.testing.assert_close(motion_score(unet, *clip, reference).noise, unet(*clip), rtol=1e-4, atol=1e-5)


def test_gradients_go_to_the_latents_alone(clip, reference):
    unet = new_unet()
    unet.conv_in.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in unet.parameters()]
    x = clip[0].clone().requires_grad_()
    found = motion_score(unet, x, *clip[1:], reference)
    assert x.grad is None and not any(part.requires_grad for part in found)
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert [parameter.requires_grad for parameter in unet.parameters()] == before
    assert unet.checkpointing is False


def test_the_reference_is_a_constant(unet, clip):
    x = clip[0].clone().requires_grad_()
    for top in read_reference(unet, x, *clip[1:]).values():
        assert not top.value.requires_grad and not top.index.is_floating_point()
    with probe_attention(unet) as found:
        unet(x, *clip[1:])
    assert not TopEntries.of(next(iter(found.values()))).value.requires_grad


def test_a_reference_of_other_size_is_refused(unet, clip):
    short = read_reference(unet, clip[0][:, :, :3], *clip[1:])
    with pytest.raises(ValueError, match=r"is \(1, \d+, 3\).*clip's \(1, \d+, 4\).*as many frames"):
        motion_score(unet, *clip, short)


class PeakMemory(TorchDispatchMode):
    """Largest number of bytes that tensors made inside held at one time."""

    def __enter__(self):
        self.now = self.peak = 0
        self.known = set()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in self.known:
                self._watch(value.untyped_storage())
        return out

    def _watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak_memory(unet, clip, reference, **settings):
    with PeakMemory() as memory:
        motion_score(unet, *clip, reference, **settings)
    return memory.peak


def test_memory_is_bounded_by_the_settings(unet, clip, reference):
    x, t, context = (value.repeat(2, *[1] * (value.ndim - 1)) for value in clip)
    twice = {
        name: TopEntries(*(part.repeat(2, 1, 1, 1) for part in (top.index, top.value)))
        for name, top in reference.items()
    }
    one_by_one = peak_memory(unet, (x, t, context), twice, chunk=1, checkpointing=False)
    all_at_once = peak_memory(unet, (x, t, context), twice, chunk=6, checkpointing=False)
    checkpointed = peak_memory(unet, (x, t, context), twice, chunk=6, checkpointing=True)
    half_the_batch = peak_memory(unet, clip, reference, chunk=1, checkpointing=False)
    frozen = peak_memory(new_unet().requires_grad_(False), clip, reference, chunk=1, checkpointing=False)
    assert all_at_once > 4 * one_by_one
    assert all_at_once > 2 * checkpointed
    assert one_by_one < 1.1 * half_the_batch  # as good as independent of the batch
    assert half_the_batch < 1.01 * frozen  # nothing is kept for gradients of the weights


# --- modes ----------


def test_score_under_inference_mode(unet, clip, reference):
    expected = motion_score(unet, *clip, reference)
    with torch.inference_mode():
        made_inside = [value + 0 for value in clip]
        inside = read_reference(unet, tensor(*SHAPE, seed=2) + 0, T + 0, tensor(3, 5, CONFIG.context_dim, seed=3) + 0)
        found = motion_score(unet, *made_inside, inside)
        assert all(value.is_inference() for value in made_inside)
        assert torch.is_inference_mode_enabled()
    # Not bit for bit: sums on several threads depend on where the tensors lie in memory.
    torch.testing.assert_close(found.score, expected.score, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.energy, expected.energy)


def test_score_with_weights_made_under_inference_mode(unet, clip, reference):
    with torch.inference_mode():
        trapped = UNet3D(CONFIG).eval()
        for mine, theirs in zip(trapped.parameters(), unet.parameters()):
            mine.copy_(theirs)
        assert trapped.conv_in.weight.is_inference()
        found = motion_score(trapped, *clip, reference)
    assert torch.equal(found.score, motion_score(unet, *clip, reference).score)
    assert not any(parameter.is_inference() for parameter in trapped.parameters())
    assert trapped.state_dict().keys() == unet.state_dict().keys()


def test_score_under_autocast_of_an_inference_block(unet, clip, reference):
    """Autocast keeps casts of the weights for the length of its block; those must not spoil the graph."""
    exact = motion_score(unet, *clip, reference).score.flatten(1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        unet(*clip)
        found = motion_score(unet, *clip, reference).score.flatten(1)
    assert torch.cosine_similarity(found, exact).min() > 0.9
    with torch.no_grad():
        assert torch.equal(motion_score(unet, *clip, reference).score.flatten(1), exact)


def test_score_of_a_half_precision_network(unet, clip, reference):
    exact = motion_score(unet, *clip, reference).score.flatten(1)
    half = motion_score(copy.deepcopy(unet).bfloat16(), *clip, reference)
    assert half.score.dtype == half.energy.dtype == torch.float32
    assert torch.cosine_similarity(half.score.flatten(1), exact).min() > 0.9


# --- combinations ----------


@pytest.mark.parametrize("combination", sorted(COMBINATIONS))
@pytest.mark.parametrize("t", [999, 799, 499, 199])
def test_the_guided_step_lowers_the_energy(unet, clip, reference, schedule, combination, t):
    """Distillation's step, by each combination."""
    x, _, context = clip
    steps, solver = torch.full((3,), t), DDIMSolver(schedule)
    index = torch.searchsorted(solver.timesteps, steps)
    found = motion_score(unet, x, steps, context, reference)
    x0 = schedule.predict_x0(x, found.noise, steps)
    strength = torch.full((3,), LAMBDA / LAMBDA_UNIT)
    coefficients = solver.alpha_bar[index], solver.alpha_bar_prev[index]
    guided = COMBINATIONS[combination](found.noise, found.score, strength, *coefficients)
    ends = [solver.step(x0, eps, index) for eps in (found.noise, guided)]
    before, after = (energy_at(unet, end, solver.timesteps[index - 1], context, reference) for end in ends)
    assert (after < before).all(), (before, after)


def test_equation8_is_the_descent_of_the_solution(schedule):
    eps, score, x0 = tensor(3, 4, 2, 2, 2), tensor(3, 4, 2, 2, 2, seed=1), tensor(3, 4, 2, 2, 2, seed=2)
    solver, index = DDIMSolver(schedule), torch.tensor([0, 100, 199])
    strength = torch.full((3,), 0.05)
    guided = guidance.equation8(eps, score, strength, solver.alpha_bar[index], solver.alpha_bar_prev[index])
    expected = solver.step(x0, eps, index) - 0.05 * score
    torch.testing.assert_close(solver.step(x0, guided, index), expected)


# --- latents of a reference ----------


def counting(unet, context, spent):
    def eps_model(x, t):
        spent.append(len(x))
        return unet(x, t, context)

    return eps_model


def test_one_inversion_serves_many_timesteps(unet, schedule):
    x0, context, spent = tensor(2, *SHAPE[1:], seed=4), tensor(2, 5, CONFIG.context_dim), []
    found = prior_latents(counting(unet, context, spent), x0, [49, 4, 29], schedule)
    assert found.evaluations == sum(spent) == 2 * 10
    with torch.no_grad():
        levels = DDIMSolver(schedule).invert(counting(unet, context, []), x0, 10)
    for t, level in ((4, 0), (29, 5), (49, 9)):
        assert torch.equal(found.latents[t], levels[level])


def test_a_coarse_grid_is_interpolated_along_ddims_own_path(unet, schedule):
    """Between two levels lies what a shorter inversion step with the same noise gives."""
    solver, x0 = DDIMSolver(schedule, 25), tensor(*SHAPE, seed=4)
    seen = []

    def eps_model(x, t):
        seen.append((x, unet(x, t, tensor(3, 5, CONFIG.context_dim))))
        return seen[-1][1]

    with torch.no_grad():
        trajectory = Trajectory(solver, x0, solver.invert(eps_model, x0, 3))
    for t in (0, 14, 39, 60, 97, 119):
        level = next(i for i in range(3) if t <= solver.timesteps[i])
        below, eps = seen[level]
        short = DDIMSolver(schedule, 25)
        short.skip = t - (int(solver.timesteps[level - 1]) if level else 0)
        torch.testing.assert_close(trajectory.at(t), short.invert_step(below, eps, torch.full((3,), t)))
    with pytest.raises(ValueError, match="timestep 120 lies beyond the 3 inverted levels"):
        trajectory.at(120)


def test_timesteps_outside_the_grid_are_refused(schedule):
    with pytest.raises(ValueError, match=r"timestep 999 lies outside the grid of 300 steps, which is 0\.\.899"):
        DDIMSolver(schedule, 300).steps_to(999)
    with pytest.raises(ValueError, match="timestep -1"):
        DDIMSolver(schedule).steps_to(-1)


def test_the_noised_reference_asks_nothing_of_the_network(schedule):
    x0 = tensor(2, *SHAPE[1:])
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    found = prior_latents(None, x0, [999, 499], schedule, "noise", generator=generators)
    assert found.evaluations == 0
    noise = [
        (x - alpha * x0) / sigma
        for t, x in found.latents.items()
        for alpha, sigma in [schedule.coefficients(torch.tensor([t]), x0)]
    ]
    torch.testing.assert_close(noise[0], noise[1])  # noised once
    alone = prior_latents(None, x0[1:], [999], schedule, "noise", generator=torch.Generator().manual_seed(2))
    assert torch.equal(alone.latents[999][0], found.latents[999][1])
    with pytest.raises(ValueError, match="unknown method 'guess'"):
        prior_latents(None, x0, [999], schedule, "guess")
    with pytest.raises(ValueError, match="at least one"):
        prior_latents(None, x0, [], schedule)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("t", [-1, 1000])
def test_a_timestep_out_of_range_is_refused(schedule, method, t):
    with pytest.raises(ValueError, match=rf"timestep {t} is outside 0\.\.999: name others"):
        prior_latents(None, tensor(1, *SHAPE[1:]), [499, t], schedule, method, 50)


# --- priors ----------

ORIGIN = Origin("test", caption="ein Kreis, größer", source="clip.mp4", method="ddim", grid=25)


@pytest.fixture(scope="module")
def prior(unet, schedule):
    context = tensor(1, 5, CONFIG.context_dim, seed=3)
    return make_prior(unet, tensor(1, *SHAPE[1:], seed=2), context, [999, 499], schedule, ORIGIN)


def test_a_prior_counts_what_it_cost(unet, schedule, prior):
    seen, context = [], tensor(1, 5, CONFIG.context_dim, seed=3)
    spent = []
    handle = unet.register_forward_hook(lambda *_: spent.append(1))
    try:
        again = make_prior(
            unet, tensor(1, *SHAPE[1:], seed=2), context, [499, 999], schedule, ORIGIN, callback=seen.append
        )
    finally:
        handle.remove()
    assert again.evaluations == len(spent) == len(seen) == 25 + 2
    assert [info["i"] for info in seen] == list(range(27)) and {info["steps"] for info in seen} == {27}
    assert again.timesteps == [499, 999]
    assert torch.equal(again.at(999)[again.layers[0]].index, prior.at(999)[prior.layers[0]].index)


def test_the_nearest_timestep_is_looked_up(prior):
    assert prior.at(999) is prior.references[999]
    assert prior.at(749) is prior.references[999]
    assert prior.at(748) is prior.references[499]
    assert prior.at(0) is prior.references[499]


def test_a_prior_survives_its_file(unet, clip, prior, tmp_path):
    path = tmp_path / "prior.safetensors"
    prior.save(path)
    loaded = MotionPrior.load(path)
    assert (loaded.origin, loaded.config, loaded.size) == (ORIGIN, CONFIG, SHAPE[2:])
    assert loaded.evaluations == prior.evaluations and loaded.timesteps == [499, 999] and loaded.layers == prior.layers
    before, after = (motion_score(unet, *clip, given.at(999)) for given in (prior, loaded))
    assert torch.equal(before.score, after.score)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_half_precision_keeps_the_score(unet, clip, schedule, prior):
    context = tensor(1, 5, CONFIG.context_dim, seed=3)
    exact = make_prior(unet, tensor(1, *SHAPE[1:], seed=2), context, [999], schedule, ORIGIN, dtype=torch.float32).at(
        999
    )
    assert next(iter(exact.values())).value.dtype == torch.float32
    assert next(iter(prior.at(999).values())).value.dtype == torch.float16
    wanted, found = (motion_score(unet, *clip, given).score for given in (exact, prior.at(999)))
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()


def test_a_prior_of_another_model_is_refused(unet, prior):
    prior.check(unet, (7, *SHAPE[1:]))
    prior.check(UNet3D(CONFIG.as_student(motion=True)))
    with pytest.raises(ValueError, match=r"read by 'test' of .*model_channels 16 there, 32 here.*make the prior anew"):
        prior.check(UNet3D(replace(CONFIG, model_channels=32)))
    with pytest.raises(ValueError, match=r"of 4 frames of 6x4 latents, the video of 8 frames of 6x4.*make the prior"):
        prior.check(unet, (1, 4, 8, 4, 6))
    for layer in ("up.9.attn1", "up"):
        renamed = {t: {layer: next(iter(found.values()))} for t, found in prior.references.items()}
        with pytest.raises(ValueError, match=f"has a layer '{layer}' that this UNet lacks: make the prior anew"):
            replace(prior, references=renamed).check(unet)


def test_a_hostile_prior_file_is_refused(prior, tmp_path):
    path = tmp_path / "prior.safetensors"
    prior.save(path)
    tensors, metadata = read_state(path)
    about, key = json.loads(metadata["about"]), f"499/{prior.layers[0]}/index"

    def refused(message, tensors=tensors, **changes):
        save_file(tensors, path, {"format": metadata["format"], "about": json.dumps(about | changes)})
        with pytest.raises(CheckpointError, match=message):
            MotionPrior.load(path)

    refused("does not index 4 frames", tensors | {key: torch.full_like(tensors[key], 200)})
    refused("does not index 4 frames", tensors | {key: tensors[key].float()})
    value = key.replace("index", "value")
    refused("does not index 4 frames", tensors | {value: tensors[value] * float("nan")})
    refused("does not index 4 frames", tensors | {value: tensors[value][:, 1:]})
    refused("499/", {name: part for name, part in tensors.items() if name != key})
    refused("version 2, known is 1", version=2)
    refused("no timestep", timesteps=[])
    refused("not a readable", size=4)
    refused("not a readable", origin={"colour": "red"})
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="is no motion prior"):
        MotionPrior.load(path)


def test_what_is_no_prior_file_names_the_remedy(prior, tmp_path):
    whole, remedy = tmp_path / "prior.safetensors", "make one with `t2v-turbo motion extract`"
    prior.save(whole)
    for name, content in (("cut", whole.read_bytes()[:500]), ("empty", b""), ("text", b"no tensors")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: cut off, damaged .*{remedy}"):
            MotionPrior.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=rf"none: no such motion prior; .*{remedy}"):
        MotionPrior.load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is a folder; name a motion prior"):
        MotionPrior.load(tmp_path)
    with pytest.raises(CheckpointError, match=rf"clip\.mp4: is no motion prior, .*{remedy}"):
        MotionPrior.load(whole.rename(tmp_path / "clip.mp4"))


def test_a_prior_is_of_one_clip(unet, schedule):
    with pytest.raises(ValueError, match="of one clip, 3 were given"):
        make_prior(unet, tensor(*SHAPE), tensor(3, 5, CONFIG.context_dim), [999], schedule, ORIGIN)


# --- the guided sampler ----------

STEPS = 5


@pytest.fixture(scope="module")
def sampler_prior(unet, schedule):
    context = tensor(1, 5, CONFIG.context_dim, seed=3)
    x0, timesteps = tensor(1, *SHAPE[1:], seed=2), guided_timesteps(STEPS, 1.0)
    return make_prior(unet, x0, context, timesteps, schedule, replace(ORIGIN, grid=STEPS))


def run_sampler(unet, schedule, prior, **settings):
    context, empty = tensor(2, 5, CONFIG.context_dim, seed=7), tensor(1, 5, CONFIG.context_dim, seed=8)
    if prior is None:
        predict = cfg_model(unet, context, empty, 2.0)
    else:
        predict = motion_model(unet, prior, context, empty, 2.0, schedule, STEPS, **settings)
    seen = []
    with torch.no_grad():
        sample_ddim(predict, tensor(2, *SHAPE[1:], seed=9), schedule, STEPS, seen.append)
    return seen


def test_guided_timesteps():
    assert guided_timesteps(5, 1.0) == [999, 799, 599, 399]  # the edge itself is unguided
    assert guided_timesteps(5, 0.5) == [999, 799]
    assert guided_timesteps(50, 0.9)[-1] == 20 * 6 + 19
    assert guided_timesteps(5, 0.0) == []
    with pytest.raises(ValueError, match=r"tau=1\.5 is outside 0\.\.1"):
        guided_timesteps(5, 1.5)


READ = guided_timesteps(50, 0.5)


@pytest.mark.parametrize(
    "read, steps, tau, told",
    [
        (READ, 50, 0.5, None),
        (READ, 200, 0.5, None),
        (guided_timesteps(10, 0.7), 50, 0.5, None),
        ([400], 50, 1.0, None),
        (READ, 50, 0.0, None),
        (READ, 50, 1.0, "at timestep 39, but the nearest of the motion prior's 24 readings, 539 to 999, is 500 away"),
        (READ, 50, 0.6, "at timestep 439, but the nearest of the motion prior's 24 readings, 539 to 999, is 100 away"),
        ([1, 999], 10, 1.0, "at timestep 499, but the nearest of the motion prior's 2 readings, 1 to 999, is 498 away"),
    ],
)
def test_a_prior_that_does_not_cover_the_sampling_warns(prior, caplog, read, steps, tau, told):
    replace(prior, references=dict.fromkeys(read, prior.at(999))).warn_of_gaps(guided_timesteps(steps, tau), steps)
    assert [told in message for message in caplog.messages] == ([True] if told else [])


def test_a_sampling_warns_of_gaps_once(unet, schedule, sampler_prior, caplog):
    run_sampler(unet, schedule, sampler_prior, tau=1.0)
    assert not caplog.messages
    half = replace(sampler_prior, references={t: sampler_prior.at(t) for t in (799, 999)})
    run_sampler(unet, schedule, half, tau=1.0)
    (message,) = caplog.messages
    assert "make the prior anew with the steps and tau of this sampling" in message


@pytest.mark.parametrize("combination", sorted(COMBINATIONS))
@pytest.mark.parametrize("t", [999, 799, 599])
def test_the_guided_denoiser_descends(unet, schedule, sampler_prior, combination, t):
    """On the fine grid, where a step is short enough for a gradient to tell its end."""
    context, empty = tensor(2, 5, CONFIG.context_dim, seed=7), tensor(1, 5, CONFIG.context_dim, seed=8)
    solver, x, steps = DDIMSolver(schedule), tensor(2, *SHAPE[1:], seed=9), torch.full((2,), t)
    predict = motion_model(
        unet, sampler_prior, context, empty, 2.0, schedule, len(solver), LAMBDA, combination=combination
    )
    with torch.no_grad():
        pair = predict(x, steps)
    x0, index = schedule.predict_x0(x, pair[0], steps), torch.searchsorted(solver.timesteps, steps)
    before, after = (
        energy_at(unet, solver.step(x0, eps, index), steps - solver.skip, context, sampler_prior.at(t)) for eps in pair
    )
    assert (after < before).all(), (before, after)


def test_the_score_enters_the_step_alone(unet, schedule, sampler_prior):
    """The first x0 is that of plain guidance, the latents after it are not."""
    plain, guided = run_sampler(unet, schedule, None), run_sampler(unet, schedule, sampler_prior, strength=LAMBDA)
    torch.testing.assert_close(guided[0]["denoised"], plain[0]["denoised"], rtol=1e-4, atol=1e-4)
    assert (guided[0]["latents"] - plain[0]["latents"]).abs().max() > 1e-3


def test_a_guided_step_needs_no_more_forwards_than_cfg(unet, schedule, sampler_prior):
    """The conditional forward comes with the score; checkpointing would repeat blocks, not the network."""
    samples = []
    handle = unet.register_forward_hook(lambda _, inputs, output: samples.append(len(inputs[0])))
    try:
        run_sampler(unet, schedule, None)
        plain = sum(samples)
        run_sampler(unet, schedule, sampler_prior)
    finally:
        handle.remove()
    assert plain == 2 * 2 * STEPS
    assert sum(samples) == 2 * plain


def test_no_strength_and_no_tau_are_plain_guidance(unet, schedule, sampler_prior):
    plain = run_sampler(unet, schedule, None)[-1]["latents"]
    assert torch.equal(run_sampler(unet, schedule, sampler_prior, strength=0.0)[-1]["latents"], plain)
    assert torch.equal(run_sampler(unet, schedule, sampler_prior, tau=0.0)[-1]["latents"], plain)
    assert not torch.equal(run_sampler(unet, schedule, sampler_prior)[-1]["latents"], plain)


def test_the_guided_sampler_under_inference_mode(unet, schedule, sampler_prior):
    expected = run_sampler(unet, schedule, sampler_prior)[-1]["latents"]
    with torch.inference_mode():
        assert torch.equal(run_sampler(unet, schedule, sampler_prior)[-1]["latents"], expected)


def test_the_guided_sampler_refuses_what_does_not_fit(unet, schedule, sampler_prior):
    with pytest.raises(ValueError, match="make the prior anew"):
        run_sampler(UNet3D(replace(CONFIG, model_channels=32)), schedule, sampler_prior)
    context = tensor(1, 5, CONFIG.context_dim)
    predict = motion_model(unet, sampler_prior, context, context, 1.0, schedule, STEPS)
    with pytest.raises(ValueError, match="the video of 5 frames"):
        predict(tensor(1, 4, 5, 4, 6), torch.tensor([999]))
