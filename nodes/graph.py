"""Run a saved graph (API format) without ComfyUI: our nodes, and small equivalents of the native ones around them.

    python -m t2v_turbo.nodes.graph workflows/api/text_to_video.json --out videos
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import torch

from .. import NODE_CLASS_MAPPINGS
from ..core.command_line import exit_code, typed_text
from ..core.text_files import read_json
from ..core.video import check_rate, check_writable, from_uint8, read_video, to_uint8, video_duration, write_video
from .host.plain import USUAL_FOLDERS, Folders, PlainHost, using_folders

log = logging.getLogger(__name__)


# --- native nodes: the inputs' names are ComfyUI's ----------


def encode_text(clip, text) -> tuple:
    return (clip.encode_from_tokens_scheduled(clip.tokenize(text)),)


def decode(samples, vae) -> tuple:
    return (vae.decode(samples["samples"]),)


def create_video(images, fps) -> tuple:
    return ((images, fps),)


def load_video(file) -> tuple:
    path = PlainHost().input_path(file)
    if not path.is_file():
        raise ValueError(
            f"file: '{file}' does not lie in {path.parent}; put it there, name another folder with --input FOLDER, or "
            "another file with --set NODE.file=NAME"
        )
    frames = read_video(path)
    return ((from_uint8(frames).movedim(1, -1), len(frames) / video_duration(path)),)


def video_components(video) -> tuple:
    """Images, no sound, frames per second."""
    images, fps = video
    return images, None, fps


def preview_image(images) -> tuple:
    """Nobody looks."""
    return ()


def preview_any(source) -> tuple:
    print(source)
    return ()


def primitive(value) -> tuple:
    return (value,)


NATIVE = {
    "CLIPTextEncode": encode_text,
    "VAEDecode": decode,
    "CreateVideo": create_video,
    "LoadVideo": load_video,
    "GetVideoComponents": video_components,
    "PreviewImage": preview_image,
    "PreviewAny": preview_any,
    "PrimitiveStringMultiline": primitive,
}


class SaveVideo:
    """Writes mp4 files below the output folder, numbered like ComfyUI's, with the graph as their tags."""

    def __init__(self, tags: dict[str, str]):
        self.tags = tags

    def __call__(self, video, filename_prefix, format="auto", codec="auto") -> dict:
        path, subfolder = PlainHost().new_output(filename_prefix, ".mp4")
        images, fps = video
        write_video(path, to_uint8(images.movedim(-1, 1)), fps, self.tags)
        return {"ui": {"images": [{"filename": path.name, "subfolder": subfolder, "type": "output"}]}}


# --- the graph ----------


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


def is_link(value) -> bool:
    return isinstance(value, list)


def resolve(inputs: dict, outputs: dict[str, list[list]]) -> dict[str, list]:
    """Inputs as lists: what a link leads to, or the one value."""
    return {name: outputs_of(value, outputs) if is_link(value) else [value] for name, value in inputs.items()}


def outputs_of(link: list, outputs: dict[str, list[list]]) -> list:
    source, number = link
    if number >= len(outputs[source]):
        raise ValueError(f"the graph links to output {number} of node {source}, which has {len(outputs[source])}")
    return outputs[source][number]


# --- what a node is given ----------

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


# --- the command line ----------


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m t2v_turbo.nodes.graph", description=__doc__.splitlines()[0])
    parser.add_argument("graph", type=Path, help="a graph saved with ComfyUI's Export (API)")
    parser.add_argument("--out", type=Path, default=USUAL_FOLDERS.output, help="folder of the videos (default: output)")
    parser.add_argument("--input", type=Path, default=USUAL_FOLDERS.input, help="folder of inputs (default: input)")
    parser.add_argument(
        "--set", nargs="*", default=[], type=typed_text, metavar="NODE.INPUT=VALUE", help="change inputs of the graph"
    )
    return exit_code(lambda: run(parser.parse_args(argv)), "headless")


def run(args: argparse.Namespace) -> None:
    graph = override(read_graph(args.graph), args.set)
    # Our presets lie beside their UI-format twins.
    twin = args.graph.resolve().parent.parent / args.graph.name
    workflow = read_json(twin) if twin.is_file() and not args.set else None
    for path in run_graph(graph, args.out, workflow, args.input):
        print(path)


if __name__ == "__main__":
    raise SystemExit(main())
