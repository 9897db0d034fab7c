"""What a model is, and the two kinds that the service uses.

A model is described by its `config.pbtxt` in the model repository and nowhere else. `Detector`
and `Embedder` check that description against their contract and give `infer` its types; a model
server (`onnx.py`, `openvino.py`, `triton.py`) only runs tensors.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from backend.errors import ConfigurationError, ServiceError

__all__ = [
    "Candidates",
    "CropGeometry",
    "Detector",
    "Embedder",
    "LocalModel",
    "Model",
    "ModelServer",
    "ModelSpec",
    "SHA256_PARAMETER",
    "TensorSpec",
    "default_pair",
    "read_spec",
    "spec_of",
]

_FULL_PAIR: Final = ("yolov3", "resnet50")
_SMALL_PAIR: Final = ("yolov3-small", "resnet50-small")

CropGeometry = Literal["stretch", "square", "pad"]
"""What an embedder's config.pbtxt may say of how its crops are cut, see `vision.crop_objects`."""

_CROP_GEOMETRIES: Final[tuple[CropGeometry, ...]] = get_args(CropGeometry)
SHA256_PARAMETER: Final = "sha256"
"""Parameter in which a config.pbtxt says which ONNX file it belongs to: Triton tells of no file."""

_DEFAULT_CROPS: Final[tuple[CropGeometry, float]] = ("stretch", 0.0)
"""Geometry and margin where config.pbtxt names none."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `dims` are without the batch; -1 is any size."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A model as its config.pbtxt describes it, and the SHA-256 of its ONNX file in hex."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    parameters: Mapping[str, str]
    sha256: str


class Model(Protocol):
    """A loaded model."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        ...

    async def infer(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The outputs by name for one input batch [N, …]; N may exceed `max_batch_size`."""
        ...


@runtime_checkable
class LocalModel(Model, Protocol):
    """A loaded model that runs in the process."""

    def run(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """As `infer`, in the calling thread: for one of the workers."""
        ...


class ModelServer(Protocol):
    """Loads and runs models. `engine_name` is what people call it."""

    engine_name: str

    async def load(self, name: str) -> Model:
        """The model of that name, ready to run.

        Raises:
            ConfigurationError: it is missing, damaged, or not what its config.pbtxt says.
        """
        ...

    async def close(self) -> None:
        """Gives up every model, thread and connection."""
        ...


def default_pair(repository: Path) -> tuple[str, str]:
    """Detector and embedder to use where none is named: the full pair where it is exported."""
    if all((repository / name / "1" / "model.onnx").is_file() for name in _FULL_PAIR):
        return _FULL_PAIR
    return _SMALL_PAIR


def read_spec(config: Path, *, sha256: str) -> ModelSpec:
    """The model that a config.pbtxt describes.

    Raises:
        ConfigurationError: the file is missing or is no model configuration.
    """
    try:
        message = text_format.Parse(config.read_text("utf-8"), model_config_pb2.ModelConfig())
    except OSError as error:
        raise ConfigurationError(f"{config}: {error.strerror}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{config} is no Triton model configuration: {error}") from None
    return spec_of(message, sha256=sha256)


def spec_of(message: Any, *, sha256: str) -> ModelSpec:
    """The model that a `model_config_pb2.ModelConfig` describes."""
    return ModelSpec(
        name=message.name,
        inputs=tuple(_tensor(entry) for entry in message.input),
        outputs=tuple(_tensor(entry) for entry in message.output),
        max_batch_size=message.max_batch_size,
        parameters={key: value.string_value for key, value in message.parameters.items()},
        sha256=sha256,
    )


def _tensor(entry: Any) -> TensorSpec:
    dtype = model_config_pb2.DataType.Name(entry.data_type).removeprefix("TYPE_")
    return TensorSpec(entry.name, dtype, tuple(entry.dims))


@dataclass(frozen=True)
class Candidates:
    """A detector's raw answer for one image, best first, before thresholds and NMS.

    `boxes` float32 [K, 4] xyxy in pixels of the input, `scores` float32 [K], `labels` int32 [K].
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]


class Detector:
    """A model under the detector's contract.

    Attributes:
        size: side of the square input in pixels.
        labels: name of each class.
        score_threshold, nms_threshold: the model's own, see `vision.select_detections`.
    """

    def __init__(self, model: Model) -> None:
        """Raises ConfigurationError where the model is no detector."""
        self._model = model
        spec = model.spec
        self.name = spec.name
        self.sha256 = spec.sha256
        self.size = _square_input(spec, "images")
        candidates = _output(spec, "boxes", "FP32", rank=2).dims[0]
        _require(spec, "boxes", "FP32", (candidates, 4))
        _require(spec, "scores", "FP32", (candidates,))
        _require(spec, "labels", "INT32", (candidates,))
        self.labels = tuple(_parameter(spec, "labels").split(","))
        self.score_threshold = _fraction(
            spec, "score_threshold", _parameter(spec, "score_threshold")
        )
        self.nms_threshold = _fraction(spec, "nms_threshold", _parameter(spec, "nms_threshold"))

    async def detect(self, images: NDArray[np.uint8]) -> list[Candidates]:
        """Candidates of each letterboxed image, RGB uint8 [N, size, size, 3]."""
        return self._candidates(await self._model.infer(images))

    def detect_here(self, images: NDArray[np.uint8]) -> list[Candidates]:
        """As `detect`, in the calling thread, of a model that runs in the process."""
        return self._candidates(_local(self._model).run(images))

    def _candidates(self, outputs: Mapping[str, NDArray[Any]]) -> list[Candidates]:
        unnamed = outputs["labels"].max(initial=0)
        if unnamed >= len(self.labels):
            raise ServiceError(
                f"the detector {self.name!r} gives the label {unnamed}, but its config.pbtxt names"
                f" {len(self.labels)} labels alone"
            )
        return [
            Candidates(boxes, scores, labels)
            for boxes, scores, labels in zip(
                outputs["boxes"], outputs["scores"], outputs["labels"], strict=True
            )
        ]


class Embedder:
    """A model under the embedder's contract.

    Attributes:
        size: side of the square crops in pixels.
        crop_geometry, crop_margin: how they are cut, see `vision.crop_objects`.
        dimension: length of an embedding.
        sha256: identity of the embeddings, those of different ones do not compare. It is the ONNX
            file's, or, where crops are not cut as by default, made of that and how they are.
    """

    def __init__(self, model: Model) -> None:
        """Raises ConfigurationError where the model is no embedder."""
        self._model = model
        spec = model.spec
        self.name = spec.name
        self.size = _square_input(spec, "crops")
        self.dimension = _output(spec, "embeddings", "FP32", rank=1).dims[0]
        geometry, margin = _DEFAULT_CROPS
        self.crop_geometry = _crop_geometry(spec, spec.parameters.get("crop_geometry", geometry))
        self.crop_margin = _fraction(
            spec, "crop_margin", spec.parameters.get("crop_margin", str(margin))
        )
        self.sha256 = _embedder_identity(spec.sha256, self.crop_geometry, self.crop_margin)

    async def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors, float32 [N, dimension], of crops, RGB uint8 [N, size, size, 3]."""
        if not len(crops):
            return np.empty((0, self.dimension), np.float32)
        outputs = await self._model.infer(crops)
        return outputs["embeddings"]

    def embed_here(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `embed`, in the calling thread, of a model that runs in the process."""
        if not len(crops):
            return np.empty((0, self.dimension), np.float32)
        outputs = _local(self._model).run(crops)
        return outputs["embeddings"]


def _local(model: Model) -> LocalModel:
    assert isinstance(model, LocalModel)
    return model


def _square_input(spec: ModelSpec, name: str) -> int:
    if len(spec.inputs) != 1 or spec.inputs[0].name != name:
        found = ", ".join(tensor.name for tensor in spec.inputs) or "none"
        raise ConfigurationError(
            f"model {spec.name}: its input must be {name!r} alone, not {found}"
        )
    tensor = spec.inputs[0]
    size = tensor.dims[0] if len(tensor.dims) == 3 else -1
    if size < 1 or tensor.dims != (size, size, 3) or tensor.dtype != "UINT8":
        raise ConfigurationError(
            f"model {spec.name}: input {name!r} must be UINT8 [S, S, 3],"
            f" not {tensor.dtype} {list(tensor.dims)}"
        )
    return size


def _output(spec: ModelSpec, name: str, dtype: str, *, rank: int) -> TensorSpec:
    for tensor in spec.outputs:
        if tensor.name == name:
            if tensor.dtype == dtype and len(tensor.dims) == rank and min(tensor.dims) > 0:
                return tensor
            raise ConfigurationError(
                f"model {spec.name}: output {name!r} must be {dtype} with {rank} fixed dims,"
                f" not {tensor.dtype} {list(tensor.dims)}"
            )
    raise ConfigurationError(f"model {spec.name} has no output {name!r}")


def _require(spec: ModelSpec, name: str, dtype: str, dims: tuple[int, ...]) -> None:
    found = _output(spec, name, dtype, rank=len(dims)).dims
    if found != dims:
        raise ConfigurationError(
            f"model {spec.name}: output {name!r} must be {list(dims)}, not {list(found)}"
        )


def _parameter(spec: ModelSpec, name: str) -> str:
    value = spec.parameters.get(name, "")
    if not value:
        raise ConfigurationError(f"model {spec.name}: its config.pbtxt has no parameter {name!r}")
    return value


def _fraction(spec: ModelSpec, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigurationError(
            f"model {spec.name}: parameter {name!r} must be a number from 0 to 1, not {text!r}"
        )
    return value


def _crop_geometry(spec: ModelSpec, text: str) -> CropGeometry:
    for geometry in _CROP_GEOMETRIES:
        if text == geometry:
            return geometry
    raise ConfigurationError(
        f"model {spec.name}: parameter 'crop_geometry' must be one of"
        f" {', '.join(_CROP_GEOMETRIES)}, not {text!r}"
    )


def _embedder_identity(sha256: str, geometry: CropGeometry, margin: float) -> str:
    """Of what makes the embeddings. The default leaves the file's own, which catalogs hold."""
    if (geometry, margin) == _DEFAULT_CROPS:
        return sha256
    text = f"{sha256} crop_geometry={geometry} crop_margin={margin}"
    return hashlib.sha256(text.encode()).hexdigest()
