from __future__ import annotations

import pytest
import torch

from scripts.export_models import darknet
from scripts.train_models.detection_loss import DetectionLoss, complete_iou
from tests.scripts.export_models.tiny_networks import tiny_network

SIZE = 64


def outputs_for(network: darknet.Network, images: int) -> list[torch.Tensor]:
    """What heads give before anything is learnt, to be changed by an optimiser."""
    return [
        torch.zeros(
            images, len(layer.anchors) * (5 + layer.classes), shape.size, shape.size
        ).requires_grad_()
        for layer, shape in zip(network.layers, network.shapes, strict=True)
        if isinstance(layer, darknet.Yolo)
    ]


def test_the_same_box_has_an_iou_of_one() -> None:
    box = torch.tensor([[10.0, 10, 4, 6]])
    iou, ciou = complete_iou(box, box)
    torch.testing.assert_close(iou, torch.ones(1))
    torch.testing.assert_close(ciou, torch.ones(1))


def test_iou_is_the_shared_part() -> None:
    # 4 x 4 boxes, 2 apart: 8 of 24 pixels are shared. Centres are 2 apart, 6 x 4 is around both.
    iou, ciou = complete_iou(torch.tensor([[2.0, 2, 4, 4]]), torch.tensor([[4.0, 2, 4, 4]]))
    torch.testing.assert_close(iou, torch.tensor([8 / 24]))
    torch.testing.assert_close(ciou, torch.tensor([8 / 24 - 4 / (36 + 16)]))


def test_boxes_that_do_not_touch_cost_more_the_further_apart() -> None:
    box = torch.tensor([[0.0, 0, 4, 4]]).expand(2, 4)
    _, ciou = complete_iou(box, torch.tensor([[10.0, 0, 4, 4], [20, 0, 4, 4]]))
    assert ciou[1] < ciou[0] < 0


def test_shapes_that_differ_cost() -> None:
    wide, tall = torch.tensor([[0.0, 0, 8, 2]]), torch.tensor([[0.0, 0, 2, 8]])
    iou, ciou = complete_iou(wide, tall)
    assert ciou < iou


def test_what_lowers_the_loss_finds_the_objects() -> None:
    network = tiny_network()
    loss_of = DetectionLoss(network)
    outputs = outputs_for(network, images=2)
    # Image, class, centre, sides: one that the fine head answers for, one for the coarse one.
    objects = torch.tensor([[0.0, 2, 21, 37, 12, 9], [1.0, 1, 40, 30, 36, 44]])
    optimizer = torch.optim.Adam(outputs, lr=0.1)
    first = loss_of(outputs, objects, SIZE).total.item()
    for _ in range(300):
        optimizer.zero_grad()
        losses = loss_of(outputs, objects, SIZE)
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert losses.total.item() < first / 4

    heads = [layer for layer in network.layers if isinstance(layer, darknet.Yolo)]
    for image, label, x, y, width, height in objects.tolist():
        best, found = -1.0, torch.empty(0)
        for head, output in zip(heads, outputs, strict=True):
            columns = output.shape[-1]
            stride = SIZE // columns
            answers = output[int(image)].detach().view(len(head.anchors), -1, columns, columns)
            score = (answers[:, 4].sigmoid() * answers[:, 5:].sigmoid().amax(dim=1)).flatten()
            if score.max() > best:
                best = float(score.max())
                place = int(score.argmax())
                anchor, cell = divmod(place, columns**2)
                row, column = divmod(cell, columns)
                values = answers[anchor, :, row, column]
                centre = (values[:2].sigmoid() + torch.tensor([column, row])) * stride
                sides = values[2:4].exp() * torch.tensor(head.anchors[anchor])
                found = torch.cat([centre, sides, values[5:].argmax()[None]])
        torch.testing.assert_close(
            found, torch.tensor([x, y, width, height, label]), atol=1.5, rtol=0
        )
        assert found[4] == label
        assert best > 0.7


def test_without_objects_only_objectness_is_learnt() -> None:
    network = tiny_network()
    outputs = outputs_for(network, images=1)
    losses = DetectionLoss(network)(outputs, torch.empty(0, 6), SIZE)
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert losses.box == losses.classes == 0
    for output in outputs:
        assert output.grad is not None
        by_value = output.grad.abs().sum(dim=(0, 2, 3)).view(-1, 5 + network.classes)
        learnt = by_value.sum(dim=0)
        assert learnt[4] > 0
        assert learnt.sum() == learnt[4]


@pytest.mark.parametrize(
    ("x", "y", "cells"),
    [
        (35, 29, {(4, 3), (3, 3), (4, 4)}),  # right of a cell's left edge, above its lower one
        (38, 26, {(4, 3), (5, 3), (4, 2)}),
        (1, 1, {(0, 0)}),  # nothing is beside or above it
        (SIZE, SIZE, {(7, 7)}),
        (SIZE - 5, 12, {(7, 1), (6, 1), (7, 2)}),
    ],
)
def test_the_cells_nearest_to_the_centre_answer(
    x: int, y: int, cells: set[tuple[int, int]]
) -> None:
    network = tiny_network()
    outputs = outputs_for(network, images=1)
    coarse, _ = outputs  # of 8 x 8 cells
    losses = DetectionLoss(network)(outputs, torch.tensor([[0.0, 1, x, y, 20, 20]]), SIZE)
    losses.classes.backward()  # type: ignore[no-untyped-call]
    assert coarse.grad is not None
    learnt = coarse.grad.abs().sum(dim=(0, 1)).nonzero().tolist()
    assert {(column, row) for row, column in learnt} == cells
