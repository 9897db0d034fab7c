"""Measures one version of Milvus Lite with one index; `versions.py` starts it.

Runs on the Python of an environment that has nothing but that version, so it imports neither the
service nor the other benchmarks. One argument, JSON; `action` is `write` or `search`.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

_COLLECTION = "objects"
_TOP_K = 10
_MIN_QUERIES = 5


def write(client: MilvusClient, arguments: dict[str, Any]) -> dict[str, Any]:
    """Makes the collection with its index and upserts every row."""
    vectors = np.load(arguments["vectors"], mmap_mode="r")
    labels = np.load(arguments["labels"]).tolist()
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("label", DataType.VARCHAR, max_length=512)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    index = MilvusClient.prepare_index_params()
    index.add_index(
        "vector",
        index_type=arguments["index"],
        metric_type="L2",
        params=arguments["index_parameters"],
    )
    client.create_collection(_COLLECTION, schema=schema, index_params=index)
    spent = 0.0
    step = arguments["rows_per_request"]
    for start in range(0, len(vectors), step):
        rows = [
            {"id": row, "label": labels[row], "vector": np.array(vectors[row])}
            for row in range(start, min(start + step, len(vectors)))
        ]
        begin = time.perf_counter()
        client.upsert(_COLLECTION, rows)
        spent += time.perf_counter() - begin
    return {"upsert_rows_per_s": round(len(vectors) / spent)}


def search(client: MilvusClient, arguments: dict[str, Any], opened: float) -> dict[str, Any]:
    """Searches, one query after the other: first once, then timed, without and with a filter."""
    queries = np.load(arguments["queries"])
    labels = arguments["query_labels"]
    client.load_collection(_COLLECTION)

    def run(index: int, expression: str) -> list[int]:
        [hits] = client.search(
            _COLLECTION,
            data=[queries[index]],
            filter=expression,
            limit=_TOP_K,
            search_params={"params": arguments["search_parameters"]},
        )
        return [hit["id"] for hit in hits]

    run(0, "")
    reopened = time.perf_counter() - opened
    plain = [""] * len(queries)
    with_label = [f'label == "{label}"' for label in labels]
    seconds, found = _timed(run, plain, arguments["seconds"])
    filtered_seconds, _ = _timed(run, with_label, arguments["seconds"])
    return {
        "reopen_s": reopened,
        "search_seconds": seconds,
        "found": found,
        "filtered_seconds": filtered_seconds,
    }


def _timed(run: Any, expressions: Sequence[str], budget: float) -> tuple[list[float], Any]:
    """Seconds and answers of the queries in turn, until a budget in seconds is spent."""
    seconds: list[float] = []
    answers = []
    for index, expression in enumerate(expressions):
        if index >= _MIN_QUERIES and sum(seconds) > budget:
            break
        begin = time.perf_counter()
        answers.append(run(index, expression))
        seconds.append(time.perf_counter() - begin)
    return seconds, answers


def main() -> None:
    """Prints the answer behind a mark, then keeps the database open while it is weighed."""
    arguments = json.loads(sys.argv[1])
    opened = time.perf_counter()
    client = MilvusClient(arguments["database"])
    if arguments["action"] == "write":
        answer = write(client, arguments)
    else:
        answer = search(client, arguments, opened)
    print(arguments["mark"] + json.dumps(answer), flush=True)
    sys.stdin.read()
    client.close()


if __name__ == "__main__":
    main()
