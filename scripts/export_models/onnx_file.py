"""PyTorch to ONNX, and the proof that both give the same answers.

Knows the contract and numbers, not networks: what it exports is a module that follows a
``ModelSpec``. Writes no files.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from scripts.export_models.contract import ModelSpec, TensorSpec
from scripts.export_models.errors import ParityError
from scripts.export_models.formats import DEFAULT_OPSET, Precision

Arrays: TypeAlias = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far ONNX Runtime's answers may be from those of PyTorch in FP32.

    Boxes in pixels; of a box larger than the input, in proportion more.
    """

    boxes: float
    scores: float
    embeddings: float


# FP32: what nobody would notice. Measured: the small pair's scores and embeddings are off by 4e-7,
# those of full-size networks of random weights, which amplify what training would damp, by 1.1e-4
# and 4e-7. FP16: the small pair's boxes by 0.16 pixels at most (0.01 in the median), its scores by
# 8e-4 and embeddings by 2e-4, on photos as on what is checked here; scores and embeddings of those
# random networks by 4.3e-2 and 3.2e-4. What really goes wrong in FP16, a value beyond its range,
# gives no number at all.
TOLERANCES: Final = {
    Precision.FP32: Tolerances(boxes=0.1, scores=1e-3, embeddings=1e-4),
    Precision.FP16: Tolerances(boxes=2.0, scores=5e-2, embeddings=2e-3),
}

# One alone, as a query sends it, and more than the two that the exporter sees.
CHECKED_BATCH_SIZES: Final = (1, 3)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silences what the exporter says of its own insides; its errors still get through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def export_onnx(module: nn.Module, spec: ModelSpec, *, opset: int = DEFAULT_OPSET) -> bytes:
    """Exports ``module`` in evaluation mode as one self-contained ONNX file, batch size free.

    Args:
        module: follows ``spec``.
        spec: its contract.
        opset: version of ONNX' operators, one of ``OPSETS``.

    Raises:
        onnx.checker.ValidationError: the file is invalid; that would be a bug.
    """
    example = torch.zeros((2, *spec.input.dims), dtype=torch.uint8)
    with _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            input_names=[spec.input.name],
            output_names=[output.name for output in spec.outputs],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None only comes from the exporter that dynamo=False chooses
    model = program.model_proto
    # The oldest that has this opset, so that no runtime refuses the file without need.
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def _strip(model: onnx.ModelProto) -> None:
    """Removes the exporter's notes: half a megabyte, with stack traces of the exporting machine."""
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        noted.ClearField("doc_string")
        noted.ClearField("metadata_props")
    graph.ClearField("value_info")


def noise(spec: ModelSpec, count: int, *, seed: int) -> NDArray[np.uint8]:
    """Images of random pixels, UINT8 [count, S, S, 3]."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, *spec.input.dims), dtype=np.uint8)


def scenes(spec: ModelSpec, count: int, *, seed: int) -> NDArray[np.uint8]:
    """Images that move a network's inner values as far as photos do, UINT8 [count, S, S, 3].

    Smooth colour with rectangles on it, between grey bars as a letterboxed photo has them.
    """
    generator = np.random.default_rng(seed)
    size = spec.input.dims[0]
    ramp = np.linspace(0, 1, size)[:, None]
    images = np.empty((count, *spec.input.dims), dtype=np.uint8)
    for image in images:
        top, bottom, left, right = generator.uniform(0, 127, (4, 3))
        down = top + ramp * (bottom - top)
        across = left + ramp * (right - left)
        image[...] = down[:, None] + across[None]
        for _ in range(6):
            y, x = generator.integers(0, size, 2)
            height, width = generator.integers(size // 8, size, 2)
            image[y : y + height, x : x + width] = generator.integers(0, 256, 3)
        bar = size // 8
        image[:bar] = image[size - bar :] = 114
    return images


def check_parity(
    module: nn.Module, model: bytes, spec: ModelSpec, *, precision: Precision = Precision.FP32
) -> Mapping[str, float]:
    """Compares the answers of ONNX Runtime, on the CPU, with those of PyTorch in FP32.

    Args:
        module: in FP32, whatever the precision of ``model``.
        model: an ONNX file.
        spec: the contract of both.
        precision: of ``model``; the tolerances follow it.

    Returns:
        The largest difference found in each floating-point output: pixels for ``boxes``.

    Raises:
        ParityError: a difference is beyond its tolerance, or a label differs.
    """
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    module.eval()
    tolerances = TOLERANCES[precision]
    largest: dict[str, float] = {}
    for batch_size, images_of in product(CHECKED_BATCH_SIZES, (noise, scenes)):
        images = images_of(spec, batch_size, seed=batch_size)
        with torch.inference_mode():
            answer = module(torch.from_numpy(images))
        tensors = answer if isinstance(answer, tuple) else (answer,)
        names = [output.name for output in spec.outputs]
        expected = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
        actual = dict(zip(names, session.run(names, {spec.input.name: images}), strict=True))
        for output in spec.outputs:
            _check_form(output, actual[output.name], batch_size)
        for name, difference in differences(expected, actual, spec, tolerances).items():
            largest[name] = max(largest.get(name, 0.0), difference)
    return largest


def differences(
    expected: Arrays, actual: Arrays, spec: ModelSpec, tolerances: Tolerances
) -> dict[str, float]:
    """The largest difference in each floating-point output of a batch; boxes as ``Tolerances``.

    Raises:
        ParityError: a difference is beyond its tolerance, or a label differs.
    """
    if "boxes" in expected:
        return _detection_differences(expected, actual, spec, tolerances)
    return _embedding_differences(expected, actual, tolerances)


def _check_form(spec: TensorSpec, array: NDArray[Any], batch_size: int) -> None:
    shape, data_type = (batch_size, *spec.dims), np.dtype(spec.data_type.value)
    if array.shape != shape or array.dtype != data_type:
        raise ParityError(
            f"{spec.name} is {array.dtype} {list(array.shape)},"
            f" the contract says {data_type} {list(shape)}"
        )


def _within(name: str, difference: float, tolerance: float) -> float:
    # Written so that NaN fails.
    if not difference <= tolerance:
        raise ParityError(
            f"ONNX Runtime's {name} are up to {difference:.3g} from PyTorch's,"
            f" more than {tolerance:g}"
        )
    return difference


def _embedding_differences(
    expected: Arrays, actual: Arrays, tolerances: Tolerances
) -> dict[str, float]:
    difference = float(np.abs(expected["embeddings"] - actual["embeddings"]).max())
    return {"embeddings": _within("embeddings", difference, tolerances.embeddings)}


def _detection_differences(
    expected: Arrays, actual: Arrays, spec: ModelSpec, tolerances: Tolerances
) -> dict[str, float]:
    """Compares detection by detection.

    Scores are compared place by place. Detections whose scores lie closer than twice the largest
    difference seen may rightly change places, or with the first one that was left out, so each is
    compared with those of its label that are as close, and the last ones may be without a match.
    Where many scores are alike, sorting hides part of the differences: half the tolerance is
    always taken for close.
    """
    scores = _within(
        "scores", float(np.abs(expected["scores"] - actual["scores"]).max()), tolerances.scores
    )
    tie = max(2 * scores, tolerances.scores / 2)
    boxes = 0.0
    for image in range(len(expected["scores"])):
        wanted, found = ({k: v[image] for k, v in x.items()} for x in (expected, actual))
        near = np.abs(found["scores"][:, None] - wanted["scores"][None]) <= tie
        near &= found["labels"][:, None] == wanted["labels"][None]
        apart = np.abs(found["boxes"][:, None] - wanted["boxes"][None]).max(-1)
        sides = (wanted["boxes"][:, 2:] - wanted["boxes"][:, :2]).max(-1)
        apart /= np.maximum(1, sides / spec.input.dims[0])
        nearest = np.where(near, apart, np.inf).min(1)
        settled = found["scores"] - wanted["scores"][-1] > tie
        if not near.any(1)[settled].all():
            raise ParityError("ONNX Runtime gives labels that PyTorch does not")
        boxes = max(boxes, float(nearest[settled].max(initial=0.0)))
    return {"boxes": _within("boxes", boxes, tolerances.boxes), "scores": scores}
