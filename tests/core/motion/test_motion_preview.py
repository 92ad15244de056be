"""The picture of a motion prior, on attention that is known."""

import pytest
import torch

from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.motion.energies import TopEntries
from t2v_turbo.core.motion.preview import GAP, HEADER, LABEL, TILE, attention_matrix, frame_colours, preview
from t2v_turbo.core.motion.prior import MotionPrior, Origin

FRAMES, HEIGHT, WIDTH = 4, 4, 8
FINE, COARSE = "up.1.blocks.0.temporal.blocks.0.attn1", "up.0.blocks.0.temporal.blocks.0.attn1"


def attending(target, height, width, heads=2, strength=0.5):
    """Entries by which a place (y, x) of frame f attends to frame ``target(f, y, x)``, in every head alike."""
    index = torch.tensor([[[target(f, y, x)] for f in range(FRAMES)] for y in range(height) for x in range(width)])
    index = index.repeat_interleave(heads, 0)[None].to(torch.uint8)  # (1, H·W·heads, F, 1)
    return TopEntries(index, torch.full(index.shape, strength, dtype=torch.float16))


def prior_of(*references, timesteps=(399,)):
    size = (FRAMES, HEIGHT, WIDTH)
    return MotionPrior(dict(zip(timesteps, references)), SHAPES.unet, size, Origin("shapes"))


def tile(image, row, column):
    """Row 0 is the mean of the layers; column 0 is the matrix, f + 1 the map of frame f."""
    top, width = HEADER + row * (TILE + GAP), TILE * WIDTH // HEIGHT
    left = LABEL + (TILE + GAP if column else 0) + max(0, column - 1) * (width + GAP)
    return image[top : top + TILE, left : left + (width if column else TILE)]


def same_colour(pixel, colour):
    torch.testing.assert_close(pixel, colour, atol=0.01, rtol=0)


def test_the_map_shows_which_frame_each_place_attends_to():
    """The left half attends to the first frame, the right half to the next one."""

    def target(f, y, x):
        return 0 if x < WIDTH // 2 else (f + 1) % FRAMES

    image = preview(prior_of({FINE: attending(target, HEIGHT, WIDTH)}))
    colours = frame_colours(FRAMES)
    for f in range(FRAMES):
        drawn = tile(image, 1, 1 + f)
        same_colour(drawn[TILE // 2, 3], colours[0])
        same_colour(drawn[TILE // 2, -4], colours[(f + 1) % FRAMES])


def test_the_matrix_has_the_frame_as_row_and_its_target_as_column():
    top = attending(lambda f, y, x: (f + 1) % FRAMES, HEIGHT, WIDTH)
    torch.testing.assert_close(attention_matrix(top), 0.5 * torch.eye(FRAMES).roll(1, 1))
    drawn, cell = tile(preview(prior_of({FINE: top})), 1, 0), TILE // FRAMES
    same_colour(drawn[cell // 2, cell + cell // 2], frame_colours(FRAMES)[1])
    assert drawn[cell // 2, cell // 2].max() == 0


def test_all_kept_entries_count():
    index = torch.arange(FRAMES).expand(1, HEIGHT * WIDTH, FRAMES, FRAMES)
    top = TopEntries(index, torch.full(index.shape, 1 / FRAMES))
    torch.testing.assert_close(attention_matrix(top), torch.full((FRAMES, FRAMES), 1 / FRAMES))
    mean = frame_colours(FRAMES).mean(0)
    same_colour(tile(preview(prior_of({FINE: top})), 1, 1)[0, 0], mean / mean.max())


def test_layers_have_their_own_grids_and_a_mean():
    fine = attending(lambda f, y, x: 0, HEIGHT, WIDTH, heads=3)
    coarse = attending(lambda f, y, x: 3, HEIGHT // 2, WIDTH // 2, heads=5)
    image = preview(prior_of({FINE: fine, COARSE: coarse}))
    assert image.shape == (HEADER + 3 * (TILE + GAP), LABEL + TILE + GAP + FRAMES * (2 * TILE + GAP), 3)
    assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
    first, last = frame_colours(FRAMES)[0], frame_colours(FRAMES)[3]
    same_colour(tile(image, 1, 1)[5, 5], first)
    same_colour(tile(image, 2, 1)[5, 5], last)
    same_colour(tile(image, 0, 1)[5, 5], (first + last) / (first + last).max())


def test_brightness_is_how_much_attention_there_is():
    top = attending(lambda f, y, x: 2, HEIGHT, WIDTH)
    top.value[0, : top.value.shape[1] // 2] = 0.25
    drawn = tile(preview(prior_of({FINE: top})), 1, 1)
    torch.testing.assert_close(drawn[0, 0], drawn[-1, -1] / 2, atol=0.01, rtol=0)


def test_the_timestep_chooses_and_the_least_noisy_is_usual():
    steps = [{FINE: attending(lambda f, y, x, at=at: at, HEIGHT, WIDTH)} for at in (0, 3)]
    prior = prior_of(*steps, timesteps=(199, 799))
    low, high = preview(prior, 199), preview(prior, 700)
    assert torch.equal(preview(prior), low) and not torch.equal(low[HEADER:], high[HEADER:])
    same_colour(tile(high, 1, 1)[0, 0], frame_colours(FRAMES)[3])


@pytest.mark.parametrize("name", [FINE, "entry.blocks.0.attn1", "down.99999999999.x", "whatever"])
def test_what_does_not_fit_the_clip_is_refused(name):
    with pytest.raises(ValueError, match=r"layer '.*' holds \d+ rows of attention, which do not fit"):
        preview(prior_of({name: attending(lambda f, y, x: 0, 1, 7, heads=1)}))
