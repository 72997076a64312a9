"""Captions as token ids, and the columns of image-caption data with typed negatives.

Columns: ``text`` (n, L) is the true caption; ``negative/<kind>`` (n, m, L) holds up to m false captions of one kind,
such as ``negative/swap_noun``. A row of zeros means that the sample has fewer than m captions of that kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedlab.data.files.reading import reading
from fedlab.errors import DataError
from fedlab.tracking.left_out import LeftOut

NEGATIVE = "negative/"
"""Prefix of the columns with false captions."""
PAD, END = "<pad>", "<end>"
END_TOKENS = (END, "<|endoftext|>", "</s>", "[SEP]", "[EOS]", "<eos>")
"""What marks a caption's end in a vocabulary: our own, then that of known tokenizers."""
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Tokens:
    """A tokenizer: how captions are written as numbers.

    Args:
        vocabulary: word or piece of every token id.
        encode: captions → ids (n, L) int64; the empty text becomes zeros alone.
        lengths: of captions: how many tokens they would need, and how many of these stand for words that are not in
            the vocabulary.
        length: L.
    """

    vocabulary: tuple[str, ...]
    encode: Callable[[Sequence[str]], np.ndarray]
    lengths: Callable[[Sequence[str]], tuple[list[int], int]]
    length: int

    def left_out(self, captions: Sequence[str]) -> tuple[LeftOut, ...]:
        """The ends of captions and the unknown words that `encode` leaves out."""
        needed, unknown = self.lengths(captions)
        long = [text for text, tokens in zip(captions, needed, strict=True) if tokens > self.length]
        found = []
        if long:
            fix = f"data.source.length: {max(needed)} keeps them whole, if the model takes so many"
            why = f"the ends of so many captions lie behind {self.length} tokens"
            found.append(LeftOut("ends of captions", len(long), why, len(captions), fix, tuple(long[:3])))
        if unknown:
            why = "the tokenizer does not know them, and all become one token"
            found.append(LeftOut("words or parts of words", unknown, why, sum(needed)))
        return tuple(found)


def tokenize(caption: str) -> list[str]:
    """Words and punctuation marks in lower case."""
    return _WORD.findall(caption.lower())


def word_tokens(captions: Iterable[str], length: int | None = None) -> Tokens:
    """Whole words: padding (0), end (1), then every word of the captions in alphabetical order.

    Args:
        captions: all captions that will be encoded.
        length: L, the end included; longer captions are cut. Default: the longest caption's.
    """
    words = [tokenize(caption) for caption in captions]
    vocabulary = (PAD, END, *sorted({word for found in words for word in found}))
    index = {word: token for token, word in enumerate(vocabulary)}
    size = length or 1 + max(map(len, words), default=0)

    def encode(texts: Sequence[str]) -> np.ndarray:
        ids = np.zeros((len(texts), size), np.int64)
        for row, text in enumerate(texts):
            if text:
                found = [index[word] for word in tokenize(text)[: size - 1]]
                ids[row, : len(found) + 1] = [*found, index[END]]
        return ids

    def lengths(texts: Sequence[str]) -> tuple[list[int], int]:
        return [1 + len(tokenize(text)) for text in texts], 0

    return Tokens(vocabulary, encode, lengths, size)


def hub_tokens(name: str, length: int | None = None) -> Tokens:
    """A tokenizer of `transformers`.

    Args:
        name: hub name or local folder.
        length: L, the end included; longer captions are cut. Default: the tokenizer's own maximum.

    Raises:
        DataError: there is no tokenizer of that name, or it has no maximum length.
    """
    from transformers import AutoTokenizer

    expected = "a tokenizer on the hub, in its cache, or a folder written by save_pretrained"
    with reading("data.source.tokenizer", name, expected, "mend the name, or save the tokenizer again"):
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    size = length or tokenizer.model_max_length
    if size > 10_000:  # transformers' stand-in for a maximum that is not known
        raise DataError(
            "data.source.length",
            length,
            "a number of tokens, because this tokenizer has no maximum length of its own",
            "set it",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def encode(texts: Sequence[str]) -> np.ndarray:
        ids = np.zeros((len(texts), size), np.int64)
        written = [row for row, text in enumerate(texts) if text]
        if written:
            found = tokenizer([texts[row] for row in written], padding="max_length", truncation=True, max_length=size)
            ids[written] = found["input_ids"]
        return ids

    def lengths(texts: Sequence[str]) -> tuple[list[int], int]:
        found = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []
        return list(map(len, found)), sum(ids.count(tokenizer.unk_token_id) for ids in found)

    return Tokens(tuple(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))), encode, lengths, size)


def decode(ids: Iterable[int], vocabulary: Sequence[str]) -> str:
    """The caption that token ids stand for, without padding and end marks."""
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
    negatives: Sequence[Mapping[str, Sequence[str]]],
    kinds: Mapping[str, int],
    encode: Callable[[Sequence[str]], np.ndarray],
) -> dict[str, np.ndarray]:
    """The ``negative/<kind>`` columns.

    Args:
        negatives: of every sample: kind → false captions.
        kinds: kind → m, the most false captions of that kind a sample may have.
        encode: of `Tokens`.
    """
    columns = {}
    for kind, most in kinds.items():
        held = [list(found.get(kind, ()))[:most] for found in negatives]
        ids = encode([text for found in held for text in (*found, *[""] * (most - len(found)))])
        columns[f"{NEGATIVE}{kind}"] = ids.reshape(len(negatives), most, ids.shape[1])
    return columns


def kinds_of(columns: Iterable[str]) -> tuple[str, ...]:
    """Kinds of false captions among column names, in their order."""
    return tuple(name.removeprefix(NEGATIVE) for name in columns if name.startswith(NEGATIVE))
