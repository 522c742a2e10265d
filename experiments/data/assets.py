"""Assets: the checkpoints and data sets that a profile names, the files each needs, and whether they can be had."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
from datasets.data_files import sanitize_patterns
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, constants
from huggingface_hub.file_download import repo_folder_name

from gnorm.storage.loading import TOKENIZERS

from .hub_cache import NO_ANSWER, AssetError, reason

# The files of a checkpoint lie at the root of its repository. Weights come in kinds, and the first that the repository
# has is read: the file that has to be in it, then the shards that this file, an index, names.
WEIGHTS = (("model.safetensors",), ("model.safetensors.index.json", "model-*.safetensors"))
PICKLED = (("pytorch_model.bin",), ("pytorch_model.bin.index.json", "pytorch_model-*.bin"))
SMALL_FILES = ("*.json", "*.txt", "*.model")
DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt", ".gz", ".zip", ".zst", ".bz2", ".xz")
SHARD = re.compile(r"(?P<before>.+)-\d+-of-(?P<count>\d+)(?P<after>\..+)")  # of a split, counted from 0
ABOUT_DATA = ("README.md", ".huggingface.yaml", "dataset_infos.json")


@dataclass(frozen=True)
class Checkpoint:
    """A sequence classifier on the hub.

    revision: a branch, tag or commit; "" takes main. The commit that it stands for is recorded.
    """

    kind: ClassVar[str] = "model"
    repo: str
    classes: int
    revision: str = ""

    def wanted(self, names: Sequence[str], card: Path | None) -> list[str]:
        """The files to read; raises ``AssetError`` where the repository is not a checkpoint."""
        root = [name for name in names if "/" not in name]
        if "config.json" not in root:
            raise AssetError("has no config.json")
        if not (vocabulary := matching(root, TOKENIZERS)):
            raise AssetError(f"has no tokenizer (one of {', '.join(TOKENIZERS)})")
        if vocabulary == ["vocab.json"] and "merges.txt" not in root:
            raise AssetError("has no merges.txt, without which vocab.json is no tokenizer")
        weights = next((matching(root, kind) for kind in WEIGHTS + PICKLED if kind[0] in root), None)
        if weights is None:
            raise AssetError(f"has no weights ({WEIGHTS[0][0]} or {PICKLED[0][0]}) and no index of shards")
        small = [name for name in matching(root, SMALL_FILES) if not name.endswith(".index.json")]
        return sorted({*small, *weights})

    def named(self, wanted: Sequence[str], folder: Path) -> list[str]:
        """The files that the index of the weights names."""
        for name in wanted:
            if name.endswith(".index.json"):
                with contextlib.suppress(*NO_ANSWER):  # an index that cannot be read is refused by `hub.check`
                    return sorted(set(json.loads((folder / name).read_bytes())["weight_map"].values()))
        return []


@dataclass(frozen=True)
class DataSet:
    """Texts with labels.

    text: the columns that make a text, one or a pair. labels: the class of each label, by the name that the checkpoint
    gives it ("" for none), in the order of its classes; empty where data set and checkpoint agree by themselves.
    config: a configuration of its card. folder: the folder it lies in, where no card says so. rows: by split, as
    published; another number is said, not refused.
    """

    kind: ClassVar[str] = "dataset"
    repo: str
    text: list[str]
    label: str
    config: str = ""
    folder: str = ""
    revision: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def wanted(self, names: Sequence[str], card: Path | None) -> list[str]:
        """The files to read; raises ``AssetError`` where there are none."""
        files = {} if self.folder else self.data_files(card)
        for split, paths in files.items():
            if lacking := [path for path in paths if not matching(names, [path])]:
                raise AssetError(f"lacks {lacking[0]}, which its card names for the split {split!r}")
        patterns = (
            [f"{self.folder}/*"] if self.folder else [path for paths in files.values() for path in paths] or ["*"]
        )
        data = [name for name in matching(names, patterns) if name not in ABOUT_DATA and name.endswith(DATA_SUFFIXES)]
        if not data:
            where = f" in {self.folder}" if self.folder else f" for {self.config}" if self.config else ""
            raise AssetError(f"has no data files{where}")
        return sorted({*matching(names, ABOUT_DATA), *data})

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


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match one of the patterns; ``*`` stands for any characters, slashes too."""
    wildcards = [pattern.replace("**/", "*").removeprefix("./") for pattern in patterns]
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in wildcards)]


@dataclass(frozen=True)
class AssetState:
    """Whether an asset can be had: "cached" whole at ``commit``, "reachable" on the hub, or "missing" and why.

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
        return storage_of(self.asset) / "snapshots" / self.commit

    @property
    def pickled(self) -> bool:
        """Whether the weights are a pickle file: read by torch's weights-only loader, which runs nothing."""
        return bool(matching(self.files, [pattern for kind in PICKLED for pattern in kind]))

    def record(self) -> dict[str, Any]:
        """What results record of the asset."""
        kept: dict[str, Any] = {"repo": self.asset.repo, "commit": self.commit, "revision": revision_of(self.asset)}
        if isinstance(self.asset, Checkpoint):
            kept["weights"] = "pickle, read by torch's weights-only loader" if self.pickled else "safetensors"
        return kept


def revision_of(asset: Asset) -> str:
    return asset.revision or constants.DEFAULT_REVISION


def storage_of(asset: Asset) -> Path:
    """The asset's folder in the cache: blobs, refs, snapshots."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=asset.repo, repo_type=asset.kind)
