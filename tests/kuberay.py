"""What would refuse a RayCluster or a RayJob: KubeRay's schemas, as the API server reads them, and the operator's own rules."""

import copy
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import cel
import jsonschema
import yaml
from manifests import Manifest, groups
from prerequisites import CRDS, require

LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
REDIS_FIELDS = ("redisAddress", "redisUsername", "redisPassword")


@functools.cache
def _schema(kind: str) -> tuple[Manifest, jsonschema.Draft202012Validator]:
    """A kind's schema as KubeRay gives it, and what checks it."""
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    require("crds")
    with path.open(encoding="utf-8") as file:
        versions = yaml.load(file, yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    return schema, jsonschema.Draft202012Validator(_translated(schema))


def _translated(schema: Any, closed: bool = True) -> Any:
    """Kubernetes' dialect as JSON Schema: objects take no other fields than those that are named."""
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {field: _translated(part, closed and field != "metadata") for field, part in value.items()}
        elif key in ("allOf", "anyOf", "oneOf"):
            result[key] = [_translated(part, closed=False) for part in value]
        elif key in ("items", "additionalProperties", "not"):
            result[key] = _translated(value, closed)
        elif key not in ("format", "default", "nullable", "description") and not key.startswith("x-kubernetes-"):
            result[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in result:
        result["type"] = [*([result["type"]] if isinstance(result["type"], str) else result["type"]), "null"]
    if closed and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def _completed(value: Any, schema: Manifest) -> Any:
    """The value as the server stores it: without nulls, with the schema's defaults."""
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        others = schema.get("additionalProperties")
        result = {}
        for key, part in value.items():
            below = fields.get(key, others if isinstance(others, dict) else {})
            if part is not None or below.get("nullable"):
                result[key] = _completed(part, below)
        missing = {key: part["default"] for key, part in fields.items() if "default" in part and key not in result}
        return result | copy.deepcopy(missing)
    if isinstance(value, list):
        return [_completed(part, schema.get("items", {})) for part in value]
    return value


def _rules_broken(value: Any, schema: Manifest, path: str) -> Iterator[str]:
    """The schema's rules in words of their own (CEL), and its lists whose entries have a key."""
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"]:
            continue
        try:
            holds = cel.evaluate(rule["rule"], {"self": value})
        except KeyError:
            holds = False
        if not holds:
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for key, part in value.items():
            below = schema.get("properties", {}).get(key, others if isinstance(others, dict) else {})
            yield from _rules_broken(part, below, f"{path}.{key}")
    if isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", [])
        seen = [json.dumps([part.get(key) for key in keys] if keys else part, sort_keys=True) for part in value]
        if (keys or schema.get("x-kubernetes-list-type") == "set") and len(set(seen)) < len(seen):
            yield f"{path}: two entries have the same {', '.join(keys) or 'value'}"
        for number, part in enumerate(value):
            yield from _rules_broken(part, schema.get("items", {}), f"{path}[{number}]")


def schema_faults(manifest: Manifest) -> list[str]:
    """What the API server would refuse."""
    schema, validator = _schema(manifest["kind"])
    whole = _completed(manifest, schema)
    faults = [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(whole)]
    return faults or list(_rules_broken(whole, schema, "$"))


def operator_faults(manifest: Manifest) -> list[str]:
    """What KubeRay's operator would refuse although the API server takes it."""
    if manifest["kind"] == "RayJob":
        return list(_job_faults(manifest))
    notes = manifest["metadata"].get("annotations", {})
    return [*_name_faults(manifest, 53), *_cluster_faults(manifest["spec"], notes)]


def _name_faults(manifest: Manifest, most: int) -> Iterator[str]:
    given = manifest["metadata"]["name"]
    if len(given) > most or not LABEL.fullmatch(given):
        yield f"a {manifest['kind']}'s name has at most {most} characters a-z, 0-9, - and begins with a letter: {given}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _cluster_faults(spec: Manifest, notes: Manifest) -> Iterator[str]:
    scales = spec.get("enableInTreeAutoscaling", False)
    second = scales and spec.get("autoscalerOptions", {}).get("version") == "v2"
    for group, content in groups(spec):
        pod = content["template"].get("spec", {})
        parameters = content.get("rayStartParams", {})
        if not pod.get("containers"):
            yield f"{group}: no container"
            continue
        if content.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters):
            yield f"{group}: resources are given twice, in rayStartParams too"
        if "labels" in parameters:
            yield f"{group}: labels do not belong in rayStartParams"
        if second and pod.get("restartPolicy", "Never") != "Never":
            yield f"{group}: restartPolicy is Never or unset with autoscaler v2"
        if content.get("priority") and not (second and _version(spec["rayVersion"]) >= (2, 56, 0)):
            yield f"{group}: priority needs autoscaler v2 and Ray 2.56"
        if group == "head":
            continue
        if scales and content.get("suspend"):
            yield f"{group}: cannot be suspended with autoscaling"
        if not scales and not {"minReplicas", "maxReplicas"} <= set(content):
            yield f"{group}: minReplicas and maxReplicas are needed without autoscaling"
        if not 0 <= content.get("minReplicas", 0) <= content.get("maxReplicas", 2**31 - 1):
            yield f"{group}: 0 <= minReplicas <= maxReplicas"
    containers = spec["headGroupSpec"]["template"].get("spec", {}).get("containers") or [{}]
    variables = {variable["name"] for variable in containers[0].get("env", [])}
    if spec.get("autoscalerOptions", {}).get("version") and "RAY_enable_autoscaler_v2" in variables:
        yield "the autoscaler's version is given twice, as RAY_enable_autoscaler_v2 too"
    if spec.get("gcsFaultToleranceOptions") is not None:
        yield from _fault_tolerance_faults(spec, variables, notes)
    auth = spec.get("authOptions", {})
    if auth.get("mode") == "token" and (not spec.get("rayVersion") or _version(spec["rayVersion"]) < (2, 52, 0)):
        yield "token authentication needs rayVersion 2.52.0 or later"
    if auth.get("enableK8sTokenAuth") and (_version(spec.get("rayVersion", "0")) < (2, 55, 0) or "secretName" in auth):
        yield "enableK8sTokenAuth needs rayVersion 2.55.0 or later and no secretName"
    for field in GATED:
        if field in spec:
            yield f"{field} lies behind a feature gate that is off"


def _fault_tolerance_faults(spec: Manifest, variables: set[str], notes: Manifest) -> Iterator[str]:
    options = spec["gcsFaultToleranceOptions"]
    for variable in sorted({"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"} & variables):
        yield f"{variable} excludes gcsFaultToleranceOptions"
    if "redis-password" in spec["headGroupSpec"].get("rayStartParams", {}):
        yield "redis-password in rayStartParams excludes gcsFaultToleranceOptions"
    for note in sorted({"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & set(notes)):
        yield f"the annotation {note} excludes gcsFaultToleranceOptions"
    if options.get("backend") == "rocksdb":
        yield "rocksdb lies behind a feature gate that is off"
        if set(REDIS_FIELDS) & set(options):
            yield "redis fields belong to the backend redis"
    elif "storage" in options:
        yield "storage belongs to the backend rocksdb"
    if "claimName" in options.get("storage", {}) and {"size", "storageClassName", "accessModes"} & set(
        options["storage"]
    ):
        yield "claimName excludes size, storageClassName and accessModes"


def _job_faults(manifest: Manifest) -> Iterator[str]:
    spec = manifest["spec"]
    yield from _name_faults(manifest, 47)
    mode, ends = spec.get("submissionMode", "K8sJobMode"), spec.get("shutdownAfterJobFinishes", False)
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if ("rayClusterSpec" in spec) == bool(spec.get("clusterSelector")):
        yield "one of rayClusterSpec and clusterSelector"
    if not ends and (spec.get("suspend") or spec.get("ttlSecondsAfterFinished", 0) > 0):
        yield "suspend and ttlSecondsAfterFinished need shutdownAfterJobFinishes"
    if rules and ends:
        yield "deletionRules exclude shutdownAfterJobFinishes"
    keys = [json.dumps([rule["policy"], rule["condition"]], sort_keys=True) for rule in rules]
    if len({key.split('"ttlSeconds"')[0] for key in keys}) < len(keys):
        yield "two deletionRules for the same case"
    if any(rule["condition"].get("ttlSeconds", 0) < 0 for rule in rules):
        yield "a rule's ttlSeconds is negative"
    policies = {rule["policy"] for rule in rules}
    if "DeleteWorkers" in policies and spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
        yield "DeleteWorkers is refused with autoscaling"
    if spec.get("clusterSelector") and (
        spec.get("suspend")
        or spec.get("backoffLimit")
        or mode == "SidecarMode"
        or policies & {"DeleteCluster", "DeleteWorkers"}
    ):
        yield "clusterSelector excludes suspend, backoffLimit, SidecarMode, DeleteCluster and DeleteWorkers"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode excludes backoffLimit"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & set(spec):
        yield "SidecarMode excludes the submitter's settings"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field} is above 0"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is at least 0"
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        yield "runtimeEnvYAML is no YAML"
    if "rayClusterSpec" in spec:
        yield from _cluster_faults(spec["rayClusterSpec"], manifest["metadata"].get("annotations", {}))
