"""Captions as token ids, and the columns of image-caption data with typed negatives.

Columns: ``text`` (n, L) is the true caption; ``negative/<kind>`` (n, m, L) holds up to m false captions of one kind,
such as ``negative/swap_noun``. A row of zeros alone is no caption: the sample has fewer of that kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

NEGATIVE = "negative/"
"""Prefix of the columns with false captions."""
PAD, END = "<pad>", "<end>"
END_TOKENS = (END, "<|endoftext|>", "</s>", "[SEP]", "[EOS]", "<eos>")
"""What marks a caption's end in a vocabulary: our own, then that of known tokenizers."""
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


def tokenise(caption: str) -> list[str]:
    """Words and punctuation marks in lower case."""
    return _WORD.findall(caption.lower())


def word_vocabulary(captions: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Padding (0) and end (1), then every word of the tokenised captions in alphabetical order."""
    return (PAD, END, *sorted({word for words in captions for word in words}))


def encode_words(captions: Sequence[Sequence[str]], vocabulary: Sequence[str], length: int) -> np.ndarray:
    """Token ids (n, length) int64 of tokenised captions: words cut to fit, the end, padding.

    Args:
        captions: words, all of the vocabulary; an empty caption becomes zeros alone.
        vocabulary: of `word_vocabulary`.
        length: L, with the end.
    """
    index = {word: position for position, word in enumerate(vocabulary)}
    ids = np.zeros((len(captions), length), np.int64)
    for row, words in enumerate(captions):
        if words:
            found = [index[word] for word in words[: length - 1]]
            ids[row, : len(found) + 1] = [*found, index[END]]
    return ids


def decode(ids: Iterable[int], vocabulary: Sequence[str]) -> str:
    """The caption that token ids stand for, without its marks."""
    words = []
    for token in ids:
        word = vocabulary[token]
        if word in END_TOKENS:
            break
        if not (word.startswith(("<", "[")) and word.endswith((">", "]"))):
            words.append(word)
    # byte-pair tokens end their words with </w> themselves
    joint = "" if any(word.endswith("</w>") for word in words) else " "
    return joint.join(words).replace("</w>", " ").strip()


def negative_columns(
    negatives: Sequence[Mapping[str, Sequence[Sequence[str]]]],
    kinds: Mapping[str, int],
    encode: Callable[[Sequence[Sequence[str]]], np.ndarray],
) -> dict[str, np.ndarray]:
    """The ``negative/<kind>`` columns.

    Args:
        negatives: of every sample: kind → tokenised false captions.
        kinds: kind → m, the most false captions of that kind a sample may have.
        encode: tokenised captions → (n, L).
    """
    columns = {}
    for kind, most in kinds.items():
        rows: list[Sequence[str]] = []
        for held in negatives:
            found = list(held.get(kind, ()))[:most]
            rows += [*found, *([()] * (most - len(found)))]
        ids = encode(rows)
        columns[f"{NEGATIVE}{kind}"] = ids.reshape(len(negatives), most, ids.shape[1])
    return columns


def kinds_of(columns: Iterable[str]) -> tuple[str, ...]:
    """Kinds of false captions among column names, in their order."""
    return tuple(name.removeprefix(NEGATIVE) for name in columns if name.startswith(NEGATIVE))
