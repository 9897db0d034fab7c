"""Addresses of stores: one spelling each, and nothing that could be taken for another."""

import pytest

from backend.photo_addresses import PhotoAddress, is_address


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket/Folder/", "s3://bucket/Folder"),
        ("gs://bucket/a b/ü+&?#%41.jpg", "gs://bucket/a b/ü+&?#%41.jpg"),
        ("s3://bucket/a::b/..c/d..", "s3://bucket/a::b/..c/d.."),
        ("sftp://host:22/folder", "sftp://host:22/folder"),
    ],
)
def test_an_address_has_one_spelling(text: str, spelling: str) -> None:
    address = PhotoAddress.parse(text)
    assert is_address(text)
    assert str(address) == spelling
    assert PhotoAddress.parse(spelling) == address


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("s3://", "names no bucket"),
        ("s3:///", "names no bucket"),
        ("s3:///etc/passwd", "empty"),
        ("s3://bucket//a", "empty"),
        ("s3://bucket/a//", "empty"),
        ("s3://bucket/./a", "empty, '.' or '..'"),
        ("s3://bucket/a/..", "empty, '.' or '..'"),
        ("s3://bucket/../other/a", "empty, '.' or '..'"),
        ("s3://bucket/%2e%2e/a", "empty, '.' or '..'"),
        ("s3://bucket/%2E./a", "empty, '.' or '..'"),
        ("s3://bucket/x%2f..%2fa", "empty, '.' or '..'"),
        ("s3://bucket/..\\a", "empty, '.' or '..'"),
        ("s3://bucket/..%5ca", "empty, '.' or '..'"),
        ("s3://..", "empty, '.' or '..'"),
        ("s3://bucket/a\0.jpg", "NUL"),
        ("s3://bucket/\udcff.jpg", "UTF-8"),
        ("s3://bucket/a?versionId=1", "version"),
        ("gs://bucket/a?generation=1", "version"),
        ("simplecache::s3://bucket/a", "chains"),
        ("a::b::file:///etc", "chains"),
        ("sftp://me:password@host/folder", "credentials"),
        ("/photos", "no address"),
    ],
)
def test_what_could_be_taken_for_another_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refusal:
        PhotoAddress.parse(text)
    assert "password" not in str(refusal.value)


@pytest.mark.parametrize("text", ["/a/s3://b", "photos", "a::b", "s3:/bucket", "~/x", "", "C:\\x"])
def test_a_path_is_no_address(text: str) -> None:
    assert not is_address(text)


def test_an_address_holds_itself_and_what_is_below() -> None:
    root = PhotoAddress.parse("s3://bucket/photos")
    for held in ("s3://bucket/photos", "s3://bucket/photos/a", "S3://bucket/photos/a/b/"):
        assert root.holds(PhotoAddress.parse(held))
    for other in (
        "s3://bucket",
        "s3://bucket/photos2/a",
        "s3://bucket/Photos/a",
        "s3://bucket-evil/photos/a",
        "gs://bucket/photos/a",
        "s3a://bucket/photos/a",
    ):
        assert not root.holds(PhotoAddress.parse(other))
