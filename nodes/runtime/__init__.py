"""What the nodes do when they run; only imported then, so that ComfyUI starts at once."""
