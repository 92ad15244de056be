"""Settings of every stage: dataclasses that a YAML file fills and the command line overrides.

A file has a section per stage and one that they share::

    model: {family: shapes}
    preprocess: {records_per_clip: 4}
    distill: {lr: 2e-4}

On the command line the stage's name is left out: ``t2v-turbo distill --config shapes lr=1e-4 model.device=cpu``.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from ..core.device import WIDE_PRECISIONS
from ..core.diffusion.guidance import COMBINATIONS
from ..core.diffusion.schedule import TRAIN_TIMESTEPS
from ..core.families import TAU
from ..core.motion.energies import ENERGIES
from ..core.motion.inversion import METHODS
from ..core.rewards import PAPER_WEIGHTS
from ..core.rewards.base import LONG_CAPTIONS
from ..core.rewards.registry import reward_kind
from ..core.text_files import TextError, check_encoding, open_text, write_text
from ..core.video.decord_reading import READERS
from .seeds import SEEDS

CONFIGS = Path(__file__).parent / "configs"
# Sections of a file, apart from those of the stages.
SHARED = "model"
PRECISIONS = ("auto", "no", "bf16", "fp16")

REWARD_PRECISIONS = ("auto", *WIDE_PRECISIONS)

T = TypeVar("T")


def option(
    default: Any,
    about: str,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A setting with the line that `--help` shows; out-of-range values are refused by ``check_options``."""
    metadata = {"about": about, "choices": choices, "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata=metadata)


def check_options(config: Any, section: str = "") -> None:
    """Refuse values outside the choices, below the minimum, above the maximum, or not finite.

    Args:
        section: what stands before the settings' names, such as "rewards.".

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """
    for f in fields(config):
        value, choices, name = getattr(config, f.name), f.metadata.get("choices"), section + f.name
        minimum, maximum = f.metadata.get("minimum"), f.metadata.get("maximum")
        if value == "False" and "no" in choices:  # YAML reads a bare no as false
            setattr(config, f.name, value := "no")
        if choices and value not in choices:
            raise ValueError(f"{name}={value} is unknown; choose {', '.join(choices)}")
        if minimum is not None and value is not None and not value >= minimum:
            raise ValueError(f"{name}={value} is too small; it must be at least {minimum}")
        if maximum is not None and value is not None and not value <= maximum:
            raise ValueError(f"{name}={value} is too large; it must be at most {maximum}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} must be a finite number")


@dataclass
class ModelConfig:
    """Which model, from where."""

    family: str = option("shapes", "model family: shapes (embedded) or videocrafter2")
    folder: str | None = option(None, "folder of the family's files; null = the usual place")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, xpu")


@dataclass
class TrainerConfig:
    """How long and how hard; null = off."""

    steps: int = option(1000, "optimiser steps of the whole run", minimum=1)
    batch_size: int = option(16, "samples of a forward pass on each process", minimum=1)
    accumulate: int = option(1, "forward passes per optimiser step, which multiply the batch", minimum=1)
    lr: float = option(1e-4, "learning rate", minimum=0)
    warmup: int = option(100, "steps of linear warm-up", minimum=0)
    decay: float = option(0.2, "last part of the steps, in which the learning rate falls to zero", minimum=0, maximum=1)
    weight_decay: float = option(0.0, "AdamW's weight decay", minimum=0)
    beta2: float = option(0.99, "optimiser's memory of squared gradients", minimum=0, maximum=0.999999)
    max_grad_norm: float | None = option(1.0, "gradients are clipped to this norm; null or 0 = off", minimum=0)
    ema_decay: float | None = option(
        0.999, "decay of the averaged weights that are exported; null or 0 = off", minimum=0, maximum=1
    )
    precision: str = option("auto", "autocast: no = fp32; auto = bf16 where cards have it", choices=PRECISIONS)
    compile: bool = option(False, "torch.compile the network: minutes at the start, faster steps afterwards")
    seed: int = option(0, "seed of everything random", minimum=0, maximum=SEEDS - 1)
    deterministic: bool = option(False, "on a GPU: equal runs are equal bit by bit, in about 1.5 x the time")
    log_every: int = option(10, "steps between lines of stats.jsonl", minimum=1)
    save_every: int = option(500, "steps between checkpoints", minimum=1)
    keep_checkpoints: int = option(2, "checkpoints that are kept", minimum=1)

    def __post_init__(self):
        check_options(self)


@dataclass
class PreprocessConfig:
    """Videos and captions to records (Algorithm 1)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    videos: str = option(MISSING, "folder of videos with captions beside them, or a table (.csv, .tsv, .json, .jsonl)")
    records: str = option(MISSING, "folder to write the records to")
    caption: str = option("random", "short, dense, or random: either, per clip", choices=("short", "dense", "random"))
    lone_caption: str = option("short", "what a clip's only caption counts as", choices=("short", "dense"))
    video_column: str = option("relpath", "table: column of the path, or a template such as {page_dir}/{videoid}.mp4")
    text_column: str = option("text", "table: column of the caption, the dense one where there is a short one too")
    short_column: str = option("short_text", "table: column of the short caption, may be absent")
    video_root: str | None = option(None, "table: folder that its paths start from; null = the table's own")
    encoding: str | None = option(None, "of table and captions, such as latin-1; null = UTF-8, or by byte-order mark")
    start: str = option("random", "part of a longer video that is used", choices=("first", "middle", "random"))
    frames: int | None = option(None, "frames of a clip; null = the family's", minimum=1)
    height: int | None = option(None, "pixels; null = the family's", minimum=8)
    width: int | None = option(None, "pixels; null = the family's", minimum=8)
    limit: int | None = option(None, "use only this many clips, a random sample; null = all", minimum=1)
    solver_steps: int = option(200, "grid of the DDIM solver", minimum=2)
    records_per_clip: int = option(1, "draws of timestep and noise for every clip", minimum=1)
    clips_per_shard: int = option(128, "clips of one shard, the unit of resuming and of sharing work", minimum=1)
    batch_size: int = option(8, "records that the teacher sees at once", minimum=1)
    motion: bool = option(False, "give the guided records a motion score, for students with motion=true")
    tau: float = option(TAU, "motion: fraction of the timesteps that is guided, the noisiest", minimum=0, maximum=1)
    motion_method: str = option("ddim", "motion: invert the clip, or noise it once for no evaluation", choices=METHODS)
    motion_grid: int = option(25, "motion: steps of a whole inversion, one for all draws of a clip; 200 = the authors'")
    motion_energy: str = option("mean", "motion: energy; lambda 500 belongs to mean", choices=tuple(ENERGIES))
    motion_batch: int = option(1, "motion: records of one backward pass, which memory grows with", minimum=1)
    gradient_checkpointing: bool = option(False, "motion: 1.5 x the time for a third of a backward pass's memory")
    precision: str = option("auto", "autocast of the teacher: no = fp32; auto = by device", choices=PRECISIONS)
    dtype: str = option("fp16", "how records are stored", choices=("fp16", "bf16", "fp32"))
    reader: str = option("pyav", "pyav, or decord, which lets damaged frames pass; auto = if there", choices=READERS)
    workers: int = option(0, "processes that decode videos ahead; 0 = none", minimum=0)
    seed: int = option(0, "seed of everything random", minimum=0, maximum=SEEDS - 1)

    def __post_init__(self):
        check_options(self)
        check_encoding(self.encoding, "encoding=")
        check_inversion_grid(self.motion_grid, "motion_grid=")


def check_inversion_grid(steps: int, name: str) -> None:
    """Refuse a grid of an inversion that does not end at the noisiest timestep.

    Raises:
        ValueError: with the value after ``name``, and what may be taken.
    """
    if steps < 1 or TRAIN_TIMESTEPS % steps:
        raise ValueError(f"{name}{steps} does not divide {TRAIN_TIMESTEPS}: use 10, 20, 25, 40, 50, 100 or 200")


@dataclass
class RewardConfig:
    """Rewards on the student's prediction (Eq. 10, 11); off unless ``models`` names some."""

    models: str | None = option(None, "reward models: hps,clip,internvideo2, or with weights hps:0.2,…; null = none")
    image_frames: int = option(2, "random frames of a clip that image rewards see, M", minimum=1)
    every: int = option(1, "steps from one with rewards to the next; log_every should be a multiple", minimum=1)
    samples: str = option("flagged", "flagged = short captions, as in the paper; or all", choices=("flagged", "all"))
    batch_size: int | None = option(None, "samples of a batch that are scored at most; null = no limit", minimum=1)
    long_captions: str = option("segments", "beyond a model's limit: mean of segments, or cut", choices=LONG_CAPTIONS)
    chunk: int = option(1, "frames decoded at once, which memory grows with", minimum=1)
    checkpointing: bool = option(False, "recompute the reward models in the backward pass: less memory, more time")
    dtype: str = option("auto", "of decoder and rewards; auto = bf16 where cards have it", choices=REWARD_PRECISIONS)
    device: str = option("auto", "where decoder and reward models are: auto = with the student, or cuda:1, cpu, …")
    offload: bool = option(False, "reward models wait on the CPU from the end of their backward pass to the next use")
    paths: str | None = option(None, "files that lie elsewhere, hps:FILE,clip:FILE; null = the usual places")
    ramp: int = option(0, "guard: steps over which the rewards' weight rises to its full value; 0 = off", minimum=0)
    ceilings: str | None = option(None, "guard: raw scores above these give no gradient, hps:0.35,…; null = off")
    teacher: float = option(0.0, "guard: weight of the distance to the teacher in the loss; 0 = off", minimum=0)

    def __post_init__(self):
        check_options(self, "rewards.")
        known = self.weights()
        for setting, values in (("ceilings", self.limits()), ("paths", self.files())):
            strange = sorted(set(values) - set(known))
            if known and strange:
                raise ValueError(f"rewards.{setting}: {', '.join(strange)} is not among rewards.models={self.models}")

    def weights(self) -> dict[str, float]:
        """Weight of every reward, by name; the paper's where none is given; {} = no rewards."""
        given = named_values(self.models, "rewards.models")
        return {name: reward_weight(name, value, "rewards.models: ") for name, value in given.items()}

    def limits(self) -> dict[str, float]:
        """Highest raw score with a gradient, by reward."""
        given = named_values(self.ceilings, "rewards.ceilings")
        return {name: to_number(value, f"rewards.ceilings: {name}") for name, value in given.items()}

    def files(self) -> dict[str, str]:
        """Weight files that lie elsewhere, by reward."""
        given = named_values(self.paths, "rewards.paths")
        for name, value in given.items():
            if not value:
                raise ValueError(f"rewards.paths: no file for {name}; write {name}:FILE")
        return given


def named_values(text: str | None, setting: str) -> dict[str, str | None]:
    """ "a:1, b" -> {"a": "1", "b": None}.

    Raises:
        ValueError: if a name comes twice.
    """
    found = {}
    for part in filter(None, map(str.strip, (text or "").split(","))):
        name, colon, value = map(str.strip, part.partition(":"))
        if name in found:
            raise ValueError(f"{setting}={text}: names {name} twice")
        found[name] = value if colon else None
    return found


def reward_weight(name: str, given: str | None, setting: str) -> float:
    """The weight of a reward, at least 0: as given, else the paper's.

    Raises:
        ValueError: for an unknown reward, a weight that is none, or a reward that the paper has no weight for.
    """
    reward_kind(name)
    if given is None and name not in PAPER_WEIGHTS:
        raise ValueError(f"{setting}{name}: the paper has no weight for it; give one, such as {name}:0.05")
    weight = PAPER_WEIGHTS[name] if given is None else to_number(given, f"{setting}{name}")
    if weight < 0:
        raise ValueError(f"{setting}{name}:{given} is below 0, which seeks the worst; use 0 or more")
    return weight


def to_number(text: str | None, setting: str) -> float:
    """A finite number.

    Raises:
        ValueError: for anything else.
    """
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{setting}:{text or ''} is no number; write name:number")
    return number


@dataclass
class DistillConfig(TrainerConfig):
    """Records to a student (Algorithm 2)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    records: str = option(MISSING, "folders or URLs of records, or globs of folders; several separated by commas")
    out: str = option(MISSING, "folder of the run; the student is <out>/student.safetensors")
    init: str | None = option(None, "student checkpoint to start from; null = the family's teacher")
    motion: bool = option(False, "distil motion guidance too: records with scores, a student with the input lambda")
    motion_strength: float | None = option(None, "lambda in the paper's unit; null = the family's", minimum=0)
    tau: float = option(TAU, "fraction of the timesteps that is guided, at most the records'", minimum=0, maximum=1)
    combination: str = option("released", "how a score enters the solver's step", choices=tuple(COMBINATIONS))
    omega_min: float = option(5.0, "lowest guidance scale omega (CFG scale minus 1)", minimum=0)
    omega_max: float = option(15.0, "highest guidance scale omega", minimum=0)
    huber_c: float = option(0.001, "width of the pseudo-Huber distance, Eq. 9", minimum=1e-8)
    target: str = option("online", "network of the target: the student itself, or an ema", choices=("online", "ema"))
    target_decay: float = option(0.95, "decay of the ema target", minimum=0, maximum=1)
    gradient_checkpointing: bool = option(False, "more time for much less activation memory")
    shuffle: int = option(1024, "records are shuffled within blocks of this many, and shards as a whole", minimum=1)
    cache_gb: float = option(2.0, "records up to this size stay in memory after the first epoch", minimum=0)
    prefetch: bool = option(False, "read records in a process of its own, ahead of the training")
    export_dtype: str = option("fp32", "precision of the exported student", choices=("fp32", "bf16", "fp16"))

    def __post_init__(self):
        super().__post_init__()
        if self.omega_min > self.omega_max:
            raise ValueError(f"omega_min={self.omega_min} exceeds omega_max={self.omega_max}")


STAGES = {"preprocess": PreprocessConfig, "distill": DistillConfig}


# --- reading ---------


def load_config(stage: str, file: str | Path | None = None, overrides: list[str] | tuple[str, ...] = ()) -> Any:
    """The settings of ``stage``: defaults, then the file's sections, then ``key=value`` overrides.

    Args:
        stage: "preprocess" or "distill".
        file: a YAML file, or the name of a packaged one ("shapes", "paper").

    Raises:
        ValueError: for an unknown setting, a value of the wrong type or outside its range, or one that is not given.
    """
    layers = [(f"--config {file}", _sections(file, stage))] if file else []
    layers.append(("the command line", _dotlist(overrides)))
    config = OmegaConf.structured(STAGES[stage])
    for where, layer in layers:
        config = _merge(config, layer, where, stage)
    try:
        return OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        missing = sorted(OmegaConf.missing_keys(config))
        raise ValueError(f"not given: {', '.join(missing)}; add {' '.join(f'{key}=…' for key in missing)}") from error


def save_config(config: Any, path: Path) -> None:
    """Write settings as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def _merge(config: Any, layer: Any, where: str, stage: str) -> Any:
    try:
        return OmegaConf.merge(config, layer)
    except ConfigKeyError as error:
        known = [name for name, _ in describe_settings(STAGES[stage])]
        close = difflib.get_close_matches(str(error.full_key), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        raise ValueError(f"{where}: '{stage}' has no setting '{error.full_key}'; {hint}") from error
    except (ValidationError, OmegaConfBaseException) as error:
        raise ValueError(f"{where}: {error.full_key}: {str(error.msg).splitlines()[0]}") from error


def _dotlist(overrides: list[str] | tuple[str, ...]) -> Any:
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"'{override}' is no setting; write key=value, such as steps=1000")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # the YAML parser and the grammar of values raise errors of many kinds
        raise ValueError(f"cannot read the settings {' '.join(overrides)}: {error}") from error


def _sections(file: str | Path, stage: str) -> Any:
    """What a file says about one stage, with the shared section under its name."""
    path = find_config(file)
    try:
        with open_text(path) as file:
            content = OmegaConf.load(file)
    except TextError:
        raise
    except Exception as error:  # any parser error is the user's typing
        raise ValueError(f"{path}: is not valid YAML: {error}") from error
    known = [SHARED, *STAGES]
    if not OmegaConf.is_dict(content) or set(content) - set(known):
        names = sorted(set(content) - set(known)) if OmegaConf.is_dict(content) else "no mapping"
        raise ValueError(f"{path}: unknown sections {names}; known are {', '.join(known)}")
    shared = {SHARED: content[SHARED]} if SHARED in content else {}
    return OmegaConf.merge(shared, content.get(stage) or {})


def find_config(file: str | Path) -> Path:
    """A YAML file by path, or a packaged one by name.

    Raises:
        ValueError: if there is none.
    """
    packaged = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    path = CONFIGS / f"{file}.yaml" if str(file) in packaged else Path(file)
    if not path.is_file():
        raise ValueError(f"--config {file}: no such file; give a YAML file or one of {', '.join(packaged)}")
    return path


def describe_settings(config: type, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, description with default) of every setting."""
    found = []
    for f in fields(config):
        default = f.default_factory() if callable(f.default_factory) else f.default
        if is_dataclass(default):
            found += describe_settings(type(default), f"{prefix}{f.name}.")
        else:
            shown = "required" if default == MISSING else OmegaConf.create({"v": default})["v"]
            found.append((prefix + f.name, f"{f.metadata['about']} [{'null' if shown is None else shown}]"))
    return found
