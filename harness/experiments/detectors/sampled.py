"""Detectors that compare an answer with further responses to the same question, as text.

No model of entailment is needed: answers are short, so two of them agree if the words of one are
all among the words of the other.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from harness.judges.text import normalise


def clusters(answers: Sequence[str]) -> list[int]:
    """Return the cluster of each answer, numbered in the order of their first answers.

    Two answers are linked if all words of one are among the words of the other ("Paris" and "Paris,
    France"); clusters are the connected components. Answers without words are linked to each other.
    """
    words = [frozenset(normalise(answer).split()) for answer in answers]
    cluster = list(range(len(answers)))
    for i, one in enumerate(words):
        for j in range(i):
            other = words[j]
            agree = one == other if not one or not other else one <= other or other <= one
            if agree and cluster[i] != cluster[j]:
                old, new = max(cluster[i], cluster[j]), min(cluster[i], cluster[j])
                cluster = [new if c == old else c for c in cluster]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(c, len(numbers)) for c in cluster]


def semantic_entropy(answers: Sequence[str]) -> float:
    """Return the entropy of the clusters of the responses, in nats.

    This is discrete semantic entropy (Farquhar et al. 2024, Nature 630), in which the probability
    of a cluster is the share of the responses in it.
    """
    counts = np.array([*Counter(clusters(answers)).values()]) / len(answers)
    return float(-(counts * np.log(counts)).sum())


def disagreement(answer: str, responses: Sequence[str]) -> float:
    """Return the share of the responses that are not in the answer's cluster."""
    cluster = clusters([answer, *responses])
    return float(np.mean([c != cluster[0] for c in cluster[1:]]))


def unigram_surprise(answer: str, responses: Sequence[str]) -> float:
    """Return the largest −log probability of a word of the answer in a unigram model.

    The model is estimated on the answer and the responses: SelfCheckGPT with n-grams, n = 1 and
    maximum (Manakul et al. 2023, arXiv 2303.08896). An answer without words returns the value of a
    word that occurs once.
    """
    counts = Counter(word for text in (answer, *responses) for word in normalise(text).split())
    total = max(sum(counts.values()), 1)
    words = normalise(answer).split()
    return max((float(-np.log(counts[w] / total)) for w in words), default=float(np.log(total)))


def rouge_distance(answer: str, responses: Sequence[str]) -> float:
    """Return 1 minus the mean ROUGE-L of the answer with each response.

    SelfCheckGPT compares by BERTScore; ROUGE-L (the F1 of the longest common subsequence of words;
    Lin 2004) needs no further model.
    """
    return 1 - float(np.mean([rouge_l(answer, response) for response in responses]))


def rouge_l(one: str, other: str) -> float:
    """Return the F1 of the longest common subsequence of words; 1 for two texts without words."""
    a, b = normalise(one).split(), normalise(other).split()
    if not a or not b:
        return float(a == b)
    lengths = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int64)
    for i, word in enumerate(a):
        for j, same in enumerate(b):
            lengths[i + 1, j + 1] = (
                lengths[i, j] + 1 if word == same else max(lengths[i, j + 1], lengths[i + 1, j])
            )
    return 2 * int(lengths[-1, -1]) / (len(a) + len(b))
