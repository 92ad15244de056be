"""Run a saved graph (API format) without ComfyUI: our nodes, and small equivalents of the native ones around them.

    python -m t2v_turbo.nodes.graph workflows/api/text_to_video.json --out videos
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ...core.command_line import exit_code, typed_text
from ...core.text_files import read_json
from ..host.plain import USUAL_FOLDERS
from .api_format import read_graph
from .execution import run_graph
from .overrides import override


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m t2v_turbo.nodes.graph", description=__doc__.splitlines()[0])
    parser.add_argument("graph", type=Path, help="a graph saved with ComfyUI's Export (API)")
    parser.add_argument("--out", type=Path, default=USUAL_FOLDERS.output, help="folder of the videos (default: output)")
    parser.add_argument("--input", type=Path, default=USUAL_FOLDERS.input, help="folder of inputs (default: input)")
    parser.add_argument(
        "--set", nargs="*", default=[], type=typed_text, metavar="NODE.INPUT=VALUE", help="change inputs of the graph"
    )
    return exit_code(lambda: run(parser.parse_args(argv)), "graph")


def run(args: argparse.Namespace) -> None:
    graph = override(read_graph(args.graph), args.set)
    # Our presets lie beside their UI-format twins.
    twin = args.graph.resolve().parent.parent / args.graph.name
    workflow = read_json(twin) if twin.is_file() and not args.set else None
    for path in run_graph(graph, args.out, workflow, args.input):
        print(path)
