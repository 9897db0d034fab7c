"""From what was asked for to what is to be done: a plan for each model, checked before any work.

Whatever can be known to fail fails here, in moments. Building the network is left to the plan's
``build``, for PyTorch takes seconds to import, and a download comes before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.export_models import darknet
from scripts.export_models.contract import (
    CROP_GEOMETRIES,
    ModelSpec,
    check_model_name,
    detector_spec,
    embedder_spec,
    read_labels,
)
from scripts.export_models.download import RemoteFile, file_sha256
from scripts.export_models.errors import CfgError, ContractError, WeightsError
from scripts.export_models.official import Catalogue, OfficialDetector, OfficialEmbedder

if TYPE_CHECKING:
    from torch import nn

# Darknet's own, where nothing else is asked for.
DEFAULT_SCORE_THRESHOLD: Final = 0.25
DEFAULT_NMS_THRESHOLD: Final = 0.45

MIN_EMBEDDER_SIZE: Final = 32
"""ResNet-50 halves its input five times; below, nothing but padding would be left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What models to export and how; None where nothing was said."""

    names: tuple[str, ...]
    weights: Path | None = None
    cfg: Path | None = None
    labels: Path | None = None
    size: int | None = None
    checkpoint: str | None = None
    score_threshold: float | None = None
    nms_threshold: float | None = None
    crop_geometry: str | None = None
    crop_margin: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One model to export.

    ``setting`` is the service's that chooses the model; ``described_by`` are the files that, beside
    the weights, say what the model is; ``build`` makes it of a weights file.
    """

    name: str
    setting: str
    weights: Path | RemoteFile
    described_by: tuple[Path, ...]
    build: Callable[[Path], tuple[nn.Module, ModelSpec]]

    def source_sha256(self, weights: Path) -> str:
        """What tells this model from others of its name, see ``triton_config.config_text``."""
        if isinstance(self.weights, RemoteFile):
            return self.weights.sha256  # as was checked when it arrived
        return _sha256(weights, *self.described_by)


def make_plans(options: Options, catalogue: Catalogue) -> list[Plan]:
    """A plan for each of ``options.names``.

    Raises:
        ContractError: options do not go together, or are outside what the contract allows.
        CfgError: the ``.cfg`` cannot be read, or not built at that size.
        WeightsError: a file that is given for an official model is not the official one.
    """
    names = list(dict.fromkeys(options.names))
    _check_together(names, options)
    plans = [_plan(name, options, catalogue) for name in names]
    _check_used(options, plans)
    return plans


def _check_together(names: Sequence[str], options: Options) -> None:
    if len(names) > 1:
        for option in ("weights", "cfg", "labels", "size"):
            if getattr(options, option) is not None:
                raise ContractError(f"--{option} goes with one NAME, not with {len(names)}")
    if (options.cfg is None) != (options.labels is None):
        raise ContractError("--cfg and --labels go together: give both, or neither")


def _check_used(options: Options, plans: Sequence[Plan]) -> None:
    settings = {plan.setting for plan in plans}
    for setting, what, names in (
        ("DETECTOR_MODEL", "detectors", ("score_threshold", "nms_threshold")),
        ("EMBEDDER_MODEL", "embedders", ("checkpoint", "crop_geometry", "crop_margin")),
    ):
        for name in names:
            if setting not in settings and getattr(options, name) is not None:
                raise ContractError(f"--{name.replace('_', '-')} is for {what}: leave it out")


def _plan(name: str, options: Options, catalogue: Catalogue) -> Plan:
    match catalogue.get(name):
        case None:
            return _own_plan(name, options, catalogue)
        case _ if options.cfg is not None:
            raise ContractError(
                f"{name} is an official model, whose cfg and labels are known: leave out --cfg and"
                " --labels, or choose another NAME"
            )
        case OfficialDetector() as detector:
            weights = _official_weights(name, options, [detector.weights])
            return _detector_plan(name, weights, detector.cfg, None, detector.labels, options)
        case OfficialEmbedder() as embedder:
            checkpoint = options.checkpoint or next(iter(embedder.checkpoints))
            files = [embedder.checkpoints[checkpoint], *embedder.checkpoints.values()]
            weights = _official_weights(name, options, files)
            size = embedder.size if options.size is None else options.size
            return _embedder_plan(name, weights, size, options)


def _own_plan(name: str, options: Options, catalogue: Catalogue) -> Plan:
    check_model_name(name)
    if options.weights is None:
        raise ContractError(
            f"{name} is no official model ({', '.join(catalogue)}): one of your own needs --weights"
        )
    if options.checkpoint is not None:
        raise ContractError(f"--checkpoint is for official models, which {name} is not")
    if options.cfg is None or options.labels is None:
        if options.size is None:
            raise ContractError(f"{name} needs --cfg and --labels (YOLOv3) or --size (ResNet-50)")
        return _embedder_plan(name, options.weights, options.size, options)
    try:
        text = options.cfg.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CfgError(f"{options.cfg}: cannot be read as a darknet cfg: {error}") from error
    return _detector_plan(name, options.weights, text, options.cfg, options.labels, options)


def _official_weights(
    name: str, options: Options, files: Sequence[RemoteFile]
) -> Path | RemoteFile:
    """The first of an official model's ``files``, or the user's copy of it."""
    wanted, path = files[0], options.weights
    if path is None:
        return wanted
    found = _sha256(path)
    if found == wanted.sha256:
        return path
    if any(found == file.sha256 for file in files):
        raise WeightsError(f"{path}: this is another checkpoint of {name}: choose --checkpoint")
    raise WeightsError(
        f"{path}: its SHA-256 is {found}, that of {name}'s {wanted.name} is {wanted.sha256}: to"
        " export it nevertheless, choose another NAME, with --cfg and --labels (YOLOv3) or"
        " --size (ResNet-50)"
    )


def _sha256(*paths: Path) -> str:
    try:
        return file_sha256(*paths)
    except OSError as error:
        raise WeightsError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _detector_plan(
    name: str,
    weights: Path | RemoteFile,
    cfg: str,
    cfg_path: Path | None,
    labels: Path,
    options: Options,
) -> Plan:
    try:
        network = darknet.parse_cfg(cfg, size=options.size)
    except CfgError as error:
        raise CfgError(f"{cfg_path or name}: {error}") from error
    score, nms = options.score_threshold, options.nms_threshold
    spec = detector_spec(
        size=network.size,
        labels=read_labels(labels, classes=network.classes),
        score_threshold=DEFAULT_SCORE_THRESHOLD if score is None else score,
        nms_threshold=DEFAULT_NMS_THRESHOLD if nms is None else nms,
    )

    def build(path: Path) -> tuple[nn.Module, ModelSpec]:
        from scripts.export_models.yolov3 import Darknet, Detector

        model = Darknet(network)
        model.load_darknet_weights(darknet.read_weights(path, network))
        return Detector(model), spec

    described_by = () if cfg_path is None else (cfg_path,)
    return Plan(name, "DETECTOR_MODEL", weights, described_by, build)


def _embedder_plan(name: str, weights: Path | RemoteFile, size: int, options: Options) -> Plan:
    if size < MIN_EMBEDDER_SIZE:
        raise ContractError(f"input size {size} is less than {MIN_EMBEDDER_SIZE}")

    def spec(dimension: int) -> ModelSpec:
        return embedder_spec(
            size=size,
            dimension=dimension,
            crop_geometry=options.crop_geometry or CROP_GEOMETRIES[0],
            crop_margin=options.crop_margin or 0.0,
        )

    spec(dimension=1)  # checks everything else

    def build(path: Path) -> tuple[nn.Module, ModelSpec]:
        from scripts.export_models.resnet50 import Embedder, load_resnet50

        network = load_resnet50(path)
        return Embedder(network), spec(network.dimension)

    return Plan(name, "EMBEDDER_MODEL", weights, (), build)
