"""The tokenizers of published checkpoints, giving the ids that the authors' version of transformers gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers
from tokenizers.models import Unigram
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS, SpmConverter


def load_published(folder: Path) -> Any:
    """The tokenizer of a checkpoint, giving the ids that ``AutoTokenizer`` of transformers 4.36.2 gave.

    transformers 5 rebuilds the tokenizers of SentencePiece models from their class. From tokenizer.json it takes the
    vocabulary alone, without normalizer and pre-tokenizer. From a .model file without tokenizer.json it makes every
    user-defined symbol, such as "." and "-" in ALBERT's, a token of its own. Both change the ids of ordinary texts.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, Unigram):
        return tokenizer
    known = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    special = {name: known.get(token, token) for name, token in tokenizer.special_tokens_map.items()}
    stored = folder / "tokenizer.json"
    if stored.exists():
        backend = Tokenizer.from_file(str(stored))
    elif type(tokenizer).__name__ in SLOW_TO_FAST_CONVERTERS:
        backend = _from_sentencepiece(tokenizer)
        special["mask_token"] = AddedToken(str(tokenizer.mask_token), lstrip=True, special=True)
    else:
        return tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        **special,
    )


def _from_sentencepiece(tokenizer: Any) -> Tokenizer:
    """The tokenizer of the .model file of ``tokenizer``; user-defined symbols are ordinary pieces."""
    converter = SLOW_TO_FAST_CONVERTERS[type(tokenizer).__name__](tokenizer)
    backend = Tokenizer(Unigram(converter.vocab(converter.proto), converter.unk_id(converter.proto)))
    if type(converter).normalizer is SpmConverter.normalizer:
        charsmap = converter.proto.normalizer_spec.precompiled_charsmap
        precompiled = [normalizers.Precompiled(charsmap)] if charsmap else []
        backend.normalizer = normalizers.Sequence([*precompiled, normalizers.Replace(Regex(" {2,}"), " ")])
    else:
        backend.normalizer = converter.normalizer(converter.proto)
    backend.pre_tokenizer = converter.pre_tokenizer("▁", True)
    backend.post_processor = converter.post_processor()
    return backend
