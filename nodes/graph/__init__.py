"""Saved graphs (ComfyUI's API format) without ComfyUI; ``python -m t2v_turbo.nodes.graph`` runs one."""

from .api_format import read_graph
from .execution import run_graph

__all__ = ["read_graph", "run_graph"]
