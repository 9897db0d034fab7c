"""Official models small enough to serve and export within a test, under the names of the large.

A module of its own, without PyTorch, so that a process may start with it in moments.
"""

from __future__ import annotations

from pathlib import Path

from scripts.export_models.download import RemoteFile, file_sha256
from scripts.export_models.official import Catalogue, OfficialDetector, OfficialEmbedder


def small_catalogue(files: Path, url: str) -> Catalogue:
    """A detector and an embedder whose weights are those in ``files``, to be had under ``url``."""

    def remote(name: str) -> RemoteFile:
        path = files / name
        return RemoteFile(name, path.stat().st_size, file_sha256(path), (url,))

    return {
        "yolov3": OfficialDetector(
            cfg=(files / "tiny.cfg").read_text(encoding="utf-8"),
            labels=files / "tiny.txt",
            weights=remote("yolov3.weights"),
        ),
        "resnet50": OfficialEmbedder(
            size=64,
            checkpoints={"v1": remote("resnet50-v1.pth"), "v2": remote("resnet50-v2.pth")},
        ),
    }
