"""What this repository asks of its own manifests, beyond what Kubernetes and KubeRay check: one function for each rule, which
yields a sentence for each breach."""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from manifests import DEPLOY, Manifest, clusters, containers, groups, name, of_kind, pods, strings

from equitune.cli import cli as command_line

Faults = Iterator[str]
# Labels of pods that no manifest here makes: KubeRay's, and the cluster's own DNS.
FOREIGN_PODS = (
    {"app.kubernetes.io/component": "kuberay-operator"},
    {"ray.io/node-type": "redis-cleanup"},
    {"k8s-app": "kube-dns"},
)
UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|CREDENTIAL|KEY|AUTH$")


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(\D*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def restricted(manifests: list[Manifest]) -> Faults:
    """As the Pod Security Standard `restricted` asks, and never as root."""
    for where, pod in pods(manifests):
        spec = pod["spec"]
        around = spec.get("securityContext", {})
        if around.get("runAsNonRoot") is not True or not around.get("runAsUser") or not around.get("runAsGroup"):
            yield f"{where}: it must say runAsNonRoot, runAsUser and runAsGroup"
        if around.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{where}: seccompProfile"
        if {"hostNetwork", "hostPID", "hostIPC"} & set(spec) or any("hostPath" in it for it in spec.get("volumes", [])):
            yield f"{where}: something of the host"
        for container, content in containers(pod):
            own = content.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where} {container}: privilege escalation or capabilities"
            if own.get("privileged") or own.get("runAsUser") == 0 or own.get("runAsNonRoot") is False:
                yield f"{where} {container}: privileged or root"
            if not where.startswith("Ray") and own.get("readOnlyRootFilesystem") is not True:
                yield f"{where} {container}: its root can be written"
    for where, spec in clusters(manifests):
        own = spec["autoscalerOptions"].get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where} autoscaler: privilege escalation or capabilities"


def sized(manifests: list[Manifest]) -> Faults:
    """Requests for CPU and memory, a limit of memory, none below its request; trials get the memory that they asked for."""
    of_pods = [
        (f"{where} {container}", content.get("resources", {}))
        for where, pod in pods(manifests)
        for container, content in containers(pod)
    ]
    autoscalers = [
        (f"{where} autoscaler", spec["autoscalerOptions"]["resources"]) for where, spec in clusters(manifests)
    ]
    for where, resources in of_pods + autoscalers:
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        if not {"cpu", "memory"} <= set(requests) or "memory" not in limits:
            yield f"{where}: requests for cpu and memory and a limit of memory"
        for resource in set(requests) & set(limits):
            if quantity(limits[resource]) < quantity(requests[resource]):
                yield f"{where}: the limit of {resource} is below its request"
        equal = {"nvidia.com/gpu"} | ({"memory"} if where.endswith((" ray", "autoscaler")) else set())
        for resource in sorted(equal & (set(requests) | set(limits))):
            if requests.get(resource) != limits.get(resource):
                yield f"{where}: request and limit of {resource} differ"
        if where.endswith((" ray",)) and "cpu" in limits:
            yield f"{where}: a limit of CPU slows trials down"


def pinned(manifests: list[Manifest]) -> Faults:
    """Each image has a tag or a digest, and never `latest`."""
    for where, pod in pods(manifests):
        for container, content in containers(pod):
            image = content["image"].rpartition("/")[2]
            if not re.search(r"[:@].+", image) or image.endswith(":latest"):
                yield f"{where} {container}: the image {content['image']} has no tag"


def unlinked(manifests: list[Manifest]) -> Faults:
    """Services of the namespace set no variables: MLFLOW_PORT would end MLflow, EQUITUNE_... would be settings."""
    return (
        f"{where}: enableServiceLinks"
        for where, pod in pods(manifests)
        if pod["spec"].get("enableServiceLinks") is not False
    )


def graceful(manifests: list[Manifest]) -> Faults:
    """Ray drains for less time than Kubernetes waits."""
    for where, pod in pods(manifests):
        grace = pod["spec"].get("terminationGracePeriodSeconds")
        if grace is None:
            yield f"{where}: terminationGracePeriodSeconds"
        if "ray.io/cluster" in pod["metadata"]["labels"]:
            drain = variables(pod).get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", {}).get("value", "30")
            if grace is not None and grace < int(drain) + 15:
                yield f"{where}: it is killed after {grace} s, but drains for {drain} s"


def variables(pod: Manifest) -> dict[str, Manifest]:
    return {variable["name"]: variable for _, content in containers(pod) for variable in content.get("env", [])}


def indoors(manifests: list[Manifest]) -> Faults:
    """No way in from outside the cluster."""
    for manifest in manifests:
        if manifest["kind"] in ("Ingress", "Gateway", "HTTPRoute", "Route", "IngressRoute"):
            yield f"{name(manifest)}: a way in from outside"
        if manifest["kind"] == "Service" and manifest["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"{name(manifest)}: {manifest['spec']['type']}"
    for where, spec in clusters(manifests):
        head = spec["headGroupSpec"]
        if head.get("enableIngress") or head.get("serviceType", "ClusterIP") != "ClusterIP" or "headService" in head:
            yield f"{where}: a way in from outside"


def secretless(manifests: list[Manifest]) -> Faults:
    """No secret's value, anywhere in a manifest."""
    for manifest in manifests:
        if manifest["kind"] == "Secret":
            yield f"{name(manifest)}: a Secret among the manifests"
        for text in strings(manifest):
            if re.search(r"://[^/\s:@$]+:[^/\s@$]+@", text):
                yield f"{name(manifest)}: an address with a password"
    for where, pod in pods(manifests):
        for variable, content in variables(pod).items():
            if SECRET.search(variable) and "secretKeyRef" not in content.get("valueFrom", {}):
                yield f"{where}: {variable} is no reference to a Secret"
    for where, spec in clusters(manifests):
        if "value" in spec["gcsFaultToleranceOptions"].get("redisPassword", {}):
            yield f"{where}: the password of Redis"


def _references(value: Any) -> Iterator[tuple[str, str, str | None]]:
    """Each reference to a Secret or ConfigMap within: kind, name, key."""
    if isinstance(value, list):
        for part in value:
            yield from _references(part)
    if not isinstance(value, dict):
        return
    for kind, field in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
        if (field in value and not value[field].get("optional")) or (field in value and kind == "Secret"):
            yield kind, value[field]["name"], value[field]["key"]
    for kind, field, label in (("Secret", "secret", "secretName"), ("ConfigMap", "configMap", "name")):
        volume = value.get(field)
        if isinstance(volume, dict) and label in volume:
            yield from ((kind, volume[label], item["key"]) for item in volume.get("items", []))
            yield kind, volume[label], None
    if isinstance(value.get("authOptions"), dict):
        yield "Secret", value["authOptions"].get("secretName", ""), "auth_token"
    for part in value.values():
        yield from _references(part)


def referred(manifests: list[Manifest]) -> Faults:
    """What a pod refers to is there: Secrets in secrets.example.yaml, everything else among the manifests."""
    examples = list(yaml.safe_load_all((DEPLOY / "secrets.example.yaml").read_text(encoding="utf-8")))
    known = {("Secret", secret["metadata"]["name"]): set(secret["stringData"]) for secret in examples}
    known |= {("ConfigMap", it["metadata"]["name"]): set(it["data"]) for it in of_kind(manifests, "ConfigMap")}
    for manifest in manifests:
        for kind, target, key in _references(manifest.get("spec", {})):
            if (kind, target) not in known or (key is not None and key not in known[kind, target]):
                yield f"{name(manifest)}: no {kind} {target} with {key}"
    claims = {claim["metadata"]["name"] for claim in of_kind(manifests, "PersistentVolumeClaim")}
    accounts = {account["metadata"]["name"] for account in of_kind(manifests, "ServiceAccount")}
    templates = {
        f"{name(it)}": {claim["metadata"]["name"] for claim in it["spec"].get("volumeClaimTemplates", [])}
        for it in of_kind(manifests, "StatefulSet")
    }
    for where, pod in pods(manifests):
        spec = pod["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | templates.get(where, set())
        for volume in spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim")
            if claim and claim["claimName"] not in claims:
                yield f"{where}: no such claim as that of the volume {volume['name']}"
        for container, content in containers(pod):
            for mount in content.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{where} {container}: no volume {mount['name']}"
        if spec.get("serviceAccountName") not in accounts:
            yield f"{where}: no ServiceAccount {spec.get('serviceAccountName')}"


def least_rights(manifests: list[Manifest]) -> Faults:
    """Only the head, whose autoscaler talks to Kubernetes, gets a token for that; nobody gets a role here."""
    for where, pod in pods(manifests):
        head = pod["metadata"]["labels"].get("ray.io/node-type") == "head"
        if pod["spec"].get("automountServiceAccountToken") is not head:
            yield f"{where}: automountServiceAccountToken"
        if head and pod["spec"]["serviceAccountName"] != "ray-head":
            yield f"{where}: the head's ServiceAccount"
        if not head and pod["spec"].get("serviceAccountName") == "ray-head":
            yield f"{where}: it has the head's rights"
    for manifest in manifests:
        if manifest["kind"] in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
            yield f"{name(manifest)}: rights"


def watched(manifests: list[Manifest]) -> Faults:
    """Servers say when they have begun, when they serve, when they hang. The operator adds Ray's own probes."""
    for manifest in of_kind(manifests, "Deployment", "StatefulSet"):
        for content in manifest["spec"]["template"]["spec"]["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe not in content:
                    yield f"{name(manifest)}: no {probe}"


def placed(manifests: list[Manifest]) -> Faults:
    """No CPUs on the head, drivers on the always-on group alone, fault tolerance, a token, and a job's own command."""
    for where, spec in clusters(manifests):
        parts = dict(groups(spec))
        if parts["head"].get("rayStartParams", {}).get("num-cpus") != "0":
            yield f"{where}: the head takes trials"
        drivers = [group for group, content in parts.items() if "driver" in content.get("resources", {})]
        if drivers != ["cpu"] or parts["cpu"].get("minReplicas", 0) < 1:
            yield f"{where}: the group cpu, which is always there, and no other takes drivers"
        if spec.get("gcsFaultToleranceOptions", {}).get("backend") != "redis" or not spec.get(
            "enableInTreeAutoscaling"
        ):
            yield f"{where}: fault tolerance and autoscaling"
        if spec.get("authOptions", {}).get("mode") != "token" or spec["autoscalerOptions"].get("version") != "v2":
            yield f"{where}: a token, and autoscaler v2"
    for manifest in of_kind(manifests, "RayJob"):
        spec = manifest["spec"]
        program, command, study, *rest = spec["entrypoint"].split()
        if program != "/opt/venv/bin/equitune" or "driver" not in spec.get("entrypointResources", ""):
            yield f"{name(manifest)}: the program, or where its driver runs"
        known = command_line.commands.get(command)
        options = {option for it in (known.params if known else []) for option in it.opts}
        if "--address auto" not in spec["entrypoint"] or not {word for word in rest if word[:1] == "-"} <= options:
            yield f"{name(manifest)}: equitune {command} does not take {' '.join(rest)}"
        if not study.startswith("/etc/equitune/"):
            yield f"{name(manifest)}: the study's file"


RULES = {
    rule.__name__: rule
    for rule in (
        restricted, sized, pinned, unlinked, graceful, indoors, secretless, referred, least_rights, watched, placed,
    )
}  # fmt: skip
