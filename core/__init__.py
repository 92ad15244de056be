"""The tensor core: models, schedule, solver, consistency function. Knows neither ComfyUI nor the trainer."""
