"""The ComfyUI nodes: one topic a file; host is the only door to ComfyUI."""
