"""The parser of listings: exact bytes out, or BadAnswer."""

from __future__ import annotations

import gc
import time

import pytest

from mountkit.errors import BadAnswer
from mountkit.store.listing import AmbiguousPlusError, ListRequest, Plus, parse_page, parse_plus

NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ALL = ListRequest(b"")


def entry(key: str, **more: str) -> str:
    fields = {"Key": key, "LastModified": "2026-01-01T00:00:00.000Z", "ETag": "&quot;e&quot;", "Size": "5"} | more
    return "<Contents>" + "".join(f"<{name}>{text}</{name}>" for name, text in fields.items() if text) + "</Contents>"


def document(
    inner: str = "",
    *,
    truncated: str = "<IsTruncated>false</IsTruncated>",
    namespace: str = NAMESPACE,
    url: bool = True,
) -> bytes:
    encoding = "<EncodingType>url</EncodingType>" if url else ""
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f"{head}<ListBucketResult{namespace}>{encoding}{truncated}{inner}</ListBucketResult>".encode()


@pytest.mark.parametrize("namespace", [NAMESPACE, NAMESPACE.replace('"', "'"), ""])
def test_a_page_is_read_with_and_without_namespace(namespace: str) -> None:
    inner = entry("d/a") + "<CommonPrefixes><Prefix>d/e/</Prefix></CommonPrefixes>"
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t+/=</NextContinuationToken>"
    page = parse_page(document(inner, truncated=more, namespace=namespace), ListRequest(b"d/", b"/"))
    (info,) = page.objects
    assert (info.key, info.size, info.etag, info.mtime_ns) == (b"d/a", 5, '"e"', 1_767_225_600_000_000_000)
    assert page.prefixes == (b"d/e/",) and page.next_token == "t+/="


def test_milliseconds_and_storage_class_are_kept() -> None:
    body = document(entry("a", LastModified="2026-01-01T00:00:00.123Z", StorageClass="GLACIER"))
    (info,) = parse_page(body, ALL).objects
    assert info.mtime_ns == 1_767_225_600_123_000_000 and info.storage_class == "GLACIER"


def test_an_object_without_etag_gets_one_of_its_second_and_size() -> None:
    (info,) = parse_page(document(entry("a", ETag="", LastModified="2026-01-01T00:00:00.123Z")), ALL).objects
    assert info.etag == '"1767225600000000000-5"'


def test_a_bare_etag_gets_its_quotes() -> None:
    assert parse_page(document(entry("a", ETag="abc")), ALL).objects[0].etag == '"abc"'


@pytest.mark.parametrize(
    ("written", "plus", "key"),
    [
        ("a+b%2Bc", Plus.SPACE, b"a b+c"),
        ("a%20b+c", Plus.ITSELF, b"a b+c"),
        ("%01%0A%C3%BC%FF", Plus.SPACE, b"\x01\n\xc3\xbc\xff"),
        ("%2541", Plus.SPACE, b"%41"),
        ("&amp;ü", Plus.SPACE, "&ü".encode()),
    ],
)
def test_an_encoded_key_comes_out_as_its_bytes(written: str, plus: Plus, key: bytes) -> None:
    assert parse_page(document(entry(written)), ALL, plus).objects[0].key == key


def test_a_server_that_ignores_the_encoding_is_taken_by_its_word() -> None:
    body = document(entry("a+b%41&lt;&#x9;"), url=False)
    assert parse_page(body, ALL).objects[0].key == b"a+b%41<\t"


def test_a_plus_of_unknown_meaning_is_not_guessed() -> None:
    with pytest.raises(AmbiguousPlusError):
        parse_page(document(entry("a+b")), ALL, None)
    assert parse_page(document(entry("a%2Bb")), ALL, None).objects[0].key == b"a+b"


@pytest.mark.parametrize(
    ("echo", "plus"),
    [
        ("mountkit+%2B+", Plus.SPACE),
        ("mountkit%20%2B%20", Plus.SPACE),
        ("mountkit%20+%20", Plus.ITSELF),
        ("mountkit + ", Plus.SPACE),
    ],
)
def test_the_echo_of_a_prefix_tells_what_a_plus_means(echo: str, plus: Plus) -> None:
    assert parse_plus(document(f"<Prefix>{echo}</Prefix>")) is plus


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>hello</body></html>",
        b"not xml at all",
        document(entry("a"))[:-5],
        document(entry("a"))[:200],
        b"<Error><Code>Odd</Code></Error>",
        document(entry("a"), truncated=""),
        document(entry("a"), truncated="<IsTruncated>true</IsTruncated>"),
        document(entry("a", Size="-1")),
        document(entry("a", Size="many")),
        document(entry("a", LastModified="yesterday")),
        document(entry("")),
        b'<!DOCTYPE x [<!ENTITY a "b">]>' + document(entry("&a;"))[39:],
    ],
)
def test_what_is_no_whole_listing_is_a_bad_answer(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_page(body, ALL)


def test_keys_and_prefixes_that_were_not_asked_for_are_a_bad_answer() -> None:
    for inner in (
        entry("other"),
        "<CommonPrefixes><Prefix>x/</Prefix></CommonPrefixes>",
        "<CommonPrefixes><Prefix>d/x</Prefix></CommonPrefixes>",
    ):
        with pytest.raises(BadAnswer):
            parse_page(document(inner), ListRequest(b"d/", b"/"))


def test_a_page_out_of_order_is_tolerated() -> None:
    assert [each.key for each in parse_page(document(entry("b") + entry("a")), ALL).objects] == [b"b", b"a"]


def test_the_query_is_sorted_and_escaped_as_the_signature_wants_it() -> None:
    query = ListRequest(b"a b/+\xff~", b"/", "t/=", 7).query()
    assert query == (
        "continuation-token=t%2F%3D&delimiter=%2F&encoding-type=url&list-type=2&max-keys=7&prefix=a%20b%2F%2B%FF~"
    )


def test_100_000_keys_cost_less_than_a_second() -> None:
    body = document("".join(entry(f"some/longer/path/to/f{n:06d}.jpg", StorageClass="STANDARD") for n in range(1000)))
    gc.freeze()  # what pytest and moto hold is not ours to walk through
    start = time.thread_time()
    for _ in range(100):
        parse_page(body, ALL)
    spent_s = time.thread_time() - start
    gc.unfreeze()
    assert spent_s < 1.0


PLACE = ListRequest(b"", token="t1")
MORE = "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>"


@pytest.mark.parametrize(
    "inner",
    [
        entry("a") + "<ContinuationToken>t2</ContinuationToken>",
        entry("a") + "<KeyCount>2</KeyCount>",
        "<KeyCount>1</KeyCount>",
    ],
    ids=["another page", "an entry lost", "the only entry lost"],
)
def test_a_page_that_is_not_the_whole_page_asked_for_is_refused(inner: str) -> None:
    with pytest.raises(BadAnswer):
        parse_page(document(inner), PLACE)


def test_a_page_that_goes_on_where_it_was_is_refused() -> None:
    with pytest.raises(BadAnswer, match="for ever"):
        parse_page(document(entry("a"), truncated=MORE.format("t1")), PLACE)


@pytest.mark.parametrize("said", ["", "<KeyCount>1</KeyCount>", "<KeyCount>2</KeyCount>", "<KeyCount>x</KeyCount>"])
def test_what_servers_differ_in_is_let_be(said: str) -> None:
    """Some count common prefixes, some do not; some repeat the token escaped, some not at all."""
    inner = entry("d/a") + "<CommonPrefixes><Prefix>d/e/</Prefix></CommonPrefixes>" + said
    for echo in ("", "<ContinuationToken>t+/%3D</ContinuationToken>", "<ContinuationToken>t+/=</ContinuationToken>"):
        page = parse_page(document(inner + echo), ListRequest(b"d/", b"/", token="t+/="))
        assert len(page.objects) == len(page.prefixes) == 1
