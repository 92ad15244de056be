"""The hub: whether it can be reached, and whether the files that are here have its sizes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from huggingface_hub import get_hf_file_metadata, hf_hub_url

from ..download import Published, all_files, place
from .findings import Finding, Options, attempt

# Seconds.
PATIENCE = 15
NETWORK = "check the network, a proxy (HTTPS_PROXY) and HF_HUB_OFFLINE; HF_ENDPOINT names a mirror of the hub"


def examine(options: Options) -> Iterator[Finding]:
    usual = all_files()["teacher"][0]
    reached = attempt("hub", lambda: reach(usual), NETWORK)
    yield reached
    if reached.status != "ok":
        return
    for name, files in all_files().items():
        for published in files:
            path = place(name, options.folder) / published.file
            if path.is_file():
                yield attempt(
                    f"{name}: {published.file}",
                    lambda name=name, published=published, path=path: same_size(name, published, path),
                    NETWORK,
                )


def promised(published: Published) -> int:
    """Bytes that a file has on the hub."""
    return get_hf_file_metadata(hf_hub_url(published.repository, published.file), timeout=PATIENCE).size


def reach(published: Published) -> Finding:
    begin = time.perf_counter()
    promised(published)
    seconds = time.perf_counter() - begin
    address = os.environ.get("HF_ENDPOINT", "the hub").rpartition("@")[2]
    return Finding("hub", "ok", f"{address} answers in {seconds:.1f} s", data={"seconds": round(seconds, 2)})


def same_size(name: str, published: Published, path) -> Finding:
    title, size, there = f"{name}: {published.file}", path.stat().st_size, promised(published)
    data = {"bytes": size, "promised": there}
    if size == there:
        return Finding(title, "ok", f"{size} bytes, as on the hub", data=data)
    remedy = f"delete {path}, then `t2v-turbo download {name}`"
    return Finding(title, "fail", f"{size} bytes, on the hub {there}", remedy, data)
