"""``t2v-turbo download``: the published checkpoints and reward models from the hub, resumed and verified."""

from __future__ import annotations

import hashlib
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_url
from tqdm.auto import tqdm

from ..core.checkpoints.locations import BASE_FILES, STUDENT_FILES, models_folder
from ..core.checkpoints.lora_files import load_lora
from ..core.checkpoints.networks import CheckpointError, read_state, select
from ..core.rewards import REWARDS, load_reward, reward_path
from ..core.rewards.models.wordpiece import WordPiece

SHA256_DIGITS = 64
HTTP_PARTIAL = 206


def open_unet(path: Path) -> None:
    """Raises: CheckpointError: if the file holds no UNet."""
    select(read_state(path)[0], "unet", path)


def open_vocabulary(path: Path) -> None:
    """Raises: CheckpointError: if the file is no BERT vocabulary."""
    _ = WordPiece(path, 0).encoder


@dataclass(frozen=True)
class Published:
    """A file on the hub.

    Attributes:
        opens: opens what arrived as what it shall be, or raises a CheckpointError.
    """

    repository: str
    file: str
    about: str
    opens: Callable[[Path], object] = open_unet


FILES = {
    "teacher": Published(
        "VideoCrafter/VideoCrafter2", BASE_FILES["videocrafter2"][0], "VideoCrafter2 with autoencoder and text, 7.4 GB"
    ),
    "mg": Published(
        "jiachenli-ucsb/T2V-Turbo-v2", STUDENT_FILES["videocrafter2"]["mg"], "student with motion guidance, 5.7 GB"
    ),
    "no-mg": Published(
        "jiachenli-ucsb/T2V-Turbo-v2-no-MG", STUDENT_FILES["videocrafter2"]["no-mg"], "student without it, 5.7 GB"
    ),
    "v1": Published(
        "jiachenli-ucsb/T2V-Turbo-VC2",
        STUDENT_FILES["videocrafter2"]["v1"],
        "T2V-Turbo v1, a LoRA of the teacher, 0.5 GB",
        load_lora,
    ),
}
USUAL = ("teacher", "mg")
# Of the weights, in GB.
REWARD_SIZES = {"hps": 2.0, "clip": 3.9, "internvideo2": 2.8, "pickscore": 3.9, "imagereward": 1.8}


def reward_files(name: str) -> list[Published]:
    """The files of a reward model: its weights, then what must lie beside them."""
    (repository, weights), *beside = REWARDS[name].files
    about = f"reward model {REWARDS[name].info.name}, {REWARD_SIZES[name]:g} GB"
    return [
        Published(repository, weights, about, partial(load_reward, name)),
        *(Published(*file, f"vocabulary of {name}", open_vocabulary) for file in beside),
    ]


def all_files() -> dict[str, list[Published]]:
    """What can be asked for, by name."""
    return {name: [file] for name, file in FILES.items()} | {name: reward_files(name) for name in REWARDS}


def published_places(folder: Path | None) -> list[tuple[str, Published, Path]]:
    """The name, the file and the path of all that can be asked for, in ``place``."""
    return [(name, file, place(name, folder) / file.file) for name, files in all_files().items() for file in files]


class DownloadError(OSError):
    """A file that did not arrive or arrived damaged; the message says what to do."""


def place(name: str, folder: Path | None) -> Path:
    """The folder in which the other commands look for the file ``name``."""
    if name in REWARDS:
        return reward_path(name, folder=folder).parent
    return folder or models_folder() / "videocrafter2"


def download_named(names: Sequence[str], folder: Path | None = None, endpoint: str | None = None) -> Iterator[Path]:
    """Fetch files by name, each to where the other commands look for it; gives their paths one by one.

    Args:
        folder: in place of the models folder, see ``place``.
        endpoint: address of a mirror of the hub; None = the hub, or HF_ENDPOINT.

    Raises:
        ValueError: for an unknown name, before anything is fetched.
        DownloadError: as ``download``.
    """
    files = all_files()
    unknown = [name for name in names if name not in files]
    if unknown:
        raise ValueError(f"unknown file {', '.join(unknown)}; there are {', '.join(files)}")
    for name in names:
        for published in files[name]:
            yield download(published, place(name, folder), endpoint)


def download(published: Published, folder: Path, endpoint: str | None = None) -> Path:
    """Fetch one file into ``folder`` unless it is there, whole; returns its path.

    Raises:
        DownloadError: if the hub cannot be reached, the folder cannot be written to, or what arrived differs from what
            the hub promised.
    """
    url = hf_hub_url(published.repository, published.file, endpoint=endpoint)
    path = folder / published.file
    with reaching(published):
        promised = HfApi(endpoint=endpoint).get_hf_file_metadata(url=url)
    if path.exists() and path.stat().st_size == promised.size:
        return path
    make_folder(folder)
    # The check sum in the name keeps the halves of two versions apart.
    unverified = folder / f".{published.file}.{promised.etag[:16]}.part{path.suffix}"
    with reaching(published):
        fetch_rest(url, unverified, promised.size)
    verify(unverified, published, promised.size, promised.etag)
    return unverified.replace(path)


@contextmanager
def reaching(published: Published) -> Iterator[None]:
    """Raises: DownloadError: for all that goes wrong in the block."""
    try:
        yield
    except Exception as error:  # of whatever HTTP library the hub's client is built on
        raise DownloadError(
            f"{published.repository}/{published.file}: cannot be fetched ({_first_line(error)}); check the network and "
            "run the same command again: what has arrived is kept"
        ) from error


def make_folder(folder: Path) -> None:
    """Raises: DownloadError: if it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DownloadError(
            f"{folder}: cannot write here ({error.strerror}); name another folder with --folder or T2V_TURBO_MODELS"
        ) from error


def fetch_rest(url: str, partial: Path, size: int) -> None:
    """Append to ``partial`` what is missing of ``size`` bytes; the hub's own client would begin anew."""
    have = partial.stat().st_size if partial.exists() else 0
    if have == size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-", "User-Agent": "t2v-turbo"})
    bar = tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=url.rpartition("/")[2])
    with urllib.request.urlopen(request, timeout=60) as response, partial.open("ab") as file, bar:
        if response.status != HTTP_PARTIAL:  # a server that ignores the range sends the whole file
            file.truncate(0)
        while block := response.read(1 << 20):
            file.write(block)
            bar.update(len(block))
    if partial.stat().st_size < size:
        raise OSError(f"the connection broke after {partial.stat().st_size} of {size} bytes")


def verify(path: Path, published: Published, size: int, check_sum: str) -> None:
    """Compare a file with the hub's size and SHA-256, then open it as what it shall be; one that fails is removed.

    Raises:
        DownloadError: if it differs or cannot be opened.
    """
    problem = None
    if path.stat().st_size != size:
        problem = f"has {path.stat().st_size} bytes instead of {size}"
    elif len(check_sum) == SHA256_DIGITS and sha256(path) != check_sum:
        problem = "differs from the hub's check sum"
    else:
        try:
            published.opens(path)
        except CheckpointError as error:
            problem = f"cannot be used ({error})"
    if problem:
        path.unlink()
        raise DownloadError(f"{published.file}: {problem}; it was removed: run the same command again")


def sha256(path: Path) -> str:
    """Check sum of a file, with a progress bar: the files are large."""
    digest = hashlib.sha256()
    with path.open("rb") as file, tqdm(
        total=path.stat().st_size, unit="B", unit_scale=True, desc=f"verify {path.name}", leave=False
    ) as bar:
        while block := file.read(1 << 24):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
