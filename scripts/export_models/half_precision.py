"""Networks in FP16: half the bytes, and faster where the hardware reckons in it.

The network alone: pixels are scaled, heads decoded and vectors normalised in FP32 as before. FP16
has 11 significant bits, too few for a place among 608 pixels, but enough for what a network's
layers pass on. What goes in and comes out of the model does not change.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scripts.export_models.errors import WeightsError


class HalfPrecision(nn.Module):
    """A network that reckons in FP16; what it takes and gives is FP32."""

    def __init__(self, network: nn.Module) -> None:
        """Converts ``network`` and keeps it.

        Raises:
            WeightsError: a weight is beyond FP16's range.
        """
        super().__init__()
        self.network = network.eval()
        _fold_batch_norms(self.network)
        self.network.half()
        for name, parameter in self.network.named_parameters():
            if not parameter.isfinite().all():
                raise WeightsError(
                    f"{name} holds values beyond FP16's {torch.finfo(torch.half).max:,.0f}:"
                    " export it with --precision fp32"
                )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """As the network's, FP32 to FP32."""
        answer: Tensor | list[Tensor] = self.network(images.half())
        if isinstance(answer, list):
            return [head.float() for head in answer]
        return answer.float()


def half_precision(model: nn.Module) -> nn.Module:
    """A copy of a model whose ``network`` reckons in FP16.

    Raises:
        WeightsError: a weight is beyond FP16's range.
    """
    halved = copy.deepcopy(model)
    halved.add_module("network", HalfPrecision(halved.get_submodule("network")))
    return halved


def _fold_batch_norms(network: nn.Module) -> None:
    """Puts each batch normalisation into the convolution before it.

    In FP32, before anything is rounded: its variances may be too small for FP16, the product is
    not. A normalisation is defined right after its convolution in all our networks.
    """
    for module in list(network.modules()):
        for (name, first), (next_name, second) in pairwise(module.named_children()):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(first, second))
                setattr(module, next_name, nn.Identity())
