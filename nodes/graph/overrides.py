"""Inputs of a graph set from outside, as "node.input=value"."""

from __future__ import annotations

import json

from .api_format import is_link


def override(graph: dict, settings: list[str]) -> dict:
    """A copy of the graph with "node.input=value" settings put in; a value is JSON, or text if the input is text.

    Raises:
        ValueError: for a setting that names no input of the graph.
    """
    graph = json.loads(json.dumps(graph))
    for setting in settings:
        place, _, text = setting.partition("=")
        node_id, _, name = place.partition(".")
        inputs = graph.get(node_id, {}).get("inputs", {})
        if name not in inputs or is_link(inputs[name]):
            known = [f"{i}.{key}" for i, node in graph.items() for key, v in node["inputs"].items() if not is_link(v)]
            raise ValueError(f"--set {setting}: no such input; use NODE.INPUT=VALUE with one of {', '.join(known)}")
        inputs[name] = read_value(text, of_text=isinstance(inputs[name], str))
    return graph


def read_value(text: str, of_text: bool):
    """A setting's value: JSON where it is any, but in place of text only what is text, or a link."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if not of_text or isinstance(value, str) or is_link(value) else text
