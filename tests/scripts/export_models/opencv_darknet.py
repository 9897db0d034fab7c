"""OpenCV 4's reader of darknet's files, and its YOLOv3: another parser, other layers, other boxes.

OpenCV 5, which the service uses, has dropped it, and a process can hold one OpenCV only. So
OpenCV 4 lies in a folder beside the packages of this environment, and runs in a process of its own,
as which this file is started.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

FOLDER_VARIABLE: Final = "OPENCV4"
"""Names the folder that holds OpenCV 4, where it is not this environment's ``opencv4``."""

ANCHORS_PER_HEAD: Final = 3

_TIMEOUT_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class Predictions:
    """All that a network predicts for one image.

    ``boxes`` is FP32 [n, 4], x1, y1, x2, y2 in pixels of the input, ``scores`` FP32 [n, classes].
    ``anchors`` tells which anchor each comes from, counted from 0 through all heads.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    anchors: NDArray[np.int64]


def _folder() -> Path:
    folder = Path(os.environ.get(FOLDER_VARIABLE) or Path(sys.prefix) / "opencv4")
    if not (folder / "cv2").is_dir():
        pytest.fail(f"OpenCV 4 is not in {folder}: `make test` sets it up", pytrace=False)
    return folder


def opencv_predictions(cfg: str, weights: Path, image: NDArray[np.uint8]) -> Predictions:
    """What OpenCV 4 predicts.

    Args:
        cfg: text of a ``.cfg``.
        weights: a ``.weights`` file; others are written beside it, and removed.
        image: UINT8 [S, S, 3], RGB, of the size that the ``.cfg`` says.
    """
    cfg_path, image_path, answer_path = (
        weights.with_suffix(suffix) for suffix in (".cfg", ".image.npy", ".answer.npz")
    )
    # OpenCV leaves out what scores below 0.2, and the worse of two near boxes, unless told not to.
    everything = re.sub(r"^\[yolo\]$", "[yolo]\nthresh=0\nnms_threshold=0", cfg, flags=re.MULTILINE)
    cfg_path.write_text(everything, encoding="utf-8")
    np.save(image_path, image)
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__]
            + [str(x) for x in (_folder(), cfg_path, weights, image_path, answer_path)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with np.load(answer_path) as answer:
            heads = [answer[name] for name in answer.files]
    finally:
        for path in (cfg_path, image_path, answer_path):
            path.unlink(missing_ok=True)
    size = image.shape[0]
    rows = np.concatenate(heads)
    centre, half = rows[:, :2] * size, rows[:, 2:4] * size / 2
    numbers = np.repeat(np.arange(len(heads)), [len(head) for head in heads])
    return Predictions(
        boxes=np.concatenate([centre - half, centre + half], axis=1),
        scores=rows[:, 5:],
        anchors=numbers * ANCHORS_PER_HEAD + np.arange(len(rows)) % ANCHORS_PER_HEAD,
    )


def _answer(folder: str, cfg: str, weights: str, image: str, answer: str) -> None:
    """Runs in the process that holds OpenCV 4."""
    sys.path.insert(0, folder)
    cv2: Any = importlib.import_module("cv2")  # its types are those of the other version
    assert cv2.__version__.startswith("4."), cv2.__version__
    network = cv2.dnn.readNetFromDarknet(cfg, weights)
    network.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    network.setPreferableTarget(cv2.dnn.DNN_TARGET_CPU)
    network.enableWinograd(False)  # rounds more than a plain convolution
    pixels = np.load(image).astype(np.float32) / 255
    network.setInput(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    heads = network.forward(network.getUnconnectedOutLayersNames())
    np.savez(answer, *heads)


if __name__ == "__main__":
    _answer(*sys.argv[1:])
