"""The streamed text equals the text of the complete answer."""

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


def detokenize(pieces, stops=(), trim=False):
    detokenizer = StreamingDetokenizer(lambda token: pieces[token], stops, trim)
    shown = [detokenizer.add(token) for token in range(len(pieces))]
    return shown, detokenizer.end()


@given(PIECES, STOPS)
def test_the_parts_form_the_text_up_to_the_stop_string(pieces, stops):
    shown, rest = detokenize(pieces, tuple(stops))

    def decode(ids):
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    stop_criteria = StopCriteria(frozenset(), tuple(stops), decode)
    splits = (stop_criteria.split(tuple(range(n + 1))) for n in range(len(pieces)))
    cut = next((split[1] for split in splits if split), decode(range(len(pieces))))
    # `decode` replaces an incomplete character, and the detokenizer waits for the rest.
    assert "".join(shown) + rest == cut or "\ufffd" in decode(range(len(pieces)))


@given(PIECES, STOPS)
def test_no_part_of_a_stop_string_is_shown(pieces, stops):
    shown, rest = detokenize(pieces, tuple(stops))
    text = "".join(shown) + rest
    assert not any(stop in text for stop in stops)


@given(PIECES)
def test_without_stop_strings_only_incomplete_characters_are_held(pieces):
    shown, rest = detokenize(pieces)
    for count in range(len(pieces)):
        so_far = b"".join(pieces[: count + 1]).decode(errors="replace")
        assert so_far.startswith("".join(shown[: count + 1]))
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    assert "".join(shown) + rest == decoder.decode(b"".join(pieces))  # up to the last complete one


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "rest"),
    [
        ([b"one", b" st", b"op", b" x"], (" stop",), ["one", "", "", ""], ""),
        ([b"one", b" st", b"ay"], (" stop",), ["one", "", " stay"], ""),
        ([b"one", b" st"], (" stop",), ["one", ""], " st"),
        ([b"\xc3", b"\xa9"], (), ["", "é"], ""),
        ([b"\xc3"], (), [""], ""),
        ([b"a", b"\xf0\x9f\x98"], (), ["a", ""], ""),
        ([b"\xf0\x9f", b"a"], (), ["", "\ufffda"], ""),  # not a character
    ],
)
def test_the_beginning_of_a_stop_string_is_held_back(pieces, stops, shown, rest):
    assert detokenize(pieces, stops) == (shown, rest)


def test_leading_space_contains_no_stop_string():
    assert detokenize([b" ", b" Paris", b" is"], (" ",), trim=True) == (["", "Paris", ""], "")
    assert detokenize([b" P", b"aris"], (" P",), trim=True) == (["P", "aris"], "")
    assert detokenize([b" ", b"\n", b"Q"], ("\n",), trim=True) == (["", "", ""], "")


def test_leading_space_is_removed():
    assert detokenize([b" ", b" Paris", b" is"], trim=True) == (["", "Paris", " is"], "")
    assert detokenize([b" ", b" Paris"]) == ([" ", " Paris"], "")


def test_stop_criteria_ignore_leading_space(served):
    """A few-shot prompt texts with "A:", and the answer begins with a space."""
    tokenizer = served.service.model.tokenizer
    ids = tuple(tokenizer.plain(" the model\nQ"))
    texts = {}
    for trim in (False, True):
        stop_criteria = served.service.model.chat_stop_criteria((" ", "\n"), trim)
        splits = (stop_criteria.split(ids[:count]) for count in range(1, len(ids) + 1))
        texts[trim] = next(split for split in splits if split)[1]
    assert texts == {False: "", True: "the"}
    line_break = tuple(tokenizer.plain("\n"))
    assert served.service.model.chat_stop_criteria(("\n",), True).split(line_break)[1] == ""


@pytest.mark.parametrize(("prefix", "trims"), [(None, True), ("", True), ("It is", False)])
def test_only_the_space_before_a_new_answer_is_removed(start, prefix, trims):
    service = start(policy={"form": "few-shot"}).service
    messages = [{"role": "user", "content": "one"}]
    messages += [] if prefix is None else [{"role": "assistant", "content": prefix}]
    request = service.validator.validate_chat(
        ChatRequest.model_validate({"messages": messages, "stop": " "})
    )
    assert request.trim == trims
    assert (request.stop.split(tuple(service.model.tokenizer.plain(" "))) is None) == trims
