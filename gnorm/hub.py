"""What the hub brings: checkpoints and data sets, found in the cache or fetched, each at one recorded commit.

An asset is a row of a profile, `Checkpoint` or `DataSet`. `look_up` says where it is and never downloads more than a
few kilobytes; `fetch` brings it into the cache of huggingface_hub (HF_HOME), where `load_checkpoint` and `load_splits`
read it. Nothing here runs code from a repository, and nothing is replaced by another asset or revision.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import huggingface_hub
import pyarrow.parquet
import safetensors
import torch
from datasets.data_files import sanitize_patterns
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification

from .batches import longest_text
from .embedded import quiet_library
from .tokenizing import load_published

TIMEOUT = 8.0  # seconds that a question to the hub may take; all assets are asked for at the same time
NO_CLASS = -100  # the label of a text that no class of the model fits: scored, never evaluated

# What a checkpoint is read from, all at the root of its repository; of the weights the first kind that is there.
WEIGHTS = (("model.safetensors",), ("model.safetensors.index.json", "model-*.safetensors"))
PICKLED = (("pytorch_model.bin",), ("pytorch_model.bin.index.json", "pytorch_model-*.bin"))
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
SMALL_FILES = ("*.json", "*.txt", "*.model")
DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt", ".gz", ".zip", ".zst", ".bz2", ".xz")
SHARD = re.compile(r"(?P<before>.+)-\d+-of-(?P<count>\d+)(?P<after>\..+)")  # data count from 0, weights from 1
ABOUT_DATA = ("README.md", ".huggingface.yaml", "dataset_infos.json")


class AssetError(RuntimeError):
    """An asset is missing, cannot be read, or is not what the profile says; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """A sequence classifier. revision: a branch, tag or commit; "" takes main, and the commit found is recorded."""

    kind: ClassVar[str] = "model"
    repo: str
    classes: int
    revision: str = ""

    def wanted(self, names: Sequence[str], card: Path | None) -> list[str]:
        """The files to read; raises ``AssetError`` where the repository is not a checkpoint."""
        root = [name for name in names if "/" not in name]
        for patterns, what in ((("config.json",), "config.json"), (TOKENIZERS, "tokenizer")):
            if not _matching(root, patterns):
                raise AssetError(f"has no {what}")
        weights = next((found for kind in WEIGHTS + PICKLED if (found := _matching(root, kind))), None)
        if weights is None:
            raise AssetError(f"has no weights ({WEIGHTS[0][0]} or {PICKLED[0][0]})")
        small = [name for name in _matching(root, SMALL_FILES) if not name.endswith(".index.json")]
        return sorted({*small, *weights})


@dataclass(frozen=True)
class DataSet:
    """Texts with labels.

    text: the columns that make a text, one or a pair. labels: the class of each label, by the name that the checkpoint
    gives it ("" for none), in the order of its classes; empty where the data set and the checkpoint agree by themselves.
    config: a configuration of its card. folder: the folder it lies in, where no card says so.
    """

    kind: ClassVar[str] = "dataset"
    repo: str
    text: list[str]
    label: str
    config: str = ""
    folder: str = ""
    revision: str = ""
    rows: dict[str, int] = field(default_factory=dict)  # by split, as published; another number is said, not refused
    labels: dict[str, str] = field(default_factory=dict)

    def wanted(self, names: Sequence[str], card: Path | None) -> list[str]:
        """The files to read; raises ``AssetError`` where there are none."""
        patterns = [f"{self.folder}/*"] if self.folder else self._patterns(card)
        data = [name for name in _matching(names, patterns) if name not in ABOUT_DATA and name.endswith(DATA_SUFFIXES)]
        if not data:
            where = f"in {self.folder} " if self.folder else f"for {self.config} " if self.config else ""
            raise AssetError(f"has no data files {where}")
        return sorted({*_matching(names, ABOUT_DATA), *data})

    def _patterns(self, card: Path | None) -> list[str]:
        """Where the files of the configuration are by its card; everywhere if it does not say."""
        return [path for paths in self.data_files(card).values() for path in paths] or ["*"]

    def data_files(self, card: Path | None) -> dict[str, list[str]]:
        """By split, the patterns that the card gives for the configuration; empty where it gives none."""
        about = DatasetCard.load(card).data.to_dict() if card and self.config else {}
        for config in about.get("configs") or []:
            if config.get("config_name") == self.config and config.get("data_files"):
                return {str(split): list(paths) for split, paths in sanitize_patterns(config["data_files"]).items()}
        return {}

    def features(self, card: Path | None) -> datasets.Features | None:
        """The types that the card gives for the columns of the configuration."""
        about = DatasetInfosDict.from_dataset_card_data(DatasetCard.load(card).data) if card and self.config else {}
        return about[self.config].features if self.config in about else None


Asset = Checkpoint | DataSet


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    wildcards = [pattern.replace("**/", "*").removeprefix("./") for pattern in patterns]
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in wildcards)]


@dataclass(frozen=True)
class Found:
    """Where an asset is: "cached" whole at ``commit``, "reachable" on the hub, or "missing" and why.

    files: every file that is read, with its size in bytes (None where the hub does not say).
    """

    asset: Asset
    status: str
    commit: str = ""
    files: dict[str, int | None] = field(default_factory=dict)
    why: str = ""

    @property
    def name(self) -> str:
        config = getattr(self.asset, "config", "") or getattr(self.asset, "folder", "")
        return f"{self.asset.repo}{f' ({config})' if config else ''}"

    @property
    def megabytes(self) -> float | None:
        sizes = [size for size in self.files.values() if size is not None]
        return sum(sizes) / 1e6 if sizes else None

    @property
    def path(self) -> Path:
        """The snapshot in the cache."""
        return _storage(self.asset) / "snapshots" / self.commit

    @property
    def pickled(self) -> bool:
        """Whether the weights are a pickle file: read by torch's weights-only loader, which runs nothing."""
        return bool(_matching(self.files, [pattern for kind in PICKLED for pattern in kind]))

    def record(self) -> dict[str, Any]:
        """What results keep of it."""
        kept: dict[str, Any] = {"repo": self.asset.repo, "commit": self.commit, "revision": _revision(self.asset)}
        if isinstance(self.asset, Checkpoint):
            kept["weights"] = "pickle, read by torch's weights-only loader" if self.pickled else "safetensors"
        return kept


def _revision(asset: Asset) -> str:
    return asset.revision or constants.DEFAULT_REVISION


def _storage(asset: Asset) -> Path:
    """The asset's folder in the cache: blobs, refs, snapshots."""
    return Path(constants.HF_HUB_CACHE) / huggingface_hub.file_download.repo_folder_name(
        repo_id=asset.repo, repo_type=asset.kind
    )


# --- finding


def look_up(assets: Sequence[Asset]) -> list[Found]:
    """Where each asset is. All are asked for at once; an unreachable hub costs ``TIMEOUT`` seconds, not more."""
    with ThreadPoolExecutor(max(1, len(assets))) as pool:
        return list(pool.map(_look_up, assets))


def _look_up(asset: Asset) -> Found:
    why = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            return _on_hub(asset)
        except AssetError as error:
            why = f"the repository {error}"
        except (HTTPError, OSError, ValueError) as error:
            why = _reason(error)
    found = in_cache(asset)
    return found if found.status == "cached" else Found(asset, "missing", why=f"{why}; {found.why}")


def _on_hub(asset: Asset) -> Found:
    """The newest commit of the asset's revision, and its files' sizes; nothing is retried."""
    api = HfApi()
    info: Any = api.repo_info(asset.repo, timeout=TIMEOUT, repo_type=asset.kind, revision=_revision(asset))
    commit = str(info.sha)
    if info.siblings:
        names = [file.rfilename for file in info.siblings]
    else:
        tree = api.list_repo_tree(asset.repo, recursive=True, repo_type=asset.kind, revision=commit)
        names = [entry.path for entry in tree if isinstance(entry, huggingface_hub.hf_api.RepoFile)]
    card = _small_file(asset, "README.md") if isinstance(asset, DataSet) and "README.md" in names else None
    found = Found(asset, "cached", commit, dict.fromkeys(asset.wanted(names, card)))
    sizes = {name: _size(found.path / name) for name in found.files}
    absent = [name for name, size in sizes.items() if size is None]
    with ThreadPoolExecutor(8) as pool:
        sizes |= zip(absent, pool.map(partial(_head, asset), absent))
    return Found(asset, "reachable" if absent else "cached", commit, sizes)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _head(asset: Asset, name: str) -> int | None:
    url = hf_hub_url(asset.repo, name, repo_type=asset.kind, revision=_revision(asset))
    return get_hf_file_metadata(url, timeout=TIMEOUT, token=None).size


def _small_file(asset: Asset, name: str) -> Path:
    """A file of the repository, brought into the cache; asked for once before, because a download retries for long."""
    _head(asset, name)
    return Path(hf_hub_download(asset.repo, name, repo_type=asset.kind, revision=_revision(asset)))


def in_cache(asset: Asset) -> Found:
    """The asset as the cache has it: at the commit its revision had when it was last fetched."""
    storage, revision = _storage(asset), _revision(asset)
    ref = storage / "refs" / revision
    snapshots = sorted(path.name for path in storage.glob("snapshots/*"))
    if ref.exists():
        commit = ref.read_text().strip()
    elif revision in snapshots:
        commit = revision
    elif len(snapshots) == 1 and not asset.revision:  # fetched by its commit: it is the only one there is
        commit = snapshots[0]
    else:
        return Found(asset, "missing", why=f"not in {constants.HF_HUB_CACHE}")
    folder = storage / "snapshots" / commit
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    card = folder / "README.md" if "README.md" in names else None
    try:
        wanted = asset.wanted(names, card)
        for name in wanted:
            if (shard := SHARD.fullmatch(name)) and (lacking := _absent_shards(shard, wanted)):
                raise AssetError(f"lacks {lacking[0]}")
    except AssetError as error:
        return Found(asset, "missing", why=f"what is in {constants.HF_HUB_CACHE} {error}")
    return Found(asset, "cached", commit, {name: _size(folder / name) for name in wanted})


def _absent_shards(shard: re.Match[str], names: Sequence[str]) -> list[str]:
    """The files of a split or of weights that were not fetched, told by how many there are in all."""
    width, count = len(shard["count"]), int(shard["count"])
    numbers = (
        range(count)
        if f"{shard['before']}-{0:0{width}}-of-{shard['count']}{shard['after']}" in names
        else range(1, count + 1)
    )
    every = [f"{shard['before']}-{i:0{width}}-of-{shard['count']}{shard['after']}" for i in numbers]
    return [name for name in every if name not in names]


def _reason(error: Exception) -> str:
    """Why the hub did not give something, in a few words."""
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        says = {401: "it may be private or gone", 404: "not found", 429: "too many requests, try again later"}
        what = says.get(code) or ("the hub failed, try again later" if code >= 500 else "refused")
        return f"{constants.ENDPOINT} answered {code} ({what})"
    if isinstance(error, HTTPError | ConnectionError):
        return f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    return " ".join(str(error).split()) or type(error).__name__


# --- fetching


class _Bar(tqdm):
    """Progress of one file, which gives up where a connection is cut over and over and the file begins anew."""

    received = 0

    def update(self, n: float | None = 1) -> bool | None:
        self.received += max(0, int(n or 0))
        if self.total and self.received > 3 * self.total:
            raise ConnectionError("the connection was cut again and again")
        return super().update(n)


def fetch(found: Found) -> Found:
    """Bring what ``look_up`` found into the cache, and return it as cached; files that are there stay.

    Raises ``AssetError`` where the asset is missing, a download fails, or the hub changed meanwhile; a file that did
    not arrive whole is not kept.
    """
    asset = found.asset
    if found.status == "missing":
        raise AssetError(f"{found.name} is missing: {found.why}.")
    if found.status == "cached" and _known(found):
        return found
    for name in found.files:
        try:
            path = hf_hub_download(asset.repo, name, repo_type=asset.kind, revision=_revision(asset), tqdm_class=_Bar)
        except (HTTPError, OSError, ValueError) as error:
            raise AssetError(f"{name} of {found.name} could not be fetched: {_reason(error)}.") from None
        if not Path(path).is_relative_to(found.path):
            raise AssetError(f"{found.name} changed on the hub while it was fetched: run the same command again.")
    return Found(asset, "cached", found.commit, {name: _size(found.path / name) for name in found.files})


def _known(found: Found) -> bool:
    """Whether the cache alone would find the same commit, as kernels without network must."""
    again = in_cache(found.asset)
    return again.status == "cached" and again.commit == found.commit


def find(asset: Asset) -> Found:
    """The asset, in the cache after this; raises ``AssetError`` as ``fetch`` does."""
    return fetch(look_up([asset])[0])


# --- reading


@contextlib.contextmanager
def _reading(found: Found) -> Iterator[None]:
    """A file that cannot be read is taken out of the cache, so that the next run fetches it anew."""
    try:
        yield
    except AssetError:
        raise
    except Exception as error:
        if damaged := _damaged(found):
            for name in damaged:
                _discard(found.path / name)
            raise AssetError(
                f"{', '.join(damaged)} of {found.name} at {found.commit[:12]} is damaged and was taken out of the cache: "
                "run the same command again to fetch it anew."
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise AssetError(f"{found.name} at {found.commit[:12]} cannot be read: {reason}") from error


# What tells at little cost that a file of a kind is not whole.
WHOLE: dict[str, Callable[[Path], Any]] = {
    ".safetensors": lambda path: safetensors.safe_open(path, "pt").__enter__(),
    ".parquet": pyarrow.parquet.read_metadata,
    ".json": lambda path: json.loads(path.read_bytes()),
}


def _damaged(found: Found) -> list[str]:
    """The files that are not whole, or not those whose SHA-256 the hub gave (it names the cache's file by it)."""
    damaged = []
    for name in found.files:
        path = found.path / name
        expected = path.resolve().name
        try:
            WHOLE.get(path.suffix, Path.stat)(path)
            with path.open("rb") as file:
                named = re.fullmatch(r"[0-9a-f]{64}", expected)
                digest = hashlib.file_digest(file, "sha256").hexdigest() if named else expected
        except (OSError, ValueError, safetensors.SafetensorError):
            damaged.append(name)
        else:
            damaged += [name] * (digest != expected)
    return damaged


def _discard(path: Path) -> None:
    """Take a file out of the cache: the name in the snapshot and what it points to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def load_config(found: Found) -> Any:
    """The configuration of a checkpoint, which may not have been fetched yet; ``AssetError`` where it does not fit."""
    asset = found.asset
    assert isinstance(asset, Checkpoint)
    try:
        if found.status == "reachable":
            _small_file(asset, "config.json")
        config = AutoConfig.from_pretrained(found.path)
    except (HTTPError, OSError, ValueError, KeyError) as error:
        raise AssetError(f"config.json of {found.name} cannot be read: {_reason(error)}.") from None
    if config.num_labels != asset.classes:
        raise AssetError(f"{found.name} has {config.num_labels} classes, {asset.classes} are expected.")
    return config


def load_checkpoint(found: Found) -> tuple[Any, Any]:
    """The model, in fp32, and its tokenizer.

    Raises ``AssetError`` where a file cannot be read, a weight is missing or of the wrong shape (nothing is left at
    random), or the number of classes is not the profile's.
    """
    load_config(found)
    with _reading(found), quiet_library():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            found.path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
        tokenizer = load_published(found.path)
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(name[0] if isinstance(name, tuple) else str(name) for name in report[problem]):
            what = "lack" if problem == "missing_keys" else "do not fit config.json in"
            raise AssetError(f"the weights of {found.name} at {found.commit[:12]} {what} {', '.join(names[:3])}.")
    return model, tokenizer


def max_length(model: Any, tokenizer: Any) -> int:
    """The most tokens that both the model and the tokenizer take."""
    return min(filter(None, (longest_text(model), int(tokenizer.model_max_length))))


def load_splits(found: Found, splits: Iterable[str] | None = None) -> datasets.DatasetDict:
    """The data set as it is on the hub: every split, or those named.

    Raises ``AssetError`` where a file cannot be read, or a split or a column is not there.
    """
    asset = found.asset
    assert isinstance(asset, DataSet)
    card = found.path / "README.md" if "README.md" in found.files else None
    with _reading(found), quiet_library():
        # By name, a configuration could only be read where the card's first one is in the cache as well.
        files = asset.data_files(card)
        how = {"data_files": files, "features": asset.features(card)} if files else {"name": asset.config or None}
        loaded = datasets.load_dataset(str(found.path), data_dir=asset.folder or None, **how)
    for split in splits if splits is not None else loaded:
        if split not in loaded:
            raise AssetError(f"{found.name} has no split {split!r}; it has {', '.join(loaded)}.")
        columns = loaded[split].column_names
        if lacking := [name for name in (*asset.text, asset.label) if name not in columns]:
            raise AssetError(f"{split} of {found.name} has no column {lacking[0]!r}; it has {', '.join(columns)}.")
    return datasets.DatasetDict({split: loaded[split] for split in (splits if splits is not None else loaded)})


def labelled(rows: datasets.Dataset, asset: DataSet, config: Any) -> datasets.Dataset:
    """The columns text, text_pair (of pairs) and label: the class by the checkpoint's own numbering, or ``NO_CLASS``.

    A label finds its class by name (the profile's, else its own) in ``config.id2label``, upper and lower case alike.
    Numbers without names, and checkpoints that only number their classes (LABEL_0), are taken as they are.

    Raises ``AssetError`` for a label that is no class of the checkpoint, or where a text is missing or not text.
    """
    columns: dict[str, list[Any]] = {}
    for target, name in zip(("text", "text_pair"), asset.text, strict=False):
        columns[target] = list(rows[name])
        odd = [i for i, text in enumerate(columns[target]) if not isinstance(text, str)]
        if odd:
            raise AssetError(f"row {odd[0]} of {asset.repo} has no text in column {name!r}.")
    values = list(rows[asset.label])
    number = _numbering(rows.features[asset.label], asset, config)
    known = {value: number(value) for value in dict.fromkeys(values)}
    if unknown := [value for value, label in known.items() if label is None]:
        classes = ", ".join(str(config.id2label[i]) for i in range(config.num_labels))
        raise AssetError(
            f"{asset.repo} has the label {unknown[0]!r} in column {asset.label!r}, the checkpoint's classes are {classes}: "
            "say what it stands for in the profile's `labels`."
        )
    return datasets.Dataset.from_dict({**columns, "label": [known[value] for value in values]})


def _numbering(feature: Any, asset: DataSet, config: Any) -> Callable[[Any], int | None]:
    """The function from a label to its class."""
    classes = {str(label).casefold(): int(i) for i, label in config.id2label.items()}
    unnamed = all(re.fullmatch(r"label_\d+|\d+", label) for label in classes)
    if unnamed and asset.labels:
        classes = {label.casefold(): i for i, label in enumerate(filter(None, dict.fromkeys(asset.labels.values())))}
    names = getattr(feature, "names", None)

    def number(value: Any) -> int | None:
        numeric = re.fullmatch(r"\d+", str(value)) is not None
        name = names[value] if names and numeric and int(value) < len(names) else str(value)
        if str(value) in asset.labels or name in asset.labels:
            target = asset.labels.get(str(value), asset.labels.get(name, ""))
            return classes.get(target.casefold()) if target else NO_CLASS
        if name.casefold() in classes:
            return classes[name.casefold()]
        speaking = names and not all(re.fullmatch(r"label_\d+|\d+", str(each).casefold()) for each in names)
        if asset.labels or not numeric or (speaking and not unnamed):
            return None
        return int(value) if int(value) < config.num_labels else None

    return number
