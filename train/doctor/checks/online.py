"""The hub: whether it can be reached, and whether the files that are here have its sizes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

from ...download import Published, all_files, published_places
from ..findings import Finding, Options, attempt

# Seconds.
PATIENCE = 15
NETWORK = "check the network, a proxy (HTTPS_PROXY) and HF_HUB_OFFLINE; --endpoint and HF_ENDPOINT name a mirror"


def examine(options: Options) -> Iterator[Finding]:
    endpoint = options.endpoint or constants.ENDPOINT
    reached = attempt("hub", lambda: reach(endpoint), NETWORK)
    yield reached
    if reached.status != "ok":
        return
    try:
        places = published_places(options.folder)
    except ValueError:
        return  # told among the folders
    for name, published, path in places:
        if os.path.isfile(path):
            title, remedy = f"{name}: {published.file}", f"delete {path}, then `t2v-turbo download {name}`"
            yield attempt(title, partial(same_size, title, published, path, endpoint, remedy), NETWORK)


def promised(published: Published, endpoint: str) -> int:
    """Bytes that a file has on the hub."""
    url = hf_hub_url(published.repository, published.file, endpoint=endpoint)
    return get_hf_file_metadata(url, timeout=PATIENCE).size


def reach(endpoint: str) -> Finding:
    """Ask for the size of one file that there must be."""
    begin = time.perf_counter()
    promised(all_files()["mg"][0], endpoint)
    seconds = time.perf_counter() - begin
    address = endpoint.rpartition("@")[2]  # without a password
    return Finding("hub", "ok", f"{address} answers in {seconds:.1f} s", data={"seconds": round(seconds, 2)})


def same_size(title: str, published: Published, path: Path, endpoint: str, remedy: str) -> Finding:
    size, there = path.stat().st_size, promised(published, endpoint)
    data = {"bytes": size, "promised": there}
    if size == there:
        return Finding(title, "ok", f"{size} bytes, as on the hub", data=data)
    return Finding(title, "fail", f"{size} bytes, on the hub {there}", remedy, data)
