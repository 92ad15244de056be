"""What the parts beside the MODEL have alike."""

from __future__ import annotations


class NativePart:
    """A part of which native nodes may want more than it has; they get a sentence then."""

    WORKS_WITH = ""

    def __getattr__(self, name: str):
        raise AttributeError(
            f"this part of T2V-Turbo Loader has no '{name}', which the node asks for; it works with {self.WORKS_WITH}"
        )
