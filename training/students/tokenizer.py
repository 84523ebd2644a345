"""Make the vocabulary of the embedded family: byte-level BPE in CLIP's form, learned from captions."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from pytest_sdbench.protocols import scenes

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = Path(__file__).parent / "merges.txt"
CONTEXT = 32
"""Tokens of the longest prompt, start and end included; the longest caption has 27."""


def build_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer from the kept merges."""
    # CLIP's order: bytes, bytes that end a word, merges, start, end. The end has the largest number, because
    # CLIP text encoders find it with argmax.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    lines = MERGES.read_text(encoding="utf-8").splitlines()[1:]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [first + second for first, second in merges] + [START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=merges,
        model_max_length=CONTEXT,
        padding_side="right",
    )


def learn_merges(count: int = 20_000) -> list[tuple[str, str]]:
    """Learn merges from the captions of `count` training scenes.

    Pairs of equal count may come in any order from run to run, and trained text encoders rest on the order:
    that is why the merges are kept in a file, and learned again only when the words of the captions change.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[^\sa-z]+"), "removed", invert=True)
    trainer = trainers.BpeTrainer(vocab_size=1400, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(scenes.captions(scenes.TRAINING[:count]), trainer)
    return [(first, second) for first, second in json.loads(learner.to_str())["model"]["merges"]]


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write tokenizer.json and, for older libraries, vocab.json and merges.txt."""
    # It keeps how the last texts were cut and padded: what is written would depend on what it was used for.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
