"""What the hub brings: checkpoints and data sets, found in the cache or fetched, each at one recorded commit.

An asset is a row of a profile, `Checkpoint` or `DataSet`. `look_up` says where it is and never downloads more than a
few kilobytes; `fetch` brings it into the cache of huggingface_hub (HF_HOME), where `load_checkpoint` and `load_splits`
read it. Nothing here runs code from a repository, and nothing is replaced by another asset or revision.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import datasets
import huggingface_hub
import pandas as pd
import torch
import transformers
from datasets.data_files import get_data_patterns, sanitize_patterns
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from ..engine.checks import longest_text
from ..storage.loading import TOKENIZERS, quiet_library
from ..tokenizing import load_published
from . import hub_cache
from .hub_cache import NO_ANSWER, AssetError, DamagedError, flaw_of, reason, refusal

TIMEOUT = 8.0  # seconds that a question to the hub may take; all assets are asked for at the same time


NO_CLASS = -100  # the label of a text that no class of the model fits: scored, never evaluated


CHECKED = "GNORM_CHECKED_COMMITS"  # set for notebooks: the commits whose files were compared with their hashes before


# What a checkpoint is read from, all at the root of its repository; of the weights the first kind that is there: the
# file that has to be there, and the shards that an index names.
WEIGHTS = (("model.safetensors",), ("model.safetensors.index.json", "model-*.safetensors"))


PICKLED = (("pytorch_model.bin",), ("pytorch_model.bin.index.json", "pytorch_model-*.bin"))


SMALL_FILES = ("*.json", "*.txt", "*.model")


DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt", ".gz", ".zip", ".zst", ".bz2", ".xz")


SHARD = re.compile(r"(?P<before>.+)-\d+-of-(?P<count>\d+)(?P<after>\..+)")  # of a split, counted from 0


ABOUT_DATA = ("README.md", ".huggingface.yaml", "dataset_infos.json")


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
        if "config.json" not in root:
            raise AssetError("has no config.json")
        if not (vocabulary := _matching(root, TOKENIZERS)):
            raise AssetError(f"has no tokenizer (one of {', '.join(TOKENIZERS)})")
        if vocabulary == ["vocab.json"] and "merges.txt" not in root:
            raise AssetError("has no merges.txt, without which vocab.json is no tokenizer")
        weights = next((_matching(root, kind) for kind in WEIGHTS + PICKLED if kind[0] in root), None)
        if weights is None:
            raise AssetError(f"has no weights ({WEIGHTS[0][0]} or {PICKLED[0][0]}) and no index of shards")
        small = [name for name in _matching(root, SMALL_FILES) if not name.endswith(".index.json")]
        return sorted({*small, *weights})

    def named(self, wanted: Sequence[str], folder: Path) -> list[str]:
        """The files that the index of the weights names."""
        for name in wanted:
            if name.endswith(".index.json"):
                with contextlib.suppress(*NO_ANSWER):  # an index that cannot be read is found by `check`
                    return sorted(set(json.loads((folder / name).read_bytes())["weight_map"].values()))
        return []


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
        files = {} if self.folder else self.data_files(card)
        for split, paths in files.items():
            if lacking := [path for path in paths if not _matching(names, [path])]:
                raise AssetError(f"lacks {lacking[0]}, which its card names for the split {split!r}")
        patterns = (
            [f"{self.folder}/*"] if self.folder else [path for paths in files.values() for path in paths] or ["*"]
        )
        data = [name for name in _matching(names, patterns) if name not in ABOUT_DATA and name.endswith(DATA_SUFFIXES)]
        if not data:
            where = f" in {self.folder}" if self.folder else f" for {self.config}" if self.config else ""
            raise AssetError(f"has no data files{where}")
        return sorted({*_matching(names, ABOUT_DATA), *data})

    def named(self, wanted: Sequence[str], folder: Path) -> list[str]:
        """The shards of each split, told by how many there are in all."""
        shards = [shard for name in wanted if (shard := SHARD.fullmatch(name))]
        return [
            f"{shard['before']}-{i:0{len(shard['count'])}}-of-{shard['count']}{shard['after']}"
            for shard in shards
            for i in range(int(shard["count"]))
        ]

    def data_files(self, card: Path | None) -> dict[str, list[str]]:
        """By split, the patterns that the card gives for the configuration; empty where it gives none.

        Raises ``AssetError`` where the card cannot be read or does not know the configuration.
        """
        configs = _card(card)
        if self.config and self.config not in configs:
            there = f"names {', '.join(configs)} alone" if configs else "names none" if card else "is not there"
            raise AssetError(f"has no configuration {self.config!r}: its card (README.md) {there}")
        patterns = configs.get(self.config or configs.get_default_config_name() or "", {}).get("data_files")
        return {split: list(paths) for split, paths in sanitize_patterns(patterns).items()} if patterns else {}

    def features(self, folder: Path) -> datasets.Features | None:
        """The types that the card, or an older repository's dataset_infos.json, gives for the columns."""
        infos = DatasetInfosDict.from_directory(str(folder))
        name = self.config or (next(iter(infos)) if len(infos) == 1 else "default")
        return infos[name].features if name in infos else None


def _card(path: Path | None) -> MetadataConfigs:
    """The configurations of a data set's card; raises ``AssetError``."""
    if path is None:
        return MetadataConfigs()
    try:
        about = DatasetCard.load(path).data
        configs = MetadataConfigs.from_dataset_card_data(about)
        configs.get_default_config_name()
        DatasetInfosDict.from_dataset_card_data(about)
    except Exception as error:  # of YAML, of types, of missing keys
        raise AssetError(f"has a card (README.md) whose header cannot be read ({reason(error)})") from error
    return configs


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


def look_up(assets: Sequence[Asset]) -> list[Found]:
    """Where each asset is. All are asked for at once; an unreachable hub costs ``TIMEOUT`` seconds, not more."""
    with ThreadPoolExecutor(max(1, len(assets))) as pool:
        return list(pool.map(_look_up, assets))


def _look_up(asset: Asset) -> Found:
    why = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            return _on_hub(asset)
        except DamagedError as error:
            return Found(asset, "missing", why=str(error))
        except AssetError as error:
            why = f"the repository {error}"
        except NO_ANSWER as error:
            why = refusal(error)
    found = in_cache(asset)
    return found if found.status == "cached" else Found(asset, "missing", why=f"{why}; {found.why}")


def _on_hub(asset: Asset) -> Found:
    """The newest commit of the asset's revision, and its files' sizes; nothing is retried."""
    api = HfApi()
    info: Any = api.repo_info(asset.repo, timeout=TIMEOUT, repo_type=asset.kind, revision=_revision(asset))
    if not info.sha:
        raise LookupError("a commit")
    commit = str(info.sha)
    if info.siblings:
        names = [file.rfilename for file in info.siblings]
    else:
        tree = api.list_repo_tree(asset.repo, recursive=True, repo_type=asset.kind, revision=commit)
        names = [entry.path for entry in tree if isinstance(entry, huggingface_hub.hf_api.RepoFile)]
    card = _small_file(asset, "README.md", commit) if isinstance(asset, DataSet) and "README.md" in names else None
    found = Found(asset, "cached", commit, dict.fromkeys(asset.wanted(names, card)))
    sizes = {name: _size(found.path / name) for name in found.files}
    absent = [name for name, size in sizes.items() if size is None]
    with ThreadPoolExecutor(8) as pool:
        sizes |= zip(absent, pool.map(partial(_head, asset), absent))
    return Found(asset, "reachable" if absent else "cached", commit, sizes)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _head(asset: Asset, name: str, revision: str = "") -> int | None:
    url = hf_hub_url(asset.repo, name, repo_type=asset.kind, revision=revision or _revision(asset))
    return get_hf_file_metadata(url, timeout=TIMEOUT, token=None).size


def _small_file(asset: Asset, name: str, commit: str) -> Path:
    """A file of the repository, brought into the cache; asked for once before, because a download retries for long."""
    _head(asset, name)
    path = Path(hf_hub_download(asset.repo, name, repo_type=asset.kind, revision=_revision(asset)))
    check(Found(asset, "cached", commit, {name: None}))
    return path


def in_cache(asset: Asset) -> Found:
    """The asset as the cache has it: at the commit its revision had when it was last fetched."""
    storage = _storage(asset)
    try:
        if not storage.is_dir():
            return Found(asset, "missing", why=hub_cache.why_absent(storage))
        folder = storage / "snapshots" / hub_cache.commit_of(storage, asset.revision)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        card = folder / "README.md" if (folder / "README.md").is_file() else None
        if card:
            check(Found(asset, "cached", folder.name, {"README.md": None}))
        wanted = asset.wanted(names, card)
        for name in dict.fromkeys([*wanted, *asset.named(wanted, folder)]):
            hub_cache.expect(folder, name)
    except DamagedError as error:
        return Found(asset, "missing", why=str(error))
    except AssetError as error:
        return Found(asset, "missing", why=f"what is in {constants.HF_HUB_CACHE} {error}")
    except (OSError, ValueError) as error:
        return Found(asset, "missing", why=f"{storage} cannot be read: {reason(error)}")
    return Found(asset, "cached", folder.name, {name: _size(folder / name) for name in wanted})


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
    not arrive whole is not kept. Before anything is read, every file is compared with the hash that names it.
    """
    asset = found.asset
    if found.status == "missing":
        raise AssetError(f"{found.name} is missing: {found.why.rstrip('.')}.")
    for name in () if found.status == "cached" and _known(found) else found.files:
        try:
            path = hf_hub_download(asset.repo, name, repo_type=asset.kind, revision=_revision(asset), tqdm_class=_Bar)
        except NO_ANSWER as error:
            raise AssetError(f"{name} of {found.name} could not be fetched: {refusal(error)}.") from None
        if not Path(path).is_relative_to(found.path):
            raise AssetError(f"{found.name} changed on the hub while it was fetched: run the same command again.")
    found = in_cache(asset)
    if found.status == "missing":
        raise AssetError(f"{found.name} is missing: {found.why.rstrip('.')}.")
    if not _checked(found):
        check(found)
    return found


def _checked(found: Found) -> bool:
    """Whether the process that started this one compared the files with their hashes."""
    return found.commit in os.environ.get(CHECKED, "").split(",")


def _known(found: Found) -> bool:
    """Whether the cache alone would find the same commit, as kernels without network must."""
    again = in_cache(found.asset)
    return again.status == "cached" and again.commit == found.commit


def find(asset: Asset) -> Found:
    """The asset, in the cache after this; raises ``AssetError`` as ``fetch`` does."""
    return fetch(look_up([asset])[0])


@contextlib.contextmanager
def _reading(found: Found, what: str) -> Iterator[None]:
    """Turns what a library raises into an ``AssetError``: of a damaged file, if there is one, else of ``what``."""
    try:
        yield
    except AssetError:
        raise
    except Exception as error:
        check(found)
        if isinstance(error, UnpicklingError) or "weights_only" in str(error):
            raise AssetError(
                f"{what} of {found.name} at {found.commit[:12]} are a pickle that holds more than tensors, which torch's "
                "weights-only loader does not read: take a revision with model.safetensors, or convert the file where you "
                "trust it."
            ) from error
        raise AssetError(f"{what} of {found.name} at {found.commit[:12]} cannot be read: {reason(error)}.") from error


def check(found: Found) -> None:
    """Compare the files of ``found`` with the hashes that name them, and look whether they are whole.

    A file that was damaged is taken out of the cache if the hub can bring it again, and stays if not. Raises
    ``DamagedError`` in both cases, and where a file is as it was published and cannot be read.
    """
    damaged = {}
    for name in found.files:
        try:
            flaw, published = flaw_of(found.path / name)
        except OSError as error:
            raise AssetError(f"{name} of {found.name} cannot be read: {reason(error)}.") from None
        if flaw and published:
            raise DamagedError(
                f"{name} of {found.name} at {found.commit[:12]} cannot be read: {flaw}, and was published so: name "
                "another revision in the profile."
            )
        if flaw:
            damaged[name] = flaw
    if damaged:
        what = f"{', '.join(damaged)} of {found.name} at {found.commit[:12]} is damaged"
        why = next(iter(damaged.values()))
        if obstacle := _taken_out(found, list(damaged)):
            raise DamagedError(f"{what} ({why}) and stays in the cache: {obstacle}.")
        raise DamagedError(
            f"{what} and was taken out of the cache: run the same command again to fetch it anew ({why})."
        )


def _taken_out(found: Found, names: list[str]) -> str:
    """Take files out of the cache; where the hub does not have them, or they cannot be deleted, the reason."""
    path = found.path / names[0]
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, so it cannot be fetched again; unset it, or put a whole file at {path}"
    try:
        for name in names:
            _head(found.asset, name, found.commit)
    except NO_ANSWER as error:
        return f"it cannot be fetched again, {refusal(error)}; run again when it can, or put a whole file at {path}"
    try:
        for name in names:
            path = found.path / name
            if _storage(found.asset).resolve() in path.resolve().parents:
                path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"{error.strerror}; delete {path} where that is allowed, and run the same command again"
    return ""


def load_config(found: Found) -> Any:
    """The configuration of a checkpoint, which may not have been fetched yet; ``AssetError`` where it does not fit."""
    asset = found.asset
    assert isinstance(asset, Checkpoint)
    name = f"config.json of {found.name}"
    if found.status == "reachable":
        try:
            _small_file(asset, "config.json", found.commit)
        except DamagedError:
            raise
        except NO_ANSWER as error:
            raise AssetError(f"{name} could not be fetched: {refusal(error)}.") from None
    try:
        if not _checked(found):
            check(Found(asset, "cached", found.commit, {"config.json": None}))
        about = json.loads((found.path / "config.json").read_text("utf-8-sig"))
        kind = about.get("model_type") if isinstance(about, dict) else None
        if kind not in CONFIG_MAPPING:
            raise AssetError(
                f"{name} has the model_type {kind!r}, which transformers {transformers.__version__} does not know; code of "
                "the repository is not run."
            )
        _check_classes(name, about)
        config = CONFIG_MAPPING[kind].from_pretrained(found.path)
        if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise AssetError(f"{name} has the model_type {kind!r}, of which transformers has no sequence classifier.")
        if config.num_labels != asset.classes:
            raise AssetError(f"{found.name} has {config.num_labels} classes, {asset.classes} are expected.")
        with torch.device("meta"):
            AutoModelForSequenceClassification.from_config(config)
    except AssetError:
        raise
    except Exception as error:  # of types, of values, of what a model makes of them
        raise AssetError(f"{name} describes no model: {reason(error)}.") from error
    return config


def _check_classes(name: str, about: dict[str, Any]) -> None:
    """Raise ``AssetError`` where id2label does not number distinct names from 0, or label2id contradicts it."""
    classes = about.get("id2label")
    if classes is None:
        return
    names = list(classes.values()) if isinstance(classes, dict) else []
    if not names or sorted(map(str, classes)) != sorted(map(str, range(len(names)))):
        raise AssetError(f"{name} does not number its classes from 0 in id2label ({classes}): mend it there.")
    if odd := [each for each in names if not isinstance(each, str) or names.count(each) > 1]:
        raise AssetError(f"{name} names the class {odd[0]!r} in id2label, which is no name, or there twice: mend it.")
    numbers = about.get("label2id")
    if isinstance(numbers, dict) and set(numbers) == set(names):
        for i, each in classes.items():
            if str(numbers[each]) != str(i):
                raise AssetError(f"{name} calls {each!r} {i} in id2label and {numbers[each]} in label2id: mend one.")


def load_checkpoint(found: Found) -> tuple[Any, Any]:
    """The model, in fp32, and its tokenizer.

    Raises ``AssetError`` where a file cannot be read, a weight is missing, left over, not finite or of the wrong shape
    (nothing is left at random), the tokenizer has no vocabulary, or the number of classes is not the profile's.
    """
    config = load_config(found)
    where = f"{found.name} at {found.commit[:12]}"
    with _reading(found, "the weights"), quiet_library():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            found.path, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    # What a classifier does not use, such as a pooler, is left over; layers that config.json does not count are not.
    report["unexpected_keys"] = [name for name in report["unexpected_keys"] if re.search(r"\.layers?\.\d+\.", name)]
    problems = {
        "missing_keys": "lack",
        "mismatched_keys": "do not fit config.json in",
        "unexpected_keys": "go beyond config.json in",
    }
    for problem, what in problems.items():
        if names := sorted(name[0] if isinstance(name, tuple) else str(name) for name in report[problem]):
            raise AssetError(
                f"the weights of {where} {what} {', '.join(names[:3])}: weights and config.json are of different models."
            )
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise AssetError(
                f"the weights of {where} hold a number that is not finite in {name}: take another revision."
            )
    files = ", ".join(_matching(found.files, (*TOKENIZERS, "merges.txt", "tokenizer_config.json")))
    with _reading(found, f"the tokenizer ({files})"), quiet_library():
        about = found.path / "tokenizer_config.json"
        if about.is_file() and "AutoTokenizer" in json.loads(about.read_bytes()).get("auto_map", ()):
            raise AssetError(f"the tokenizer of {where} is code of the repository, which is not run.")
        tokenizer = load_published(found.path)
        tokenizer("a \N{SNOWMAN}")  # to see whether it can do a word that it does not know
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise AssetError(
            f"the tokenizer of {where} has no vocabulary: its files are not those that {type(tokenizer).__name__} reads."
        )
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
    with _reading(found, "the layout"):
        files = {} if asset.folder else asset.data_files(card)
        files = files or get_data_patterns(str(found.path / asset.folder))
    chosen = list(splits if splits is not None else files)
    if lacking := [split for split in chosen if split not in files]:
        raise AssetError(f"{found.name} has no split {lacking[0]!r}; it has {', '.join(map(str, files))}.")
    loaded = {}
    for split in chosen:
        # Each by itself, since another's columns or types would be forced upon it; in memory, so that nothing but a
        # temporary folder has to be writable.
        with _reading(found, f"the split {split}"), quiet_library(), tempfile.TemporaryDirectory() as folder:
            rows = datasets.load_dataset(
                str(found.path), data_dir=asset.folder or None, data_files={split: files[split]}, split=split,
                features=asset.features(found.path), verification_mode="no_checks", cache_dir=folder, keep_in_memory=True,
            )  # fmt: skip
        columns = rows.column_names
        if absent := [name for name in (*asset.text, asset.label) if name not in columns]:
            apart = next((mark for mark in ";\t|" if len(columns) == 1 and mark in columns[0]), "")
            hint = f": its columns are set apart by {apart!r}, not by commas" if apart else ""
            raise AssetError(f"{split} of {found.name} has no column {absent[0]!r}; it has {', '.join(columns)}{hint}.")
        loaded[split] = rows
    return datasets.DatasetDict(loaded)


def described(asset: DataSet) -> str:
    """A data set that is only looked at, in words: texts and labels of each split, the first rows; or why there is none."""
    try:
        loaded = load_splits(find(asset))
    except AssetError as error:
        return f"{asset.repo} is only looked at, and not here: {error}"
    lines = []
    for split, rows in loaded.items():
        labels = pd.Series(rows[asset.label]).value_counts().sort_index().to_dict()
        lines += [f"{asset.repo} ({asset.folder}), {split}: {len(rows)} texts, labels {labels}"]
        lines += [pd.DataFrame(rows[:3]).to_string(max_colwidth=60)]
    return "\n".join(lines)


def labelled(rows: datasets.Dataset, asset: DataSet, config: Any, split: str = "") -> datasets.Dataset:
    """The columns text, text_pair (of pairs) and label: the class by the checkpoint's own numbering, or ``NO_CLASS``.

    A label finds its class by name (the profile's, else its own) in ``config.id2label``, upper and lower case alike.
    Numbers without names, and checkpoints that only number their classes (LABEL_0), are taken as they are.

    Raises ``AssetError`` for a label that is missing or no class of the checkpoint, or where a text is empty or not
    text; it names the row, counted from 0, of ``split``.
    """
    of = f"of {asset.repo}{f', split {split},' if split else ''}"
    columns: dict[str, list[Any]] = {}
    for target, name in zip(("text", "text_pair"), asset.text, strict=False):
        columns[target] = list(rows[name])
        odd = [i for i, text in enumerate(columns[target]) if not isinstance(text, str) or not text.strip()]
        if odd:
            value = columns[target][odd[0]]
            what = f": it holds {value!r}" if value is not None else ": it is empty, or reads as missing (NA, null)"
            raise AssetError(f"row {odd[0]} {of} has no text in column {name!r}{what}.")
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in rows[asset.label]]
    empty = [
        i
        for i, v in enumerate(values)
        if v is None or (isinstance(v, float) and math.isnan(v)) or (isinstance(v, str) and not v.strip())
    ]
    if empty:
        cut = "; the file may end too early" if empty[0] == len(values) - 1 else ""
        raise AssetError(
            f"row {empty[0]} {of} has no label in column {asset.label!r} ({len(empty)} of {len(values)} rows have none{cut}): "
            "fill it in or take the row out."
        )
    number = _numbering(rows.features[asset.label], asset, config)
    known = {value: number(value) for value in dict.fromkeys(values)}
    if unknown := [value for value, label in known.items() if label is None]:
        classes = ", ".join(str(config.id2label[i]) for i in range(config.num_labels))
        raise AssetError(
            f"row {values.index(unknown[0])} {of} has the label {unknown[0]!r} in column {asset.label!r}, the checkpoint's "
            f"classes are {classes}: say what it stands for in the profile's `labels`."
        )
    if set(known.values()) == {NO_CLASS}:
        raise AssetError(f"no row {of} has a label that stands for a class: mend the profile's `labels`.")
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
