"""The part of a response that is its answer: no reasoning, markup, preamble or retraction."""

import re

# How models mark reasoning: <think> (DeepSeek, Qwen), [THINK] (Magistral), <|channel|> (gpt-oss).
_TAG = r"(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis)"
_OPEN = rf"<(?P<tag>(?:seed:)?{_TAG})(?:\s[^>]*)?>|\[(?P<mark>THINK)\]"
_CLOSE = re.compile(rf".*(?:</(?:seed:)?{_TAG}>|\[/THINK\])", re.DOTALL | re.IGNORECASE)
_OPENED = re.compile(_OPEN, re.IGNORECASE)
_FINAL = re.compile(r".*<\|channel\|>\s*final\s*(?:<\|message\|>)?", re.DOTALL)
_CHANNEL = re.compile(r"<\|channel\|>|<\|start\|>assistant<\|channel\|>")
_SPECIAL = re.compile(r"<\|[\w ]*\|>|</?s>|<end_of_turn>")


def without_reasoning(response: str) -> str | None:
    """The response after its reasoning; None where the reasoning does not end.

    A closing tag alone ends reasoning too: some chat templates write the opening one.
    """
    if "<" not in response and "[" not in response:
        return response
    final = _FINAL.match(response)
    rest = response[final.end() :] if final else response
    closed = _CLOSE.match(rest)
    rest = rest[closed.end() :] if closed else rest
    opened = _OPENED.search(rest)
    if opened is not None:  # opened again, or never closed
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


def plain(text: str) -> str:
    """The text without Markdown and LaTeX; of a LaTeX box only what is in the last one."""
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
    """The line that answers, without a preamble: in a list of questions the model writes on.

    It is the first line that is more than a preamble, unless a later one is labelled as the answer.
    What the line itself takes back ("Lyon, I mean Paris") is left out.
    """
    lines = [line for line in map(str.strip, plain(response).splitlines()) if line]
    own: list[str] = []
    for line in lines:
        if own and _ANOTHER.match(line):
            break
        own.append(line)
    labelled = [found[1] for line in own[1:] if (found := _FINAL_LABEL.match(line))]
    line = labelled[-1] if labelled else _first_telling(own)
    kept = _RETRACTED.split(line)[-1].strip()
    return _without_question(kept or line)


def first_line(response: str) -> str:
    """The first line of text, with its markup gone."""
    return next(filter(None, map(str.strip, plain(response).splitlines())), "")


def listed(response: str) -> list[str]:
    """The items of a list with which the response begins, if it has two or more."""
    items: list[str] = []
    for line in filter(None, map(str.strip, plain(response).splitlines())):
        mark = _MARK.match(line)
        if mark is None:
            if items or not line.endswith((":", "：")):
                break
            continue
        items.append(line[mark.end() :])
    return items if len(items) > 1 else []


def _first_telling(lines: list[str]) -> str:
    for line in lines:
        rest = _MARK.sub("", line)
        label = _LABEL.match(rest)
        rest = rest[label.end() :] if label else rest
        if rest and not rest.endswith((":", "：")) and not _PREAMBLE.fullmatch(rest):
            return rest
    return lines[-1] if lines else ""


def without_preamble(line: str) -> str:
    """The line without a polite beginning such as "Sure!"; one that is nothing else stays."""
    begun = _PREAMBLE.match(line)
    return line[begun.end() :] or line if begun else line


def _without_question(line: str) -> str:
    """The line without a question that it denies: "Paris? No, Lyon" answers Lyon."""
    *asked, rest = re.split(r"(?<=[?？])\s+(?=no\b|nope\b|not\b|actually\b)", line, flags=re.I)
    return rest if asked else line
