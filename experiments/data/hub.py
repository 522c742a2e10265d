"""The hub: the checkpoints and data sets that a profile names, and how they come into the cache of huggingface_hub.

``look_up`` says where an asset is and downloads nothing; ``fetch`` brings it into the cache (HF_HOME) at one recorded
commit and compares every file with its published hash. Nothing here runs code from a repository, and nothing is
replaced by another asset or revision.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from json import JSONDecodeError
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub._tree_cache import read_tree_cache
from huggingface_hub.errors import HTTPError, IncompleteSnapshotError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from tqdm import tqdm

from gnorm.storage.errors import in_short
from gnorm.storage.loading import TOKENIZERS

TIMEOUT = 8.0  # seconds that a question to the hub may take; all assets are asked for at the same time
CHECKED = "GNORM_CHECKED_COMMITS"  # set for notebooks: the commits whose files were compared with their hashes before

# Weights come in kinds, and the first that the repository has is read: the file that has to be in it, then the shards
# that this file, an index, names.
WEIGHTS = (("model.safetensors",), ("model.safetensors.index.json", "*.safetensors"))
PICKLED = (("pytorch_model.bin",), ("pytorch_model.bin.index.json", "pytorch_model-*.bin"))
SMALL_FILES = ("*.json", "*.txt", "*.model")
ABOUT_DATA = ("README.md", ".huggingface.yaml", "dataset_infos.json")
DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt", ".gz", ".zip", ".zst", ".bz2", ".xz")
SHARD = re.compile(r"(.+)-\d+-of-(\d+)(\..+)")


class AssetError(RuntimeError):
    """An asset is missing, damaged, cannot be read, or is not what the profile says; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """A sequence classifier on the hub. Its files lie at the root of the repository.

    revision: a branch, tag or commit; "" takes main. The commit that it stands for is recorded.
    """

    kind: ClassVar[str] = "model"
    patterns: ClassVar[Sequence[str]] = (*SMALL_FILES, *(name for kind in WEIGHTS + PICKLED for name in kind))
    elsewhere: ClassVar[str | None] = "*/*"  # is not read
    repo: str
    classes: int
    revision: str = ""

    def wanted(self, names: Sequence[str]) -> list[str]:
        """The files to read; raises ``AssetError`` where one is lacking without which this is not a checkpoint."""
        weights = next((matching(names, kind) for kind in WEIGHTS + PICKLED if kind[0] in names), [])
        vocabulary = matching(names, TOKENIZERS)
        for what, there in {
            "config.json": "config.json" in names,
            f"tokenizer (one of {', '.join(TOKENIZERS)})": vocabulary,
            "merges.txt, without which vocab.json is not a tokenizer": vocabulary != ["vocab.json"]
            or "merges.txt" in names,
            f"weights ({WEIGHTS[0][0]} or {PICKLED[0][0]}) and no index of shards": weights,
        }.items():
            if not there:
                raise AssetError(f"has no {what}")
        return sorted({*matching(names, SMALL_FILES), *weights})


@dataclass(frozen=True)
class DataSet:
    """Texts with labels.

    text: the columns that make a text, one or a pair. labels: the class of each label, by the name that the checkpoint
    gives it ("" for none), in the order of its classes; empty where data set and checkpoint agree by themselves.
    files: a pattern of files for each split; empty where `datasets` finds the splits by itself, by the repository's
    card or its file names. rows: by split, as published; another number is said, not refused.
    """

    kind: ClassVar[str] = "dataset"
    elsewhere: ClassVar[str | None] = None
    repo: str
    text: list[str]
    label: str
    files: dict[str, str] = field(default_factory=dict)
    revision: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def patterns(self) -> Sequence[str]:
        return [*ABOUT_DATA, *(self.files.values() or [f"*{suffix}" for suffix in DATA_SUFFIXES])]

    def wanted(self, names: Sequence[str]) -> list[str]:
        """The files to read; raises ``AssetError`` where there are none of a split, or of any."""
        data = [name for name in names if name not in ABOUT_DATA]
        if lacking := [pattern for pattern in self.files.values() or ["*"] if not matching(data, [pattern])]:
            raise AssetError(f"has no data files {lacking[0]}" if self.files else "has no data files")
        return sorted(names)


Asset = Checkpoint | DataSet


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match one of the patterns; ``*`` stands for any characters, slashes too."""
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


@dataclass(frozen=True)
class AssetState:
    """The state of an asset: "cached" at ``commit``, "reachable" on the hub, or "missing" and why.

    files: every file that is read, with its size in bytes.
    """

    asset: Asset
    status: str
    commit: str = ""
    files: dict[str, int] = field(default_factory=dict)
    why: str = ""

    @property
    def name(self) -> str:
        return self.asset.repo

    @property
    def path(self) -> Path:
        """The snapshot in the cache."""
        return _storage(self.asset) / "snapshots" / self.commit

    def record(self) -> dict[str, Any]:
        """The record of the asset in results."""
        revision = self.asset.revision or constants.DEFAULT_REVISION
        about: dict[str, Any] = {"repo": self.asset.repo, "commit": self.commit, "revision": revision}
        if isinstance(self.asset, Checkpoint):  # a pickle's loader runs nothing
            pickled = matching(self.files, [pattern for kind in PICKLED for pattern in kind])
            about["weights"] = "pickle, read by torch's weights-only loader" if pickled else "safetensors"
        return about


def _storage(asset: Asset) -> Path:
    """The asset's folder in the cache: blobs, refs, snapshots, trees."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=asset.repo, repo_type=asset.kind)


def _patterns(asset: Asset) -> dict[str, Any]:
    return {"allow_patterns": list(asset.patterns), "ignore_patterns": asset.elsewhere}


def _snapshot(asset: Asset, **options: Any) -> Any:
    """``snapshot_download`` of an asset: the folder of its snapshot or, of a dry run, what would be downloaded."""
    of: dict[str, Any] = {"repo_type": asset.kind, "revision": asset.revision or None, "etag_timeout": TIMEOUT}
    return snapshot_download(asset.repo, **of | _patterns(asset) | options)


class _Quiet(tqdm):
    """No progress bar."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"disable": True})


def look_up(assets: Sequence[Asset]) -> list[AssetState]:
    """Where each asset is. All are asked for at once; an unreachable hub costs ``TIMEOUT`` seconds, not more."""
    with ThreadPoolExecutor(max(1, len(assets))) as pool:
        return list(pool.map(_look_up, assets))


def _look_up(asset: Asset) -> AssetState:
    """Look an asset up on the hub, else in the cache."""
    why = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            return _on_hub(asset)
        except AssetError as error:
            why = f"the repository {error}"
        except Exception as error:  # noqa: BLE001 of the network, of what is not a hub
            why = reason(error)
    state = in_cache(asset)
    return state if state.status == "cached" else AssetState(asset, "missing", why=f"{why}; {state.why}")


def _on_hub(asset: Asset) -> AssetState:
    """The newest commit of the asset's revision and its files. The cache's refs stay: a dry run by name moves them."""
    about = HfApi().repo_info(asset.repo, repo_type=asset.kind, revision=asset.revision or None, timeout=TIMEOUT)
    found = _snapshot(asset, revision=_commit(about.sha), dry_run=True, tqdm_class=_Quiet)
    files = {file.filename: file for file in found}
    wanted = asset.wanted(list(files))
    status = "reachable" if any(files[name].will_download for name in wanted) else "cached"
    return AssetState(asset, status, str(about.sha), {name: files[name].file_size for name in wanted})


def _commit(name: Any) -> str:
    if not re.fullmatch("[0-9a-f]{40}", str(name)):
        raise LookupError(f"{name!r} is not a commit")
    return str(name)


def in_cache(asset: Asset) -> AssetState:
    """The asset as the cache has it: at the commit its revision had when it was last fetched."""
    storage = _storage(asset)
    try:
        snapshots = [path.name for path in storage.glob("snapshots/*")]
        # Libraries that fetch by commit leave no ref.
        alone = len(snapshots) == 1 and not asset.revision and not any(storage.glob("refs/*"))
        options: dict[str, Any] = {"revision": snapshots[0]} if alone else {}
        if isinstance(asset, Checkpoint):  # of its weights one kind alone was fetched
            options["allow_patterns"] = SMALL_FILES
        folder = Path(_snapshot(asset, local_files_only=True, **options))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        wanted = asset.wanted(list(filter_repo_objects(names, **_patterns(asset))))
        if lacking := [name for name in wanted if not (folder / name).is_file()] + _lacking_shards(wanted):
            raise AssetError(f"lacks {lacking[0]}")
        sizes = {name: (folder / name).stat().st_size for name in wanted}
        return AssetState(asset, "cached", _commit(folder.name), sizes)
    except AssetError as error:
        why = f"what is in {storage} {error}"
    except IncompleteSnapshotError as error:
        why = in_short(error)
    except LocalEntryNotFoundError:
        why = f"not in {storage.parent} at the revision {asset.revision or constants.DEFAULT_REVISION}"
    except (OSError, ValueError, LookupError) as error:
        why = f"{storage} cannot be read ({in_short(error)})"
    return AssetState(asset, "missing", why=why)


def _lacking_shards(names: Iterable[str]) -> list[str]:
    """The sets of shards, told by how many there are in all, of which one is not among the names."""
    shards = Counter(match.groups() for name in names if (match := SHARD.fullmatch(name)))
    return [f"one of {start}-*-of-{total}{end}" for (start, total, end), n in shards.items() if n < int(total)]


def fetch(state: AssetState) -> AssetState:
    """Bring an asset into the cache, and return its state: cached. Files that the cache has already stay.

    Raises ``AssetError`` where the asset is missing or damaged, a download fails, or the hub changed meanwhile. A file
    that did not arrive whole is not kept.
    """
    cached = in_cache(state.asset)
    if state.status != "missing" and (cached.status, cached.commit) != ("cached", state.commit):
        try:
            folder = _snapshot(state.asset, allow_patterns=[glob.escape(name) for name in state.files])
        except Exception as error:  # of the network, of the disk, of what is not a hub
            raise AssetError(f"{state.name} could not be fetched: {reason(error)}.") from error
        if Path(folder).name != state.commit:
            raise AssetError(f"{state.name} changed on the hub while it was fetched: run the same command again.")
        cached = in_cache(state.asset)
    if "missing" in (state.status, cached.status):
        raise AssetError(f"{state.name} is missing: {(state.why or cached.why).rstrip('.')}.")
    if not was_checked(cached):
        check(cached)
    return cached


def find(asset: Asset) -> AssetState:
    """The asset, in the cache after this; raises ``AssetError`` as ``fetch`` does."""
    return fetch(look_up([asset])[0])


def was_checked(state: AssetState) -> bool:
    """True if the process that started this one compared the files with their hashes."""
    return state.commit in os.environ.get(CHECKED, "").split(",")


def check(state: AssetState) -> None:
    """Compare the files of an asset with the hashes that the hub published: SHA-256, or git's SHA-1 of a small file.

    The hash is in the list of files that came with the commit; without a list it is the name of the file that a link
    in the cache leads to. Raises ``AssetError`` for a file that has another content, or whose hash is nowhere.
    """
    published = read_tree_cache(str(_storage(state.asset)), state.commit) or {}
    for name in state.files:
        path, listed = (state.path / name).resolve(), published.get(name)
        expected = (listed.lfs_sha256 or listed.blob_id) if listed else path.name
        where = f"{name} of {state.name} at {state.commit[:12]}"
        again = f"delete {path}, and run the same command where the hub can be reached"
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", expected):
            raise AssetError(f"{where} cannot be checked, since nothing in the cache tells its hash: {again}.")
        try:
            about = path.stat()
            found = _hash(path, len(expected), about.st_size, about.st_mtime_ns)
        except OSError as error:
            raise AssetError(f"{where} cannot be read: {reason(error)}.") from error
        if found != expected:
            raise AssetError(f"{where} is damaged, its content is not what was published: {again}.")


@cache
def _hash(path: Path, digits: int, size: int, changed: int) -> str:
    """SHA-256 or, in 40 digits, git's SHA-1. A file is read once in a process, as long as it does not change."""
    with path.open("rb") as file:
        return sha_fileobj(file).hex() if digits == 64 else git_hash(file.read())


def root_of(error: BaseException) -> BaseException:
    """The error that all began with. Of the answers of a hub the hub's own error, which says more."""
    while not isinstance(error, HTTPError) and (error.__cause__ or not error.__suppress_context__):
        if not (below := error.__cause__ or error.__context__):
            break
        error = below
    return error


def reason(error: BaseException) -> str:
    """Why the hub or the disk did not give something, in a few words."""
    error = root_of(error)
    if code := getattr(getattr(error, "response", None), "status_code", 0):
        says = {401: "it may be private or gone", 404: "not found", 429: "too many requests, try again later"}
        what = says.get(code) or ("the hub failed, try again later" if code >= 500 else "refused")
        return f"{constants.ENDPOINT} answered {code} ({what})"
    if isinstance(error, HTTPError | ConnectionError):
        return f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    if isinstance(error, JSONDecodeError | LookupError | TypeError | AttributeError | AssertionError):
        return f"{constants.ENDPOINT} does not answer as a hub does: HF_ENDPOINT, or a proxy, may lead elsewhere"
    return in_short(error)
