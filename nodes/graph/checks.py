"""What a node is given is refused, before any runs, if ComfyUI would refuse it or its video could not be written."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import chain

from ... import NODE_CLASS_MAPPINGS
from ...core.video import check_rate, check_writable
from ..host.plain import PlainHost
from .api_format import is_link

# What values of ComfyUI's types are in Python, and in words; all other types come by links alone.
NUMBERS = {"INT": (int, "a whole number"), "FLOAT": ((int, float), "a number")}
OTHERS = {"STRING": (str, "text"), "BOOLEAN": (bool, "true or false")}


def check_node(node_id: str, node: dict, known: dict[str, Callable]) -> None:
    """Refuse a node that cannot run, as ComfyUI would: its class, the names of its inputs, the values of ours.

    Raises:
        ValueError: naming the node, the input, its value and what is allowed.
    """
    name, inputs = node["class_type"], node["inputs"]
    if name not in known:
        raise ValueError(f"node {node_id}: '{name}' needs ComfyUI; known here: {', '.join(known)}")
    try:
        inspect.signature(known[name]).bind(**inputs)
    except TypeError as error:
        raise ValueError(f"node {node_id}: {name}: {error}; inputs are what Export (API) writes for it") from error
    declared = NODE_CLASS_MAPPINGS[name].INPUT_TYPES() if name in NODE_CLASS_MAPPINGS else {}
    for key, (kind, options) in chain.from_iterable(group.items() for group in declared.values()):
        if key in inputs and not is_link(inputs[key]) and (needed := refusal(inputs[key], kind, options)):
            raise ValueError(f"node {node_id}: {name}: {key}={inputs[key]!r} is not allowed: {needed} is needed")


def check_saving(node_id: str, node: dict) -> None:
    """Refuse a video that could not be written later, as far as its inputs are no links.

    Raises:
        ValueError: naming the node, the input and its value; or the file.
    """
    name, inputs = node["class_type"], {key: value for key, value in node["inputs"].items() if not is_link(value)}
    if name == "CreateVideo" and isinstance(inputs.get("fps"), (int, float)):
        check_rate(inputs["fps"], ".mp4", f"node {node_id}: {name}: fps=")
    if name == "SaveVideo":
        for key, known in {"format": ("auto", "mp4"), "codec": ("auto", "h264")}.items():
            if inputs.get(key, "auto") not in known:
                raise ValueError(f"node {node_id}: {name}: {key}={inputs[key]!r} is unknown; use {' or '.join(known)}")
        if isinstance(inputs.get("filename_prefix"), str):
            check_writable(PlainHost().new_output(inputs["filename_prefix"], ".mp4")[0])


def refusal(value, kind: str | list, options: dict) -> str:
    """What an input of ComfyUI's type ``kind`` needs if it cannot take ``value``; "" if it can."""
    if isinstance(kind, list):
        # A dropdown of files has no default, and its node tells best what is wrong with a file.
        fits = value in kind if "default" in options else isinstance(value, str)
        return "" if fits else f"one of {', '.join(kind)}"
    if kind in NUMBERS:
        types, what = NUMBERS[kind]
        low, high = options["min"], options["max"]
        # False for NaN.
        fits = isinstance(value, types) and not isinstance(value, bool) and low <= value <= high
        return "" if fits else f"{what} from {low} to {high}"
    types, what = OTHERS.get(kind, ((), "a link to another node"))
    return "" if isinstance(value, types) else what
