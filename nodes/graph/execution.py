"""Execute a graph: every node after those that it takes inputs from, once for each entry of its lists."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import torch

from ... import NODE_CLASS_MAPPINGS
from ..host.plain import USUAL_FOLDERS, Folders, using_folders
from .api_format import is_link
from .checks import check_node, check_saving
from .native import NATIVE, SaveVideo

log = logging.getLogger(__name__)


def run_graph(
    graph: dict, folder: Path, workflow: dict | None = None, inputs: Path = USUAL_FOLDERS.input
) -> list[Path]:
    """Execute a graph in API format and return the files that it saved.

    Args:
        graph: node id -> {"class_type", "inputs"}; an input is a value or a link [node id, output index].
        folder, inputs: ComfyUI's output and input folder.
        workflow: the same graph in UI format, for the files' ``workflow`` tag, which ComfyUI opens.

    Raises:
        ValueError: for a node that is neither ours nor known here, an input that is missing, unknown or out of range, a
            broken link, or a cycle; before any node runs.
    """
    tags = {"prompt": json.dumps(graph)} | ({"workflow": json.dumps(workflow)} if workflow else {})
    ours = {name: getattr(node(), node.FUNCTION) for name, node in NODE_CLASS_MAPPINGS.items()}
    known = NATIVE | {"SaveVideo": SaveVideo(tags)} | ours
    outputs: dict[str, list[list]] = {}
    saved = []
    with torch.inference_mode(), using_folders(Folders(inputs, folder)):
        order = execution_order(graph)
        for node_id in order:
            check_node(node_id, graph[node_id], known)
            check_saving(node_id, graph[node_id])
        for node_id in order:
            name = graph[node_id]["class_type"]
            log.info("node %s: %s", node_id, name)
            results = run_node(known[name], resolve(graph[node_id]["inputs"], outputs))
            outputs[node_id] = merge_outputs(known[name], results)
            saved += [folder.resolve() / path for result in results for path in saved_files(result)]
    return saved


def run_node(function: Callable, inputs: dict[str, list]) -> list[tuple | dict]:
    """Run a node once for every entry of its longest input, as ComfyUI does; shorter ones repeat their last entry."""
    if attribute_of(function, "INPUT_IS_LIST"):
        return [function(**inputs)]
    runs = max(map(len, inputs.values()), default=1)
    return [function(**{name: values[min(i, len(values) - 1)] for name, values in inputs.items()}) for i in range(runs)]


def merge_outputs(function: Callable, results: list[tuple | dict]) -> list[list]:
    """Every output of a node's runs as one list; a node that gives lists has its own joined."""
    outputs = [list(values) for values in zip(*(result for result in results if isinstance(result, tuple)))]
    joined = attribute_of(function, "OUTPUT_IS_LIST") or [False] * len(outputs)
    return [list(chain.from_iterable(values)) if join else values for values, join in zip(outputs, joined)]


def attribute_of(function: Callable, name: str):
    """What a node class says of its lists; nothing for the native ones here, which know none."""
    return getattr(getattr(function, "__self__", None), name, None)


def saved_files(result: tuple | dict) -> list[Path]:
    """What an output node says it saved, as a path below the output folder."""
    lists = result["ui"].values() if isinstance(result, dict) else ()
    return [Path(file["subfolder"], file["filename"]) for files in lists for file in files]


# --- the way of values ----------


def execution_order(graph: dict) -> list[str]:
    """Node ids, every node after those that it takes inputs from."""
    needs = {
        node_id: [value[0] for value in node["inputs"].values() if is_link(value)] for node_id, node in graph.items()
    }
    missing = {source for sources in needs.values() for source in sources} - set(graph)
    if missing:
        raise ValueError(f"the graph links to nodes that it does not hold: {', '.join(sorted(missing))}")
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise ValueError(f"the graph runs in a circle: {' -> '.join(error.args[1])}") from error


def resolve(inputs: dict, outputs: dict[str, list[list]]) -> dict[str, list]:
    """Inputs as lists: what a link leads to, or the one value."""
    return {name: outputs_of(value, outputs) if is_link(value) else [value] for name, value in inputs.items()}


def outputs_of(link: list, outputs: dict[str, list[list]]) -> list:
    source, number = link
    if number >= len(outputs[source]):
        raise ValueError(f"the graph links to output {number} of node {source}, which has {len(outputs[source])}")
    return outputs[source][number]
