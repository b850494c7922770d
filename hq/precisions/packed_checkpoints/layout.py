"""The layout of codes in 32-bit words, and the weights that the words represent.

A weight is s·(q − z), with a scale s and a zero point z for each group of inputs and each output.
GPTQ and AWQ store the transpose of a linear layer's weight, with inputs as rows; compressed-tensors
stores outputs as rows.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

WORD = 32
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of a word that holds each of eight columns


def unpack(words: Int[Tensor, "word n"], bits: int, count: int) -> Int[Tensor, "count n"]:
    """The first `count` codes of a stream of `bits`-bit codes, lowest bits first.

    With 3 bits, a code may begin in one word and end in the next.
    """
    if WORD % bits == 0:
        shifts = torch.arange(0, WORD, bits, dtype=torch.int32, device=words.device)
        codes = words.int()[:, None] >> shifts[:, None] & (1 << bits) - 1
        return codes.flatten(0, 1)[:count]
    start = torch.arange(count, device=words.device) * bits
    wide = torch.cat([words.long() & 0xFFFFFFFF, words.new_zeros(1, words.shape[1]).long()])
    first = start // WORD
    pairs = wide[first] | wide[first + 1] << WORD
    return pairs >> (start % WORD)[:, None] & (1 << bits) - 1


def gptq_dense(
    qweight: Int[Tensor, "word d_out"],
    qzeros: Int[Tensor, "group zero_word"],
    scales: Float[Tensor, "group d_out"],
    g_idx: Int[Tensor, " d_in"],
    bits: int,
    zero_offset: int,
) -> Float[Tensor, "d_out d_in"]:
    """W of a GPTQ layer, float32: s[g]·(q − z[g]), with g = g_idx of the input.

    `zero_offset` is 1 for format v1, which stores zero points minus one, and 0 for v2.
    """
    d_in, d_out = len(g_idx), scales.shape[1]
    codes = unpack(qweight, bits, d_in)
    zeros = gptq_zeros(qzeros, bits, d_out, zero_offset)
    group = g_idx.long()
    return (scales.float()[group] * (codes - zeros[group])).T.contiguous()


def gptq_zeros(
    qzeros: Int[Tensor, "group zero_word"], bits: int, d_out: int, zero_offset: int
) -> Int[Tensor, "group d_out"]:
    """Zero points of a GPTQ layer; `zero_offset` as in `gptq_dense`."""
    return _zeros(qzeros.T, bits, d_out, zero_offset).T


def awq_dense(
    qweight: Int[Tensor, "d_in word"],
    qzeros: Int[Tensor, "group word"],
    scales: Float[Tensor, "group d_out"],
) -> Float[Tensor, "d_out d_in"]:
    """W of an AWQ layer in the GEMM format of 4 bits, float32: s[g]·(q − z[g])."""
    codes, zeros = (_awq_codes(words) for words in (qweight, qzeros))
    size = len(codes) // len(scales)
    codes = codes.view(len(scales), size, -1)
    dense = scales.float()[:, None] * (codes - zeros[:, None])
    return dense.flatten(0, 1).T.contiguous()


def compressed_dense(
    packed: Int[Tensor, "d_out word"],
    scales: Float[Tensor, "d_out group"],
    zeros: Int[Tensor, "zero_word group"] | None,
    bits: int,
) -> Float[Tensor, "d_out d_in"]:
    """W of a compressed-tensors layer, float32: s·(q − z); without `zeros`, z is 2^(bits − 1)."""
    d_out, groups = scales.shape
    size = packed.shape[1] * WORD // bits // groups
    codes = unpack(packed.T.contiguous(), bits, groups * size).T.reshape(d_out, groups, size)
    middle = 1 << bits - 1
    zero = codes.new_tensor(middle) if zeros is None else unpack(zeros, bits, d_out)[..., None]
    return (scales.float()[..., None] * (codes - zero)).flatten(1)


def _awq_codes(words: Int[Tensor, "row word"]) -> Int[Tensor, "row column"]:
    shifts = 4 * torch.tensor(_AWQ_ORDER, dtype=torch.int32, device=words.device)
    return (words[..., None] >> shifts & 15).flatten(1)


def _zeros(
    words: Int[Tensor, "word group"], bits: int, count: int, offset: int
) -> Int[Tensor, "count group"]:
    """Zero points, with the offset added in the way in which it was subtracted.

    With 3 bits, which cross words, it was subtracted from each zero point modulo 8. Otherwise it
    was subtracted from 32-bit words, so that a zero point of 0 borrows from its neighbour.
    """
    if WORD % bits:
        return unpack(words, bits, count) + offset & (1 << bits) - 1
    ones = sum(1 << shift for shift in range(0, WORD, bits))
    return unpack(_signed(words.long() + offset * ones), bits, count)


def _signed(words: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The lowest 32 bits of each number as int32."""
    return ((words + (1 << 31) & 0xFFFFFFFF) - (1 << 31)).int()
