"""Sampling of n responses per prompt as a tree: responses that agree so far are computed once.

Response j of a prompt draws its tokens by inversion of the truncated distribution, with random
numbers that are fixed by (seed, key, j). It is therefore a function of the prompt alone: neither
the other prompts nor an early stop changes it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hq.backends.base import Decoding
from hq.errors import HQError


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of sampling; temperature 0 is greedy. The defaults are those of the article."""

    responses: int = 10
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.9
    max_new_tokens: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SampledResponse:
    """One distinct response, and which of the n samples produced it."""

    ids: tuple[int, ...]  # without the token that ended it
    text: str
    members: tuple[int, ...]
    truncated: bool  # reached max_new_tokens before its end


@dataclass(slots=True)
class _Path:
    """An unfinished response, shared by all samples that agree so far."""

    ids: tuple[int, ...]
    members: Int[np.ndarray, " member"]


@dataclass(slots=True)
class Tree:
    """The n responses to one prompt."""

    key: str
    prompt: tuple[int, ...]
    draws: Float[np.ndarray, "response token"]
    paths: list[_Path] = field(default_factory=list)
    finished: list[SampledResponse] = field(default_factory=list)
    abandoned: bool = False
    generated: int = 0  # tokens computed
    naive: int = 0  # tokens of the finished samples, each counted by itself, ends included


@dataclass(frozen=True, slots=True)
class StopCriteria:
    """The tokens that end a response, and the strings that end it in the decoded text."""

    tokens: frozenset[int]
    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    @property
    def parameters(self) -> dict[str, object]:
        """Its tokens and strings as JSON values: equal criteria have equal ones."""
        return {"stop_strings": list(self.strings), "stop_tokens": sorted(self.tokens)}

    def split(self, ids: tuple[int, ...]) -> tuple[tuple[int, ...], str] | None:
        """(ids, text) of the response that `ids` ends, without its end; None if it goes on.

        A token that holds both the last characters of the text and the end is kept.
        """
        if ids[-1] in self.tokens:
            return ids[:-1], self.decode(ids[:-1])
        if not self.strings:
            return None
        text = self.decode(ids)
        cuts = [cut for cut in (text.find(string) for string in self.strings) if cut >= 0]
        if not cuts:
            return None
        text = text[: min(cuts)]
        while ids and len(self.decode(ids[:-1])) >= len(text):
            ids = ids[:-1]
        return ids, text


def sample(
    decoding: Decoding,
    prompts: Iterable[tuple[str, tuple[int, ...]]],
    settings: Sampling,
    ending: StopCriteria,
    wanted: Callable[[Tree], bool] = lambda _: True,
) -> Iterator[Tree]:
    """Sample every (key, prompt) in one batch; trees come in the order of the prompts.

    Prompts of the same length are not padded, so each is sampled as if it were alone. `wanted` is
    called when a tree has a new response; the rest of the tree is abandoned if it returns False.
    """
    trees = [_plant(key, prompt, settings) for key, prompt in prompts]
    logits = decoding.start([tree.prompt for tree in trees])
    for position in range(settings.max_new_tokens):
        rows = [(tree, path) for tree in trees for path in tree.paths]
        tokens = _draw(logits, rows, position, settings)
        for tree in trees:
            tree.generated += len(tree.paths)
            tree.paths = []
        last = position + 1 == settings.max_new_tokens
        parents = _grow(rows, tokens, ending, wanted, last)
        if not parents:
            break
        newest = [path.ids[-1] for tree in trees for path in tree.paths]
        logits = decoding.step(np.array(parents), np.array(newest))
    yield from trees


def _plant(key: str, prompt: tuple[int, ...], settings: Sampling) -> Tree:
    draws = _draws(key, settings)
    return Tree(key, prompt, draws, paths=[_Path((), np.arange(settings.responses))])


def _draws(key: str, settings: Sampling) -> Float[np.ndarray, "response token"]:
    """Uniform random numbers of one prompt."""
    entropy = hashlib.blake2b(f"{settings.seed} {key}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(entropy, "little"))
    return rng.random((settings.responses, settings.max_new_tokens))


class TokenChooser:
    """Chooses the tokens of one response from its logits, as `sample` does for response 0."""

    def __init__(self, key: str, settings: Sampling) -> None:
        self._draws = iter(_draws(key, settings)[0])
        self._settings = settings

    def __call__(self, logits: Float[np.ndarray, " vocab"]) -> int:
        """The next token. Raises HQError if logits are NaN or infinite."""
        if self._settings.temperature == 0:
            return int(_most_likely(torch.from_numpy(logits)[None])[0])
        tokens, cdf = truncated_cdf(torch.from_numpy(logits)[None], self._settings)
        return int(tokens[0, np.searchsorted(cdf[0], next(self._draws), "right")])


def _not_finite() -> HQError:
    return HQError("The model's logits are not finite: its weights are damaged.")


def _draw(
    logits: Float[Tensor, "row vocab"],
    rows: list[tuple[Tree, _Path]],
    position: int,
    settings: Sampling,
) -> list[Int[np.ndarray, " member"]]:
    """The next token of each member of each row. Raises HQError if logits are NaN or infinite."""
    if settings.temperature == 0:
        best = _most_likely(logits)
        return [np.full(len(path.members), best[r]) for r, (_, path) in enumerate(rows)]
    tokens, cdf = truncated_cdf(logits, settings)
    draws = [tree.draws[path.members, position] for tree, path in rows]
    return [tokens[r, np.searchsorted(cdf[r], draw, "right")] for r, draw in enumerate(draws)]


def _most_likely(logits: Float[Tensor, "row vocab"]) -> Int[np.ndarray, " row"]:
    """The first of the most likely tokens. NaN counts as the largest value, so it is seen here."""
    values, tokens = logits.max(dim=-1)
    if not values.isfinite().all():
        raise _not_finite()
    best: Int[np.ndarray, " row"] = tokens.cpu().numpy()
    return best


def truncated_cdf(
    logits: Float[Tensor, "row vocab"], settings: Sampling
) -> tuple[Int[np.ndarray, "row k"], Float[np.ndarray, "row k"]]:
    """Tokens by falling probability and their cumulative probability, truncated and rescaled.

    Temperature, top-k and top-p are applied in the order of transformers' logits processors. The
    cumulative probabilities end at infinity, so that a draw never falls past the last token.
    Raises HQError if logits are NaN or infinite: they are among the largest, or all are.
    """
    k = min(settings.top_k or logits.shape[-1], logits.shape[-1])
    top, tokens = torch.topk(logits, k, dim=-1)
    if not top[:, 0].isfinite().all():
        raise _not_finite()
    shares = torch.softmax(top.double() / settings.temperature, dim=-1)
    before = shares.cumsum(dim=-1) - shares
    shares = shares.masked_fill(before >= settings.top_p, 0.0)
    cdf = shares.cumsum(dim=-1) / shares.sum(dim=-1, keepdim=True)
    cdf = cdf.masked_fill(shares.flip(-1).cumsum(-1).flip(-1) <= shares, torch.inf)
    return tokens.cpu().numpy(), cdf.cpu().numpy()


def _grow(
    rows: list[tuple[Tree, _Path]],
    tokens: list[Int[np.ndarray, " member"]],
    ending: StopCriteria,
    wanted: Callable[[Tree], bool],
    last: bool,
) -> list[int]:
    """Branch every row by its drawn tokens; returns the parent row of each path that goes on."""
    origins: dict[int, list[int]] = {}
    for r, (tree, path) in enumerate(rows):
        if tree.abandoned:
            continue
        for token in np.unique(tokens[r]):
            ids = (*path.ids, int(token))
            members = path.members[tokens[r] == token]
            ended = ending.split(ids)
            if ended is None and not last:
                tree.paths.append(_Path(ids, members))
                origins.setdefault(id(tree), []).append(r)
            else:
                response, text = ended or (ids, ending.decode(ids))
                tree.finished.append(
                    SampledResponse(response, text, tuple(members.tolist()), ended is None)
                )
                tree.naive += len(ids) * len(members)
                tree.abandoned = tree.abandoned or not wanted(tree)
        if tree.abandoned:
            tree.paths = []
            origins[id(tree)] = []
    return [r for parents in origins.values() for r in parents]
