"""Text as it streams is the text of the whole answer."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.serve.api.requests import ChatRequest
from harness.serve.generation.detokenizer import StreamingDetokenizer
from hq.tracing.sampling import StopCriteria

PIECES = st.lists(
    st.sampled_from(
        [b"a", b"ab", b" ", b"\n", b"\n\n", "é".encode(), b"\xf0\x9f", b"\x98\x80", b"b"]
    ),
    max_size=12,
)
STOPS = st.lists(st.sampled_from(["b", "aba", "\n\n", "a\n", "é ", "😀"]), max_size=3)


def spelled(pieces, stops=(), trim=False):
    spelling = StreamingDetokenizer(lambda token: pieces[token], stops, trim)
    shown = [spelling.add(token) for token in range(len(pieces))]
    return shown, spelling.end()


@given(PIECES, STOPS)
def test_the_parts_are_the_whole_up_to_its_end(pieces, stops):
    shown, rest = spelled(pieces, tuple(stops))

    def decode(ids):
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    ending = StopCriteria(frozenset(), tuple(stops), decode)
    texts = (ending.split(tuple(range(n + 1))) for n in range(len(pieces)))
    cut = next((found[1] for found in texts if found), decode(range(len(pieces))))
    # A character that is not whole yet is seen as broken by one, and waited for by the other.
    assert "".join(shown) + rest == cut or "\ufffd" in decode(range(len(pieces)))


@given(PIECES, STOPS)
def test_nothing_is_taken_back(pieces, stops):
    shown, rest = spelled(pieces, tuple(stops))
    text = "".join(shown) + rest
    assert not any(stop in text for stop in stops)


@given(PIECES)
def test_without_stops_only_characters_that_are_not_whole_are_held(pieces):
    shown, rest = spelled(pieces)
    for count in range(len(pieces)):
        so_far = b"".join(pieces[: count + 1]).decode(errors="replace")
        assert so_far.startswith("".join(shown[: count + 1]))
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    assert "".join(shown) + rest == decoder.decode(b"".join(pieces))  # up to the last whole one


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "rest"),
    [
        ([b"one", b" st", b"op", b" x"], (" stop",), ["one", "", "", ""], ""),
        ([b"one", b" st", b"ay"], (" stop",), ["one", "", " stay"], ""),
        ([b"one", b" st"], (" stop",), ["one", ""], " st"),
        ([b"\xc3", b"\xa9"], (), ["", "é"], ""),
        ([b"\xc3"], (), [""], ""),
        ([b"a", b"\xf0\x9f\x98"], (), ["a", ""], ""),
        ([b"\xf0\x9f", b"a"], (), ["", "\ufffda"], ""),  # no character at all
    ],
)
def test_what_may_begin_a_stop_string_is_held_back(pieces, stops, shown, rest):
    assert spelled(pieces, stops) == (shown, rest)


def test_a_stop_string_is_not_found_in_what_belongs_to_the_form():
    assert spelled([b" ", b" Paris", b" is"], (" ",), trim=True) == (["", "Paris", ""], "")
    assert spelled([b" P", b"aris"], (" P",), trim=True) == (["P", "aris"], "")
    assert spelled([b" ", b"\n", b"Q"], ("\n",), trim=True) == (["", "", ""], "")


def test_white_space_before_the_first_word_is_the_forms():
    assert spelled([b" ", b" Paris", b" is"], trim=True) == (["", "Paris", " is"], "")
    assert spelled([b" ", b" Paris"]) == ([" ", " Paris"], "")


def test_an_ending_is_not_found_there_either(served):
    """A few-shot prompt ends with "A:", and the answer begins with a space."""
    tokenizer = served.service.model.tokenizer
    ids = tuple(tokenizer.plain(" the model\nQ"))
    ends = {}
    for trim in (False, True):
        ending = served.service.model.chat_stop_criteria((" ", "\n"), trim)
        found = (ending.split(ids[:count]) for count in range(1, len(ids) + 1))
        ends[trim] = next(text for text in found if text)[1]
    assert ends == {False: "", True: "the"}
    line_break = tuple(tokenizer.plain("\n"))
    assert served.service.model.chat_stop_criteria(("\n",), True).split(line_break)[1] == ""


@pytest.mark.parametrize(("begun", "trims"), [(None, True), ("", True), ("It is", False)])
def test_only_the_space_before_a_whole_answer_is_the_forms(start, begun, trims):
    service = start(policy={"form": "few-shot"}).service
    said = [{"role": "user", "content": "one"}]
    said += [] if begun is None else [{"role": "assistant", "content": begun}]
    request = service.validator.validate_chat(
        ChatRequest.model_validate({"messages": said, "stop": " "})
    )
    assert request.trim == trims
    assert (request.stop.split(tuple(service.model.tokenizer.plain(" "))) is None) == trims
