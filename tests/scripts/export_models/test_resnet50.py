from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from scripts.export_models.errors import WeightsError
from scripts.export_models.resnet50 import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    Embedder,
    ResNet50,
    load_resnet50,
)


def saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def tiny_state(*, classes: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(ResNet50(base_width=2, classes=classes).state_dict())


def published_shapes() -> dict[str, tuple[int, ...]]:
    """torchvision's names and shapes: of its state dict of ResNet-50, without step counters."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, norm: str, *kernel: int) -> None:
        shapes[f"{name}.weight"] = kernel
        for value in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{value}"] = kernel[:1]

    convolution("conv1", "bn1", 64, 3, 7, 7)
    channels = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            convolution(f"{prefix}.conv1", f"{prefix}.bn1", width, channels, 1, 1)
            convolution(f"{prefix}.conv2", f"{prefix}.bn2", width, width, 3, 3)
            convolution(f"{prefix}.conv3", f"{prefix}.bn3", 4 * width, width, 1, 1)
            if block == 0:
                shortcut = f"{prefix}.downsample"
                convolution(f"{shortcut}.0", f"{shortcut}.1", 4 * width, channels, 1, 1)
            channels = 4 * width
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def test_the_full_network_is_the_published_one() -> None:
    with torch.device("meta"):  # counts without memory
        model = ResNet50(classes=1000)
    parameters = dict(model.named_parameters())
    assert len(parameters) == 161
    assert sum(parameter.numel() for parameter in parameters.values()) == 25_557_032
    assert model.dimension == 2048
    assert {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.endswith(".num_batches_tracked")
    } == published_shapes()


def test_a_stage_strides_in_its_first_3x3() -> None:
    model = ResNet50(base_width=2)
    strided = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2)
    ]
    assert strided == [
        "conv1",
        *(f"layer{i}.0.{x}" for i in (2, 3, 4) for x in ("conv2", "downsample.0")),
    ]


def test_embeddings_are_unit_vectors_of_normalised_rgb() -> None:
    torch.manual_seed(0)
    network = ResNet50(base_width=2).eval()
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    normalised = (crops / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_DEVIATION)

    with torch.inference_mode():
        embeddings = Embedder(network).eval()(torch.from_numpy(crops))
        features = network(torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float())

    assert (embeddings.shape, embeddings.dtype) == ((3, 64), torch.float32)
    np.testing.assert_allclose(embeddings.norm(dim=1), 1, atol=1e-6)
    expected = features / features.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_zero_features_give_zeros_not_nan() -> None:
    network = ResNet50(base_width=2).eval()
    for name, parameter in network.layer4.named_parameters():
        if "bn3" in name or "downsample.1" in name:
            nn.init.zeros_(parameter)
    with torch.inference_mode():
        embeddings = Embedder(network).eval()(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert (embeddings == 0).all()


@pytest.mark.parametrize("classes", [None, 20])
def test_a_state_dict_loads_with_or_without_classifier(tmp_path: Path, classes: int | None) -> None:
    state = tiny_state(classes=classes)
    model = load_resnet50(saved(tmp_path / "w.pt", state))
    assert not hasattr(model, "fc")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    state = tiny_state(classes=5)
    save_file(state, tmp_path / "w.safetensors")
    for name, tensor in load_resnet50(tmp_path / "w.safetensors").state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)

    (tmp_path / "w.safetensors").write_bytes(b"not tensors")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_resnet50(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_resnet50(tmp_path / "absent.safetensors")


def test_step_counters_may_be_missing(tmp_path: Path) -> None:
    state = {n: t for n, t in tiny_state().items() if not n.endswith("num_batches_tracked")}
    assert load_resnet50(saved(tmp_path / "w.pt", OrderedDict(state))).dimension == 64


def test_a_state_dict_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"

    state = tiny_state()
    del state["layer3.5.conv3.weight"]
    with pytest.raises(WeightsError, match=r"lacks layer3\.5\.conv3\.weight of ResNet-50"):
        load_resnet50(saved(path, state))

    state = tiny_state()
    state |= {f"layer3.{i}.conv1.weight": torch.zeros(1) for i in range(6, 23)}
    with pytest.raises(WeightsError, match=r"has layer3\.10\.conv1.* and 14 more, which"):
        load_resnet50(saved(path, state))

    state = tiny_state()
    state["layer1.0.conv2.weight"] = torch.zeros(2, 2, 5, 5)
    with pytest.raises(WeightsError, match=r"conv2\.weight is \[2, 2, 5, 5\].* \[2, 2, 3, 3\]"):
        load_resnet50(saved(path, state))

    state = tiny_state()
    state["bn1.weight"][1] = torch.nan
    with pytest.raises(WeightsError, match=r"bn1\.weight holds values that are not finite"):
        load_resnet50(saved(path, state))

    with pytest.raises(WeightsError, match=r"no conv1\.weight"):
        load_resnet50(saved(path, {"stem.weight": torch.zeros(1)}))


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with pytest.raises(WeightsError, match="cannot be read"):
        load_resnet50(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_resnet50(path)
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_resnet50(path)
    with pytest.raises(WeightsError, match="is not a state dict"):
        load_resnet50(saved(path, [torch.zeros(1)]))
    with pytest.raises(WeightsError, match="is not a state dict"):
        load_resnet50(saved(path, {"epoch": 3}))


def test_what_pytorch_refuses_to_read_is_refused_in_words_of_ours(tmp_path: Path) -> None:
    """Its own advise to read it without the check, which is what lets a file run code."""
    path = tmp_path / "w.pt"
    torch.save(nn.Linear(1, 1), path)
    module = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):  # as TorchScript's begin
            archive.writestr(f"w/{name}", "3\n")
    script = path.read_bytes()
    damaged = saved(path, tiny_state()).read_bytes()[:-1000]
    for content in (module, script, damaged, b"", b"e", b".", b"\x80\x02h\x00."):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as a PyTorch state") as raised:
            load_resnet50(path)
        message = str(raised.value)
        assert "save what model.state_dict() gives" in message
        assert "weights_only" not in message
        assert "\x1b" not in message
        assert "\n" not in message
