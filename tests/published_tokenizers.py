"""Four tiny checkouts of tokenizers, and what transformers 4.36.2, which the paper's authors pin, makes of odd texts.

In an environment with transformers 4.36.2, tokenizers 0.15, sentencepiece and protobuf,
`python tests/published_tokenizers.py > tests/published_tokenizers.json` writes what test_tokenizing.py expects of us.
"""

import json
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of pieces of SentencePiece
WORDS = ("no", "dogs", "ran", "some", "moved", "café", "电", "影")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,é&;电影[]<>/MASK"
TEXTS = (
    "no dogs ran", " no  dogs ", "No DOGS ran.", "(no) - dogs. 1,2 9, 12,", "café cafe\u0301", "``no'' dogs",
    "电影 no电影dogs",
    "", " ", "\n", "no\tdogs\r\nran", "no\u00a0dogs\u3000ran\u200b!", "a\x01b\x7f", "😀 👨\u200d👩", "[MASK] no [MASK]",
    "no <mask> dogs<mask>", "<s>no</s> [CLS] dogs [SEP]", "<unk> [UNK] <pad> [PAD]", "no & dogs&amp;", "ａ ½ ﬁ",
    "dogs " * 12,
)  # fmt: skip
PAIRS = (
    ("no dogs ran", "some moved"),
    ("", "some"),
    ("no", ""),
    ("no " * 12, "some"),
    ("no", "some " * 12),
    ("no " * 9, "ran " * 7),
)
LONGEST = 14
MASK = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}  # as published


def pieces(named, user_defined=()):
    """A SentencePiece model with these pieces first; unigram, its normalisation left alone."""
    proto = import_protobuf().ModelProto()
    proto.trainer_spec.model_type, proto.trainer_spec.unk_id = 1, [name for name, _ in named].index("<unk>")
    proto.normalizer_spec.name = "identity"
    rows = [*named, *((piece, USER_DEFINED) for piece in user_defined)]
    scored = dict.fromkeys(["▁", *(f"▁{word}" for word in WORDS), *WORDS, *LETTERS], NORMAL)
    for i, (piece, kind) in enumerate([*rows, *(row for row in scored.items() if row[0] not in dict(rows))]):
        proto.pieces.add(piece=piece, score=-0.1 * i if kind == NORMAL else 0.0, type=kind)
    return proto.SerializeToString()


def merges():
    """Byte-level pieces: every byte, and two words that grow from letters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) if b in printable else chr(256 + sum(c not in printable for c in range(b))) for b in range(256)]
    pairs = ["d o", "g s", "do gs", "Ġ dogs", "n o", "Ġ no"]
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *letters, *(pair.replace(" ", "") for pair in pairs), "<mask>"]
    vocabulary = {piece: i for i, piece in enumerate(vocab)}
    return {
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *pairs, ""]).encode(),
    }


def checkouts(folder):
    """A folder for each of the four, as a checkout without tokenizer.json has it; by the name of its model_type."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *(f"##{x}" for x in LETTERS), *".-()!`'\""]
    files = {
        "bert": {"vocab.txt": "\n".join(dict.fromkeys(words)).encode() + b"\n"},
        "albert": {
            "spiece.model": pieces(
                [("<pad>", CONTROL), ("<unk>", UNKNOWN), ("[CLS]", CONTROL), ("[SEP]", CONTROL), ("[MASK]", CONTROL)],
                '().-"',
            )
        },
        "roberta": merges() | {"special_tokens_map.json": json.dumps({"mask_token": MASK}).encode()},
        "xlm-roberta": {"sentencepiece.bpe.model": pieces([("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)])},
    }
    for name, content in files.items():
        place = Path(folder, name)
        place.mkdir(parents=True)
        for file, text in {**content, "config.json": json.dumps({"model_type": name}).encode()}.items():
            (place / file).write_bytes(text)
    return {name: Path(folder, name) for name in files}


def read(tokenizer):
    """Ids, mask and segments of every text and of every pair, as a batch: whole, and cut and padded."""
    whole = {"return_token_type_ids": True}
    cut = {"padding": True, "truncation": True, "max_length": LONGEST, **whole}
    columns = ([list(TEXTS)], [list(column) for column in zip(*PAIRS, strict=True)])
    found = [dict(tokenizer(*texts, **options)) for texts in columns for options in (whole, cut)]
    return [{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")} for batch in found]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {name: read(AutoTokenizer.from_pretrained(path)) for name, path in checkouts(folder).items()}
    json.dump(found, sys.stdout)
