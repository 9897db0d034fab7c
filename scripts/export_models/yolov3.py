"""YOLOv3 in PyTorch: the network of a parsed ``.cfg``, and the detector that the service calls.

Knows tensors; where weights and ``.cfg`` come from is ``darknet``'s. Source: J. Redmon, A. Farhadi,
"YOLOv3: An Incremental Improvement" (2018), section 2.1 for the decoding of boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from scripts.export_models import darknet
from scripts.export_models.contract import MAX_DETECTIONS
from scripts.export_models.errors import ContractError

LEAKY_SLOPE: Final = 0.1
# Inside the root: so darknet trains on a GPU, which its CPU code does not follow.
BATCH_NORM_EPSILON: Final = 1e-5
_BOX_VALUES: Final = 5  # tx, ty, tw, th, objectness, before the classes


class _MaxPool(nn.Module):
    """Darknet's max pooling, whose padding may be one pixel more after than before."""

    def __init__(self, layer: darknet.MaxPool) -> None:
        super().__init__()
        before = layer.padding // 2
        after = layer.padding - before
        self.padding = (before, after, before, after)
        self.pool = nn.MaxPool2d(layer.size, layer.stride)

    def forward(self, features: Tensor) -> Tensor:
        padded = functional.pad(features, self.padding, value=-torch.inf)
        pooled: Tensor = self.pool(padded)
        return pooled


def _activation(name: darknet.Activation) -> nn.Module:
    return nn.LeakyReLU(LEAKY_SLOPE) if name == "leaky" else nn.Identity()


def _convolution(layer: darknet.Convolutional) -> nn.Sequential:
    convolution = nn.Conv2d(
        layer.in_channels,
        layer.filters,
        layer.size,
        layer.stride,
        layer.padding,
        bias=not layer.batch_normalize,
    )
    norm = nn.BatchNorm2d(layer.filters, eps=BATCH_NORM_EPSILON)
    return nn.Sequential(
        convolution,
        *([norm] if layer.batch_normalize else []),
        _activation(layer.activation),
    )


class Darknet(nn.Module):
    """The network that a ``.cfg`` describes; ``blocks[i]`` is its section number i."""

    def __init__(self, network: darknet.Network) -> None:
        super().__init__()
        self.network = network
        self.blocks = nn.ModuleList()
        for layer in network.layers:
            match layer:
                case darknet.Convolutional():
                    self.blocks.append(_convolution(layer))
                case darknet.MaxPool():
                    self.blocks.append(_MaxPool(layer))
                case darknet.Upsample(stride):
                    self.blocks.append(nn.Upsample(scale_factor=float(stride), mode="nearest"))
                case darknet.Shortcut(activation=activation):
                    self.blocks.append(_activation(activation))
                case darknet.Route() | darknet.Yolo():
                    self.blocks.append(nn.Identity())

    def load_darknet_weights(self, weights: Mapping[int, darknet.ConvolutionalWeights]) -> None:
        """Copies in what ``darknet.read_weights`` read for the same network."""
        with torch.no_grad():
            for index, learnt in weights.items():
                block = self.blocks[index]
                assert isinstance(block, nn.Sequential)
                convolution, norm = block[0], block[1]
                assert isinstance(convolution, nn.Conv2d)
                convolution.weight.copy_(torch.from_numpy(learnt.kernel))
                bias = torch.from_numpy(learnt.bias)
                if learnt.batch_norm is None:
                    assert convolution.bias is not None
                    convolution.bias.copy_(bias)
                    continue
                assert isinstance(norm, nn.BatchNorm2d)
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.bias.copy_(bias)
                norm.weight.copy_(torch.from_numpy(learnt.batch_norm.scale))
                norm.running_mean.copy_(torch.from_numpy(learnt.batch_norm.mean))
                norm.running_var.copy_(torch.from_numpy(learnt.batch_norm.variance))

    def darknet_weights(self) -> dict[int, darknet.ConvolutionalWeights]:
        """What ``darknet.write_weights`` writes for this network; copies, FP32."""

        def array(tensor: Tensor | None) -> darknet.Float32Array:
            assert tensor is not None
            copied: darknet.Float32Array = tensor.detach().float().cpu().contiguous().numpy().copy()
            return copied

        weights: dict[int, darknet.ConvolutionalWeights] = {}
        for index, layer in enumerate(self.network.layers):
            if not isinstance(layer, darknet.Convolutional):
                continue
            block = self.blocks[index]
            assert isinstance(block, nn.Sequential)
            convolution, norm = block[0], block[1]
            assert isinstance(convolution, nn.Conv2d)
            kernel = array(convolution.weight)
            if isinstance(norm, nn.BatchNorm2d):
                learnt = darknet.BatchNorm(
                    array(norm.weight), array(norm.running_mean), array(norm.running_var)
                )
                weights[index] = darknet.ConvolutionalWeights(array(norm.bias), learnt, kernel)
            else:
                bias = array(convolution.bias)
                weights[index] = darknet.ConvolutionalWeights(bias, None, kernel)
        return weights

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raw output of every head, in the order of the ``.cfg``.

        Args:
            images: FP32 [N, 3, S, S], RGB, 0..1.

        Returns:
            Per head FP32 [N, anchors * (5 + classes), rows, columns]: tx, ty, tw, th, objectness,
            then the classes, of the first anchor, then of the next; nothing squashed yet.
        """
        outputs = self.outputs(images, len(self.blocks))
        heads = zip(self.network.layers, outputs, strict=True)
        return [output for layer, output in heads if isinstance(layer, darknet.Yolo)]

    def outputs(self, images: Tensor, count: int) -> list[Tensor]:
        """Outputs of the first ``count`` sections for ``images``, as ``forward`` takes them."""
        outputs: list[Tensor] = []
        previous = images
        for layer, block in zip(self.network.layers[:count], self.blocks[:count], strict=True):
            match layer:
                case darknet.Shortcut(source):
                    previous = block(previous + outputs[source])
                case darknet.Route(sources):
                    taken = [outputs[source] for source in sources]
                    previous = torch.cat(taken, dim=1) if len(taken) > 1 else taken[0]
                case _:
                    previous = block(previous)
            outputs.append(previous)
        return outputs


class Detector(nn.Module):
    """Pixels in, the best detections out: YOLOv3 with everything around it that is arithmetic.

    What is left to the caller is letterboxing, a score threshold and per-class NMS.
    """

    places: Tensor
    """FP32 [boxes, 5]: of every predicted box the column and row of its cell, the stride of its
    head, its anchor's width and height."""

    def __init__(self, network: Darknet) -> None:
        """Prepares the places of all predictions.

        Raises:
            ContractError: the input is too small to give ``MAX_DETECTIONS`` detections.
        """
        super().__init__()
        self.network = network
        self.classes = network.network.classes
        size = network.network.size
        places: list[Tensor] = []
        for layer, shape in zip(network.network.layers, network.network.shapes, strict=True):
            if not isinstance(layer, darknet.Yolo):
                continue
            axis = torch.arange(shape.size, dtype=torch.float32)
            row, column = torch.meshgrid(axis, axis, indexing="ij")
            stride = torch.full_like(row, size / shape.size)
            for width, height in layer.anchors:
                anchor = (torch.full_like(row, width), torch.full_like(row, height))
                places.append(torch.stack([column, row, stride, *anchor], dim=-1).flatten(0, 1))
        self.register_buffer("places", torch.cat(places))
        candidates = len(self.places) * self.classes
        if candidates < MAX_DETECTIONS:
            raise ContractError(
                f"an input of {size} pixels gives {candidates} candidates, fewer than the"
                f" {MAX_DETECTIONS} to choose: choose a larger size"
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detects.

        Every pair of a predicted box and a class is a candidate, scored by objectness x class
        score, so one box may come back under several labels. The K = ``MAX_DETECTIONS`` best
        candidates are chosen in two steps that give exactly what sorting all would: a pair among
        the K best belongs to a box among the K boxes with the best best-class scores, for
        otherwise K boxes would each hold a better pair.

        Args:
            images: UINT8 [N, S, S, 3], RGB, letterboxed.

        Returns:
            ``boxes`` FP32 [N, K, 4], x1, y1, x2, y2 in pixels of the input, not clipped to it;
            ``scores`` FP32 [N, K], descending; ``labels`` INT32 [N, K].
        """
        predictions = self._predictions(images)
        objectness = predictions[..., _BOX_VALUES - 1].sigmoid()
        # The sigmoid grows with its argument: one of the best class is as good as the best of all.
        best_score = objectness * predictions[..., _BOX_VALUES:].amax(dim=-1).sigmoid()
        place = best_score.topk(min(MAX_DETECTIONS, len(self.places)), dim=1).indices

        taken = place.unsqueeze(-1).expand(-1, -1, predictions.shape[-1])
        chosen = predictions.gather(1, taken)
        pairs = chosen[..., _BOX_VALUES - 1 : _BOX_VALUES].sigmoid()
        pairs = pairs * chosen[..., _BOX_VALUES:].sigmoid()
        scores, pair = pairs.flatten(1).topk(MAX_DETECTIONS, dim=1)
        box = pair // self.classes  # of whole numbers: FP16 would not tell neighbours apart
        labels = pair - box * self.classes

        boxes = self._boxes(chosen, place)
        boxes = boxes.gather(1, box.unsqueeze(-1).expand(-1, -1, 4))
        return boxes, scores, labels.to(torch.int32)

    def _predictions(self, images: Tensor) -> Tensor:
        """All predictions, FP32 [N, boxes, 5 + classes], in the order of ``places``."""
        pixels = images.to(torch.float32).permute(0, 3, 1, 2) / 255
        width = _BOX_VALUES + self.classes
        rows = []
        for head in self.network(pixels):
            size = head.shape[-1]
            by_anchor = head.reshape(-1, head.shape[1] // width, width, size * size)
            rows.append(by_anchor.transpose(2, 3).flatten(1, 2))
        return torch.cat(rows, dim=1)

    def _boxes(self, chosen: Tensor, place: Tensor) -> Tensor:
        """Corners of the boxes ``chosen``, FP32 [N, k, 4], which are those at ``place``.

        Centre: (sigmoid(tx, ty) + cell) * stride. Size: anchor * exp(tw, th).
        """
        places = functional.embedding(place, self.places)
        cell, stride, anchor = places[..., :2], places[..., 2:3], places[..., 3:]
        centre = (chosen[..., :2].sigmoid() + cell) * stride
        half = chosen[..., 2:4].exp() * anchor / 2
        return torch.cat([centre - half, centre + half], dim=-1)
