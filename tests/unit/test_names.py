"""Which keys are paths, and the one name every other key has below `.mountkit/keys/`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountkit import names
from mountkit.names import KeyKind, classify, escape, is_continuation, unescape

TRICKY = st.lists(
    st.sampled_from(
        [b"%", b"/", b"\0", b".", b"..", b"%2F", "é".encode(), "😀".encode(), b"\xff", b"\xed\xa0\x80", b"a" * 83]
    ),
    min_size=1,
    max_size=60,
).map(lambda parts: b"".join(parts)[:1024])
KEYS = st.binary(min_size=1, max_size=1024) | TRICKY


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (b"a", KeyKind.PATH),
        (b"a/b.c/d", KeyKind.PATH),
        ("ü/日本".encode(), KeyKind.PATH),
        (b"a/...", KeyKind.PATH),
        (b"x" * 255, KeyKind.PATH),
        (b"a/.mountkit", KeyKind.PATH),
        (b".mountkit2/a", KeyKind.PATH),
        (b"line\nbreak", KeyKind.PATH),
        (b"", KeyKind.MARKER),
        (b"a/", KeyKind.MARKER),
        (b"a/b/", KeyKind.MARKER),
        (b"/", KeyKind.ODD),
        (b"/a", KeyKind.ODD),
        (b"a//b", KeyKind.ODD),
        (b"a//", KeyKind.ODD),
        (b".", KeyKind.ODD),
        (b"a/../b", KeyKind.ODD),
        (b"a/./", KeyKind.ODD),
        (b"a\0b", KeyKind.ODD),
        (b"x" * 256, KeyKind.ODD),
        (b"\xff", KeyKind.ODD),
        (b"\xed\xa0\x80", KeyKind.ODD),
        (b".mountkit", KeyKind.ODD),
        (b".mountkit/", KeyKind.ODD),
        (b".mountkit/keys/a", KeyKind.ODD),
    ],
)
def test_the_kind_of_a_key(key: bytes, kind: KeyKind) -> None:
    assert classify(key) is kind


@settings(max_examples=500, deadline=None)
@given(KEYS)
def test_escaping_is_reversible_and_gives_valid_names(key: bytes) -> None:
    components = escape(key)
    assert unescape(components) == key
    assert all(map(names.valid_name, components))
    assert [is_continuation(component) for component in components] == [True] * (len(components) - 1) + [False]


@settings(max_examples=500, deadline=None)
@given(st.lists(TRICKY.filter(lambda name: len(name) <= 255) | st.binary(max_size=255), max_size=4).map(tuple))
def test_whatever_unescapes_is_the_only_name_of_its_key(components: tuple[bytes, ...]) -> None:
    try:
        key = unescape(components)
    except ValueError:
        return
    assert escape(key) == components


@pytest.mark.parametrize(
    "components",
    [
        (),
        (b"",),
        (b"a%",),
        (b"a%2f",),
        (b"%41",),
        (b"%",),
        (b"%2",),
        (b"a/b",),
        (b".",),
        (b"a%2E",),
        (b"a%", b"b"),
        (b"a", b"b"),
        (b"x" * 254 + b"%", b"y"),
        (b"x" * 253 + b"%", b"yyy"),
        (b"x" * 300,),
    ],
)
def test_another_spelling_of_a_key_is_refused(components: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match=r"."):
        unescape(components)


def test_only_what_must_be_is_encoded() -> None:
    assert escape("a b/é\n%..".encode()) == ("a b%2Fé\n%25..".encode(),)
    assert (escape(b"."), escape(b".."), escape(b"...")) == ((b"%2E",), (b"%2E.",), (b"...",))
    assert escape(b"\xff\0") == (b"%FF%00",)


def test_a_long_key_goes_on_in_another_component() -> None:
    assert escape(b"x" * 255) == (b"x" * 255,)
    assert escape(b"x" * 256) == (b"x" * 254 + b"%", b"xx")
    assert escape(b"x" * 253 + b"/" + b"y") == (b"x" * 253 + b"%", b"%2Fy")
    assert escape(b"x" * 253 + "éé".encode()) == (b"x" * 253 + b"%", "éé".encode())


def test_the_empty_key_has_no_name() -> None:
    with pytest.raises(ValueError, match="empty"):
        escape(b"")
