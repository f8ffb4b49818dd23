"""What a user may call a bucket."""

import pytest

from mountkit.errors import UsageError
from mountkit.sources import BucketURL, parse_source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data", BucketURL("data")),
        ("data/", BucketURL("data")),
        ("data/train/a", BucketURL("data", b"train/a/")),
        ("s3://data", BucketURL("data")),
        ("s3://data/train/", BucketURL("data", b"train/")),
        ("s3a://data/x", BucketURL("data", b"x/")),
        ("s3://data/sp%20ace", BucketURL("data", b"sp ace/")),
        ("data/100%25", BucketURL("data", b"100%25/")),
        ("s3://data?region=eu-central-1", BucketURL("data", region="eu-central-1")),
        ("s3://data/p?endpoint=http://127.0.0.1:9000", BucketURL("data", b"p/", endpoint="http://127.0.0.1:9000")),
        ("s3://data?endpoint_override=minio:9000&scheme=http", BucketURL("data", endpoint="http://minio:9000")),
        ("s3://data?endpoint_override=store.example.com", BucketURL("data", endpoint="https://store.example.com")),
        ("s3://data?anonymous=1&profile=x", BucketURL("data", anonymous=True, profile="x")),
        ("s3://data?requester_pays=true", BucketURL("data", requester_pays=True)),
        ("s3://my.dotted.bucket/a", BucketURL("my.dotted.bucket", b"a/")),
    ],
)
def test_every_way_to_write_a_source_is_understood(text: str, expected: BucketURL) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "empty"),
        ("s3://", "bucket"),
        ("gopher://x/y", "gopher"),
        ("s3://bad bucket/x", "bad bucket"),
        ("s3://data?regin=eu", "regin"),
        ("s3://data?region", "name=value"),
        ("s3://data?anonymous=maybe", "maybe"),
        ("s3://data?endpoint=http://", "endpoint"),
        ("s3://data?endpoint=http://h:9000/path", "path"),
        ("s3://data?endpoint=http://user:secret@h", "credentials"),
        ("s3://AKIA:SECRET@data/x", "credentials"),
        ("../data", ".."),
        ("da\nta", "control"),
    ],
)
def test_a_malformed_source_is_named_and_comes_with_a_hint(text: str, names: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert names in caught.value.sentence
    assert caught.value.hint
    assert "SECRET" not in caught.value.sentence


def test_flags_add_to_and_replace_what_the_url_says() -> None:
    url = parse_source("s3://data/x?region=a&profile=p").with_settings(
        region="b", endpoint="http://h:1", anonymous=True
    )
    assert url == BucketURL("data", b"x/", region="b", endpoint="http://h:1", profile="p", anonymous=True)


def test_a_source_is_shown_without_its_settings() -> None:
    assert str(parse_source("s3://data/train?endpoint=http://h:1&profile=secretive")) == "s3://data/train"
