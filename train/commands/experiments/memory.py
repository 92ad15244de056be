"""``t2v-turbo motion memory``: the memory of the motion score, before and after chunking."""

from __future__ import annotations

import argparse

from ....core.device import PRECISIONS, dtype_name, pick_device, pick_dtype
from ....core.tables import markdown
from ...experiments.motion_memory import Setting, can_measure, measure_rows, memory_table, scaled
from ..options import check_minimum, seed_value

ABOUT = """\
Measure the peak memory of the motion score of a batch of clips, before and after what keeps it low: one clip at a time
(chunking) and activations that are recomputed in the backward pass (checkpointing). The UNet is VideoCrafter2's, by
default of a quarter of its width, with random weights. Every row is a process of its own; its peak is the largest
resident memory on a CPU, or the allocator's on cuda, less what the weights and inputs took before the score.
"""


def register(actions) -> None:
    memory = actions.add_parser(
        "memory", help="memory of the motion score, before and after chunking", description=ABOUT
    )
    memory.add_argument("--batch", type=int, default=4, help="clips of a batch (default: 4)")
    memory.add_argument("--frames", type=int, default=16, help="of a clip (default: 16)")
    memory.add_argument("--height", type=int, default=16, help="of the latents (default: 16; 320 pixels are 40)")
    memory.add_argument("--width", type=int, default=24, help="of the latents (default: 24; 512 pixels are 64)")
    memory.add_argument("--channels", type=int, default=80, help="width of the UNet (default: 80; VideoCrafter2: 320)")
    memory.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: cpu)")
    memory.add_argument("--dtype", choices=PRECISIONS, default="auto", help="precision (default: auto, fp32 on a CPU)")
    memory.add_argument("--seed", type=seed_value, default=0)
    memory.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    setting = setting_of(args)
    costs = measure_rows(setting)
    print(markdown(memory_table(costs)))
    print(
        f"{args.batch} clips of {args.frames} frames of {args.width}x{args.height} latents; UNet of "
        f"{next(iter(costs.values())).weights / 1e6:.0f} M random weights, {dtype_name(setting.dtype)}, on "
        f"{setting.device}."
    )


def setting_of(args: argparse.Namespace) -> Setting:
    """What the arguments ask for, the whole batch at once.

    Raises:
        ValueError: for sizes that the UNet cannot have, or a device whose peak cannot be measured.
    """
    check_minimum("--batch", [args.batch], 2)  # one clip is one chunk
    for name in ("frames", "height", "width"):
        check_minimum(f"--{name}", [getattr(args, name)], 1)
    device = pick_device(args.device)
    if not can_measure(device):
        raise ValueError(f"--device {args.device}: no peak can be read there; use cuda, or cpu under Linux")
    size = args.batch, args.frames, args.height, args.width
    dtype = pick_dtype(args.dtype, device)
    return Setting(scaled(args.channels), *size, str(device), dtype, args.seed, chunk=args.batch)
