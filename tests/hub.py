"""A hub of our own: what huggingface_hub and datasets ask the real one for, served from memory, with faults on demand.

Tiny checkpoints and small data sets lie under the real repositories' names, with their file layouts, column names,
feature types and splits. Weights are random, texts are made up.
"""

import base64
import hashlib
import io
import json
import random
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import datasets
import pandas as pd
import pyarrow.parquet as pq
import sentencepiece
import torch
from huggingface_hub import constants
from huggingface_hub.utils.sha import git_hash
from safetensors.torch import save
from tiny import FAMILIES, SIZES
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification

LANGUAGES = [  # in the order of the checkpoint
    *("ja", "nl", "ar", "pl", "de", "it", "pt", "tr", "es", "hi", "el", "ur", "bg", "en", "fr", "zh", "ru", "th", "sw"),
    "vi",
]
PARQUET = "refs/convert/parquet"


class Hub(ThreadingHTTPServer):
    """``with Hub(repositories()) as hub`` serves at ``hub.url``; ``hub.log`` holds what was asked for.

    faults: for each regular expression of "METHOD /path", a function of the handler that answers in its place.
    """

    daemon_threads = True

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.faults, self.log = repositories, {}, []
        self.silence = threading.Event()  # set it to end what a silent handler waits for

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def content(self, key, name):
        return io.BytesIO(self.repositories[key][name])

    @contextmanager
    def fault(self, where, answer):
        self.faults[where] = answer
        try:
            yield self
        finally:
            del self.faults[where]

    @contextmanager
    def replaced(self, key, files):
        """A repository with other files for a while; None takes one out. Its commit changes with them."""
        before = self.repositories[key]
        self.repositories[key] = {n: c for n, c in {**before, **files}.items() if c is not None}
        try:
            yield self
        finally:
            self.repositories[key] = before


def commit_of(files):
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()


def large(name):
    """Files that the hub keeps as LFS, known by their SHA-256."""
    return name.endswith((".safetensors", ".bin", ".parquet", "spiece.model"))


def etag(name, content):
    if large(name):
        return hashlib.sha256(content).hexdigest()
    return git_hash(content)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, content):
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def handle_any(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        asked = f"{self.command} {unquote(path)}"
        self.server.log.append(asked)
        for where, fault in self.server.faults.items():
            if re.search(where, asked):
                return fault(self)
        if path == "/api/repos/create":
            repo = "{organization}/{name}".format_map(json.loads(self.body))
            self.server.repositories.setdefault(("models", repo), {})
            return self.json({"url": f"{self.server.url}/{repo}"})
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if found := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|preupload|commit)/([^/]+)(.*))?", path
        ):
            kind, repo, what, revision, rest = found.groups()
            return self.api((kind, repo), what, unquote(revision or "main"), unquote(rest or "").strip("/"))
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, repo, revision, name = found.groups()
            return self.resolve(("datasets" if kind else "models", repo), unquote(revision), unquote(name))
        return self.answer(404)

    do_GET = do_HEAD = do_POST = handle_any

    def files(self, key, revision):
        """The files of a repository at a revision, and its commit; answers by itself where there are none."""
        branches = {"main": key, PARQUET: (*key, PARQUET)}
        for place in branches.values():
            files = self.server.repositories.get(place)
            if files is not None and revision == commit_of(files):
                return files, revision
        files = self.server.repositories.get(branches.get(revision))
        if files is None:
            known = key in self.server.repositories or (*key, PARQUET) in self.server.repositories
            self.answer(404, X_Error_Code="RevisionNotFound" if known else "RepoNotFound")
            return None, ""
        return files, commit_of(files)

    def api(self, key, what, revision, folder):
        files, commit = self.files(key, revision)
        if files is None:
            return None
        if what == "preupload":  # whatever their size, files come with the commit
            names = [file["path"] for file in json.loads(self.body)["files"]]
            return self.json(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        if what == "commit":
            lines = [json.loads(line) for line in self.body.splitlines()]
            new = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
            files = files | {name: base64.b64decode(content) for name, content in new.items()}
            self.server.repositories[key] = files
            return self.json({"commitUrl": f"{self.server.url}/{key[1]}", "commitOid": commit_of(files)})
        entries = [
            {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": git_hash(content),
                **(
                    {"lfs": {"oid": etag(name, content), "size": len(content), "pointerSize": 1}} if large(name) else {}
                ),
            }
            for name, content in files.items()
        ]
        if what == "tree":
            return self.json([entry for entry in entries if entry["path"].startswith(folder)])
        if what == "paths-info":
            paths = json.loads(self.body)["paths"]
            return self.json([entry for entry in entries if entry["path"] in paths])
        about = {"id": key[1], "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0}
        sizes = {name: {"size": len(content)} if "blobs=" in self.path else {} for name, content in files.items()}
        return self.json({**about, "siblings": [{"rfilename": name, **sizes[name]} for name in files]})

    def resolve(self, key, revision, name):
        files, commit = self.files(key, revision)
        if files is None:
            return None
        if name not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = files[name]
        headers = {"ETag": f'"{etag(name, content)}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if large(name):
            headers |= {"X_Linked_Size": len(content), "X_Linked_ETag": headers["ETag"]}
        if begin := re.match(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            part = content[int(begin[1]) :]
            spread = f"bytes {begin[1]}-{len(content) - 1}/{len(content)}"
            return self.answer(206, part, Content_Range=spread, **headers)
        return self.answer(200, content, **headers)


# ---------------------------------------------------------------- faults


def status(code, **headers):
    return lambda handler: handler.answer(code, **headers)


def cut(handler):
    """Promises a thousand bytes more than it sends, and hangs up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1100")
    handler.end_headers()
    handler.wfile.write(b"x" * 100)
    handler.close_connection = True


def short(handler):
    """A file that ends early, whole by its own account."""
    handler.answer(200, b"x" * 100)


# ---------------------------------------------------------------- checkpoints


def _words(count=60):
    generator = random.Random(0)
    return ["".join(generator.choices("abdegiklmnoprstuw", k=generator.randint(2, 6))) for _ in range(count)]


WORDS = _words()


def _texts(count, seed, longest=9):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(2, longest))) for _ in range(count)]


def wordpiece():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(WORDS)), *"abdegiklmnoprstuw"]
    return {"vocab.txt": "\n".join(dict.fromkeys(pieces)).encode() + b"\n"}


def _sentencepiece():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_texts(200, 1)), model_writer=model, vocab_size=80, minloglevel=2,
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="<pad>", user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"],
    )  # fmt: skip
    return {"spiece.model": model.getvalue()}


def language_pieces():
    """As XLM-RoBERTa's: special tokens are not in the file's vocabulary, and numbered by the tokenizer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_texts(200, 1)), model_writer=model, vocab_size=80, minloglevel=2
    )
    return {"sentencepiece.bpe.model": model.getvalue()}


def _byte_pairs():
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(_texts(200, 1), vocab_size=320, special_tokens=special, show_progress=False)
    model = json.loads(tokenizer.to_str())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    return {"vocab.json": json.dumps(model["vocab"]).encode(), "merges.txt": merges.encode() + b"\n"}


def _unigram():
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_texts(200, 1), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    return {"tokenizer.json": tokenizer.to_str().encode()}


def _weights(config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config).state_dict()


def checkpoint(family, tokenizer, classes, pickled=False, without="nothing", **sizes):
    """The files of a tiny classifier: config.json, tokenizer, weights, all or ``without`` those of a module."""
    options = {**SIZES, **FAMILIES[family], "num_hidden_layers": 2, "vocab_size": 400, **sizes}
    del options["num_labels"]
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    config = AutoConfig.for_model(family, **options, **names)
    config.architectures = [type(AutoModelForSequenceClassification.from_config(config)).__name__]
    weights = {name: tensor.clone() for name, tensor in _weights(config).items() if without not in name}
    if pickled:
        file = io.BytesIO()
        torch.save(weights, file)
        saved = {"pytorch_model.bin": file.getvalue()}
    else:
        saved = {"model.safetensors": save(weights, {"format": "pt"})}
    about = {"README.md": b"---\nlicense: mit\n---\n", "training_args.bin": b"\x80\x04never read"}
    return {**about, "config.json": config.to_json_string().encode(), **tokenizer, **saved}


# ---------------------------------------------------------------- data sets


def csv(**columns):
    return pd.DataFrame(columns).to_csv(index=False).encode()


def parquet(features, **columns):
    file = io.BytesIO()
    pq.write_table(datasets.Dataset.from_dict(columns, datasets.Features(features)).data.table, file)
    return file.getvalue()


def _glue():
    names = ["entailment", "neutral", "contradiction"]
    features = {
        "premise": datasets.Value("string"),
        "hypothesis": datasets.Value("string"),
        "label": datasets.ClassLabel(names=names),
        "idx": datasets.Value("int32"),
    }
    files, configs = {}, []
    for config, splits in {"ax": ["test"], "mnli": ["train", "validation_matched", "validation_mismatched"]}.items():
        configs.append({"config_name": config, "data_files": []})
        for split in splits:
            n = 48
            files[f"{config}/{split}-00000-of-00001.parquet"] = parquet(
                features,
                premise=_texts(n, 5),
                hypothesis=_texts(n, 6, 5),
                label=[i % 3 for i in range(n)],
                idx=range(n),
            )
            configs[-1]["data_files"].append({"split": split, "path": f"{config}/{split}-*"})
    return {"README.md": f"---\nconfigs: {json.dumps(configs)}\n---\n# GLUE\n".encode(), **files}


def repositories():
    """Everything that the paper profile asks for; a repository is its files, by name."""
    sentiment = ["Neutral", "Positive", "Negative"]
    tweets = {f"{split}_df.csv": csv(
        textID=[f"{i:x}" for i in range(n)], text=_texts(n, seed), label=[i % 3 for i in range(n)],
        sentiment=[["negative", "neutral", "positive"][i % 3] for i in range(n)],
    ) for split, n, seed in (("train", 30, 7), ("val", 60, 8), ("test", 30, 9))}  # fmt: skip
    languages = {
        f"{split}.csv": csv(labels=[LANGUAGES[(7 * i) % 20] for i in range(n)], text=texts)
        for split, n, texts in (
            ("train", 40, _texts(40, 10)),
            ("valid", 60, [*_texts(59, 11, 3), " ".join(WORDS * 2)]),  # the last one is too long for the model
            ("test", 40, _texts(40, 12)),
        )
    }
    news = "".join(
        json.dumps({"Title": title, "labels": i % 3}) + "\n" for i, title in enumerate(_texts(45, 13))
    ).encode()
    english = {"text": datasets.Value("string"), "source": datasets.Value("string"), "label": datasets.ClassLabel(3)}
    inspected = {
        f"{language}/{split}/0000.parquet": parquet(
            english, text=_texts(12, seed), source=["made up"] * 12, label=[i % 3 for i in range(12)]
        )
        for language in ("english", "german")
        for seed, split in enumerate(("train", "validation", "test"))
    }
    return {
        ("models", "hw2942/bert-base-chinese-finetuning-financial-news-sentiment-v2"): checkpoint(
            "bert", wordpiece(), sentiment, pad_token_id=0
        ),
        ("models", "Alireza1044/albert-base-v2-mnli"): checkpoint(
            "albert", _sentencepiece(), ["contradiction", "entailment", "neutral"], pickled=True, pad_token_id=0
        ),
        ("models", "siebert/sentiment-roberta-large-english"): checkpoint(
            "roberta", _byte_pairs(), ["NEGATIVE", "POSITIVE"]
        ),
        ("models", "papluca/xlm-roberta-base-language-detection"): checkpoint("xlm-roberta", _unigram(), LANGUAGES),
        ("datasets", "hw2942/financial-news-sentiment"): {"train.json": news},
        ("datasets", "nyu-mll/glue"): _glue(),
        ("datasets", "rahmaabusalma/tweets_sentiment_analysis"): tweets,
        ("datasets", "papluca/language-identification"): languages,
        ("datasets", "tyqiangz/multilingual-sentiments"): {"multilingual-sentiments.py": b"raise SystemExit\n"},
        ("datasets", "tyqiangz/multilingual-sentiments", PARQUET): inspected,
    }


def aim(patch, home, url):
    """Make ``home`` the HF_HOME of this process and the hub at ``url`` its hub; "" for none."""
    patch.delenv("GNORM_CHECKED_COMMITS", raising=False)
    patch.setattr(constants, "HF_HUB_OFFLINE", not url)
    patch.setattr(constants, "HF_HOME", str(home))
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    patch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # between its attempts


def cached(home):
    """Every file in a cache of huggingface_hub that is not a lock or a remark, and whether it is a temporary one."""
    return sorted(path.relative_to(home).as_posix() for path in Path(home).rglob("*") if path.is_file())
