"""Captions of a scene, the fixed evaluation prompts, and the way back from a prompt to what it asks for.

Captions come from a small grammar: a rule names its alternatives, and `{rule}` in one is expanded in turn.
What depends on the scene (colour, direction, speed, ...) is a rule too, chosen by the facts of the scene.
"""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from .scene import COLORS, MOVES, SHAPES

if TYPE_CHECKING:
    from .scene import Scene


RULES = {
    # short captions, by what they tell
    "short_bare": ("a {color} {shape}", "a {color} {shape} on a {tone} background"),
    "short_move": (
        "a {color} {shape} moves {way}", "a {color} {shape} moving {way}", "a {color} {shape} goes {way}",
        "a {color} {shape} going {way}", "a {color} {shape} slides {way}",
        "a {color} {shape} is moving {way}",
    ),
    "short_speed": (
        "a {pace} {color} {shape} moves {way}", "a {color} {shape} moves {way} {manner}",
        "a {color} {shape} {manner} moves {way}", "a {color} {shape} going {way} {manner}",
        "a {pace} {color} {shape} moving {way}",
    ),
    "short_still": (
        "a {color} {shape} stays still", "a {color} {shape} does not move", "a still {color} {shape}",
        "a {color} {shape} that stands still",
    ),
    # dense captions: four to six sentences, the main facts first
    "dense_move": (
        "A {color} {shape} moves {way} across the frame. {details}",
        "The video shows a single {color} {shape} that moves {way} {manner}. {details}",
        "In this clip a {color} {shape} is moving {way} {manner}, and nothing else moves. {details}",
        "This is a short video of one {color} {shape}. The {shape} moves {way} {manner}. {details}",
        "We see a {tone} {ground}. In front of it a {color} {shape} moves {way} {manner}. {details}",
    ),
    "dense_still": (
        "A {color} {shape} stays still in the frame. {rest}",
        "The video shows a single {color} {shape} that does not move. {rest}",
        "This is a short video of one {color} {shape}. The {shape} stays still the whole time. {rest}",
    ),
    "details": ("{begin} {tempo} {scenery} {light} {closing}",),
    "rest": ("{place} {scenery} {light} {pause} {closing}",),
    "begin": (
        "It begins {position} of the picture, and from there it travels {way} along a line without turning.",
        "At the start the {shape} is {position} of the picture, then it keeps going {way} until the end.",
        "Its path starts {position} of the frame and leads {way}, always along the same straight line.",
    ),
    "place": (
        "It is placed {position} of the picture and it remains there from the first frame to the last frame.",
        "The {shape} stands {position} of the frame, and its place is the same at the start and at the end.",
    ),
    "pause": (
        "Nothing moves in the whole clip, neither the {shape} nor the camera.",
        "There is no motion at all, so that every frame looks like the one before.",
    ),
    "scenery": (
        "Behind it there is a {tone} {ground}, rather {hue} in color, which stays the same all the time.",
        "The view shows a {tone} {ground} in {hue} colors, and it does not change while the video runs.",
        "The scene takes place in front of a {hue} {tone} {ground} that remains fixed in every frame.",
    ),
    "closing": (
        "It is a {size} {shape}, its color is a pure {color}, and its edges are clean and easy to see.",
        "The {color} color of the {size} {shape} is strong and even, and its outline is easy to see.",
        "The {size} {shape} keeps its {color} color, its form and its size from the beginning to the end.",
    ),
}

# Rules that a scene chooses: RULES[name] is one of these, by the value of the fact.
FACTS = {
    "way": {
        "left": ("left", "to the left", "toward the left"),
        "right": ("right", "to the right", "toward the right"),
        "up": ("up", "upward", "toward the top"),
        "down": ("down", "downward", "toward the bottom"),
    },
    "pace": {"slow": ("slow",), "normal": ("steady",), "fast": ("fast", "quick")},
    "manner": {
        "slow": ("slowly", "at a slow speed"), "normal": ("steadily", "at a normal speed"),
        "fast": ("quickly", "fast", "at a high speed"),
    },
    "tempo": {
        "slow": (
            "The motion is slow and calm, only a small step from one frame to the next.",
            "It moves at a slow speed and covers only a short distance.",
        ),
        "normal": (
            "The motion is steady, neither slow nor fast, with even steps from one frame to the next.",
            "It moves at a normal speed and covers a moderate distance.",
        ),
        "fast": (
            "The motion is fast and strong, with a large step from one frame to the next.",
            "It moves at a high speed and covers a long distance.",
        ),
    },
    "ground": {
        "plain": ("plain background", "background of one color"),
        "gradient": ("background with a soft gradient", "background that fades from top to bottom"),
        "stripes": ("background with soft vertical stripes", "striped background"),
        "checker": ("background with a soft checker pattern", "checkered background"),
    },
    "tone": {"dark": ("dark",), "medium": ("gray",), "bright": ("light", "bright")},
    "light": {
        "dark": ("The light is dim and the scene is rather dark.", "The picture is dark, as in the evening."),
        "medium": ("The light is soft and even.", "The scene has an even light of medium strength."),
        "bright": ("The light is bright and clear.", "The whole picture is bright, as on a sunny day."),
    },
    "hue": {"neutral": ("neutral", "plain"), "warm": ("warm",), "cool": ("cool", "cold")},
    "size": {
        "small": ("small", "rather small"), "medium": ("medium", "medium sized"), "large": ("big", "large"),
    },
    "column": {"left": ("left",), "center": ("center",), "right": ("right",)},
    "row": {"top": ("upper",), "middle": ("middle",), "bottom": ("lower",)},
    "position": {
        "side": ("in the {row} {column} part", "near the {row} {column}"),
        "middle": ("in the center", "in the middle"),
    },
}

_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[a-z]+")


def short_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One short phrase, such as "a red circle moves right"; about 15 % leave the motion out."""
    chance = rng.random()
    if chance < 0.15:
        rule = "short_bare"
    elif scene.direction == "still":
        rule = "short_still"
    else:
        rule = "short_speed" if chance < 0.40 else "short_move"
    return _expand("{" + rule + "}", _facts(scene), rng)


def dense_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Several sentences, more than 77 CLIP tokens, with colour, shape and motion in the first two."""
    rule = "{dense_still}" if scene.direction == "still" else "{dense_move}"
    return _expand(rule, _facts(scene), rng)


def evaluation_prompts(n: int = 200, seed: int = 0) -> list[tuple[str, dict]]:
    """n pairs (short prompt, {color, shape, direction, speed}), balanced over colours, shapes and directions.

    A quarter names a speed (slow, normal, fast); elsewhere speed is None. A pure function of (n, seed).
    """
    rng = np.random.default_rng((seed, n))
    prompts = []
    while len(prompts) < n:
        for color, shape, direction in _balanced(rng)[: n - len(prompts)]:
            speed = ("slow", "normal", "fast")[rng.integers(3)] if rng.random() < 0.25 else None
            facts = {"color": (color,), "shape": (shape,), "way": FACTS["way"][direction]}
            if speed:
                facts |= {"pace": FACTS["pace"][speed], "manner": FACTS["manner"][speed]}
            prompt = _expand("{short_speed}" if speed else "{short_move}", facts, rng)
            prompts.append((prompt, {"color": color, "shape": shape, "direction": direction, "speed": speed}))
    return prompts


def parse_prompt(text: str) -> dict:
    """The {color, shape, direction, speed} that a prompt names; None for what it does not name.

    A direction counts where it follows a verb of motion ("in the left part ... moves right" is right), else
    where only one is named at all.
    """
    words = _WORD.findall(text.lower())
    return {
        "color": next((word for word in words if word in COLORS), None),
        "shape": next((word for word in words if word in SHAPES), None),
        "direction": _direction(words),
        "speed": next((_PACES[word] for word in words if word in _PACES), None),
    }


def all_words() -> list[str]:
    """Every word that a caption or an evaluation prompt can hold, in lower case and sorted."""
    texts = [text for options in RULES.values() for text in options]
    texts += [text for values in FACTS.values() for options in values.values() for text in options]
    words = {word for text in texts for word in _WORD.findall(_SLOT.sub(" ", text).lower())}
    return sorted(words.union(COLORS, SHAPES))


def _expand(text: str, facts: dict, rng: np.random.Generator) -> str:
    """Replace every `{rule}` by one of its alternatives until none is left."""
    def choose(slot: re.Match) -> str:
        options = facts.get(slot[1]) or RULES[slot[1]]
        option = options[int(rng.integers(len(options)))] if len(options) > 1 else options[0]
        return _SLOT.sub(choose, option)

    return _SLOT.sub(choose, text)


def _facts(scene: Scene) -> dict[str, tuple[str, ...]]:
    """The alternatives that this scene leaves open, by rule."""
    level = ("dark", "medium", "bright")[(scene.light > 0.33) + (scene.light > 0.62)]
    column = ("left", "center", "right")[(scene.x > 24) + (scene.x > 40)]
    row = ("top", "middle", "bottom")[(scene.y > 24) + (scene.y > 40)]
    speed = scene.speed_name or "normal"
    values = {
        "way": scene.direction, "pace": speed, "manner": speed, "tempo": speed, "ground": scene.background,
        "tone": level, "light": level, "hue": scene.tint, "column": column, "row": row,
        "size": ("small", "medium", "large")[(scene.radius > 8.6) + (scene.radius > 9.9)],
        "position": "middle" if (column, row) == ("center", "middle") else "side",
    }
    # "still" has no way, so that a moving sentence about it would fail
    chosen = {name: FACTS[name][value] for name, value in values.items() if value in FACTS[name]}
    return chosen | {"color": (scene.color,), "shape": (scene.shape,)}


def _balanced(rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """All (color, shape, direction) in shuffled blocks of 24, with every pair of colour and shape in each."""
    rounds = []
    for turn in rng.permutation(len(MOVES)):
        pairs = list(product(range(len(COLORS)), range(len(SHAPES))))
        block = [(COLORS[c], SHAPES[s], MOVES[(c + s + turn) % len(MOVES)]) for c, s in pairs]
        rounds += [block[i] for i in rng.permutation(len(block))]
    return rounds


def _direction(words: list[str]) -> str | None:
    text = " ".join(words)
    if moved := _MOTION.search(text):
        return _WAYS[moved[1]]
    if _STILL.search(text):
        return "still"
    named = {_WAYS[word] for word in words if word in _WAYS}
    return named.pop() if len(named) == 1 else None


_WAYS = {
    "left": "left", "leftward": "left", "leftwards": "left", "right": "right", "rightward": "right",
    "rightwards": "right", "up": "up", "upward": "up", "upwards": "up", "top": "up", "down": "down",
    "downward": "down", "downwards": "down", "bottom": "down",
}
_PACES = {
    "slow": "slow", "slowly": "slow", "steady": "normal", "steadily": "normal", "normal": "normal",
    "fast": "fast", "quick": "fast", "quickly": "fast", "high": "fast",
}
_MOTION = re.compile(
    r"\b(?:moves?|moving|goes|going|slides?|sliding|travels?|traveling|drifts?|drifting|leads)"
    rf"(?: (?:{'|'.join(_PACES)}))?(?: (?:to|toward|towards) the)? ({'|'.join(_WAYS)})\b"
)
_STILL = re.compile(r"\b(?:still|motionless|not mov(?:e|ing))\b")
VOCABULARY = tuple(all_words())
