"""An S3 server of this process's own: moto's, over HTTP on loopback, with all that is in it."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import boto3
import requests
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.s3.models import s3_backends
from werkzeug.serving import BaseWSGIServer, make_server

SECRET: Final = "a-secret-of-the-tests"
_BUSY: Final = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>ServiceUnavailable</Code><Message>Please reduce your request rate.</Message>"
    b"</Error>"
)

Respond = Callable[[str, list[tuple[str, str]]], Any]


class ObjectStore:
    """The server. What is in it stays when it stops, and is there when it starts again.

    Attributes:
        requests: those that it has got, as METHOD PATH.
        before: is told of each request, as METHOD PATH, before it is answered.
        answers_left: requests that it answers yet; the others get a 503. None: all.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # each request is a line else
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._port = 0
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.requests: list[str] = []
        self.before: Callable[[str], None] = lambda request: None
        self.answers_left: int | None = None
        self._buckets: set[str] = set()

    def start(self) -> None:
        """Begins to listen, the second time at the same port."""
        self._server = make_server(
            "127.0.0.1", self._port, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self._port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def forget(self) -> None:
        """Removes all that was put into it: what moto has, servers of a process share."""
        for bucket in self._buckets:
            s3_backends.bucket_accounts.pop(bucket)
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets.pop(bucket)

    def stop(self) -> None:
        """Listens no more."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def _answer(self, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.requests.append(request)
        self.before(request)
        if self.answers_left is not None:
            if self.answers_left == 0:
                respond("503 Slow Down", [("Content-Type", "application/xml")])
                return [] if environ["REQUEST_METHOD"] == "HEAD" else [_BUSY]
            self.answers_left -= 1
        answer: Iterable[bytes] = self._moto(environ, respond)
        return answer

    @property
    def environment(self) -> dict[str, str]:
        """What leads to it, as every program of S3 takes it from the environment."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "an-id-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """boto3's client of it."""
        environment = self.environment
        return boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def fill(self, bucket: str, files: dict[str, bytes]) -> None:
        """Puts files into a bucket, past HTTP: thousands at once."""
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        if bucket not in self._buckets:
            backend.create_bucket(bucket, "us-east-1")
            self._buckets.add(bucket)
        for key, content in files.items():
            backend.put_object(bucket, key, content)

    def refuse_after(self, count: float) -> None:
        """Lets so many more requests in, and then none: its keys are nobody's."""
        url = f"{self.environment['AWS_ENDPOINT_URL_S3']}/moto-api/reset-auth"
        assert requests.post(url, data=str(count), timeout=10).ok

    def remove(self, bucket: str, key: str) -> None:
        """Removes a file."""
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].delete_object(bucket, key)


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server that listens, with nothing in it."""
    store = ObjectStore()
    store.start()
    try:
        yield store
    finally:
        store.stop()
        store.forget()
