"""A tokenizer with the special numbers of BERT and few words, as published BLIP checkpoints have it."""

from __future__ import annotations

from pathlib import Path

SPECIAL = ("[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_bert_tokenizer(folder: Path, words: str) -> tuple[str, ...]:
    """Write the tokenizer of some words, and return its vocabulary."""
    from transformers import BertTokenizer

    vocabulary = (*SPECIAL, *words.split())
    BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder)
    return vocabulary
