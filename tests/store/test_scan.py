"""Scanning plain listings: the same entries as an XML parser finds, or none of its business."""

from __future__ import annotations

import string
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountkit.store.scan import FIELDS, scan

PLAIN = {"Key": "a%20b+c", "LastModified": "2026-01-01T00:00:00.000Z", "ETag": "&quot;e&quot;", "Size": "5"}


def element(**fields: str) -> str:
    return "<Contents>" + "".join(f"<{name}>{text}</{name}>" for name, text in fields.items()) + "</Contents>"


def document(*elements: str) -> bytes:
    return f"<ListBucketResult><KeyCount>1</KeyCount>{''.join(elements)}<Z>z</Z></ListBucketResult>".encode()


def test_plain_entries_are_cut_out_and_the_rest_of_the_document_is_left() -> None:
    scanned = scan(document(element(**PLAIN), element(**PLAIN | {"Key": "b"})))
    assert scanned is not None
    assert scanned.entries == [
        ("a%20b+c", "2026-01-01T00:00:00.000Z", '"e"', "5", ""),
        ("b", "2026-01-01T00:00:00.000Z", '"e"', "5", ""),
    ]
    assert scanned.rest == document()


def test_fields_may_stand_in_any_order_and_unknown_ones_beside_them() -> None:
    fields = {"Size": "7", "ChecksumType": "FULL", "StorageClass": "GLACIER", "LastModified": "x", "Key": "k"}
    scanned = scan(document(element(**fields)))
    assert scanned is not None and scanned.entries == [("k", "x", "", "7", "GLACIER")]


@pytest.mark.parametrize(
    "elements",
    [
        [element(**PLAIN), element(Key="b", Size="1", LastModified="x")],  # other fields than the first
        [element(**PLAIN), "<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>", element(**PLAIN)],
        [element(**PLAIN), " ", element(**PLAIN)],
        [element(**PLAIN | {"Key": "a&amp;b"})],
        [element(**PLAIN | {"Key": "&amp;quot;"})],
        [element(**PLAIN | {"Key": "ä"})],
        [element(**PLAIN | {"Key": "a\tb"})],
        [element(**PLAIN | {"Key": "a]]>b"})],
        [element(**PLAIN | {"Key": "<![CDATA[a]]>"})],
        [element(**PLAIN | {"Key": ""})],
        [element(**PLAIN | {"Size": "-1"})],
        [element(**PLAIN | {"Size": "1" * 19})],
        [element(Key="a", Size="1")],
        [element(**PLAIN, Owner="<ID>o</ID>")],
        ["<Contents></Contents>"],
        ["<Contents><Key>a</Key><Key>b</Key><Size>1</Size><LastModified>x</LastModified></Contents>"],
        [element(**PLAIN), "<Contents>"],
        ["<!--", element(**PLAIN), "-->"],
        [],
    ],
)
def test_what_is_not_plain_is_left_to_the_parser(elements: list[str]) -> None:
    assert scan(document(*elements)) is None


@given(st.lists(st.text(string.printable, min_size=1, max_size=8), min_size=1, max_size=5))
def test_where_it_answers_it_says_what_an_xml_parser_says(keys: list[str]) -> None:
    body = document(*(element(**PLAIN | {"Key": key}) for key in keys))
    scanned = scan(body)
    if scanned is not None:
        parsed = [tuple(node.findtext(name) or "" for name in FIELDS) for node in ET.fromstring(body).iter("Contents")]
        assert scanned.entries == parsed
