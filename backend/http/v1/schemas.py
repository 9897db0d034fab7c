"""Requests and answers of `/api/v1`, from which the OpenAPI document is made.

Boxes are [x1, y1, x2, y2] in pixels of the upright photo, edges, 0-based: a box's width is x2 - x1.
Distances are squared L2 of unit vectors, 2 - 2 cos: 0 for the same, 4 for opposites.
"""

from typing import Annotated, Final, Literal

from pydantic import AnyHttpUrl, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from backend.duplicates import MOST_GROUP_BITS
from backend.names import MAX_NAME_LENGTH, NAME_PATTERN
from backend.searching import MAX_QUERY_OBJECTS
from backend.settings import MAX_TOP_K

__all__ = [
    "MAX_BATCH",
    "Batch",
    "BatchOptions",
    "BatchResult",
    "Box",
    "CollectionDetail",
    "CollectionList",
    "CollectionSummary",
    "Detected",
    "Detection",
    "DuplicateGroup",
    "DuplicateGroups",
    "DuplicateGroupsQuery",
    "DuplicatesQuery",
    "Duplicate",
    "DuplicateList",
    "Failure",
    "ExportQuery",
    "FetchBody",
    "Hit",
    "ImageDetail",
    "ImageList",
    "ImageSummary",
    "ImagesQuery",
    "ImportQuery",
    "ImportResult",
    "Info",
    "NewLoad",
    "LoadCounts",
    "LoadDetail",
    "LoadList",
    "LoadsQuery",
    "Match",
    "ModelInfo",
    "NewCollection",
    "ObjectDetail",
    "Problem",
    "QueryPhoto",
    "SearchAnswer",
    "SearchOptions",
    "SearchQuery",
    "Session",
    "ThumbnailQuery",
    "UploadAnswer",
    "UploadQuery",
    "UploadResult",
    "FieldProblem",
]

MAX_BATCH: Final = 16
"""Photos of one request that searches for several."""
MAX_PAGE: Final = 500
MAX_LABELS: Final = 20
_NUMBER: Final = "[0-9]{1,9}([.][0-9]{0,20})?"

Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
Box = Annotated[
    tuple[float, float, float, float],
    # As `prefixItems`, which pydantic makes of it, many generators of clients do not read it.
    WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}),
]
_CollectionName = Annotated[
    str | None,
    Field(
        None,
        max_length=MAX_NAME_LENGTH,
        pattern=f"^{NAME_PATTERN}$",
        description="collection; DEFAULT_TABLE where it is not given",
    ),
]
_Cursor = Annotated[
    str | None,
    Field(
        None,
        max_length=400,
        pattern="^[A-Za-z0-9_-]+$",
        description="`next_cursor` of the page before, with all other parameters as they were",
    ),
]
_Limit = Annotated[int, Field(50, ge=1, le=MAX_PAGE, description="items of a page")]


class _Request(BaseModel):
    """What a client sends: a name that is not known is an error, not a wish that is passed over."""

    model_config = ConfigDict(extra="forbid")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


# Errors


class FieldProblem(_Answer):
    """What is wrong with one value of a request."""

    where: Literal["path", "query", "header", "body"]
    name: str
    detail: str


class Problem(_Answer):
    """An error (RFC 9457)."""

    type: str = Field("about:blank", description="always `about:blank`: `code` tells errors apart")
    title: str = Field(description="the status in words")
    status: int
    detail: str = Field(description="what was wrong, with which value, and what to do")
    code: str = Field(description="for programs, such as `embedder_mismatch`")
    request_id: str = Field(description="as in the header X-Request-ID and in the service's log")
    engine: str | None = Field(None, description="the engine that does not answer, of a 503")
    errors: list[FieldProblem] = Field([], description="each value that is wrong, of a 400")


# Photos and objects


class Detection(_Answer):
    """An object that was found in a photo."""

    label: str
    score: float = Field(description="of the detector, 0 to 1")
    box: Box


class Detected(_Answer):
    """The objects of a photo that is not kept."""

    width: int = Field(description="of the upright photo, in pixels")
    height: int
    objects: list[Detection] = Field(description="best score first")


class ObjectDetail(Detection):
    """An indexed object."""

    id: Id


class ImageSummary(_Answer):
    """A photo of a collection."""

    id: Id
    collection: str
    path: str
    sha256: str = Field(description="of the file's bytes; empty where they could not be read")
    bytes: int
    width: int = Field(description="of the upright photo, in pixels; 0 where it is not known")
    height: int
    state: Literal["indexed", "failed"]
    error: str | None = Field(None, description="why it has failed")


class ImageDetail(ImageSummary):
    """A photo with its objects."""

    objects: list[ObjectDetail]


class ImageList(_Answer):
    """A page of photos, in the order of their ids."""

    items: list[ImageSummary]
    next_cursor: str | None = Field(None, description="null on the last page")


class ImagesQuery(_Request):
    """Which photos to list."""

    collection: _CollectionName
    state: Literal["indexed", "failed"] = Field("indexed", description="state of the photos")
    label: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="only photos that hold an object of this label"
    )
    limit: _Limit
    cursor: _Cursor


class FetchBody(_Request):
    """A photo to be fetched from the web."""

    url: AnyHttpUrl = Field(description="where to fetch the photo from, http or https")


class UploadQuery(_Request):
    """Where uploaded photos go."""

    collection: _CollectionName


class UploadResult(_Answer):
    """What has become of one uploaded photo, in the order of the request."""

    status: int = Field(description="201: it is kept; 200: it was there before; else an error")
    filename: str | None = Field(None, description="as the client named it")
    image: ImageDetail | None = None
    problem: Problem | None = None


class UploadAnswer(_Answer):
    """What has become of the uploaded photos."""

    results: list[UploadResult]


class ThumbnailQuery(_Request):
    """How large a thumbnail is to be."""

    size: Annotated[Literal[128, 256, 512, 1024], BeforeValidator(int)] = Field(
        256, description="pixels that neither side exceeds; the photo's proportions are kept"
    )


# Search


class BatchOptions(_Request):
    """What to search for in photos, and among what."""

    collection: _CollectionName
    top_k: int | None = Field(
        None, ge=1, le=MAX_TOP_K, description="hits of a page; TOP_K where it is not given"
    )
    object: list[Annotated[int, Field(ge=0, le=9999)]] = Field(
        [],
        max_length=MAX_QUERY_OBJECTS,
        description="search for these of the query photo's objects alone, by their index in"
        " `query.objects`; repeatable",
    )
    region: Annotated[str, Field(pattern=f"^{_NUMBER}(,{_NUMBER}){{3}}$")] | None = Field(
        None,
        description="search for what this frame holds, x1,y1,x2,y2 in pixels of the upright photo;"
        " instead of `object`",
    )
    match: Literal["any", "all"] = Field(
        "any",
        description="any: photos that hold something like any of the query's objects; all: photos"
        " ranked by all of them together, the mean of the distances to the nearest to each",
    )
    group_by: Literal["image", "object"] = Field(
        "image", description="a hit for each photo, or, with match=any alone, for each object"
    )
    label: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        [], max_length=MAX_LABELS, description="only objects of this label; repeatable"
    )
    min_score: float | None = Field(
        None, ge=0, le=1, description="only objects that the detector is at least so sure of"
    )
    min_area: float | None = Field(
        None, ge=0, le=1, description="only objects that fill at least this part of their photo"
    )
    max_distance: float | None = Field(None, ge=0, le=4, description="only hits at most so far")
    exclude_self: bool | None = Field(
        None,
        description="leave out the query photo itself: what is of the same bytes, or holds the"
        " query object; unset: true for `image_id` and `object_id`, false for a photo that is sent",
    )
    cursor: _Cursor


class SearchOptions(BatchOptions):
    """The same of one photo, whose hits come page by page."""

    cursor: _Cursor


class SearchQuery(SearchOptions):
    """A search for what is on the server already: exactly one of the three is given."""

    query: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="a query photo, by the id that an earlier answer gave it"
    )
    image_id: Id | None = Field(None, description="an indexed photo")
    object_id: Id | None = Field(None, description="an indexed object: more like this")


class QueryPhoto(_Answer):
    """The photo that is searched with."""

    id: str | None = Field(
        None,
        description="for `GET /api/v1/search?query=` and `GET /api/v1/queries/{id}/file`, for as"
        " long as it is kept; null where it cannot be, or is an indexed photo or object",
    )
    image_id: Id | None = Field(None, description="the indexed photo that it is")
    width: int
    height: int
    objects: list[Detection] = Field(description="all that there are, best score first")
    searched: list[int] = Field(
        description="the objects that were searched for, by their index in `objects`; none where a"
        " region was"
    )


class Match(_Answer):
    """An object of a hit, and what of the query it is near to."""

    query_object: int | None = Field(
        description="index in `query.objects`; null where a region was searched for"
    )
    distance: float = Field(ge=0)
    object: ObjectDetail


class Hit(_Answer):
    """A photo, or an object of one, that is like the query."""

    distance: float = Field(ge=0, description="by which hits are ranked, smallest first")
    image: ImageSummary
    matches: list[Match] = Field(
        description="the nearest object; with match=all one for each of the query's objects"
    )


class SearchAnswer(_Answer):
    """A page of hits, nearest first."""

    collection: str
    query: QueryPhoto
    hits: list[Hit]
    next_cursor: str | None = Field(None, description="null where there are no more hits")


class BatchResult(_Answer):
    """What a search for one of several photos has found: an answer or a problem."""

    filename: str | None = None
    answer: SearchAnswer | None = None
    problem: Problem | None = None


class Batch(_Answer):
    """The results of several searches, in the order of the request."""

    results: list[BatchResult]


# Near-duplicates


_MaxDistance = Annotated[
    float | None,
    Field(
        None,
        ge=0,
        le=4,
        description="that the photos' objects may be apart; unset: what was measured best",
    ),
]
_BITS: Final = (
    "bits of 64 in which the photos' perceptual hashes may differ; unset: what was measured best"
)


class DuplicatesQuery(_Request):
    """How alike photos must be."""

    max_distance: _MaxDistance
    max_bits: int | None = Field(None, ge=0, le=64, description=_BITS)


class DuplicateGroupsQuery(_Request):
    """Which groups of near-duplicates to list."""

    max_distance: _MaxDistance
    max_bits: int | None = Field(None, ge=0, le=MOST_GROUP_BITS, description=_BITS)
    limit: _Limit
    cursor: _Cursor


class ExportQuery(_Request):
    """What an export takes along."""

    photos: bool = Field(False, description="whether the photos' files are taken along")


class ImportQuery(_Request):
    """Where an export goes."""

    replace: bool = Field(
        False, description="whether the collection of that name, where there is one, is replaced"
    )


class ImportResult(_Answer):
    """What an import has brought."""

    collection: str
    images: int = Field(description="photos that are indexed")
    failed: int = Field(description="photos that had failed")
    objects: int
    files: int = Field(description="photos whose files were in the export, and are uploads now")


class Duplicate(_Answer):
    """A photo that shows the same as another."""

    image: ImageSummary
    exact: bool = Field(description="whether the files' bytes are the same")
    bits: int | None = Field(None, description="that differ between the perceptual hashes")
    distance: float | None = Field(None, ge=0, description="between the photos' objects")


class DuplicateList(_Answer):
    """The near-duplicates of a photo: exact ones first, then the nearest."""

    items: list[Duplicate]


class DuplicateGroup(_Answer):
    """Photos that show the same."""

    exact: bool = Field(description="whether all files' bytes are the same")
    images: list[ImageSummary]


class DuplicateGroups(_Answer):
    """A page of groups, in the order of their first photos' ids."""

    items: list[DuplicateGroup]
    next_cursor: str | None = None


# Loads


class NewLoad(_Request):
    """A folder to load."""

    folder: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        description="on the server, or an address such as s3://bucket/folder; read recursively;"
        " absolute, or relative to DATA_PATH"
    )
    collection: _CollectionName
    prune: bool = Field(
        False, description="afterwards, remove photos that are gone from the folder"
    )


class LoadsQuery(_Request):
    """Which loads to list."""

    collection: _CollectionName
    limit: _Limit
    cursor: _Cursor


class LoadCounts(_Answer):
    """What has become of a folder's photos so far."""

    total: int
    processed: int = Field(description="indexed, unchanged or failed")
    indexed: int
    unchanged: int
    failed: int
    removed: int
    passed_over: int = Field(description="entries of the folder that are no photos")
    objects: int


class Failure(_Answer):
    """A photo that could not be indexed."""

    path: str
    reason: str


class LoadDetail(_Answer):
    """A folder's photos on their way into a collection."""

    id: Id
    collection: str
    folder: str
    prune: bool
    state: Literal["running", "done", "failed", "cancelled"]
    waiting_for: str | None = Field(None, description="an engine that is away")
    counts: LoadCounts
    photos_per_second: float | None = Field(None, description="of a load that runs")
    seconds_left: float | None = Field(None, description="of a load that runs, estimated")
    started_at: str = Field(description="ISO 8601, UTC")
    finished_at: str | None = None
    error: str | None = Field(None, description="why it has failed as a whole")
    failures: list[Failure] = Field(description="the first 1,000, of this service's lifetime")


class LoadList(_Answer):
    """A page of loads, newest first, without their failures."""

    items: list[LoadDetail]
    next_cursor: str | None = None


# Collections


class NewCollection(_Request):
    """A collection to be made."""

    name: Annotated[str, Field(max_length=MAX_NAME_LENGTH, pattern=f"^{NAME_PATTERN}$")]


class CollectionSummary(_Answer):
    """A set of photos whose objects one embedder has embedded."""

    name: str
    images: int = Field(description="photos that are indexed")
    failed: int = Field(description="photos that could not be")
    embedder: str
    dimension: int
    compatible: bool = Field(description="whether the embedder in use has filled it")


class LabelCount(_Answer):
    """How many objects bear a label."""

    label: str
    objects: int


class CollectionDetail(CollectionSummary):
    """A collection with its labels."""

    objects: int
    labels: list[LabelCount] = Field(description="most frequent first")


class CollectionList(_Answer):
    """All collections, in the order of their names."""

    items: list[CollectionSummary]


# The service itself


class ModelInfo(_Answer):
    """A model in use."""

    name: str
    sha256: str


class Info(_Answer):
    """What a client may want to know before it asks for anything."""

    version: str
    default_collection: str
    engine: str = Field(description="that computes the models")
    detector: ModelInfo
    labels: list[str] = Field(description="that the detector knows")
    embedder: ModelInfo
    dimension: int
    top_k: int
    max_top_k: int
    max_batch: int
    max_upload_bytes: int
    fetches_urls: bool


class Session(_Answer):
    """A session that has begun."""

    seconds: int = Field(description="for which it is good")
