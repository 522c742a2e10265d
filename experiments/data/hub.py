"""The hub: where an asset is, and how it comes into the cache of huggingface_hub (HF_HOME), at one recorded commit.

``look_up`` says where an asset is and never downloads more than a few kilobytes; ``fetch`` brings it into the cache.
Nothing here runs code from a repository, and nothing is replaced by another asset or revision.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from tqdm import tqdm

from . import hub_cache
from .assets import Asset, AssetState, DataSet, revision_of, storage_of
from .hub_cache import NO_ANSWER, AssetError, DamagedError, flaw_of, reason, refusal

TIMEOUT = 8.0  # seconds that a question to the hub may take; all assets are asked for at the same time
CHECKED = "GNORM_CHECKED_COMMITS"  # set for notebooks: the commits whose files were compared with their hashes before


def look_up(assets: Sequence[Asset]) -> list[AssetState]:
    """Where each asset is. All are asked for at once; an unreachable hub costs ``TIMEOUT`` seconds, not more."""
    with ThreadPoolExecutor(max(1, len(assets))) as pool:
        return list(pool.map(_look_up, assets))


def _look_up(asset: Asset) -> AssetState:
    """What the hub says of an asset or, where it says nothing of use, what the cache has."""
    why = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            return _on_hub(asset)
        except DamagedError as error:
            return AssetState(asset, "missing", why=str(error))
        except AssetError as error:
            why = f"the repository {error}"
        except NO_ANSWER as error:
            why = refusal(error)
    state = in_cache(asset)
    return state if state.status == "cached" else AssetState(asset, "missing", why=f"{why}; {state.why}")


def _on_hub(asset: Asset) -> AssetState:
    """The newest commit of the asset's revision, and its files' sizes; nothing is retried."""
    api, revision = HfApi(), revision_of(asset)
    info: Any = api.repo_info(asset.repo, timeout=TIMEOUT, repo_type=asset.kind, revision=revision, files_metadata=True)
    if not info.sha:
        raise LookupError("a commit")
    commit = str(info.sha)
    sizes: dict[str, int | None] = {file.rfilename: file.size for file in info.siblings or ()}
    if not sizes:
        tree = api.list_repo_tree(asset.repo, recursive=True, repo_type=asset.kind, revision=commit)
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    card = small_file(asset, "README.md", commit) if isinstance(asset, DataSet) and "README.md" in sizes else None
    state = AssetState(asset, "cached", commit, {name: sizes[name] for name in asset.wanted(list(sizes), card)})
    absent = [name for name in state.files if not (state.path / name).is_file()]
    if not absent:
        return state
    _ask_for(asset, max(absent, key=lambda name: sizes[name] or 0))  # a hub may list files that it does not give
    return dataclasses.replace(state, status="reachable")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _ask_for(asset: Asset, name: str, revision: str = "") -> None:
    """Ask the hub whether it gives a file, once, and without downloading it; raises one of ``NO_ANSWER`` if not."""
    url = hf_hub_url(asset.repo, name, repo_type=asset.kind, revision=revision or revision_of(asset))
    get_hf_file_metadata(url, timeout=TIMEOUT, token=None)


def small_file(asset: Asset, name: str, commit: str) -> Path:
    """A small file of the repository, now in the cache. The hub is asked before: a download would retry for long."""
    _ask_for(asset, name)
    path = Path(hf_hub_download(asset.repo, name, repo_type=asset.kind, revision=revision_of(asset)))
    check(AssetState(asset, "cached", commit, {name: None}))
    return path


def in_cache(asset: Asset) -> AssetState:
    """The asset as the cache has it: at the commit its revision had when it was last fetched."""
    storage = storage_of(asset)
    try:
        if not storage.is_dir():
            return AssetState(asset, "missing", why=hub_cache.why_absent(storage))
        folder = storage / "snapshots" / hub_cache.commit_of(storage, asset.revision)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        card = folder / "README.md" if (folder / "README.md").is_file() else None
        if card:
            check(AssetState(asset, "cached", folder.name, {"README.md": None}))
        wanted = asset.wanted(names, card)
        for name in dict.fromkeys([*wanted, *asset.named(wanted, folder)]):
            hub_cache.expect(folder, name)
    except DamagedError as error:
        return AssetState(asset, "missing", why=str(error))
    except AssetError as error:
        return AssetState(asset, "missing", why=f"what is in {constants.HF_HUB_CACHE} {error}")
    except (OSError, ValueError) as error:
        return AssetState(asset, "missing", why=f"{storage} cannot be read: {reason(error)}")
    return AssetState(asset, "cached", folder.name, {name: _size(folder / name) for name in wanted})


class _Bar(tqdm):
    """Progress of one download. Gives up where the connection is cut again and again, and the file begins anew."""

    received = 0

    def update(self, n: float | None = 1) -> bool | None:
        self.received += max(0, int(n or 0))
        if self.total and self.received > 3 * self.total:
            raise ConnectionError("the connection was cut again and again")
        return super().update(n)


def fetch(state: AssetState) -> AssetState:
    """Bring an asset into the cache, and return its state: cached. Files that the cache has already stay.

    Raises ``AssetError`` where the asset is missing, a download fails, or the hub changed meanwhile; a file that did
    not arrive whole is not kept. Before anything is read, every file is compared with the hash that names it.
    """
    asset = state.asset
    if state.status == "missing":
        raise AssetError(f"{state.name} is missing: {state.why.rstrip('.')}.")
    for name in () if state.status == "cached" and _known(state) else state.files:
        try:
            path = hf_hub_download(asset.repo, name, repo_type=asset.kind, revision=revision_of(asset), tqdm_class=_Bar)
        except NO_ANSWER as error:
            raise AssetError(f"{name} of {state.name} could not be fetched: {refusal(error)}.") from None
        if not Path(path).is_relative_to(state.path):
            raise AssetError(f"{state.name} changed on the hub while it was fetched: run the same command again.")
    state = in_cache(asset)
    if state.status == "missing":
        raise AssetError(f"{state.name} is missing: {state.why.rstrip('.')}.")
    if not was_checked(state):
        check(state)
    return state


def was_checked(state: AssetState) -> bool:
    """Whether the process that started this one compared the files with their hashes."""
    return state.commit in os.environ.get(CHECKED, "").split(",")


def _known(state: AssetState) -> bool:
    """Whether the cache alone gives the same commit, as it must for kernels without network."""
    again = in_cache(state.asset)
    return again.status == "cached" and again.commit == state.commit


def find(asset: Asset) -> AssetState:
    """The asset, in the cache after this; raises ``AssetError`` as ``fetch`` does."""
    return fetch(look_up([asset])[0])


def check(state: AssetState) -> None:
    """Compare the files of an asset with the hashes that name them, and check that they are whole.

    A damaged file is taken out of the cache if the hub can bring it again, and stays if not.

    Raises ``DamagedError`` in both cases, and where a file is as it was published and cannot be read.
    """
    damaged = {}
    for name in state.files:
        try:
            flaw, published = flaw_of(state.path / name)
        except OSError as error:
            raise AssetError(f"{name} of {state.name} cannot be read: {reason(error)}.") from None
        if flaw and published:
            raise DamagedError(
                f"{name} of {state.name} at {state.commit[:12]} cannot be read: {flaw}, and was published so: name "
                "another revision in the profile."
            )
        if flaw:
            damaged[name] = flaw
    if damaged:
        what = f"{', '.join(damaged)} of {state.name} at {state.commit[:12]} is damaged"
        why = next(iter(damaged.values()))
        if obstacle := _taken_out(state, list(damaged)):
            raise DamagedError(f"{what} ({why}) and stays in the cache: {obstacle}.")
        raise DamagedError(
            f"{what} and was taken out of the cache: run the same command again to fetch it anew ({why})."
        )


def _taken_out(state: AssetState, names: list[str]) -> str:
    """Take files out of the cache; returns "" or, where the hub does not have them or the disk refuses, the reason."""
    path = state.path / names[0]
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, so it cannot be fetched again; unset it, or put a whole file at {path}"
    try:
        for name in names:
            _ask_for(state.asset, name, state.commit)
    except NO_ANSWER as error:
        return f"it cannot be fetched again, {refusal(error)}; run again when it can, or put a whole file at {path}"
    try:
        for name in names:
            path = state.path / name
            if storage_of(state.asset).resolve() in path.resolve().parents:
                path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"{error.strerror}; delete {path} where that is allowed, and run the same command again"
    return ""
