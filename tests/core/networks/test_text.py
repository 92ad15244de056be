"""The text tower and its tokens against open_clip's."""

import gzip
import random

import pytest
import torch
from conftest import ROOT, randomize

from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.networks.config import TextConfig
from t2v_turbo.core.networks.text import TextEncoder
from t2v_turbo.core.networks.tokenizer import CLIPTokenizer

MERGES = {"clip": None, "shapes": ROOT / "weights" / "shapes" / SHAPES.text.merges}
PROMPTS = [
    "",
    "   ",
    "A red circle moves RIGHT, slowly; it's 3 o'clock.",
    "l'été déjà vu — naïve café, Straße, ΑΒΓ, Привет, 你好世界, こんにちは, 안녕",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; tabs\tand\nlines\r\n and\u00a0no-break",
    "emoji 🎬🐼 combined é ñ ﬁ ligature, ½ ² Ⅷ ١٢٣",
    "<start_of_text> in the middle <end_of_text> twice",
    "schÃ¶n, donâ€™t",  # mojibake, which is mended
    "don't we'll they've I'm he'd you're it's 'quoted' 's",
    "a" * 500,
    "!!! ??? ... --- ___ ((( )))",
    " ".join(["word"] * 120),
]


def random_prompts(count: int) -> list[str]:
    draw = random.Random(0)
    latin = "".join(map(chr, range(0xA0, 0x250)))
    alphabets = ["abcdefg hij'", "ABC xyz 0123456789.,!?-'", f"{latin}  ", "🎬好é \t\n<>&;#x"]
    return ["".join(draw.choices(draw.choice(alphabets), k=draw.randrange(60))) for _ in range(count)]


@pytest.mark.parametrize("name", MERGES)
def test_tokens_are_open_clips(name):
    from open_clip import SimpleTokenizer

    merges = MERGES[name]
    theirs = SimpleTokenizer(**({"bpe_path": str(merges)} if merges else {}))
    ours = CLIPTokenizer(merges)
    prompts = PROMPTS + random_prompts(300)
    for prompt in prompts:
        assert ours.encode(prompt) == theirs.encode(prompt), prompt
    assert torch.equal(ours(prompts), theirs(prompts))
    assert ours(prompts).dtype == torch.int64


@torch.no_grad()
def test_tower_is_open_clips():
    from open_clip.transformer import TextTransformer

    config = TextConfig(width=64, heads=4, layers=3, vocab_size=1000, embed_dim=48)
    ours = randomize(TextEncoder(config), 0)
    theirs = TextTransformer(context_length=77, vocab_size=1000, width=64, heads=4, layers=3, output_dim=48).eval()
    missing = theirs.load_state_dict(ours.tower.state_dict(), strict=False)
    assert missing.missing_keys == [] and missing.unexpected_keys == ["logit_scale"]
    tokens = torch.randint(0, 998, (3, 77), generator=torch.Generator().manual_seed(1))
    tokens[:, -1] = 999
    expected = torch.nn.functional.normalize(theirs(tokens), dim=-1)
    torch.testing.assert_close(ours.pooled(tokens), expected, atol=1e-5, rtol=1e-5)


def test_fresh_weights_have_clips_deviations():
    from open_clip.transformer import TextTransformer

    config = TextConfig(width=128, heads=4, layers=4, vocab_size=2000, embed_dim=96)
    ours = TextEncoder(config).tower.state_dict()
    theirs = TextTransformer(context_length=77, vocab_size=2000, width=128, heads=4, layers=4, output_dim=96)
    matrices = {name: value for name, value in theirs.state_dict().items() if value.ndim > 1}
    assert len(matrices) == 19
    for name, value in matrices.items():
        assert value.std().item() == pytest.approx(ours[name].std().item(), rel=0.05), name


def test_long_prompts_keep_the_end():
    tokens = CLIPTokenizer()([" ".join(["word"] * 200)])[0]
    assert tokens[0] == 49406 and tokens[-1] == 49407 and (tokens != 0).all()


def test_a_damaged_merges_list_is_named(tmp_path):
    path = tmp_path / "merges.txt.gz"
    truncated, foreign = MERGES["shapes"].read_bytes()[:200], gzip.compress(b"title\nno pair here\n")
    for content in (None, b"", b"no gzip", truncated, foreign):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match="merges list of the text encoder"):
            CLIPTokenizer(path)(["a"])
