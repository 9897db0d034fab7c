"""From the bytes of a photo to its objects and their embeddings.

The one path that every photo takes, whether it is indexed or searched for: equal bytes therefore
get equal vectors. Photos are decoded in processes of their own (`decoding`); who waits for them,
letterboxes and crops are threads, never the event loop.

Models that run in the process have a photo go the whole way in one thread, which waits for its
decoding and then does the rest: on each core a photo. Models of a server have many photos under
way, so that their requests meet and make batches.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.budget import Budget
from backend.deadlines import before_deadline
from backend.decoding.pool import DecodedPhoto, Decoders
from backend.errors import EmbedderMismatch, EngineUnavailable, InvalidInput
from backend.metrics import Metrics
from backend.serving.models import Candidates, Detector, Embedder
from backend.storage.catalog import Collection, NewObject
from backend.vision.crops import crop_objects
from backend.vision.decode import Header, decoded_pixels
from backend.vision.detections import select_detections
from backend.vision.letterbox import Letterbox, letterbox
from backend.vision.perceptual_hash import perceptual_hash
from backend.workers import Workers

__all__ = ["WHOLE_IMAGE_LABEL", "AnalyzedPhoto", "PhotoAnalyzer"]

_T = TypeVar("_T")

WHOLE_IMAGE_LABEL: Final = "image"
"""Label of the object that a whole photo makes."""

_SIDES_OF_A_CROP: Final = 8
"""How many crops a photo's longer side holds at least where it is decoded at a reduced scale: of
every object of an eighth of that side or more there are as many pixels as the embedder takes."""
_PIXELS_IN_MEMORY: Final = 200_000_000
"""Of photos that a server detects on, 600 MB: some sixty of a phone's, a thousand of VOC's."""
_MIN_REGION_SIDE: Final = 2
"""Pixels: less is a slip of the mouse."""
_WHOLE_IMAGE_SCORE: Final = 1.0
"""That a photo shows itself is certain."""


@dataclass(frozen=True)
class AnalyzedPhoto:
    """A photo's upright size in pixels, its objects, best score first, and their embeddings.

    `embeddings` is float32 [N, D], a unit vector for each object; `phash` the photo's perceptual
    hash, where it has one.
    """

    width: int
    height: int
    objects: list[NewObject]
    embeddings: NDArray[np.float32]
    phash: int | None


_Found: TypeAlias = tuple[int, int, list[NewObject], NDArray[np.uint8], int | None]
"""Width, height, objects, crops and hash; a large photo's pixels do not outlive it."""
_BoxesOf: TypeAlias = Callable[[Header], NDArray[np.float32]]
"""The boxes, float32 [N, 4], that are to be cut out of a photo with such a header."""


class PhotoAnalyzer:
    """Runs the detector and the embedder on photos; many calls may be in flight together.

    Attributes:
        engine_name: of what runs the models.
    """

    def __init__(
        self,
        detector: Detector,
        embedder: Embedder,
        figures: Metrics,
        *,
        engine_name: str,
        whole_image: Literal["fallback", "always", "never"],
        decoders: Decoders,
        workers: Workers | None = None,
    ) -> None:
        """`workers`: the threads that run the models; None where they run elsewhere."""
        self.engine_name = engine_name
        self.detector = detector
        self.embedder = embedder
        self._figures = figures
        self._whole_image = whole_image
        self._decoders = decoders
        self._is_local = workers is not None
        self._workers = workers or Workers("vision")
        self._longer_side = max(detector.size, _SIDES_OF_A_CROP * embedder.size)
        """So many pixels of a photo are enough."""
        self._pixels = Budget(_PIXELS_IN_MEMORY)
        """Of photos that wait for a server's answer."""

    def warm_up(self) -> None:
        """Starts what the first photo would wait for. Blocks: call it in a thread.

        Raises:
            Unavailable: it cannot be started at the moment.
        """
        self._decoders.start()

    async def probe(self) -> None:
        """Has each model infer something, which alone tells that it does.

        Raises:
            EngineUnavailable: one does not answer, or not before the deadline.
        """
        detector, embedder = self.detector, self.embedder
        image = np.zeros((1, detector.size, detector.size, 3), np.uint8)
        crop = np.zeros((1, embedder.size, embedder.size, 3), np.uint8)
        await asyncio.gather(detector.detect(image), embedder.embed(crop))

    async def analyze(self, data: bytes) -> AnalyzedPhoto:
        """Objects and embeddings of an encoded photo.

        Raises:
            InvalidImage, UnsupportedFormat, TooLarge: see `Decoders.decode`.
            EngineUnavailable: the models do not answer, or not before the deadline.
        """
        if self._is_local:
            return await self._in_turn(self._analyze_here, data)
        async with self._place(data):
            width, height, objects, crops, phash = await self._find_objects(data)
        self._figures.batch("embed", len(crops))
        with self._figures.photo_analyzing(), self._figures.stage("embed"):
            embeddings = await self.embedder.embed(crops)
        return AnalyzedPhoto(width, height, objects, embeddings, phash)

    async def detect(self, data: bytes) -> tuple[int, int, list[NewObject]]:
        """The upright photo's width and height in pixels, and its objects, best score first.

        Raises:
            as `analyze`.
        """
        if self._is_local:
            width, height, objects, *_ = await self._in_turn(self._find_objects_here, data)
        else:
            async with self._place(data):
                width, height, objects, *_ = await self._find_objects(data)
        return width, height, objects

    def _analyze_here(self, data: bytes) -> AnalyzedPhoto:
        width, height, objects, crops, phash = self._find_objects_here(data)
        self._figures.batch("embed", len(crops))
        with self._figures.stage("embed"):
            embeddings = self.embedder.embed_here(crops)
        return AnalyzedPhoto(width, height, objects, embeddings, phash)

    def _find_objects_here(self, data: bytes) -> _Found:
        with self._figures.stage("decode"):
            photo, square, placement, phash = self._prepare(data)
        with self._figures.stage("detect"):
            [candidates] = self.detector.detect_here(square[np.newaxis])
        with self._figures.stage("cut"):
            objects, crops = self._cut(photo, candidates, placement)
        return photo.header.width, photo.header.height, objects, crops, phash

    async def _find_objects(self, data: bytes) -> _Found:
        with self._figures.photo_analyzing():
            with self._figures.stage("decode"):
                photo, square, placement, phash = await self._workers.run(self._prepare, data)
            with self._figures.stage("detect"):
                [candidates] = await self.detector.detect(square[np.newaxis])
            with self._figures.stage("cut"):
                objects, crops = await self._workers.run(self._cut, photo, candidates, placement)
        return photo.header.width, photo.header.height, objects, crops, phash

    async def _in_turn(self, function: Callable[[bytes], _T], data: bytes) -> _T:
        """Has one of the workers do a photo, before the deadline."""
        with self._figures.photo_waiting() as begins:

            def work() -> _T:
                begins()
                with self._figures.photo_analyzing():
                    return function(data)

            try:
                async with before_deadline():
                    return await self._workers.run(work)
            except TimeoutError:
                raise self._busy() from None

    @asynccontextmanager
    async def _place(self, data: bytes) -> AsyncIterator[None]:
        """Memory for a photo's pixels, of which its header tells."""
        async with AsyncExitStack() as place:
            with self._figures.photo_waiting():
                try:
                    async with before_deadline():
                        # One that claims to be huge is refused, and has nobody wait for it.
                        header = await self._workers.run(self._decoders.read_header, data)
                    pixels = decoded_pixels(header, self._longer_side)
                    await place.enter_async_context(self._pixels.part(pixels))
                except TimeoutError:
                    raise self._busy() from None
            yield

    def _busy(self) -> EngineUnavailable:
        return EngineUnavailable(
            self.engine_name,
            f"{self.engine_name} has more photos to work on than it can at the moment: try again"
            " later",
        )

    async def embed_objects(self, data: bytes, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings, float32 [N, D], of objects of an encoded photo that are known already.

        Args:
            boxes: float32 [N, 4], xyxy in pixels of the upright photo.

        Raises:
            as `analyze`.
        """
        return await self._embed(data, lambda header: boxes)

    async def _embed(self, data: bytes, boxes_of: _BoxesOf) -> NDArray[np.float32]:
        if self._is_local:
            return await self._in_turn(partial(self._embed_here, boxes_of=boxes_of), data)
        async with self._place(data):
            with self._figures.stage("decode"):
                crops = await self._workers.run(self._cut_known, data, boxes_of)
        with self._figures.stage("embed"):
            return await self.embedder.embed(crops)

    def _embed_here(self, data: bytes, boxes_of: _BoxesOf) -> NDArray[np.float32]:
        with self._figures.stage("decode"):
            crops = self._cut_known(data, boxes_of)
        with self._figures.stage("embed"):
            return self.embedder.embed_here(crops)

    async def embed_region(
        self, data: bytes, box: tuple[float, float, float, float]
    ) -> NDArray[np.float32]:
        """Embedding, float32 [1, D], of what a frame that somebody drew in a photo holds.

        Args:
            data: the encoded photo.
            box: xyxy in pixels of the upright photo; what lies outside of it is cut off.

        Raises:
            InvalidInput: the frame is none, or holds less than 2 x 2 pixels of the photo.
            EngineUnavailable, and of a bad photo: as `analyze`.
        """
        return await self._embed(data, partial(_clip_region, box))

    def _cut_known(self, data: bytes, boxes_of: _BoxesOf) -> NDArray[np.uint8]:
        photo = self._decode(data)
        return self._crop(photo, boxes_of(photo.header))

    async def hash_photo(self, data: bytes) -> int | None:
        """The perceptual hash of an encoded photo, where it has one.

        Raises:
            InvalidImage, UnsupportedFormat, TooLarge: see `Decoders.decode`.
        """
        return await self._workers.run(self._hash, data)

    def _hash(self, data: bytes) -> int | None:
        *_, phash = self._prepare(data)
        return phash

    def check_collection(self, collection: Collection) -> None:
        """Refuses a collection whose vectors come from another embedder than the one in use.

        Raises:
            EmbedderMismatch: with both names and what to do.
        """
        if collection.embedder_sha256 == self.embedder.sha256:
            return
        raise EmbedderMismatch(
            f"collection {collection.name!r} was filled by the embedder {collection.embedder!r}"
            f" ({collection.dim}-d, identity {collection.embedder_sha256[:12]}…), the one in use is"
            f" {self.embedder.name!r} ({self.embedder.dimension}-d, identity"
            f" {self.embedder.sha256[:12]}…, crop_geometry {self.embedder.crop_geometry},"
            f" crop_margin {self.embedder.crop_margin:g}): their vectors do not compare. To embed"
            " its photos anew, run python -m backend check --repair with the same settings; to keep"
            " it, start with EMBEDDER_MODEL set to the embedder that filled it, its config.pbtxt"
            " as it was"
        )

    def _decode(self, data: bytes) -> DecodedPhoto:
        return self._decoders.decode(data, longer_side=self._longer_side)

    def _prepare(
        self, data: bytes
    ) -> tuple[DecodedPhoto, NDArray[np.uint8], Letterbox, int | None]:
        photo = self._decode(data)
        full_size = (photo.header.width, photo.header.height)
        square, placement = letterbox(photo.pixels, self.detector.size, full_size=full_size)
        return photo, square, placement, perceptual_hash(placement.photo_of(square))

    def _cut(
        self, photo: DecodedPhoto, candidates: Candidates, placement: Letterbox
    ) -> tuple[list[NewObject], NDArray[np.uint8]]:
        found = select_detections(
            candidates.boxes,
            candidates.scores,
            candidates.labels,
            placement=placement,
            score_threshold=self.detector.score_threshold,
            nms_threshold=self.detector.nms_threshold,
        )
        objects = [
            NewObject(self.detector.labels[label], score, (x1, y1, x2, y2))
            for label, score, (x1, y1, x2, y2) in zip(
                found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True
            )
        ]
        boxes = found.boxes
        if self._whole_image == "always" or (self._whole_image == "fallback" and not objects):
            whole = (0.0, 0.0, float(photo.header.width), float(photo.header.height))
            objects.append(NewObject(WHOLE_IMAGE_LABEL, _WHOLE_IMAGE_SCORE, whole))
            boxes = np.vstack([boxes, np.array([whole], np.float32)])
        return objects, self._crop(photo, boxes)

    def _crop(self, photo: DecodedPhoto, boxes: NDArray[np.float32]) -> NDArray[np.uint8]:
        height, width = photo.pixels.shape[:2]
        # The boxes are in pixels of the photo, of which these may be a reduced copy.
        scale = np.array([width / photo.header.width, height / photo.header.height] * 2, np.float32)
        return crop_objects(
            photo.pixels,
            boxes * scale,
            self.embedder.size,
            geometry=self.embedder.crop_geometry,
            margin=self.embedder.crop_margin,
        )

    async def close(self) -> None:
        """Ends the threads that are its own."""
        if not self._is_local:
            await self._workers.close()


def _clip_region(box: tuple[float, float, float, float], header: Header) -> NDArray[np.float32]:
    """The part of a frame, float32 [1, 4], that lies in the photo."""
    shown = ",".join(f"{edge:g}" for edge in box)
    size = f"the photo has {header.width} x {header.height} pixels"
    if not all(map(math.isfinite, box)):
        raise InvalidInput(f"region {shown} is no frame: four numbers of pixels are; {size}")
    x1, x2 = (min(max(x, 0.0), float(header.width)) for x in box[0::2])
    y1, y2 = (min(max(y, 0.0), float(header.height)) for y in box[1::2])
    if x2 - x1 < _MIN_REGION_SIDE or y2 - y1 < _MIN_REGION_SIDE:
        raise InvalidInput(
            f"region {shown} holds less than {_MIN_REGION_SIDE} x {_MIN_REGION_SIDE} pixels of the"
            f" photo: it is x1,y1,x2,y2, left and top edge before right and bottom; {size}"
        )
    return np.array([[x1, y1, x2, y2]], np.float32)
