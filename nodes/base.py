"""What every node class tells ComfyUI alike."""

from __future__ import annotations


class Node:
    """A node: a class by itself, whose attributes in capitals bear ComfyUI's names.

    A node adds DISPLAY_NAME, its title, out of which the pack makes ComfyUI's table of titles; DESCRIPTION, the three
    of its outputs, INPUT_TYPES, and ``execute`` with a parameter for each input.
    """

    CATEGORY = "T2V-Turbo"
    FUNCTION = "execute"
