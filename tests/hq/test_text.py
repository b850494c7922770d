"""Text-only controls: they see a leak of the answer or the question, and nothing else."""

import numpy as np
import pytest

from hq.probe.text import TEXT_CONTROLS, text_only
from hq.stats.auroc import auroc

N = 400
RNG = np.random.default_rng(0)
Y = np.tile([0, 1], N // 2)
ANSWERS = [f"Land{k}" for k in np.repeat(RNG.integers(30, size=N // 2), 2)]  # matched in pairs
QUESTIONS = [f"What is the capital of Ort{k}?" for k in RNG.permutation(N)]
FIRST = np.arange(N // 2)


def areas(questions: list[str], answers: list[str]) -> dict[str, float]:
    """AUROC on the second half of fits on the first half."""
    scores = text_only(questions, answers, Y, FIRST)
    assert tuple(scores) == TEXT_CONTROLS
    assert all(values.shape == (N,) for values in scores.values())
    return {name: auroc(values[N // 2 :], Y[N // 2 :]) for name, values in scores.items()}


def test_matched_answers_have_an_auroc_near_one_half():
    values = areas(QUESTIONS, ANSWERS)
    assert values["text-answer"] == pytest.approx(0.5, abs=1e-9)  # each answer is right and wrong
    assert all(0.4 < value < 0.6 for value in values.values()), values


def test_an_answer_that_reveals_the_label_is_found():
    answers = [f"Land{RNG.integers(15) + 15 * label}" for label in Y]
    values = areas(QUESTIONS, answers)
    assert values["text-answer"] > 0.95
    assert values["text-both"] > 0.95
    assert 0.4 < values["text-question"] < 0.6


def test_a_question_that_reveals_the_label_is_found():
    questions = [
        f"{q} {('Exactly', 'Roughly')[label]}." for q, label in zip(QUESTIONS, Y, strict=True)
    ]
    values = areas(questions, ANSWERS)
    assert values["text-question"] > 0.95
    assert values["text-both"] > 0.95
    assert values["text-spelling"] > 0.95
    assert values["text-answer"] == pytest.approx(0.5, abs=1e-9)


def test_spelling_is_found_where_each_word_occurs_once():
    names = [f"{RNG.integers(10**9):09d}{('burg', 'ia')[label]}" for label in Y]
    values = areas([f"Where is {name}?" for name in names], ANSWERS)
    assert values["text-spelling"] > 0.95
    assert 0.4 < values["text-question"] < 0.6


def test_single_letters_and_symbols_are_words():
    """scikit-learn's default pattern drops words of one character."""
    answers = [(("H", "+"), ("O", "-"))[label][i % 2] for i, label in enumerate(Y)]
    assert areas(QUESTIONS, answers)["text-answer"] > 0.95


def test_labels_outside_of_the_rows_have_no_effect():
    flipped = np.where(np.isin(np.arange(N), FIRST), Y, 1 - Y)
    for name, values in text_only(QUESTIONS, ANSWERS, Y, FIRST).items():
        np.testing.assert_array_equal(values, text_only(QUESTIONS, ANSWERS, flipped, FIRST)[name])


def test_words_that_the_fit_has_not_seen_have_no_effect():
    unseen = [*ANSWERS[: N // 2], *(f"Neu{i}" for i in range(N // 2))]
    scores = text_only(QUESTIONS, unseen, Y, FIRST)["text-answer"]
    assert len(np.unique(scores[N // 2 :])) == 1
