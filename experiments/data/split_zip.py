"""A checkpoint in a split zip: installed packages hold its pieces, which are joined and unpacked once."""

from __future__ import annotations

import errno
import importlib.metadata
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from gnorm.journal import digest
from gnorm.storage.errors import in_short

from ..files.cache import cached_folder
from .corpora import install, not_installed, package_path

# The files of a checkpoint's folder that are unpacked: configuration, weights, tokenizer.
NEEDED = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)

# What zipfile raises where a zip is damaged; of OSErrors only EINVAL, for an offset outside the file.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


@dataclass(frozen=True)
class SplitZip:
    """A zip in pieces that holds a checkpoint's folder.

    requirements: the file that names the packages, for pip. pieces: the pieces in order, each in an installed package,
    such as "some_package_part_001/input/model.zip.001".
    """

    requirements: str
    pieces: list[str]

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ValueError("pieces is empty; name the pieces of a zip")

    @property
    def packages(self) -> list[str]:
        """The package of each piece."""
        return [piece.partition("/")[0] for piece in self.pieces]

    def versions(self) -> dict[str, str]:
        """The version of each package; ``FileNotFoundError``, with the remedy, where one is not installed."""
        return {package: version_of(package, self.requirements) for package in self.packages}


def version_of(package: str, requirements: str) -> str:
    """The version of an installed package; ``FileNotFoundError`` where it is missing and ``requirements`` brings it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise not_installed(package, requirements) from None


def unpacked(split: SplitZip) -> Path:
    """The folder of the checkpoint in ``split``; the pieces are joined and unpacked now unless an earlier call did so.

    The folder lies in the cache folder. Its name holds a digest of the pieces and of their packages' versions, and it
    appears whole or not at all.

    Raises ``FileNotFoundError`` where a piece is missing, and ``OSError`` where the pieces are damaged or the folder
    cannot be written.
    """
    pieces = [package_path(piece, split.requirements) for piece in split.pieces]
    name = pieces[0].name.partition(".")[0]
    return cached_folder(
        f"{name}-{digest([split.pieces, split.versions()])}",
        lambda folder: _unpack(pieces, folder, split.requirements),
    )


def _unpack(pieces: Sequence[Path], folder: Path, requirements: str) -> None:
    """Join the pieces and unpack the checkpoint: the files that are ``NEEDED`` beside the outermost config.json."""
    try:
        with tempfile.TemporaryFile(dir=folder) as joined:
            for piece in pieces:
                joined.write(piece.read_bytes())
            with zipfile.ZipFile(joined) as archive:
                paths = {name: PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")}
                configs = [path for path in paths.values() if path.name == "config.json"]
                if not configs:
                    raise zipfile.BadZipFile("it holds no config.json")
                inside = min(configs, key=lambda path: len(path.parts)).parent
                for name, path in paths.items():
                    if path.parent == inside and any(fnmatch(path.name, pattern) for pattern in NEEDED):
                        # The checksum is compared. Of a name its end alone counts: nothing leaves the folder.
                        (folder / path.name).write_bytes(archive.read(name))
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # such as a full disk
        raise OSError(
            f"the zip that the pieces {pieces[0].name} to {pieces[-1].name} make is damaged ({in_short(error)}): "
            f"{install(requirements, again=True)}"
        ) from error
