"""The embedded world: what a scene says is what its frames, captions and files show."""

import json
import re
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from t2v_turbo.train.shapes.world import captions
from t2v_turbo.train.shapes.world.dataset import render_clip, write_dataset
from t2v_turbo.train.shapes.world.rendering import render, silhouette
from t2v_turbo.train.shapes.world.scene import COLORS, DIRECTIONS, PALETTE, SHAPES, Scene, sample_scene

SCENE = Scene("circle", "red", "right", 2.5, radius=9, x=20, y=32)


def coverage(scene, frames):
    """How much of each pixel the shape covers, (F, H, W): against the same picture without a shape."""
    ground = render(replace(scene, radius=1e-3, x=-9, y=-9, speed=0), frames).astype(float)
    contrast = np.abs(render(scene, frames) - ground).sum(-1)
    return contrast / contrast.max()


def test_a_clip_is_a_pure_function_of_seed_index_and_style():
    clip, again = render_clip(3, 5, "short"), render_clip(3, 5, "short")
    assert np.array_equal(clip.frames, again.frames)
    assert (clip.scene, clip.short_caption, clip.dense_caption) == (
        again.scene, again.short_caption, again.dense_caption)
    others = [(4, 5, "short"), (3, 6, "short"), (3, 5, "dense")]
    assert all(render_clip(*other).scene.radius != clip.scene.radius for other in others)


def test_rendering_leaves_the_global_random_state_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    render_clip(0, 0, "short")
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("style", ["short", "dense"])
@pytest.mark.parametrize("frames", [1, 8, 16])
def test_the_whole_path_stays_inside_the_picture(style, frames):
    for index in range(150):
        scene = sample_scene(np.random.default_rng(index), style, frames)
        border = coverage(scene.clean(), frames)
        border[:, 1:-1, 1:-1] = 0
        assert border.max() < 0.4, scene  # the outline stays out; only its soft edge reaches the last pixel


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_area_and_the_centre_that_the_scene_names(shape):
    x, y, radius = np.array([20.0, 33.3]), np.array([30.25, 25.0]), 8.0
    mask = silhouette(shape, radius, x, y, 64, 64)
    at = np.arange(64) + 0.5
    area = mask.sum((1, 2))
    np.testing.assert_allclose(area, np.pi * radius**2, rtol=0.015)
    np.testing.assert_allclose((mask.sum(1) @ at) / area, x, atol=0.05)
    np.testing.assert_allclose((mask.sum(2) @ at) / area, y, atol=0.05)


def test_the_triangle_stands_on_its_base():
    mask = silhouette("triangle", 10.0, 32.0, 32.0, 64, 64)[0]
    widths = mask.sum(1)
    assert widths[22] < widths[30] < widths[38]


@pytest.mark.parametrize("direction, step", [
    ("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1)), ("still", (0, 0)),
])
def test_motion_is_uniform_and_finer_than_a_pixel(direction, step):
    scene = replace(SCENE, direction=direction, x=32, y=32, speed=1.3)
    frames = render(scene).astype(float)
    weight = (frames[..., 0] - frames[..., 1]).clip(0)  # red against grey
    at, total = np.arange(64) + 0.5, weight.sum((1, 2))
    track = np.stack([weight.sum(1) @ at / total, weight.sum(2) @ at / total], axis=1)
    np.testing.assert_allclose(np.diff(track, axis=0), np.tile(np.array(step) * 1.3, (7, 1)), atol=0.03)


def test_size_scales_the_picture_and_not_the_scene():
    small = render(SCENE, size=64).astype(float)
    large = render(SCENE, size=128).astype(float).reshape(8, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(small - large).mean() < 0.5


def test_the_palette_is_saturated_and_every_background_is_muted():
    def chroma(frames):
        return np.ptp(frames.astype(int), axis=-1)

    assert min(max(rgb) - min(rgb) for rgb in PALETTE.values()) > 140
    for index in range(100):
        scene = sample_scene(np.random.default_rng(index), "dense")
        bare = replace(scene, x=-40, y=-40, speed=0)
        assert chroma(render(bare)).max() < 40
    assert tuple(PALETTE) == captions.COLORS


def test_styles_differ_as_their_models_do():
    def draw(style):
        return [sample_scene(np.random.default_rng(i), style) for i in range(400)]

    short, dense = draw("short"), draw("dense")
    assert all(scene == scene.clean() for scene in dense)
    assert 0.4 < np.mean([scene != scene.clean() for scene in short]) < 0.9
    assert np.mean([s.speed for s in dense]) > np.mean([s.speed for s in short]) + 1
    for scenes in (short, dense):
        assert {s.color for s in scenes} == set(COLORS)
        assert {s.shape for s in scenes} == set(SHAPES)
        assert {s.direction for s in scenes} == set(DIRECTIONS)


def test_each_degradation_does_what_it_says():
    clean = render(SCENE).astype(float)
    noisy = render(replace(SCENE, noise=0.05)).astype(float)
    assert 0.04 < (noisy - clean)[:, :10].std() / 255 < 0.06
    blurred = render(replace(SCENE, blur=1.0)).astype(float)
    assert np.abs(np.diff(blurred, axis=2)).max() < 0.7 * np.abs(np.diff(clean, axis=2)).max()
    flicker = render(replace(SCENE, flicker=0.08))[:, :10].mean((1, 2, 3))
    assert flicker.std() > 3 and clean[:, :10].mean((1, 2, 3)).std() < 0.1
    coarse = render(replace(SCENE, compression=0.3)).astype(float)
    assert 0.5 < np.abs(coarse - clean).mean() < 10
    assert np.array_equal(render(replace(SCENE, noise=0.05).clean()), clean)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"hexagon.*circle"):
        replace(SCENE, shape="hexagon")
    with pytest.raises(ValueError, match=r"long.*short, dense"):
        render_clip(0, 0, "long")
    with pytest.raises(ValueError, match="size 0"):
        render(SCENE, size=0)


def test_captions_tell_the_truth():
    for index in range(300):
        clip = render_clip(1, index, "short")
        facts = clip.scene.expected()
        said = {name: value for name, value in captions.parse_prompt(clip.short_caption).items() if value}
        assert said.items() <= facts.items() and {"color", "shape"} <= said.keys(), clip.short_caption
        assert captions.parse_prompt(clip.dense_caption) == facts, clip.dense_caption


def test_a_seventh_of_the_short_captions_leave_the_direction_out():
    texts = [render_clip(2, index, "dense", frames=2, size=8).short_caption for index in range(600)]
    silent = np.mean([captions.parse_prompt(text)["direction"] is None for text in texts])
    assert 0.10 < silent < 0.20
    assert np.mean([captions.parse_prompt(text)["speed"] is None for text in texts]) > 0.6
    assert len(set(texts)) > 300


def test_dense_captions_are_longer_than_clip_reads_and_say_the_main_facts_first():
    for index in range(100):
        clip = render_clip(1, index, "short", frames=2, size=8)
        assert len(re.findall(r"\w+|[.,]", clip.dense_caption)) > 77  # CLIP has a token or more for each
        opening = captions.parse_prompt(". ".join(clip.dense_caption.split(". ")[:2]))
        facts = clip.scene.expected()
        assert all(opening[name] == facts[name] for name in ("color", "shape", "direction")), opening


def test_the_vocabulary_covers_every_caption():
    texts = [prompt for prompt, _ in captions.evaluation_prompts(200)]
    for index in range(300):
        clip = render_clip(7, index, "short", frames=2, size=8)
        texts += [clip.short_caption, clip.dense_caption]
    said = {word.strip(".,").lower() for text in texts for word in text.split()}
    assert said <= set(captions.all_words()) == set(captions.VOCABULARY)
    assert not any("{" in text for text in texts)


def test_evaluation_prompts_are_fixed_balanced_and_say_what_they_expect():
    prompts = captions.evaluation_prompts(192)
    assert prompts == captions.evaluation_prompts(192) != captions.evaluation_prompts(192, seed=1)
    for attribute, share in (("color", 32), ("shape", 48), ("direction", 48)):
        assert set(Counter(facts[attribute] for _, facts in prompts).values()) == {share}
    assert len({tuple(f[k] for k in ("color", "shape", "direction")) for _, f in prompts}) == 96
    assert all(captions.parse_prompt(prompt) == facts for prompt, facts in prompts)
    assert set(Counter(facts["direction"] for _, facts in captions.evaluation_prompts(24)).values()) == {6}
    assert len(captions.evaluation_prompts(7)) == 7


@pytest.mark.parametrize("prompt, color, shape, direction, speed", [
    ("a red circle", "red", "circle", None, None),
    ("A fast GREEN square, moving quickly to the left!", "green", "square", "left", "fast"),
    ("In the upper right part a blue cross moves slowly upwards", "blue", "cross", "up", "slow"),
    ("a yellow triangle on the left side stands still", "yellow", "triangle", "still", None),
    ("a purple square going toward the bottom", "purple", "square", "down", None),
    ("the circle moves upon the left", None, "circle", "left", None),
    ("left and right", None, None, None, None),
    ("", None, None, None, None),
])
def test_prompts_are_understood(prompt, color, shape, direction, speed):
    named = captions.parse_prompt(prompt)
    assert tuple(named.values()) == (color, shape, direction, speed)


def read_mp4(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_a_data_set_on_disk_is_the_data_set(tmp_path):
    folder = write_dataset(tmp_path / "data", 3, seed=4, style="dense")
    assert len(list(folder.iterdir())) == 9
    for index in range(3):
        clip, stem = render_clip(4, index, "dense"), folder / f"clip_{index:06d}"
        record = json.loads(stem.with_suffix(".json").read_text())
        assert record["scene"] == asdict(clip.scene) and Scene(**record["scene"]) == clip.scene
        assert (record["short"], record["dense"]) == (clip.short_caption, clip.dense_caption)
        assert stem.with_suffix(".txt").read_text().strip() == clip.short_caption
        stored = read_mp4(stem.with_suffix(".mp4")).astype(int)
        assert stored.shape == clip.frames.shape and np.abs(stored - clip.frames).mean() < 2


def test_an_interrupted_data_set_is_continued_and_never_mixed(tmp_path):
    write_dataset(tmp_path, 2, seed=4)
    kept = (tmp_path / "clip_000000.mp4").stat().st_mtime_ns
    (tmp_path / "clip_000001.mp4").rename(tmp_path / ".clip_000001.part.mp4")  # as a crash leaves it
    write_dataset(tmp_path, 3, seed=4)
    assert (tmp_path / "clip_000000.mp4").stat().st_mtime_ns == kept
    assert len(list(tmp_path.glob("*.mp4"))) == 3 and not list(tmp_path.glob("*.part*"))
    with pytest.raises(ValueError, match="another seed"):
        write_dataset(tmp_path, 4, seed=5)
    with pytest.raises(ValueError, match="size 33 is odd"):
        write_dataset(tmp_path, 1, size=33)
