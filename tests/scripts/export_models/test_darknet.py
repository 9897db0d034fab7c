from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.export_models.darknet import (
    Convolutional,
    MaxPool,
    Route,
    Shape,
    Shortcut,
    Upsample,
    Yolo,
    parse_cfg,
    read_weights,
    yolov3_cfg,
)
from scripts.export_models.errors import CfgError, WeightsError
from tests.scripts.export_models.tiny_networks import (
    TINY_CFG,
    random_floats,
    tiny_network,
    write_weights,
)

CONVOLUTION = "[convolutional]\nfilters=8\nsize=1\nactivation=linear\n"
YOLO = "[yolo]\nmask=0\nanchors=10,13\nclasses=3\nnum=1\n"
SMALLEST = "[net]\nwidth=32\nheight=32\n" + CONVOLUTION + YOLO


def test_each_section_becomes_a_layer_with_its_shape() -> None:
    network = tiny_network()

    assert network.size == 64
    assert network.classes == 3
    assert network.layers[:2] == (
        Convolutional(3, 8, 3, 2, 1, batch_normalize=True, activation="leaky"),
        MaxPool(size=2, stride=2, padding=1),
    )
    assert network.layers[4] == Shortcut(1, "linear")
    assert network.layers[6] == MaxPool(size=5, stride=1, padding=4)
    assert network.layers[7] == Route((6, 5))
    assert network.layers[9] == Yolo(((20, 14), (30, 30), (50, 40)), 3)
    assert network.layers[12:14] == (Upsample(2), Route((12, 4)))
    assert network.shapes[0] == Shape(8, 32)
    assert network.shapes[9] == Shape(24, 8)
    assert network.shapes[13] == Shape(12, 16)
    assert network.shapes[16] == Shape(24, 16)


def test_the_input_size_may_be_chosen() -> None:
    assert parse_cfg(TINY_CFG, size=96).shapes[-1] == Shape(24, 24)


def test_comments_spaces_and_keys_of_training_are_passed_over() -> None:
    text = SMALLEST.replace("[net]", "# published\n; so\n[net]\nmomentum=0.9\nsteps=400000,450000")
    assert parse_cfg(text.replace("filters=8", " filters = 8 ")) == parse_cfg(SMALLEST)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (SMALLEST, "", r"no \[net\] section"),
        ("[net]", "[dropout]", r"first section must be \[net\]"),
        ("[net]", "width=1\n[net]", "line 1: 'width=1' stands before"),
        ("[net]", "[net", "line 1: .* closing bracket"),
        ("filters=8", "filters", "line 5: 'filters' is neither"),
        ("height=32", "height=64", r"\[net\] \(line 1\): width=32 and height=64 differ"),
        ("height=32", "height=32\nchannels=1", r"\[net\].*'channels': 1"),
        ("height=32", "height=32\nletterbox=1", r"\[net\].*key 'letterbox' is not supported"),
        ("width=32", "width=32\nwidth=32", r"\[net\].*'width' is given twice"),
        (CONVOLUTION, "[lstm]\n", r"section 0 \[lstm\] \(line 4\): this kind is not supported"),
        ("filters=8", "groups=2\nfilters=8", r"section 0 \[convolutional\].*key 'groups'"),
        ("filters=8\n", "", r"section 0 \[convolutional\].*key 'filters' is missing"),
        ("filters=8", "filters=many", "key 'filters': 'many' is not a whole number"),
        ("filters=8", "filters=0", "key 'filters': 0 is less than 1"),
        ("size=1", "size=1\npad=2", "key 'pad': '2' is neither 0 nor 1"),
        ("size=1", "size=33", r"section 0 \[convolutional\].*nothing is left"),
        ("linear", "mish", "key 'activation': 'mish' is not supported"),
        ("filters=8", "filters=9", r"section 1 \[yolo\].*need 8 channels.*gives 9"),
        ("num=1", "num=2", r"section 1 \[yolo\].*'anchors': 2 numbers are not 2 pairs"),
        ("10,13", "10,-13", "'anchors': every width and height must be above 0"),
        ("10,13", "10,tall", "'anchors': '10,tall' is not a list of numbers"),
        ("mask=0", "mask=1", "key 'mask'.*outside the 1 anchors"),
        ("mask=0", "mask=x", "key 'mask': 'x' is not a list of whole numbers"),
        (YOLO, "", r"no \[yolo\] section"),
        (YOLO, YOLO + CONVOLUTION, r"section 2 \[convolutional\].*follows a \[yolo\]"),
        (YOLO, YOLO + "[route]\nlayers=-1\n", r"section 2 \[route\].*section 1 is a \[yolo\]"),
        (YOLO, "[route]\nlayers=3\n", r"section 1 \[route\].*'layers': 3 is not the number"),
        (YOLO, "[route]\nlayers=-2\n", r"section 1 \[route\].*'layers': -2 is not the number"),
        (YOLO, "[shortcut]\nfrom=-9\nactivation=linear\n", r"section 1 \[shortcut\].*'from': -9"),
    ],
)
def test_what_cannot_be_built_is_named(old: str, new: str, message: str) -> None:
    assert old in SMALLEST
    with pytest.raises(CfgError, match=message):
        parse_cfg(SMALLEST.replace(old, new))


def test_layers_that_do_not_fit_together_are_named() -> None:
    with pytest.raises(CfgError, match=r"section 13 \[route\].*sizes \[9, 10\].*multiple of 32"):
        parse_cfg(TINY_CFG, size=36)
    with pytest.raises(CfgError, match=r"section 4 \[shortcut\].*section 0"):
        parse_cfg(TINY_CFG.replace("from=-3", "from=0"))
    last = TINY_CFG.rindex("[convolutional]")
    head = TINY_CFG[last:].replace("filters=24", "filters=27").replace("classes=3", "classes=4")
    with pytest.raises(CfgError, match=r"section 16 \[yolo\].*an earlier \[yolo\] has 3"):
        parse_cfg(TINY_CFG[:last] + head)
    with pytest.raises(CfgError, match="size 0"):
        parse_cfg(TINY_CFG, size=0)


def test_the_published_yolov3_is_generated() -> None:
    network = parse_cfg(yolov3_cfg(width=1, classes=80, size=416))

    assert network.weight_count == 62_001_757
    assert len(network.layers) == 107  # sections of the published yolov3.cfg, without [net]
    heads = [i for i, layer in enumerate(network.layers) if isinstance(layer, Yolo)]
    assert heads == [82, 94, 106]
    assert [network.shapes[i] for i in heads] == [Shape(255, s) for s in (13, 26, 52)]
    assert network.layers[86] == Route((85, 61))
    assert network.layers[98] == Route((97, 36))


def test_a_narrow_yolov3_differs_in_its_channels_only() -> None:
    full = parse_cfg(yolov3_cfg(width=1, classes=80, size=416))
    narrow = parse_cfg(yolov3_cfg(width=1 / 32, classes=80, size=416))

    assert [s.size for s in narrow.shapes] == [s.size for s in full.shapes]
    for index, (layer, wide) in enumerate(zip(narrow.layers, full.layers, strict=True)):
        if isinstance(layer, Convolutional) and layer.batch_normalize:
            assert narrow.shapes[index].channels * 32 == full.shapes[index].channels
        elif not isinstance(layer, Convolutional):
            assert layer == wide


def test_nine_anchors_are_needed() -> None:
    anchors = [(float(i), float(i)) for i in range(1, 10)]
    network = parse_cfg(yolov3_cfg(width=1 / 32, classes=1, size=32, anchors=anchors))
    assert [x.anchors[0][0] for x in network.layers if isinstance(x, Yolo)] == [7, 4, 1]
    with pytest.raises(ValueError, match="nine anchors, not 6"):
        yolov3_cfg(width=1, classes=1, size=32, anchors=anchors[:6])


def test_weights_are_read_in_darknets_order(tmp_path: Path) -> None:
    network = tiny_network()
    floats = np.arange(network.weight_count, dtype=np.float32)

    weights = read_weights(write_weights(tmp_path / "w", floats), network)

    first = weights[0]
    assert first.batch_norm is not None
    np.testing.assert_array_equal(first.bias, np.arange(8))
    np.testing.assert_array_equal(first.batch_norm.scale, np.arange(8, 16))
    np.testing.assert_array_equal(first.batch_norm.mean, np.arange(16, 24))
    np.testing.assert_array_equal(first.batch_norm.variance, np.arange(24, 32))
    np.testing.assert_array_equal(first.kernel, np.arange(32, 32 + 216).reshape(8, 3, 3, 3))
    assert weights[2].bias[0] == 32 + 216
    last = weights[15]
    assert last.batch_norm is None
    assert last.kernel[-1, -1, 0, 0] == network.weight_count - 1
    assert last.bias[0] == network.weight_count - 24 - 24 * 12
    assert set(weights) == {0, 2, 3, 5, 8, 11, 15}


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 0), (0, 2, 5), (1, 0, 0)])
def test_both_headers_are_read(tmp_path: Path, version: tuple[int, int, int]) -> None:
    network = tiny_network()
    floats = random_floats(network)
    weights = read_weights(write_weights(tmp_path / "w", floats, version=version), network)
    np.testing.assert_array_equal(weights[0].bias, floats[:8])


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_length_is_refused(tmp_path: Path, change: int) -> None:
    network = tiny_network()
    expected = network.weight_count
    floats = np.zeros(expected + change, np.float32)
    message = f"needs {expected:,} floats, the file holds {expected + change:,}:"
    with pytest.raises(WeightsError, match=message):
        read_weights(write_weights(tmp_path / "w", floats), network)


def test_a_file_cut_inside_a_float_is_refused(tmp_path: Path) -> None:
    network = tiny_network()
    path = write_weights(tmp_path / "w", random_floats(network))
    path.write_bytes(path.read_bytes() + b"\0\0")
    with pytest.raises(WeightsError, match="and 2 bytes"):
        read_weights(path, network)


@pytest.mark.parametrize("content", [b"", b"\0" * 11, b"<!doctype html><html>"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="darknet"):
        read_weights(path, tiny_network())


def test_damaged_or_absent_weights_are_refused(tmp_path: Path) -> None:
    network = tiny_network()
    floats = random_floats(network)
    floats[100] = np.nan
    with pytest.raises(WeightsError, match="not finite"):
        read_weights(write_weights(tmp_path / "w", floats), network)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(tmp_path / "absent", network)
