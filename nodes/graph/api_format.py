"""A graph in ComfyUI's API format: node id -> {"class_type", "inputs"}, an input being a value or a link."""

from __future__ import annotations

from pathlib import Path

from ...core.text_files import read_json


def read_graph(path: Path) -> dict:
    """A graph in API format.

    Raises:
        ValueError: if the file holds anything else.
    """
    graph = read_json(path)
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise ValueError(f"{path}: is a workflow in UI format; save it with ComfyUI's Export (API)")
    if not isinstance(graph, dict) or not all(map(is_node, graph.values())):
        raise ValueError(f"{path}: is no graph in API format: each of its nodes needs a class_type and inputs")
    return graph


def is_node(node) -> bool:
    """Whether a value of a graph has a class and inputs, whose links are [node id, number of the output]."""
    if not (isinstance(node, dict) and isinstance(node.get("class_type"), str)):
        return False
    inputs = node.get("inputs")
    return isinstance(inputs, dict) and all(is_sound_link(value) for value in inputs.values() if is_link(value))


def is_sound_link(link: list) -> bool:
    return [type(part) for part in link] == [str, int] and link[1] >= 0


def is_link(value) -> bool:
    """Whether an input is a link [node id, number of the output]; no value is a list."""
    return isinstance(value, list)
