"""YOLOv3 in darknet's own formats: the ``.cfg`` that describes it, the ``.weights`` that fill it.

Knows files and arithmetic on shapes, and nothing of PyTorch or ONNX. Sources: J. Redmon,
A. Farhadi, "YOLOv3: An Incremental Improvement" (2018), and the behaviour of darknet's parser
(https://github.com/pjreddie/darknet, ``src/parser.c``).

In messages and in ``Network.layers`` sections are counted as darknet counts layers: ``[net]`` is
not one, the section after it is number 0. So do ``layers=`` and ``from=``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scripts.export_models.errors import CfgError, WeightsError

Float32Array: TypeAlias = NDArray[np.float32]
Activation: TypeAlias = Literal["leaky", "linear"]
Anchor: TypeAlias = tuple[float, float]

IMAGE_CHANNELS: Final = 3

COCO_ANCHORS: Final[tuple[Anchor, ...]] = (
    (10, 13), (16, 30), (33, 23),
    (30, 61), (62, 45), (59, 119),
    (116, 90), (156, 198), (373, 326),
)  # fmt: skip
"""Width and height in pixels of YOLOv3's nine boxes, smallest first (YOLOv3, section 2.3)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a layer gives for one image: ``channels`` maps of ``size`` x ``size``."""

    channels: int
    size: int


@dataclass(frozen=True, slots=True)
class Convolutional:
    """A square convolution, then batch normalisation or a bias, then the activation."""

    in_channels: int
    filters: int
    size: int
    stride: int
    padding: int
    batch_normalize: bool
    activation: Activation

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """Shape of the kernel: filters, input channels, height, width."""
        return (self.filters, self.in_channels, self.size, self.size)

    @property
    def weight_count(self) -> int:
        """Floats that the layer takes up in a ``.weights`` file."""
        return (4 if self.batch_normalize else 1) * self.filters + math.prod(self.kernel_shape)


@dataclass(frozen=True, slots=True)
class Shortcut:
    """Adds the output of layer ``source`` to the layer before, then the activation."""

    source: int
    activation: Activation


@dataclass(frozen=True, slots=True)
class Route:
    """Joins the outputs of the layers ``sources`` along the channels."""

    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Upsample:
    """Repeats each pixel ``stride`` times in both directions."""

    stride: int


@dataclass(frozen=True, slots=True)
class MaxPool:
    """A maximum over ``size`` x ``size``; of ``padding`` pixels, half (rounded down) go before."""

    size: int
    stride: int
    padding: int


@dataclass(frozen=True, slots=True)
class Yolo:
    """A detection head: per cell, one box for each of ``anchors`` (pixels of the input)."""

    anchors: tuple[Anchor, ...]
    classes: int


Layer: TypeAlias = Convolutional | Shortcut | Route | Upsample | MaxPool | Yolo


@dataclass(frozen=True, slots=True)
class Network:
    """A parsed ``.cfg``: ``layers[i]`` gives ``shapes[i]`` for an image of ``size`` x ``size``."""

    size: int
    layers: tuple[Layer, ...]
    shapes: tuple[Shape, ...]

    @property
    def classes(self) -> int:
        """Number of classes, the same for every head."""
        return next(layer.classes for layer in self.layers if isinstance(layer, Yolo))

    @property
    def weight_count(self) -> int:
        """Floats that a ``.weights`` file of this network holds after its header."""
        return sum(x.weight_count for x in self.layers if isinstance(x, Convolutional))


# Keys that steer darknet's training and mean nothing to a network that is only run.
_TRAINING_KEYS: Final = {
    "net": {
        "batch", "subdivisions", "momentum", "decay", "angle", "saturation", "exposure", "hue",
        "learning_rate", "burn_in", "max_batches", "policy", "steps", "scales",
    },
    "yolo": {"jitter", "ignore_thresh", "truth_thresh", "random"},
}  # fmt: skip


class _Section:
    """One ``[name]`` of a ``.cfg`` and its ``key=value`` lines, each to be taken once."""

    def __init__(self, name: str, number: int | None, line: int) -> None:
        self.name = name
        self._where = f"[{name}]" if number is None else f"section {number} [{name}]"
        self._line = line
        self._options: dict[str, str] = {}

    def error(self, problem: str) -> CfgError:
        return CfgError(f"{self._where} (line {self._line}): {problem}")

    def add(self, key: str, value: str) -> None:
        if key in self._options:
            raise self.error(f"key '{key}' is given twice")
        self._options[key] = value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._options.pop(key, default)
        if value is None:
            raise self.error(f"key '{key}' is missing")
        return value

    def integer(self, key: str, default: int | None = None, *, minimum: float = 1) -> int:
        text = self.text(key, None if default is None else str(default))
        try:
            value = int(text)
        except ValueError:
            raise self.error(f"key '{key}': '{text}' is not a whole number") from None
        if value < minimum:
            raise self.error(f"key '{key}': {value} is less than {minimum}")
        return value

    def flag(self, key: str) -> bool:
        text = self.text(key, "0")
        if text not in ("0", "1"):
            raise self.error(f"key '{key}': '{text}' is neither 0 nor 1")
        return text == "1"

    def integers(self, key: str) -> list[int]:
        text = self.text(key)
        try:
            return [int(part) for part in text.split(",")]
        except ValueError:
            raise self.error(f"key '{key}': '{text}' is not a list of whole numbers") from None

    def floats(self, key: str) -> list[float]:
        text = self.text(key)
        try:
            return [float(part) for part in text.split(",")]
        except ValueError:
            raise self.error(f"key '{key}': '{text}' is not a list of numbers") from None

    def activation(self) -> Activation:
        match self.text("activation"):
            case "leaky":
                return "leaky"
            case "linear":
                return "linear"
            case other:
                raise self.error(f"key 'activation': '{other}' is not supported (leaky, linear)")

    def finish(self) -> None:
        """Raises for a key that nobody took, unless it only matters for training."""
        unknown = sorted(self._options.keys() - _TRAINING_KEYS.get(self.name, set()))
        if unknown:
            raise self.error(f"key '{unknown[0]}' is not supported")


def _sections(text: str) -> Iterator[_Section]:
    section: _Section | None = None
    number = -1
    for line_number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            if not line.endswith("]"):
                raise CfgError(f"line {line_number}: '{line}' lacks its closing bracket")
            if section is not None:
                yield section
            section = _Section(line[1:-1].strip(), None if number < 0 else number, line_number)
            number += 1
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise CfgError(f"line {line_number}: '{line}' is neither [section] nor key=value")
        if section is None:
            raise CfgError(f"line {line_number}: '{line}' stands before the first [section]")
        section.add(key.strip(), value.strip())
    if section is not None:
        yield section


class _Builder:
    """Layers and their shapes, in the order of the file."""

    def __init__(self, image: Shape) -> None:
        self.image = image
        self.layers: list[Layer] = []
        self.shapes: list[Shape] = []

    def add(self, section: _Section) -> None:
        readers: dict[str, Callable[[_Section], tuple[Layer, Shape]]] = {
            "convolutional": self._convolutional,
            "shortcut": self._shortcut,
            "route": self._route,
            "upsample": self._upsample,
            "maxpool": self._maxpool,
            "yolo": self._yolo,
        }
        if section.name not in readers:
            raise section.error(f"this kind is not supported ({', '.join(readers)})")
        layer, shape = readers[section.name](section)
        section.finish()
        if shape.size < 1:
            raise section.error("nothing is left of the image here: choose a larger input size")
        self.layers.append(layer)
        self.shapes.append(shape)

    def _source(self, section: _Section, key: str, index: int) -> int:
        """The absolute number of the layer that ``index`` means; negative ones count back."""
        absolute = index + len(self.layers) if index < 0 else index
        if not 0 <= absolute < len(self.layers):
            raise section.error(f"key '{key}': {index} is not the number of an earlier section")
        if isinstance(self.layers[absolute], Yolo):
            raise section.error(f"key '{key}': section {absolute} is a [yolo], which ends there")
        return absolute

    def _previous(self, section: _Section) -> Shape:
        if not self.layers:
            return self.image
        if isinstance(self.layers[-1], Yolo):
            raise section.error("it follows a [yolo], and only a [route] may")
        return self.shapes[-1]

    def _convolutional(self, section: _Section) -> tuple[Layer, Shape]:
        before = self._previous(section)
        size = section.integer("size", 1)
        padding = section.integer("padding", 0, minimum=0)
        if section.flag("pad"):
            padding = size // 2  # as darknet: pad=1 overrides padding
        layer = Convolutional(
            in_channels=before.channels,
            filters=section.integer("filters"),
            size=size,
            stride=section.integer("stride", 1),
            padding=padding,
            batch_normalize=section.flag("batch_normalize"),
            activation=section.activation(),
        )
        after = (before.size + 2 * padding - size) // layer.stride + 1
        return layer, Shape(layer.filters, after)

    def _shortcut(self, section: _Section) -> tuple[Layer, Shape]:
        before = self._previous(section)
        source = self._source(section, "from", section.integer("from", minimum=-math.inf))
        if self.shapes[source] != before:
            raise section.error(f"it adds {self.shapes[source]} of section {source} to {before}")
        return Shortcut(source, section.activation()), before

    def _route(self, section: _Section) -> tuple[Layer, Shape]:
        sources = tuple(self._source(section, "layers", i) for i in section.integers("layers"))
        shapes = [self.shapes[source] for source in sources]
        sizes = sorted({shape.size for shape in shapes})
        if len(sizes) > 1:
            raise section.error(
                f"it joins maps of sizes {sizes}: choose an input size that every stride divides"
                " (for YOLOv3 a multiple of 32)"
            )
        return Route(sources), Shape(sum(shape.channels for shape in shapes), sizes[0])

    def _upsample(self, section: _Section) -> tuple[Layer, Shape]:
        before = self._previous(section)
        layer = Upsample(section.integer("stride"))
        return layer, Shape(before.channels, before.size * layer.stride)

    def _maxpool(self, section: _Section) -> tuple[Layer, Shape]:
        before = self._previous(section)
        stride = section.integer("stride", 1)
        size = section.integer("size", stride)
        layer = MaxPool(size, stride, section.integer("padding", size - 1, minimum=0))
        after = (before.size + layer.padding - layer.size) // layer.stride + 1
        return layer, Shape(before.channels, after)

    def _yolo(self, section: _Section) -> tuple[Layer, Shape]:
        before = self._previous(section)
        flat = section.floats("anchors")
        count = section.integer("num")
        if len(flat) != 2 * count:
            raise section.error(f"key 'anchors': {len(flat)} numbers are not {count} pairs (num)")
        if not all(0 < side < math.inf for side in flat):
            raise section.error("key 'anchors': every width and height must be above 0")
        anchors = tuple(zip(flat[::2], flat[1::2], strict=True))
        mask = section.integers("mask")
        if not all(0 <= i < count for i in mask):
            raise section.error(f"key 'mask': {mask} points outside the {count} anchors")
        layer = Yolo(tuple(anchors[i] for i in mask), section.integer("classes"))
        expected = len(layer.anchors) * (5 + layer.classes)
        if before.channels != expected:
            raise section.error(
                f"{len(layer.anchors)} anchors and {layer.classes} classes need {expected}"
                f" channels, the section before gives {before.channels}"
            )
        for head in self.layers:
            if isinstance(head, Yolo) and head.classes != layer.classes:
                raise section.error(f"key 'classes': an earlier [yolo] has {head.classes}")
        return layer, before


def parse_cfg(text: str, *, size: int | None = None) -> Network:
    """Reads a darknet ``.cfg``.

    Supported sections: net, convolutional, shortcut, route, upsample, maxpool, yolo. Keys that only
    matter for training are passed over, every other unknown key is an error: a network that is not
    fully understood would give wrong answers silently.

    Args:
        text: what the file says.
        size: input width and height in pixels, instead of the file's.

    Raises:
        CfgError: naming the section, its line and the key.
    """
    sections = _sections(text)
    net = next(sections, None)
    if net is None or net.name != "net":
        raise CfgError("the first section must be [net]" if net else "there is no [net] section")
    width, height = net.integer("width"), net.integer("height")
    channels = net.integer("channels", IMAGE_CHANNELS)
    net.finish()
    if width != height:
        raise net.error(f"width={width} and height={height} differ: inputs are square")
    if channels != IMAGE_CHANNELS:
        raise net.error(f"key 'channels': {channels}, but photos have {IMAGE_CHANNELS}")
    size = width if size is None else size
    if size < 1:
        raise CfgError(f"input size {size} is less than 1")
    builder = _Builder(Shape(channels, size))
    for section in sections:
        builder.add(section)
    if not any(isinstance(layer, Yolo) for layer in builder.layers):
        raise CfgError("there is no [yolo] section, so nothing would be detected")
    return Network(size, tuple(builder.layers), tuple(builder.shapes))


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Scale, running mean and running variance, FP32 [filters] each."""

    scale: Float32Array
    mean: Float32Array
    variance: Float32Array


@dataclass(frozen=True, slots=True)
class ConvolutionalWeights:
    """What a ``[convolutional]`` has learnt.

    ``bias`` is FP32 [filters] (added after normalisation where there is any), ``kernel`` FP32
    [filters, input channels, size, size].
    """

    bias: Float32Array
    batch_norm: BatchNorm | None
    kernel: Float32Array


_VERSION_BYTES: Final = 3 * 4  # major, minor, revision: int32 each
_VERSION_LIMIT: Final = 1000  # darknet marks transposed weights by numbers above


def read_weights(path: Path, network: Network) -> dict[int, ConvolutionalWeights]:
    """Reads a darknet ``.weights`` file: for each convolutional section's number, its weights.

    Layout, little-endian: int32 major, minor, revision; the number of images seen in training,
    int64 from version 0.2 on, int32 before; then FP32, per convolution in the order of the
    ``.cfg``: bias, (scale, mean, variance with batch normalisation), kernel.

    Raises:
        WeightsError: the file holds more or fewer floats than ``network`` needs, a value that is
            not finite, or it is no such file at all.
    """
    try:
        with path.open("rb") as file:
            version = np.frombuffer(file.read(_VERSION_BYTES), "<i4")
        total = path.stat().st_size
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as darknet weights: {error}") from error
    if version.size < 3 or version[:2].min() < 0 or version[:2].max() >= _VERSION_LIMIT:
        raise WeightsError(f"{path}: does not begin with a darknet version, so it is another file")
    header = _VERSION_BYTES + (8 if version[0] * 10 + version[1] >= 2 else 4)
    found, rest = divmod(total - header, 4)
    if found != network.weight_count or rest:
        raise WeightsError(
            f"{path}: the network needs {network.weight_count:,} floats, the file holds {found:,}"
            + (f" and {rest} bytes" if rest else "")
            + ": are weights and cfg (classes, width) of the same network?"
        )
    floats = np.fromfile(path, "<f4", offset=header).astype(np.float32, copy=False)
    if not np.isfinite(floats).all():
        raise WeightsError(f"{path}: holds values that are not finite: it is damaged")

    position = 0

    def take(*shape: int) -> Float32Array:
        nonlocal position
        start, position = position, position + math.prod(shape)
        return floats[start:position].reshape(shape)

    weights: dict[int, ConvolutionalWeights] = {}
    for index, layer in enumerate(network.layers):
        if isinstance(layer, Convolutional):
            n = layer.filters
            bias = take(n)
            norm = BatchNorm(take(n), take(n), take(n)) if layer.batch_normalize else None
            weights[index] = ConvolutionalWeights(bias, norm, take(*layer.kernel_shape))
    return weights


# What is written: the version that darknet itself writes, and a count of seen images, unused here.
_HEADER: Final = np.array([0, 2, 0], "<i4").tobytes() + np.array([0], "<i8").tobytes()


def write_weights(
    path: Path, network: Network, weights: Mapping[int, ConvolutionalWeights]
) -> None:
    """Writes a darknet ``.weights`` file, which ``read_weights`` and darknet itself can read.

    Args:
        path: the file, replaced where it exists.
        network: what the weights belong to.
        weights: for each convolutional section's number, its weights.

    Raises:
        KeyError: a convolutional section has no weights.
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        file.write(_HEADER)
        for index, layer in enumerate(network.layers):
            if not isinstance(layer, Convolutional):
                continue
            learnt = weights[index]
            norm = learnt.batch_norm
            values = (norm.scale, norm.mean, norm.variance) if norm is not None else ()
            for array in (learnt.bias, *values, learnt.kernel):
                file.write(array.astype("<f4").tobytes())


# Darknet-53 (YOLOv3, table 1): channels after the stem and after each of five stages, and the
# residual blocks of each stage.
_STEM_CHANNELS: Final = 32
_STAGES: Final = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))


# Spatial pyramid pooling: maxima over neighbourhoods of these sizes join the map that they are of
# (https://github.com/pjreddie/darknet, cfg/yolov3-spp.cfg).
_SPP_SIZES: Final = (5, 9, 13)


def yolov3_cfg(
    *,
    width: float,
    classes: int,
    size: int,
    anchors: Sequence[Anchor] = COCO_ANCHORS,
    spp: bool = False,
) -> str:
    """The ``.cfg`` of YOLOv3, every layer but the last of each head ``width`` times as wide.

    Args:
        width: 1 for the published network; channel counts are rounded, to 1 at least.
        classes: number of classes.
        size: input width and height in pixels, a multiple of 32.
        anchors: nine (width, height) in pixels, smallest first.
        spp: whether the coarsest head begins with spatial pyramid pooling, as YOLOv3-spp's does.

    Raises:
        ValueError: the number of anchors is not nine.
    """
    if len(anchors) != 9:
        raise ValueError(f"YOLOv3 has nine anchors, not {len(anchors)}")
    lines = ["[net]", "batch=1", f"width={size}", f"height={size}", f"channels={IMAGE_CHANNELS}"]
    count = 0

    def section(name: str, **options: object) -> None:
        nonlocal count
        lines.extend(["", f"[{name}]", *(f"{key}={value}" for key, value in options.items())])
        count += 1

    def convolution(channels: int, kernel: int, stride: int = 1) -> None:
        filters = max(1, round(channels * width))
        section(
            "convolutional",
            batch_normalize=1, filters=filters, size=kernel, stride=stride, pad=1,
            activation="leaky",
        )  # fmt: skip

    def pool_pyramid() -> None:
        before = count - 1
        pooled: list[int] = []
        for pool_size in _SPP_SIZES:
            if pooled:
                section("route", layers=before - count)
            section("maxpool", stride=1, size=pool_size)
            pooled.insert(0, count - 1)
        section("route", layers=",".join(str(i - count) for i in (*pooled, before)))

    convolution(_STEM_CHANNELS, 3)
    stage_ends: list[int] = []
    for channels, blocks in _STAGES:
        convolution(channels, 3, stride=2)
        for _ in range(blocks):
            convolution(channels // 2, 1)
            convolution(channels, 3)
            section("shortcut", **{"from": -3}, activation="linear")
        stage_ends.append(count - 1)

    listed = ", ".join(f"{w:g},{h:g}" for w, h in anchors)
    # The coarsest map sees the largest anchors; each finer head takes the stage before in.
    for head, (channels, mask) in enumerate(((512, "6,7,8"), (256, "3,4,5"), (128, "0,1,2"))):
        if head:
            section("route", layers=-4)
            convolution(channels, 1)
            section("upsample", stride=2)
            section("route", layers=f"-1,{stage_ends[-1 - head]}")
        for block in range(3):
            convolution(channels, 1)
            if spp and head == 0 and block == 1:
                pool_pyramid()
                convolution(channels, 1)
            convolution(2 * channels, 3)
        filters = 3 * (5 + classes)
        section("convolutional", filters=filters, size=1, stride=1, pad=1, activation="linear")
        section("yolo", mask=mask, anchors=listed, classes=classes, num=9)
    return "\n".join(lines) + "\n"
