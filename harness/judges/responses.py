"""Parts of a response: its answer without reasoning, markup or preamble; its sentences, opening."""

import re

from harness.judges.text import normalise

# How models mark reasoning: <think> (DeepSeek, Qwen), [THINK] (Magistral), <|channel|> (gpt-oss).
_TAG = r"(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis)"
_OPEN = rf"<(?P<tag>(?:seed:)?{_TAG})(?:\s[^>]*)?>|\[(?P<mark>THINK)\]"
_CLOSE = re.compile(rf".*(?:</(?:seed:)?{_TAG}>|\[/THINK\])", re.DOTALL | re.IGNORECASE)
_OPENED = re.compile(_OPEN, re.IGNORECASE)
_FINAL = re.compile(r".*<\|channel\|>\s*final\s*(?:<\|message\|>)?", re.DOTALL)
_CHANNEL = re.compile(r"<\|channel\|>|<\|start\|>assistant<\|channel\|>")
_SPECIAL = re.compile(r"<\|[\w ]*\|>|</?s>|<end_of_turn>")


def without_reasoning(response: str) -> str | None:
    """Return the response after its reasoning, or None if the reasoning does not end.

    A closing tag without an opening one ends reasoning too, as some chat templates write the
    opening tag into the prompt.
    """
    if "<" not in response and "[" not in response:
        return response
    final = _FINAL.match(response)
    rest = response[final.end() :] if final else response
    closed = _CLOSE.match(rest)
    rest = rest[closed.end() :] if closed else rest
    opened = _OPENED.search(rest)
    if opened is not None:  # reopened, or never closed
        before = rest[: opened.start()].strip()
        return before or None
    if not final and _CHANNEL.search(rest):
        return None
    return _SPECIAL.sub(" ", rest)


_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX = (
    (re.compile(r"\\d?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|operatorname)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot)\b"), " x "),
    (re.compile(r"\^\{([^{}]*)\}"), r"^\1"),
    (re.compile(r"\^\s*\\circ"), "°"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([%$#&_])"), r"\1"),
    (re.compile(r"\\[()\[\],;:! ]|\\(?:left|right|quad|displaystyle)\b"), " "),
    (re.compile(r"\$\$|(?<![\w$])\$(?=[^$\n]*[^\d\s$,.][^$\n]*\$)|(?<=[^\s$])\$(?!\w)"), " "),
)
_MARKDOWN = (
    (re.compile(r"^\s{0,3}#{1,6}\s+", re.MULTILINE), ""),
    (re.compile(r"^\s*>\s?", re.MULTILINE), ""),
    (re.compile(r"\[([^\]\n]+)\]\([^)\s]+\)"), r"\1"),
    (re.compile(r"(\*\*\*|\*\*|__|~~|`+)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]+)(?<=\S)\*(?![\w*])"), r"\1"),
    (re.compile(r"<(/?)(?:b|i|em|strong|u|p|span|answer|br)\s*/?>", re.IGNORECASE), " "),
)


def _without_markup(text: str) -> str:
    """The text without Markdown and LaTeX; if it has LaTeX boxes, the content of the last one."""
    boxes = _BOX.findall(text)
    text = boxes[-1] if boxes else text
    for pattern, instead in _LATEX if "\\" in text or "$" in text else ():
        text = pattern.sub(instead, text)
    for pattern, instead in _MARKDOWN:
        text = pattern.sub(instead, text)
    return text


_POLITE = (
    r"(?:sure|certainly|of\s+course|absolutely|okay|ok|great(?:\s+question)?|good\s+question|hello|hi"
    r"|thanks?(?:\s+you)?(?:\s+for\s+(?:asking|your\s+question))?|no\s+problem|i'?d\s+be\s+happy\s+to"
    r"\s+help(?:\s+you)?(?:\s+with\s+that)?|happy\s+to\s+help|let\s+me\s+(?:think|see|help)[^.!:]*"
    r"|let'?s\s+(?:think|see)[^.!:]*|i\s+can\s+help(?:\s+you)?(?:\s+with\s+that)?|alright|well)"
)
_PREAMBLE = re.compile(rf"(?:{_POLITE}(?:\s+thing)?\b[\s,.!…-]*)+", re.IGNORECASE)
_LABEL = re.compile(
    r"(?:(?:the\s+|my\s+)?(?:final\s+|correct\s+|short\s+)?(?:answer|response|solution)(?:\s+is)?"
    r"|ans|a|antwort|respuesta|réponse|risposta|resposta|ответ|答案|答|回答)\s*[:：]\s*",
    re.IGNORECASE,
)
_FINAL_LABEL = re.compile(
    r"^\W*(?:(?:the\s+|my\s+)?final\s+answer(?:\s+is)?|(?:the\s+)?answer(?:\s+is)?)\s*[:：]\s*(\S.*)$",
    re.IGNORECASE,
)
_ANOTHER = re.compile(r"^\W*(?:q|question|user|human)\s*\d*\s*[:：]", re.IGNORECASE)
_MARK = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•·])\s+(?=\S)")
_RETRACTED = re.compile(
    r"(?:\bno,?\s+wait\b|\bwait,?\s+no\b|\bscratch\s+that\b|\bcorrection\s*:|\bi\s+mean(?:t)?\b"
    r"|\bsorry,?\s+(?:i\s+meant|no)\b|\bactually,?\s+no\b|\bor\s+rather\b|\bno,?\s+actually\b)[\s,.:…-]*",
    re.IGNORECASE,
)


def answer_line(response: str) -> str:
    """Return the line that answers, without preamble.

    It is the first line that is more than a preamble, unless a later one is labelled as the answer.
    Lines after a further question that the model writes itself are ignored. What the line retracts
    ("Lyon, I mean Paris") is left out.
    """
    lines = [line for line in map(str.strip, _without_markup(response).splitlines()) if line]
    own: list[str] = []
    for line in lines:
        if own and _ANOTHER.match(line):
            break
        own.append(line)
    labelled = [match[1] for line in own[1:] if (match := _FINAL_LABEL.match(line))]
    line = labelled[-1] if labelled else _first_answer(own)
    final = _RETRACTED.split(line)[-1].strip()
    return _without_question(final or line)


def first_text_line(response: str) -> str:
    """Return the first line that is not blank, without markup."""
    return next(filter(None, map(str.strip, _without_markup(response).splitlines())), "")


def list_items(response: str) -> list[str]:
    """Return the items of the list that the response begins with, if there are two or more."""
    items: list[str] = []
    for line in filter(None, map(str.strip, _without_markup(response).splitlines())):
        mark = _MARK.match(line)
        if mark is None:
            if items or not line.endswith((":", "：")):
                break
            continue
        items.append(line[mark.end() :])
    return items if len(items) > 1 else []


def _first_answer(lines: list[str]) -> str:
    for line in lines:
        rest = _MARK.sub("", line)
        label = _LABEL.match(rest)
        rest = rest[label.end() :] if label else rest
        if rest and not rest.endswith((":", "：")) and not _PREAMBLE.fullmatch(rest):
            return rest
    return lines[-1] if lines else ""


def without_preamble(line: str) -> str:
    """Return the line without a polite beginning such as "Sure!", unless it is only that."""
    preamble = _PREAMBLE.match(line)
    return line[preamble.end() :] or line if preamble else line


def _without_question(line: str) -> str:
    """The line without a question that it answers with no: "Paris? No, Lyon" answers Lyon."""
    *questions, rest = re.split(r"(?<=[?？])\s+(?=no\b|nope\b|not\b|actually\b)", line, flags=re.I)
    return rest if questions else line


OPENING_WORDS = 50  # a response shows what it does within these; later words ramble
ENOUGH_WORDS = 12  # after these, even a truncated response is decided by what it does not say
_LOOP_WORDS = 6  # a text of so many words or more, with little variety, is a loop
_MIN_VARIETY = 0.2  # distinct words per word
_FUNCTION_WORDS = frozenset(
    "and are as at be but by can for from has have he her his how i if in is it its my no not of"
    " on or she so that their there they this to was we were what when which who will with you your"
    " do does s t one".split()
)
_MIN_FUNCTION_WORDS = 0.05  # per word, in a text of _PROSE_WORDS words or more
_PROSE_WORDS = 20

_LIST_MARK = re.compile(r"(?:^[ \t]*|(?<=[.!?])[ \t]+)(?:\d+[.)]|[-*•])[ \t]+(?=\S)", re.MULTILINE)
_WILL_NOT = re.compile(r"\bwon['’]t\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’*)]*\s+|\s*\n+\s*")


def sentences(response: str) -> list[str]:
    """Return the sentences in order without repetitions, which small models produce.

    List numbers and "won't" are removed, as they could be read as answers (numbers, Korea's won).
    """
    parts: dict[str, str] = {}
    text = _WILL_NOT.sub("will not", _LIST_MARK.sub(" ", response))
    for part in _SENTENCE_END.split(text):
        parts.setdefault(normalise(part), part.strip())
    return [part for normal, part in parts.items() if normal]


def opening(response: str) -> str:
    """Return the first `OPENING_WORDS` words, normalised, without repeated sentences."""
    return " ".join(_words(response)[:OPENING_WORDS])


def is_cut_short(response: str, truncated: bool) -> bool:
    """Return whether the token limit ended the response within `ENOUGH_WORDS` words."""
    return truncated and len(normalise(response).split()) < ENOUGH_WORDS


def is_readable(response: str) -> bool:
    """Return whether the response has text that is neither a loop nor words without grammar."""
    words = _words(response)
    return bool(words) and not _is_loop(words) and not _lacks_grammar(words)


def _words(response: str) -> list[str]:
    return " ".join(map(normalise, sentences(response))).split()


def _is_loop(words: list[str]) -> bool:
    return len(words) >= _LOOP_WORDS and len(set(words)) < _MIN_VARIETY * len(words)


def _lacks_grammar(words: list[str]) -> bool:
    known = sum(word in _FUNCTION_WORDS for word in words)
    return len(words) >= _PROSE_WORDS and known < _MIN_FUNCTION_WORDS * len(words)
