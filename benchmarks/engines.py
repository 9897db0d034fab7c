"""`python -m benchmarks.engines`: what computes the models in the process, beside each other.

Three things are measured, the engines taking turns in each round: the detector and the embedder
alone, on tensors that are made beforehand and with all the threads that the service has, and
`POST /img/load` of a service of each engine. Then the same crops' embeddings are compared: how far
those of another engine are from ONNX Runtime's, beside how far different objects are from each
other, and what a search finds where its query was embedded by one engine and the collection by
another.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, Final, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from backend.errors import ConfigurationError
from backend.serving.engines import open_local_server
from backend.serving.local import ServedModel
from backend.settings import InferenceEngine
from benchmarks.reporting import add_common_arguments, environment, rounded, write_json
from benchmarks.speed.bench import Bench, copies_of, load_seconds, photo_files
from benchmarks.speed.networks import MODELS, PhotoTensors, ready_tensors
from benchmarks.speed.rounds import medians
from tests.service import SMALL_PAIR

__all__ = ["agreement", "measure", "render"]

_OWN: Final[InferenceEngine] = "onnxruntime"
"""What the others are compared with."""
_ENGINES: Final[tuple[InferenceEngine, ...]] = get_args(InferenceEngine)
_PHOTOS: Final = 250
"""That hold the objects which are compared."""
_CROPS: Final = 500
_ROUNDS: Final = 7
_TOP_K: Final = 10
_COLUMNS: Final = 120
"""Of the table, also where the output goes to a file."""
_WORK: Final = ("detector", "embedder", "load")


def measure(
    data: Path,
    *,
    log: Callable[[str], None],
    engines: Sequence[InferenceEngine] = _ENGINES,
    photos: int = _PHOTOS,
    rounds: int = _ROUNDS,
) -> dict[str, Any]:
    """The whole report, from photos of `data`/val.

    Args:
        data: folder of the split.
        log: takes a line whenever a part begins.
        engines: ONNX Runtime and others; those that cannot be had here are left out.
        photos: how many of them each round is of.
        rounds: in which the engines take turns.
    """
    files = photo_files(data / "val" / "images")
    contents = [path.read_bytes() for path in files[:photos]]
    log(f"cutting the objects out of {len(contents)} photos")
    tensors = ready_tensors(contents)
    networks, vectors = asyncio.run(_networks(engines, tensors, rounds, log))
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(data, Path(scratch), 1.0, log)
        folder = copies_of(files, Path(scratch, "photos"), len(contents))
        loads = _loads(bench, list(networks), folder, len(contents), rounds)
    of_photos = np.repeat(np.arange(len(tensors)), [len(each.crops) for each in tensors])[:_CROPS]
    own = vectors[_OWN][:_CROPS]
    report = rounded(
        {
            **environment("openvino"),
            "photos": len(contents),
            "crops": int(sum(len(each.crops) for each in tensors)),
            "ms_a_photo": {
                name: medians(
                    [
                        {**network, "load": load}
                        for network, load in zip(networks[name], loads[name], strict=True)
                    ]
                )
                for name in networks
            },
            "over_onnxruntime": {
                name: medians(
                    [
                        {
                            **{work: network[work] / base[work] for work in base},
                            "load": load / base_load,
                        }
                        for network, load, base, base_load in zip(
                            networks[name], loads[name], networks[_OWN], loads[_OWN], strict=True
                        )
                    ]
                )
                for name in networks
                if name != _OWN
            },
        }
    )
    # Not rounded as the rest is: some of these distances are smaller.
    return report | {
        "embeddings": {
            name: agreement(own, each[:_CROPS], of_photos)
            for name, each in vectors.items()
            if name != _OWN
        }
    }


def agreement(
    own: NDArray[np.float32], others: NDArray[np.float32], photos: NDArray[np.int64]
) -> dict[str, Any]:
    """How embeddings of the same crops, float32 [N, D] each, differ, in squared distances.

    Args:
        own: the engine's that is compared with; a search's collection.
        others: the other engine's; a search's queries.
        photos: [N], the photo that each crop is of.

    Returns:
        `p50`, `p99`, `max`: between the two embeddings of a crop. `nearest_p1`, `nearest_p50`: from
        a crop to the nearest of another photo, by one engine. `same_first`: the part of the queries
        whose nearest is the same whichever engine embedded them; `same_top`: of their ten nearest.
        Objects of the query's own photo are left out.
    """
    apart = ((own - others) ** 2).sum(axis=1)
    hidden = np.where(photos[:, None] == photos[None, :], np.inf, 0.0)
    alike, mixed = ((2 - 2 * queries @ own.T) + hidden for queries in (own, others))
    top = min(_TOP_K, len(own) - 1)
    firsts, seconds = (np.argsort(each, axis=1, kind="stable")[:, :top] for each in (alike, mixed))
    shared = [len(set(a) & set(b)) / top for a, b in zip(firsts, seconds, strict=True)]
    return {
        "p50": float(np.percentile(apart, 50)),
        "p99": float(np.percentile(apart, 99)),
        "max": float(apart.max()),
        "nearest_p1": float(np.percentile(alike.min(axis=1), 1)),
        "nearest_p50": float(np.percentile(alike.min(axis=1), 50)),
        "same_first": float((firsts[:, 0] == seconds[:, 0]).mean()),
        "same_top": float(np.mean(shared)),
        "crops": len(own),
    }


async def _networks(
    engines: Sequence[InferenceEngine],
    tensors: Sequence[PhotoTensors],
    rounds: int,
    log: Callable[[str], None],
) -> tuple[dict[InferenceEngine, list[dict[str, float]]], dict[InferenceEngine, NDArray[Any]]]:
    """Milliseconds of each network for a photo, by engine and round, and the crops' embeddings."""
    batches = {
        "detector": [each.square for each in tensors],
        "embedder": [each.crops for each in tensors if len(each.crops)],
    }
    async with AsyncExitStack() as stack:
        models: dict[InferenceEngine, list[ServedModel]] = {}
        for engine in engines:
            try:
                server = await open_local_server(engine, MODELS)
            except ConfigurationError as missing:
                log(str(missing))
                continue
            stack.push_async_callback(server.close)
            models[engine] = [await server.load(name) for name in SMALL_PAIR.values()]
        times: dict[InferenceEngine, list[dict[str, float]]] = {each: [] for each in models}
        vectors: dict[InferenceEngine, NDArray[Any]] = {}
        for number in range(-1, rounds):  # the first so that nobody is cold
            log(f"networks: round {number + 1}")
            for engine, pair in models.items():
                found = {}
                for model, (kind, inputs) in zip(pair, batches.items(), strict=True):
                    start = time.perf_counter()
                    answers = await asyncio.gather(*map(model.infer, inputs))
                    found[kind] = (time.perf_counter() - start) / len(tensors) * 1000
                vectors[engine] = np.concatenate([each["embeddings"] for each in answers])
                if number >= 0:
                    times[engine].append(found)
    return times, vectors


def _loads(
    bench: Bench, engines: Sequence[InferenceEngine], folder: Path, count: int, rounds: int
) -> Mapping[InferenceEngine, list[float]]:
    """Milliseconds of a photo of a service's load, by engine and round."""
    times: dict[InferenceEngine, list[float]] = {each: [] for each in engines}
    with ExitStack() as stack:
        services = {
            engine: stack.enter_context(bench.service(engine, {"inference_engine": engine}))
            for engine in engines
        }
        for number in range(-1, rounds):
            bench.log(f"load: round {number + 1}")
            for engine, service in services.items():
                seconds = load_seconds(service, folder, f"round_{number + 1}")
                if number >= 0:
                    times[engine].append(seconds / count * 1000)
    return times


def render(report: dict[str, Any]) -> Table:
    """The report as one table: a row for each engine."""
    table = Table(
        title=f"{report['photos']} photos with {report['crops']} objects, on"
        f" {report['cores']} cores",
        caption="Milliseconds a photo, and in parts of ONNX Runtime's (least and most of the"
        " rounds); squared distance between the embeddings of the same crop.",
    )
    table.add_column("engine")
    for title in (*_WORK, "distance p50 / p99 / most", "same first, ten"):
        table.add_column(title, justify="right")
    for engine, found in report["ms_a_photo"].items():
        ratios, apart = report["over_onnxruntime"].get(engine), report["embeddings"].get(engine)
        cells = []
        for work in _WORK:
            least, most = ratios["spread"][work] if ratios else (1, 1)
            ratio = f"\n{ratios[work]:.2f} ({least:.2f}-{most:.2f})" if ratios else ""
            cells.append(f"{found[work]:.2f}{ratio}")
        if apart:
            cells += [
                f"{apart['p50']:.0e} / {apart['p99']:.0e} / {apart['max']:.0e}",
                f"{apart['same_first']:.1%}, {apart['same_top']:.1%}",
            ]
        table.add_row(engine, *cells)
    return table


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--with",
        nargs="+",
        choices=_ENGINES[1:],
        default=_ENGINES[1:],
        metavar="ENGINE",
        dest="others",
        help=f"beside {_OWN}: of {', '.join(_ENGINES[1:])} (all)",
    )
    parser.add_argument("--photos", type=int, default=_PHOTOS, help=f"of a round ({_PHOTOS})")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"of turns ({_ROUNDS})")
    arguments = parser.parse_args()
    progress = Console(stderr=True)
    cv2.setNumThreads(1)  # as in the service
    report = measure(
        arguments.data,
        log=lambda message: progress.print(message, style="dim"),
        engines=(_OWN, *arguments.others),
        photos=arguments.photos,
        rounds=arguments.rounds,
    )
    Console(width=_COLUMNS).print(render(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
