"""The reference model's tokenizer: byte-level BPE as Qwen2's, trained on the sentences of the reference questions."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|im_start|>", "<|im_end|>", "<image>")


def train_tokenizer(sentences: list[str]) -> Tokenizer:
    """A tokenizer in which each word of the sentences is one token and everything else falls back to bytes.

    The special tokens come first: <|im_start|> 0, <|im_end|> 1, <image> 2.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=1,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer
