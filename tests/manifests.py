"""The manifests of deploy/ as Kubernetes would get them: rendered, taken apart, changed for a test."""

import copy
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from prerequisites import renderer, require

REPOSITORY = Path(__file__).parent.parent
DEPLOY = REPOSITORY / "deploy"
OVERLAYS = ("dev", "prod", "prod-s3", "prod-job")
OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes
DELETED = object()
Manifest = dict[str, Any]


@functools.cache
def _rendered(overlay: str) -> str:
    require("kustomize")
    done = subprocess.run([*renderer(), str(DEPLOY / "overlays" / overlay)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(overlay: str) -> list[Manifest]:
    """What an overlay renders to, for the caller to change."""
    return copy.deepcopy(_read(overlay))


@functools.cache
def _read(overlay: str) -> list[Manifest]:
    return list(yaml.load_all(_rendered(overlay), yaml.CSafeLoader))


def kubernetes_faults(manifests: list[Manifest], version: str) -> list[str]:
    """What Kubernetes of this version would refuse; resources of KubeRay apart."""
    faults = []
    for manifest in manifests:
        if manifest["apiVersion"].startswith("ray.io/"):
            continue
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults.append(f"{name(manifest)}: {'.'.join(str(step) for step in error.path)}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            faults.append(f"{name(manifest)}: Kubernetes {version} has no {manifest['apiVersion']}")
    return faults


def name(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def clusters(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Each RayCluster's spec, also that within a RayJob, with where it is."""
    for manifest in of_kind(manifests, "RayCluster"):
        yield name(manifest), manifest["spec"]
    for manifest in of_kind(manifests, "RayJob"):
        yield name(manifest), manifest["spec"]["rayClusterSpec"]


def groups(spec: Manifest) -> Iterator[tuple[str, Manifest]]:
    """The head and the groups of workers of a RayCluster."""
    yield "head", spec["headGroupSpec"]
    for group in spec.get("workerGroupSpecs", []):
        yield group["groupName"], group


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Each pod template, with where it is. Those of Ray have the labels that the operator adds."""
    for manifest in of_kind(manifests, "Deployment", "StatefulSet", "Job"):
        yield name(manifest), manifest["spec"]["template"]
    for where, spec in clusters(manifests):
        for group, content in groups(spec):
            template = copy.copy(content["template"])
            added = {
                "ray.io/cluster": where.split("/")[1],
                "ray.io/node-type": "head" if group == "head" else "worker",
                "ray.io/group": "headgroup" if group == "head" else group,
            }
            template["metadata"] = {"labels": added | template.get("metadata", {}).get("labels", {})}
            yield f"{where} {group}", template
    for manifest in of_kind(manifests, "RayJob"):
        yield f"{name(manifest)} submitter", manifest["spec"]["submitterPodTemplate"]


def containers(pod: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Its containers, those that run before the others included."""
    for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
        yield container["name"], container


def strings(value: Any) -> Iterator[str]:
    """Every text within."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def changed(manifests: list[Manifest], which: str, path: str, value: Any) -> list[Manifest]:
    """The manifests with one value of KIND/NAME set, or taken away (DELETED); `+` at a path's end appends."""
    (manifest,) = [manifest for manifest in manifests if name(manifest) == which]
    *steps, last = [int(step) if step.isdecimal() else step.replace("~", ".") for step in path.split(".")]
    place: Any = manifest
    for step in steps:
        place = place[step]
    if value is DELETED:
        del place[last]
    elif last == "+":
        place.append(value)
    else:
        place[last] = value
    return manifests
