"""Weights and images under which a full-size network behaves as a trained one, untrained."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.export_models.contract import ModelSpec
from scripts.export_models.onnx_file import noise, scenes

# Times He's deviation. Batch normalisation takes the scale away again, so all that it does is to
# raise the variances, far above whatever an implementation adds to them before the square root.
KERNEL_GAIN: Final = 16.0


def busy_images(spec: ModelSpec, count: int, *, seed: int) -> NDArray[np.uint8]:
    """Images with something in every part of them, UINT8 [count, S, S, 3]."""
    shapes, grain = (x(spec, count, seed=seed).astype(np.int64) for x in (scenes, noise))
    images: NDArray[np.uint8] = ((shapes + grain) // 2).astype(np.uint8)
    return images


def enliven(network: nn.Module, images: Tensor, *, seed: int) -> Any:
    """Fills ``network`` so that values keep their spread from its first layer to its last.

    Kernels are random. Each batch normalisation gets the mean and the variance that it meets with
    ``images``, as training would have left them, and a scale and a bias of its own per channel.
    Without that, random values would fade or explode within a few of many layers. Leaves the
    network in evaluation mode.

    Args:
        network: of convolutions and batch normalisations.
        images: what its ``forward`` takes.
        seed: the same one gives the same weights.

    Returns:
        What ``network`` gives for ``images``, within a percent or so.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, KERNEL_GAIN * (2 / fan_in) ** 0.5, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
                module.momentum = 1.0  # what is met replaces what was there
        network.train()
        given = network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
    return given
