"""A small byte-pair vocabulary in the format of CLIP's tokenizer, learned from the prompt generator.

The 256 byte symbols and their end-of-word forms are always in it, so every prompt can be tokenized.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from rearview_lab.data.prompts import prompt_corpus
from rearview_lab.training.model import TEXT_LENGTH

VOCABULARY_SIZE = 1200
START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def build_tokenizer() -> CLIPTokenizer:
    """Learn the merges (deterministic, a second or two) and wrap them as a CLIP tokenizer."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(prompt_corpus(), trainer)
    learned: dict[str, Any] = json.loads(learner.to_str())["model"]
    symbols = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in learned["merges"]
    ]
    symbols += [left + right for left, right in merges]
    vocabulary = {symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))}
    for special in (START, END):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, unk_token=END, bos_token=START, eos_token=END, pad_token=END,
        model_max_length=TEXT_LENGTH,
    )  # fmt: skip
