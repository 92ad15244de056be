"""T2V-Turbo for ComfyUI: fast text-to-video by consistency distillation, as nodes and as a training package."""
