"""Make the vocabulary of the embedded family: byte-level BPE in CLIP's form, learned from captions."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from pytest_sdbench import scenes

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 32
"""Tokens of the longest prompt, start and end included; the longest caption has 31."""


def build_tokenizer() -> CLIPTokenizer:
    """Learn the merges from training captions and return the tokenizer; the same every time."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[^\sa-z]+"), "removed", invert=True)
    trainer = trainers.BpeTrainer(vocab_size=1400, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(scenes.captions(scenes.TRAINING[:20000]), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]

    # CLIP's order: bytes, bytes that end a word, merges, start, end. The end has the largest number, because
    # CLIP text encoders find it with argmax.
    words = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=[tuple(pair) for pair in merges],
        model_max_length=CONTEXT,
        padding_side="right",
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write tokenizer.json and, for older libraries, vocab.json and merges.txt."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
