"""The oracle: exact on what the world renders, strict on what it would not, calm on everything else."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from t2v_turbo.train.shapes.world import oracle
from t2v_turbo.train.shapes.world.rendering import render
from t2v_turbo.train.shapes.world.scene import Scene

SCENE = Scene("circle", "red", "right", 2.5, radius=9, x=20, y=32)
EMPTY = oracle.Measurement()


def bare(scene=SCENE):
    """The scene's background alone."""
    return render(replace(scene, radius=1e-3, x=-9, y=-9, speed=0))


@pytest.mark.parametrize("settings, floor", [
    ({"style": "dense"}, 0.99),
    ({"style": "short"}, 0.99),
    ({"style": "short", "degraded": True}, 0.99),
    ({"noise": 0.02}, 0.99),
    ({"noise": 0.05}, 0.99),
    ({"noise": 0.1}, 0.98),
    ({"blur": 1.0}, 0.99),
    ({"noise": 0.05, "blur": 1.0}, 0.98),
    ({"size": 32}, 0.99),
    ({"frames": 16}, 0.99),
], ids=str)
def test_attributes_are_read_right(settings, floor):
    found = oracle.accuracy(60, seed=11, **settings)
    assert all(found[name] >= floor for name in ("color", "shape", "direction", "speed")), found
    assert found["n"] == 60


def test_a_clean_clip_has_full_quality():
    found = oracle.accuracy(60, seed=12)
    assert all(found[name] > 0.98 for name in ("smoothness", "steadiness", "sharpness")), found


@pytest.mark.parametrize("speed", [0.8, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("direction", ["left", "right", "up", "down"])
def test_speed_is_measured_in_world_pixels(direction, speed):
    scene = replace(SCENE, x=32, y=32, radius=8, direction=direction, speed=speed)
    for size in (32, 64, 96):
        seen = oracle.measure(render(scene, frames=4, size=size))
        assert seen.direction == direction and abs(seen.speed - speed) < 0.1, (size, seen)


def test_each_quality_answers_its_own_damage():
    clean = oracle.measure(render(SCENE))
    blurred = [oracle.measure(render(replace(SCENE, blur=sigma))) for sigma in (0.5, 1.0, 2.0)]
    assert clean.sharpness > 0.98 and clean.sharpness > blurred[0].sharpness > blurred[1].sharpness
    assert blurred[1].sharpness > blurred[2].sharpness and blurred[1].steadiness > 0.98
    flicker = oracle.measure(render(replace(SCENE, flicker=0.1)))
    assert flicker.steadiness < 0.6 and flicker.sharpness > 0.9
    order = [0, 2, 1, 3, 5, 4, 6, 7]
    jumpy = oracle.measure(render(SCENE)[order])
    assert jumpy.smoothness < 0.5 and jumpy.steadiness > 0.98 and jumpy.direction == "right"


def test_size_colour_or_presence_that_changes_costs_smoothness():
    clip, ground = render(SCENE), bare()
    breathing = np.concatenate([render(replace(SCENE, x=20 + 2.5 * i, radius=9 + 3 * (i % 2)), frames=1)
                                for i in range(8)])
    repainted = np.concatenate([clip[:5], render(replace(SCENE, color="green"))[5:]])
    gone = np.concatenate([clip[:5], ground[5:]])
    for damaged in (breathing, repainted, gone):
        seen = oracle.measure(damaged)
        assert (seen.color, seen.direction) == ("red", "right") and seen.smoothness < 0.7, seen


def test_a_second_object_is_not_mistaken_for_the_first():
    other = replace(SCENE, color="blue", direction="left", x=50, y=54, radius=6)
    both = render(other)
    ring = (render(SCENE) != bare()).any(-1)
    both[ring] = render(SCENE)[ring]
    seen = oracle.measure(both)
    assert (seen.color, seen.shape, seen.direction) == ("red", "circle", "right")
    assert abs(seen.speed - 2.5) < 0.1 and seen.presence < 0.8
    twin = render(replace(other, color="red"))
    twin[ring] = render(SCENE)[ring]
    seen = oracle.measure(twin)
    assert seen.direction == "right" and abs(seen.speed - 2.5) < 0.1 and seen.presence < 0.8


def test_a_stretched_shape_has_no_name():
    tall = render(replace(SCENE, x=32, y=16, radius=7, speed=0), frames=2, size=64)
    tall = np.repeat(tall[:, :32], 2, axis=1)  # an ellipse, twice as high as wide
    assert oracle.measure(tall).shape is None and oracle.measure(tall).color == "red"


def test_a_motion_between_two_directions_has_no_name():
    steps = [replace(SCENE, x=18 + 3 * i, y=18 + 3 * i) for i in range(8)]
    seen = oracle.measure(np.concatenate([render(step, frames=1) for step in steps]))
    assert seen.direction is None and abs(seen.speed - 3 * 2**0.5) < 0.1 and seen.speed_name is None


def test_a_track_that_jumps_about_has_no_direction():
    order = np.random.default_rng(1).permutation(8)
    seen = oracle.measure(render(replace(SCENE, speed=4.0))[order])
    assert seen.direction is None and seen.speed is None and seen.smoothness < 0.1


def test_still_is_a_direction():
    seen = oracle.measure(render(replace(SCENE, direction="still", speed=0)))
    assert (seen.direction, seen.speed_name) == ("still", None) and seen.speed < 0.05


@pytest.mark.parametrize("clip", [
    np.zeros((8, 64, 64, 3), np.uint8),
    np.full((8, 64, 64, 3), 0.5),
    bare(),
    np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8),
    np.broadcast_to(np.uint8([230, 25, 25]), (8, 64, 64, 3)),  # a saturated background is no object
    np.zeros((1, 1, 1, 3)),
    np.full((2, 3, 5, 3), 0.7),
], ids=["black", "grey", "background", "white noise", "all red", "one pixel", "tiny"])
def test_nothing_is_found_where_nothing_is(clip):
    assert oracle.measure(clip) == EMPTY
    score = oracle.score(clip, SCENE.expected())
    assert (score.semantic, score.quality, score.total) == (0, 0, 0)


def test_no_input_gives_nan():
    rng = np.random.default_rng(5)
    for shape in ((1, 64, 64, 3), (3, 40, 64, 3), (2, 7, 5, 3), (8, 16, 16, 3), (5, 64, 1, 3)):
        for _ in range(10):
            clip = rng.random(shape) ** 3 * rng.random(3)
            clip[:, shape[1] // 3: shape[1] // 2] = rng.random(3)
            values = [value for value in asdict(oracle.measure(clip)).values() if isinstance(value, float)]
            assert np.isfinite(values).all() and min(values) >= 0


def test_the_largest_component_wins_and_touching_runs_are_one():
    mask = np.array([[[1, 1, 0, 0, 1],
                      [0, 1, 0, 0, 1],
                      [1, 1, 0, 0, 1],
                      [1, 0, 0, 1, 0]],
                     [[0, 1, 0, 1, 0],
                      [0, 1, 1, 1, 0],
                      [0, 0, 0, 0, 0],
                      [1, 0, 0, 1, 1]],
                     np.zeros((4, 5)).tolist()], bool)
    kept = oracle._largest_component(mask)
    columns = np.array([1, 1, 1, 0, 0], bool)  # the object of frame 0 lies left, that of frame 1 on top
    rows = np.array([1, 1, 0, 0], bool)
    assert np.array_equal(kept[0], mask[0] & columns)
    assert np.array_equal(kept[1], mask[1] & rows[:, None])
    assert not kept[2].any()


@pytest.mark.parametrize("rows", [
    [[1, 1, 0, 1, 1]],
    [[1, 1, 0, 0], [0, 0, 1, 1]],  # a corner in common is not enough
    [[0, 0, 1, 1], [1, 1, 0, 0]],
])
def test_equal_components_are_not_merged(rows):
    assert oracle._largest_component(np.array([rows], bool)).sum() == 2


def test_numpy_torch_bytes_and_floats_agree():
    clip = render(SCENE)
    expected = oracle.measure(clip)
    floats = torch.from_numpy(clip).float() / 255
    assert oracle.measure(torch.from_numpy(clip)) == expected
    for other in (floats.requires_grad_(), floats.detach().numpy().astype(np.float64)):
        assert oracle.measure(other).fit == pytest.approx(expected.fit, abs=1e-3)
    seen = oracle.measure(floats.detach().bfloat16())
    assert (seen.color, seen.shape, seen.direction) == ("red", "circle", "right")


def test_one_frame_has_colour_and_shape_but_no_direction():
    seen = oracle.measure(render(SCENE, frames=1))
    assert (seen.color, seen.shape, seen.direction, seen.speed) == ("red", "circle", None, None)


def test_frames_need_not_be_square():
    wide = np.pad(render(SCENE), ((0, 0), (0, 0), (0, 48), (0, 0)), mode="edge")
    seen = oracle.measure(wide)
    assert (seen.color, seen.shape, seen.direction) == ("red", "circle", "right")
    assert abs(seen.speed - 2.5) < 0.05


def test_scores_count_only_what_was_asked():
    clip = render(SCENE)
    full = oracle.score(clip, SCENE.expected())
    assert full.color and full.shape and full.direction and full.semantic == 1
    assert full.quality == pytest.approx((full.smoothness + full.steadiness + full.sharpness) / 3)
    assert full.total == pytest.approx((1 + full.quality) / 2)
    part = oracle.score(clip, {"color": "red", "shape": "square", "direction": None, "speed": "fast"})
    assert (part.color, part.shape, part.direction, part.speed) == (True, False, None, False)
    assert part.semantic == 0.5
    means = oracle.summarize([full, part])
    assert (means["color"], means["shape"], means["direction"], means["speed"]) == (1, 0.5, 1, 0.5)
    assert means["semantic"] == 0.75 and means["n"] == 2
    only_color = oracle.summarize([oracle.score(clip, {"color": "red"})])
    assert only_color["shape"] is None and only_color["semantic"] == 1


@pytest.mark.parametrize("clip, message", [
    (np.full((2, 8, 8, 3), np.nan), "NaN"),
    (np.full((2, 8, 8, 3), np.inf), "NaN or infinite"),
    (np.full((2, 8, 8, 3), 128.0), "0..1"),
    (np.full((2, 8, 8, 3), -1.0), "from -1"),
    (np.zeros((2, 3, 8, 8)), r"\(2, 3, 8, 8\).*\(F, H, W, 3\)"),
    (np.zeros((0, 8, 8, 3)), "shape"),
])
def test_unusable_clips_are_named(clip, message):
    with pytest.raises(ValueError, match=message):
        oracle.measure(clip)


@pytest.mark.parametrize("expected, message", [
    ({"color": "orange"}, "orange.*red"),
    ({"colour": "red"}, "colour.*color"),
    ({}, "asks for nothing"),
    ({"speed": "fast"}, "asks for nothing"),
])
def test_unusable_wishes_are_named(expected, message):
    with pytest.raises(ValueError, match=message):
        oracle.score(render(SCENE), expected)
    with pytest.raises(ValueError, match="empty"):
        oracle.summarize([])
