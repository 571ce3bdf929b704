"""MLflow's model registry, made equal to the release history. The history is the truth; the registry follows it.

A registered model is NAME.DEVICE, and each release of it one model version, whose source names the bundle by digest:
tapeout:///sha256/DIGEST (MLflow's server takes no source without an absolute path). Nothing is copied. Aliases say who
serves it: CHANNEL-champion, and CHANNEL-ARM for an arm (arms' names hold no hyphen, so an alias has one meaning). An
alias that no channel's history has ever had is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.release.history.state import Released, State

PAGE = 1000


@dataclass
class Model:
    """A registered model as it is to be. aliases: {alias: release}. own: aliases that are the history's to remove."""

    releases: list[Released] = field(default_factory=list)
    aliases: dict[str, Released] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)


def wanted(state: State) -> dict[str, Model]:
    """Return the registered models, by name, that the state comes to."""
    models: dict[str, Model] = {}
    for release in state.releases.values():
        models.setdefault(model_of(release), Model()).releases.append(release)
    for (name, device), channel in state.channels.items():
        for arm in channel.serving:
            release = state.releases[arm.version, device]
            models[model_of(release)].aliases[f"{name}-{arm.name}"] = release
    for model in models.values():
        devices = {release.device for release in model.releases}
        model.own = {
            f"{name}-{arm}" for (name, device), arms in state.names.items() if device in devices for arm in arms
        }
    return models


def model_of(release: Released) -> str:
    """The registered model of a release."""
    return f"{release.name}.{release.device}"


def source_of(release: Released) -> str:
    """The source of a model version: by digest, so that nothing has to lie where MLflow could copy it from."""
    return f"tapeout:///sha256/{release.bundle}"


def tags_of(release: Released) -> dict[str, str]:
    return {
        "version": release.version,
        "device": release.device,
        "bundle": release.bundle,
        "archive": release.archive,
        "sequence": str(release.sequence),
        "retired": "yes" if release.retired else "no",
    }


def reconcile(client: Any, state: State) -> int:
    """Make the registry what the state says; return how many changes that took. client: an MlflowClient.

    Doing it again changes nothing. Raises what MLflow raises.
    """
    return sum(reconcile_model(client, name, model) for name, model in sorted(wanted(state).items()))


def reconcile_model(client: Any, name: str, model: Model) -> int:
    aliases = existing_aliases(client, name)
    changes = 0
    if aliases is None:
        client.create_registered_model(name, tags={"tapeout": "release"})
        aliases, changes = {}, 1
    versions: dict[Any, Any] = {}
    for found in existing_versions(client, name):
        versions.setdefault(found.tags.get("bundle"), found)
    for release in model.releases:
        changes += reconcile_version(client, name, release, versions)
    for alias, release in model.aliases.items():
        number = str(versions[release.bundle].version)
        if aliases.get(alias) != number:
            client.set_registered_model_alias(name, alias, number)
            changes += 1
    for alias in model.own & set(aliases) - set(model.aliases):
        client.delete_registered_model_alias(name, alias)
        changes += 1
    return changes


def reconcile_version(client: Any, name: str, release: Released, versions: dict[str, Any]) -> int:
    """Create a release's model version, or set its tags that differ. versions: {bundle: model version}, filled in."""
    tags = tags_of(release)
    found = versions.get(release.bundle)
    if found is None:
        versions[release.bundle] = client.create_model_version(name, source_of(release), tags=tags)
        return 1
    differing = {key: value for key, value in tags.items() if found.tags.get(key) != value}
    for key, value in differing.items():
        client.set_model_version_tag(name, str(found.version), key, value)
    return len(differing)


def existing_aliases(client: Any, name: str) -> dict[str, str] | None:
    """Return {alias: version's number} of a registered model, or None where it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        found: Mapping[str, Any] = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return {alias: str(number) for alias, number in found.items()}


def existing_versions(client: Any, name: str) -> Iterator[Any]:
    """Yield the model versions of a registered model, the oldest first."""
    token, found = None, []
    while True:
        page = client.search_model_versions(f"name='{name}'", max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return iter(sorted(found, key=lambda version: int(version.version)))
