"""What a YOLOv3's answers cost, given the objects that are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from scripts.export_models import darknet

MAX_SIDE_RATIO: Final = 4.0
"""An anchor answers for a box whose sides are at most this many times its own, or a part of it."""

_BOX_GAIN: Final = 0.15
_OBJECTNESS_GAIN: Final = 2.0
"""At 416 pixels; it falls with the number of cells, most of which are empty."""
_CLASS_GAIN: Final = 0.5
_REFERENCE_SIZE: Final = 416

# Finer maps have more empty cells than coarser ones, and their mean loss is that much smaller.
_BALANCE: Final = {8: 4.0, 16: 1.0, 32: 0.4}

_MAX_LOG_SIDE: Final = 6.0
"""exp of more makes no box, only infinities."""
_EPSILON: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Losses:
    """Sum of all, and its parts: of boxes, objectness and classes."""

    total: Tensor
    box: Tensor
    objectness: Tensor
    classes: Tensor


def complete_iou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and CIoU, pair by pair: FP32 [N] each.

    CIoU takes off from IoU what centres are apart and what shapes differ, so that boxes which do
    not touch are drawn together too. Source: Z. Zheng et al., "Distance-IoU Loss" (2019).

    Args:
        boxes, others: FP32 [N, 4], centre x, centre y, width, height.
    """
    half, other_half = boxes[:, 2:] / 2, others[:, 2:] / 2
    first, last = boxes[:, :2] - half, boxes[:, :2] + half
    other_first, other_last = others[:, :2] - other_half, others[:, :2] + other_half
    shared = (torch.minimum(last, other_last) - torch.maximum(first, other_first)).clamp_min(0)
    intersection = shared.prod(dim=1)
    areas = boxes[:, 2:].prod(dim=1) + others[:, 2:].prod(dim=1)
    iou = intersection / (areas - intersection + _EPSILON)

    around = torch.maximum(last, other_last) - torch.minimum(first, other_first)
    apart = (boxes[:, :2] - others[:, :2]).square().sum(dim=1)
    distance = apart / (around.square().sum(dim=1) + _EPSILON)
    angle = torch.atan(boxes[:, 2] / (boxes[:, 3] + _EPSILON))
    other_angle = torch.atan(others[:, 2] / (others[:, 3] + _EPSILON))
    shape = (4 / math.pi**2) * (other_angle - angle).square()
    with torch.no_grad():
        weight = shape / (1 - iou + shape + _EPSILON)
    return iou, iou - distance - weight * shape


class DetectionLoss:
    """The loss of a network's heads, as ``Darknet.forward`` gives them.

    Every anchor that is like a box in shape answers for it, in the cell of its centre and in the
    two cells nearest to that, so that a box has several answers to learn from. An answer's centre
    cannot leave its cell: a neighbour's best box is up to half a cell away. An answer's objectness
    is to be its IoU with the box, so that the centre's own cell wins.
    """

    def __init__(self, network: darknet.Network) -> None:
        self._classes = network.classes
        self._heads = [layer for layer in network.layers if isinstance(layer, darknet.Yolo)]

    def __call__(self, outputs: Sequence[Tensor], objects: Tensor, size: int) -> Losses:
        """The loss of a batch.

        Args:
            outputs: per head [N, anchors * (5 + classes), rows, columns], not squashed yet.
            objects: FP32 [M, 6]: image of the batch, class, centre x, centre y, width, height in
                pixels of the input.
            size: input width and height in pixels.
        """
        device = objects.device
        box = torch.zeros((), device=device)
        objectness, classes = box.clone(), box.clone()
        for head, output in zip(self._heads, outputs, strict=True):
            stride = size // output.shape[-1]
            parts = self._head(head, output.float(), objects, stride)
            box = box + parts[0]
            objectness = objectness + _BALANCE.get(stride, 1.0) * parts[1]
            classes = classes + parts[2]
        total = (
            _BOX_GAIN * box
            + _OBJECTNESS_GAIN * (size / _REFERENCE_SIZE) ** 2 * objectness
            + _CLASS_GAIN * classes
        )
        return Losses(total, box, objectness, classes)

    def _head(
        self, head: darknet.Yolo, output: Tensor, objects: Tensor, stride: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        images, _, rows, columns = output.shape
        count = len(head.anchors)
        answers = output.view(images, count, 5 + self._classes, rows, columns)
        answers = answers.permute(0, 1, 3, 4, 2)
        anchors = torch.tensor(head.anchors, dtype=torch.float32, device=output.device)
        wanted = torch.zeros(images * count * rows * columns, device=output.device)
        box = output.sum() * 0
        classes = box
        pair, anchor = _like_in_shape(objects[:, 4:], anchors)
        chosen, column, row = _answering_cells(objects[pair, 2:4] / stride, rows, columns)
        if len(chosen):
            taken, anchor = objects[pair][chosen], anchor[chosen]
            image = taken[:, 0].long()
            answer = answers[image, anchor, row, column]
            centre = (answer[:, :2].sigmoid() + torch.stack([column, row], dim=1)) * stride
            sides = answer[:, 2:4].clamp(max=_MAX_LOG_SIDE).exp() * anchors[anchor]
            iou, ciou = complete_iou(torch.cat([centre, sides], dim=1), taken[:, 2:])
            box = (1 - ciou).mean()
            place = ((image * count + anchor) * rows + row) * columns + column
            wanted.scatter_reduce_(0, place, iou.detach().clamp(0, 1), "amax")
            truth = functional.one_hot(taken[:, 1].long(), self._classes).float()
            classes = functional.binary_cross_entropy_with_logits(answer[:, 5:], truth)
        objectness = functional.binary_cross_entropy_with_logits(
            answers[..., 4].reshape(-1), wanted
        )
        return box, objectness, classes


def _like_in_shape(sides: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of an object and an anchor whose sides differ by less than MAX_SIDE_RATIO times.

    Args:
        sides: FP32 [M, 2], width and height.
        anchors: FP32 [A, 2].

    Returns:
        Numbers of objects and of anchors, INT64 [P] each.
    """
    ratio = sides[:, None] / anchors[None]
    worst = torch.maximum(ratio, 1 / ratio).amax(dim=-1)
    objects, chosen = (worst < MAX_SIDE_RATIO).nonzero(as_tuple=True)
    return objects, chosen


def _answering_cells(centres: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cell of each centre and the nearest beside it, above or below it, as far as they exist.

    Args:
        centres: FP32 [P, 2], x and y in cells.
        rows, columns: of the map.

    Returns:
        Numbers of centres INT64 [Q], each up to three times, and columns and rows, INT64 [Q].
    """
    limit = torch.tensor([columns, rows], device=centres.device)
    own = torch.minimum(centres.long().clamp_min(0), limit - 1)
    beside = own + torch.where(centres - own < 0.5, -1, 1)
    exists = (beside >= 0) & (beside < limit)
    number = torch.arange(len(centres), device=centres.device)
    cells = [own]
    chosen = [number]
    for axis in (0, 1):
        neighbour = own.clone()
        neighbour[:, axis] = beside[:, axis]
        cells.append(neighbour[exists[:, axis]])
        chosen.append(number[exists[:, axis]])
    column, row = torch.cat(cells).unbind(dim=1)
    return torch.cat(chosen), column, row
