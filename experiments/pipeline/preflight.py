"""Checks before a notebook runs: the profile, the assets, the time it takes, the accuracy of intact models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from huggingface_hub import constants

from .. import runs
from ..analysis.published import AS_PUBLISHED, against_published
from ..data import hub, reading, tasks
from ..data.hub import Asset, AssetError, AssetState
from ..data.profiles import Profile, read_profile
from ..files.errors import RunError, UsageError

REMEDY = "name in the profile the `revision` of checkpoint and data set that the published results were made with"


def check_device(device: str) -> None:
    """Raise ``UsageError`` where this machine has no such device."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device):
        raise UsageError(f"device {device} is not there; leave --device out to take what is.")


def choose_profile(asked: str, device: str) -> str:
    """The profile to run. For "auto" the first line printed says which and why; another name is taken as it is."""
    if asked != "auto":
        return asked
    if device == "cpu":
        print("profile local, chosen by auto: there is no accelerator, and without one the paper's models take days.")
        return "local"
    paper = read_profile("paper")
    missing = [each for each in hub.look_up(paper.assets(paper.usual_models)) if each.status == "missing"]
    if missing:
        print(
            f"profile local, chosen by auto: {len(missing)} of the paper's assets are neither cached nor reachable, "
            f"the first of them {missing[0].name} ({missing[0].why})."
        )
        return "local"
    print(f"profile paper, chosen by auto: its assets are cached or reachable, and {device} is there.")
    return "paper"


def bring_assets(profile: Profile, models: list[str], needed: Sequence[Asset], device: str) -> list[AssetState]:
    """Say which assets are cached, reachable or missing; fetch what is needed, and say how long the models will take.

    Returns every asset, cached. What is inspected stops nothing: it is returned as missing, and the reason is printed.

    Raises ``UsageError`` where another asset is missing, cannot be fetched, or is not what the profile says.
    """
    assets = hub.look_up(needed)
    if not assets:
        return []
    _print_assets(assets)
    _refuse_missing(profile, assets)
    try:
        assets = [_fetched_or_missing(each) if each.asset in profile.inspected else hub.fetch(each) for each in assets]
        _print_times(profile, models, assets, device)
        for model in models:
            if profile.models[model].checkpoint:
                _check_texts(profile, model)
    except (AssetError, ValueError) as error:
        raise UsageError(str(error)) from error
    return assets


def _print_assets(assets: Sequence[AssetState]) -> None:
    print(f"{'asset':76} {'state':9} {'commit':12} {'MB':>8}")
    for each in assets:
        size = f"{sum(each.files.values()) / 1e6:,.1f}" if each.files else ""
        print(f"{each.name:76} {each.status:9} {each.commit[:12]:12} {size:>8}")


def _refuse_missing(profile: Profile, assets: Sequence[AssetState]) -> None:
    missing = [each for each in assets if each.status == "missing"]
    if all(each.asset in profile.inspected for each in missing):
        return
    lines = "\n".join(f"  {each.name}: {each.why}" for each in missing)
    raise UsageError(
        f"{len(missing)} of the {len(assets)} assets of profile {profile.name} are missing:\n{lines}\n"
        f"Either fill HF_HOME ({constants.HF_HOME}) on a machine that reaches the hub and copy it here, or run "
        "`python run_all.py --profile local`, which needs no hub."
    )


def _print_times(profile: Profile, models: Sequence[str], assets: Sequence[AssetState], device: str) -> None:
    """Print about how long each model of the hub takes; raises ``AssetError`` where its configuration does not fit."""
    for model in models:
        spec = profile.models[model]
        if spec.checkpoint:
            (checkpoint,) = (each for each in assets if each.asset == spec.checkpoint)
            seconds = tasks.estimate(spec, reading.load_config(checkpoint), device)
            took = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
            print(f"{model}: about {took} on {device}, for texts of {tasks.ASSUMED_TOKENS} tokens", flush=True)


def _fetched_or_missing(asset: AssetState) -> AssetState:
    """An inspected asset, cached; or missing, and the reason is printed."""
    try:
        reading.load_splits(cached := hub.fetch(asset))
    except AssetError as error:
        print(f"{error} It is inspected, not used: the rest runs without it.", flush=True)
        return AssetState(asset.asset, "missing", why=str(error))
    return cached


def _check_texts(profile: Profile, model: str) -> None:
    """Tokenise every text of a model once, and print where sizes are not those of the paper."""
    task = tasks.load(profile.name, model, device="cpu")
    task.batches("scoring")
    tokens, vocabulary = len(task.tokenizer), task.model.config.vocab_size
    if tokens != vocabulary:
        print(f"{model}: its tokenizer knows {tokens} tokens, its model {vocabulary}; see that they belong together.")
    for split, rows in task.source["dataset"]["rows"].items():
        if rows != (published := profile.models[model].published_rows.get(split, rows)):
            print(f"{model}: {split} has {rows} rows, the paper's had {published}; the results say so.")


def compare_with_published(
    profile: Profile, models: Sequence[str], device: str, fresh: bool, strict: bool
) -> dict[str, str]:
    """Measure every intact model whose accuracy was published, and say in words whether it is as published.

    fresh: measure again what was measured before. Returns what was said, by model.

    Raises ``UsageError`` where an accuracy is not as published and ``strict`` is set, or an asset cannot be read;
    ``RunError`` where an accuracy cannot be measured; and ``OSError`` where it cannot be written.
    """
    verdicts = {
        model: _verdict(profile, model, device, fresh)
        for model in models
        if profile.models[model].published is not None
    }
    if device == "cuda":
        torch.cuda.empty_cache()  # the kernels need it
    others = [model for model, verdict in verdicts.items() if not verdict.startswith(AS_PUBLISHED)]
    if others and strict:
        lines = "\n".join(f"  {model}: {verdicts[model]}" for model in others)
        raise UsageError(
            f"intact accuracy not as published, and --strict is given; nothing was pruned:\n{lines}\n{REMEDY}."
        )
    if others:
        print(f"{', '.join(others)}: results cannot be compared with the published ones; {REMEDY}.", flush=True)
    return verdicts


def _verdict(profile: Profile, model: str, device: str, fresh: bool) -> str:
    """The accuracy of an intact model beside the published one, in words."""
    published = profile.models[model].published
    assert published is not None
    print(
        f"{model}: its intact accuracy is measured, once, and held against the published one; on a CPU this can "
        "take many minutes",
        flush=True,
    )
    try:
        measured = runs.intact(tasks.load(profile.name, model, device=device), fresh)
    except (AssetError, ValueError) as error:
        raise UsageError(str(error)) from error
    except RuntimeError as error:
        raise RunError(f"{model}: its intact accuracy could not be measured on {device}: {error}") from error
    verdict = against_published(**measured, quoted=dataclasses.asdict(published))
    print(f"{model}: intact accuracy {verdict}", flush=True)
    return verdict
