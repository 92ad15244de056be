"""The ComfyUI nodes: one topic a file; comfy_host is the only door to ComfyUI."""

CATEGORY = "T2V-Turbo"
