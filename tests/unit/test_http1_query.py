"""Query strings: one value per parameter, strict decoding, and errors that name the problem."""

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoreboard.errors import Malformed
from scoreboard.http.query import parse_query

KNOWN = frozenset({"board", "limit"})


@pytest.mark.parametrize(
    ("query", "values"),
    [
        (b"", {}),
        (b"&", {}),
        (b"board=main", {"board": "main"}),
        (b"board=", {"board": ""}),
        (b"board", {"board": ""}),
        (b"board=a=b", {"board": "a=b"}),
        (b"board=a+b%2B%20&&limit=5", {"board": "a b+ ", "limit": "5"}),
        (b"%62oard=%C3%A9", {"board": "é"}),
    ],
)
def test_a_query_is_parsed_into_its_parameters(query: bytes, values: dict[str, str]) -> None:
    assert parse_query(query, KNOWN) == values


@pytest.mark.parametrize(
    ("query", "named"),
    [
        (b"board=a&board=a", "not repeat the parameter board"),
        (b"board=a&%62oard=b", "not repeat the parameter board"),
        (b"boards=a", "boards"),
        (b"Board=a", "Board"),
        (b"token=abc", "token"),
        (b"=a", "that parameter"),
        (b"<b>=a", "that parameter"),
        (b"board=%", "%"),
        (b"board=%zz", "%"),
        (b"board=%f", "%"),
        (b"board=%ff", "UTF-8"),
        (b"&".join(b"a%d=1" % number for number in range(17)), "16"),
    ],
)
def test_an_invalid_query_is_refused_with_its_reason(query: bytes, named: str) -> None:
    with pytest.raises(Malformed, match=named) as caught:
        parse_query(query, KNOWN)
    assert "abc" not in caught.value.detail
    assert "<" not in caught.value.detail


@pytest.mark.parametrize(
    ("query", "value"),
    [
        (b"ids=a", "a"),
        (b"ids=a,b", "a,b"),
        (b"ids=a&ids=b&ids=c", "a,b,c"),
        (b"ids=a,b&%69ds=c", "a,b,c"),
        (b"ids=a%2Cb", "a,b"),
        (b"ids=&ids=", ","),
        (b"&".join([b"ids=a"] * 116), ",".join("a" * 116)),
    ],
)
def test_a_list_may_be_repeated(query: bytes, value: str) -> None:
    assert parse_query(query, {"ids", "board"}, joined="ids") == {"ids": value}


@pytest.mark.parametrize("query", [b"&".join([b"ids=a"] * 117), b"ids=a&board=b&board=c"])
def test_a_list_is_bounded_and_other_parameters_are_not_repeated(query: bytes) -> None:
    with pytest.raises(Malformed):
        parse_query(query, {"ids", "board"}, joined="ids")


def test_any_parameter_is_accepted_once_without_a_list() -> None:
    assert parse_query(b"a=1&b=2") == {"a": "1", "b": "2"}
    with pytest.raises(Malformed):
        parse_query(b"a=1&a=1")


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_an_accepted_query_is_read_the_same_by_urllib(values: dict[str, str]) -> None:
    query = urlencode(values, errors="surrogatepass").encode()
    try:
        found = parse_query(query)
    except Malformed:
        assert any(
            "\ud800" <= letter <= "\udfff" for pair in values.items() for letter in "".join(pair)
        )
        return
    assert found == values == dict(parse_qsl(query.decode(), keep_blank_values=True))
