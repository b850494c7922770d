"""Text-only controls: a classifier that sees words and no activation of the model.

If it predicts the labels, so can a probe that reads which question was asked or which answer was
given, and not whether the model hallucinates.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

TEXT_CONTROLS = ("text-answer", "text-question", "text-both")
CHANCE = 0.05
"""Largest distance from 0.5 of a text-only AUROC that is no sign of a leak."""


def text_only(
    questions: Sequence[str],
    answers: Sequence[str],
    y: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " m"],
) -> dict[str, Float[np.ndarray, " n"]]:
    """Fit the three text-only classifiers on some rows, and score all rows.

    TF-IDF of words and pairs of words, and of 2 to 4 characters within words, with an L2 logistic
    regression (scikit-learn's defaults). `text-both` has the features of both texts.
    """
    texts = {"question": list(questions), "answer": list(answers)}
    seen: Mapping[str, tuple[str, ...]] = {
        "text-answer": ("answer",),
        "text-question": ("question",),
        "text-both": ("question", "answer"),
    }
    return {name: _decisions([texts[t] for t in of], y, rows) for name, of in seen.items()}


def _decisions(
    texts: Sequence[list[str]], y: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " n"]:
    from scipy.sparse import hstack
    from sklearn.linear_model import LogisticRegression

    blocks = []
    for text in texts:
        union = _tfidf().fit([text[row] for row in rows.tolist()])
        blocks.append(union.transform(text))
    X = hstack(blocks).tocsr()
    fitted = LogisticRegression(max_iter=2000).fit(X[rows], y[rows])
    decisions: Float[np.ndarray, " n"] = fitted.decision_function(X)
    return decisions


def _tfidf() -> "Pipeline":
    # scikit-learn takes a second to import: only a fit pays for it.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    # Answers may be a single letter or symbol, which the default pattern would leave out.
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\S+")
    parts = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4))
    return make_union(words, parts)
