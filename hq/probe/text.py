"""Text-only controls: a classifier that sees words and no activation of the model.

If it predicts the labels, so can a probe that reads which question was asked or which answer was
given, and not whether the model hallucinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

CHANCE = 0.05
"""Largest distance from 0.5 of a text-only AUROC that is no sign of a leak."""


@dataclass(frozen=True, slots=True)
class _Control:
    seen: tuple[str, ...]  # texts
    spelling: bool  # characters instead of words


_CONTROLS = {
    "text-answer": _Control(("answer",), spelling=False),
    "text-question": _Control(("question",), spelling=False),
    "text-both": _Control(("question", "answer"), spelling=False),
    "text-spelling": _Control(("question", "answer"), spelling=True),
}
TEXT_CONTROLS = tuple(_CONTROLS)


def text_only(
    questions: Sequence[str],
    answers: Sequence[str],
    y: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " m"],
) -> dict[str, Float[np.ndarray, " n"]]:
    """Fit the text-only classifiers on some rows, and score all rows.

    TF-IDF of words and pairs of words of the answer, the question, or both, or of one to three
    characters within words (`text-spelling`), with an L2 logistic regression (scikit-learn's
    defaults). Names that are asked about once give the words nothing to learn from; the spelling
    shows whether such names have something in common.
    """
    texts = {"question": list(questions), "answer": list(answers)}
    return {
        name: _decisions([texts[t] for t in control.seen], control.spelling, y, rows)
        for name, control in _CONTROLS.items()
    }


def _decisions(
    texts: Sequence[list[str]],
    spelling: bool,
    y: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " n"]:
    # scikit-learn takes a second to import: only a fit pays for it.
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    # Answers may be a single letter or symbol, which the default pattern would leave out.
    options = (
        {"analyzer": "char_wb", "ngram_range": (1, 3)}
        if spelling
        else {"token_pattern": r"(?u)\S+", "ngram_range": (1, 2)}
    )
    blocks = []
    for text in texts:
        fitted = TfidfVectorizer(**options).fit([text[row] for row in rows.tolist()])
        blocks.append(fitted.transform(text))
    X = hstack(blocks).tocsr()
    probe = LogisticRegression(max_iter=2000).fit(X[rows], y[rows])
    decisions: Float[np.ndarray, " n"] = probe.decision_function(X)
    return decisions
