"""The manifests of deploy/: rendered, valid, fit for KubeRay, and as this repository wants them; each mistake is caught."""

import os
import subprocess
from pathlib import Path
from typing import Any

import kuberay
import pytest
import yaml
from manifests import DELETED, DEPLOY, NEWEST, OLDEST, OVERLAYS, changed, clusters, kubernetes_faults, of_kind, rendered
from network_policies import ALL_RULES
from prerequisites import renderer

RAY = "spec.headGroupSpec.template.spec.containers.0"
CPU = "spec.workerGroupSpecs.0"
MLFLOW = "spec.template.spec.containers.0"
CLUSTER, JOB = "RayCluster/equitune", "RayJob/search-capacity"


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_every_manifest(overlay: str, version: str) -> None:
    assert kubernetes_faults(rendered(overlay), version) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_takes_every_manifest(overlay: str) -> None:
    of_ray = of_kind(rendered(overlay), "RayCluster", "RayJob")
    assert len(of_ray) == 1
    assert kuberay.operator_faults(of_ray[0]) == []
    assert kuberay.schema_faults(of_ray[0]) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("rule", ALL_RULES)
def test_every_manifest_follows_the_rules(overlay: str, rule: str) -> None:
    assert list(ALL_RULES[rule](rendered(overlay))) == []


def test_a_job_differs_from_the_cluster_in_its_study_alone() -> None:
    ((_, cluster),) = clusters(rendered("prod"))
    ((_, of_job),) = clusters(rendered("prod-job"))
    pod = of_job["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["volumes"].pop() == {"name": "study", "configMap": {"name": "study"}}
    assert pod["containers"][0]["volumeMounts"].pop()["mountPath"] == "/etc/equitune"
    assert of_job == cluster


# What Kubernetes itself refuses: which manifest of prod, which place, what there, a word of the sentence.
KUBERNETES: list[tuple[str, str, Any, str]] = [
    ("Deployment/mlflow", "spec.replica", 2, "replica"),
    ("Deployment/mlflow", "spec.replicas", "two", "two"),
    ("Deployment/mlflow", "apiVersion", "apps/v1beta1", "has no"),
    ("Deployment/mlflow", "spec.selector", DELETED, "selector"),
    ("PodDisruptionBudget/mlflow", "apiVersion", "policy/v1beta1", "has no"),
    ("Job/mlflow-db-upgrade-3-17-2", f"{MLFLOW}.image", 3, "image"),
    ("StatefulSet/redis", f"{MLFLOW}.name", DELETED, "name"),
    ("NetworkPolicy/redis", "spec.ingress.0.form", [], "form"),
    ("Service/mlflow", "spec.ports.0.port", "http", "port"),
]


@pytest.mark.parametrize(("which", "path", "value", "word"), KUBERNETES)
def test_kubernetes_refuses(which: str, path: str, value: Any, word: str) -> None:
    faults = kubernetes_faults(changed(rendered("prod"), which, path, value), OLDEST)
    assert len(faults) >= 1
    assert word in faults[0]


# What KubeRay's schema refuses.
SCHEMA: list[tuple[str, str, Any, str]] = [
    (CLUSTER, "spec.rayVerison", "2.60.0", "rayVerison"),
    (CLUSTER, "spec.enableInTreeAutoscaling", "yes", "yes"),
    (CLUSTER, "spec.autoscalerOptions.version", "v3", "v3"),
    (CLUSTER, "spec.authOptions.mode", "tokens", "tokens"),
    (CLUSTER, "spec.headGroupSpec", DELETED, "headGroupSpec"),
    (CLUSTER, "spec.headGroupSpec.rayStartParams.num-cpus", 0, "0"),
    (CLUSTER, f"{CPU}.groupName", DELETED, "groupName"),
    (CLUSTER, f"{CPU}.minReplicas", "1", "1"),
    (CLUSTER, f"{RAY}.env.0.value", 60, "60"),
    (CLUSTER, f"{RAY}.name", DELETED, "name"),
    (CLUSTER, f"{RAY}.resources.requests.memory", "4 GB", "4 GB"),
    (CLUSTER, "spec.headGroupSpec.template.spec.containers.+", {"name": "ray", "image": "x"}, "same name"),
    (CLUSTER, f"{RAY}.securityContext.privilege", True, "privilege"),
    (JOB, "spec.deletionStrategy.deletionRules.0.condition.ttlSeconds", -1, "-1"),
    (JOB, "spec.deletionStrategy.deletionRules.0.policy", "Delete", "Delete"),
    (JOB, "spec.deletionStrategy.deletionRules.0.condition.jobDeploymentStatus", "Failed", "JobStatus"),
    (JOB, "spec.deletionStrategy.onSuccess", {"policy": "DeleteCluster"}, ""),
    (JOB, "spec.deletionStrategy", {}, ""),
    (JOB, "spec.entrypointNumCpus", "1", "1"),
    (JOB, "spec.managedBy", "somebody", "managedBy"),
]


@pytest.mark.parametrize(("which", "path", "value", "word"), SCHEMA)
def test_kuberays_schema_refuses(which: str, path: str, value: Any, word: str) -> None:
    manifests = changed(rendered("prod-job" if which == JOB else "prod"), which, path, value)
    faults = kuberay.schema_faults(of_kind(manifests, which.split("/")[0])[0])
    assert len(faults) >= 1
    assert word.lower() in " ".join(faults).lower()


def test_kuberays_schema_takes_a_null_where_nothing_is_meant() -> None:
    manifests = changed(rendered("prod"), CLUSTER, "spec.headGroupSpec.template.metadata.annotations", None)
    assert kuberay.schema_faults(of_kind(manifests, "RayCluster")[0]) == []


# What only the operator refuses.
OPERATOR: list[tuple[str, str, Any, str]] = [
    (CLUSTER, "metadata.name", "x" * 54, "53"),
    (CLUSTER, "metadata.name", "1equitune", "begins with a letter"),
    (JOB, "metadata.name", "x" * 48, "47"),
    (CLUSTER, "spec.headGroupSpec.template.spec.containers", [], "no container"),
    (CLUSTER, f"{CPU}.rayStartParams", {"num-cpus": "4"}, "twice"),
    (CLUSTER, f"{CPU}.rayStartParams", {"labels": "a=b"}, "labels"),
    (CLUSTER, f"{CPU}.maxReplicas", 0, "minReplicas <= maxReplicas"),
    (CLUSTER, f"{CPU}.minReplicas", -1, "minReplicas <= maxReplicas"),
    (CLUSTER, f"{CPU}.suspend", True, "suspended"),
    (CLUSTER, f"{CPU}.template.spec.restartPolicy", "Always", "restartPolicy"),
    (CLUSTER, "spec.headGroupSpec.template.spec.restartPolicy", "OnFailure", "restartPolicy"),
    (CLUSTER, f"{RAY}.env.+", {"name": "RAY_enable_autoscaler_v2", "value": "1"}, "twice"),
    (CLUSTER, f"{RAY}.env.+", {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}, "RAY_REDIS_ADDRESS"),
    (CLUSTER, f"{RAY}.env.+", {"name": "REDIS_PASSWORD", "value": "x"}, "REDIS_PASSWORD"),
    (CLUSTER, "spec.headGroupSpec.rayStartParams.redis-password", "x", "redis-password"),
    (CLUSTER, "metadata.annotations", {"ray.io/ft-enabled": "true"}, "ft-enabled"),
    (CLUSTER, "metadata.annotations", {"ray.io/external-storage-namespace": "x"}, "external-storage"),
    (CLUSTER, "spec.gcsFaultToleranceOptions.backend", "rocksdb", "gate"),
    (CLUSTER, "spec.gcsFaultToleranceOptions.storage", {"size": "1Gi"}, "rocksdb"),
    (CLUSTER, "spec.gcsFaultToleranceOptions.storage", {"claimName": "a", "size": "1Gi"}, "claimName"),
    (CLUSTER, "spec.rayVersion", DELETED, "2.52.0"),
    (CLUSTER, "spec.rayVersion", "2.51.9", "2.52.0"),
    (CLUSTER, "spec.authOptions.enableK8sTokenAuth", True, "enableK8sTokenAuth"),
    (CLUSTER, "spec.networkPolicy", {"mode": "DenyAll"}, "gate"),
    (CLUSTER, "spec.tlsOptions", {"enabled": True}, "gate"),
    (CLUSTER, "spec.historyServerOptions", {}, "gate"),
    (JOB, "spec.rayClusterSpec", DELETED, "one of"),
    (JOB, "spec.clusterSelector", {"ray.io/cluster": "equitune"}, "one of"),
    (JOB, "spec.clusterSelector", {"ray.io/cluster": "equitune"}, "excludes"),
    (JOB, "spec.suspend", True, "shutdownAfterJobFinishes"),
    (JOB, "spec.ttlSecondsAfterFinished", 60, "shutdownAfterJobFinishes"),
    (JOB, "spec.shutdownAfterJobFinishes", True, "deletionRules"),
    (JOB, "spec.deletionStrategy.deletionRules.0.policy", "DeleteWorkers", "autoscaling"),
    (JOB, "spec.deletionStrategy.deletionRules.1.condition.jobStatus", "SUCCEEDED", "same case"),
    (JOB, "spec.submissionMode", "InteractiveMode", "backoffLimit"),
    (JOB, "spec.submissionMode", "SidecarMode", "submitter"),
    (JOB, "spec.activeDeadlineSeconds", 0, "above 0"),
    (JOB, "spec.preRunningDeadlineSeconds", -1, "above 0"),
    (JOB, "spec.backoffLimit", -1, "at least 0"),
    (JOB, "spec.runtimeEnvYAML", "{", "YAML"),
]


@pytest.mark.parametrize(("which", "path", "value", "word"), OPERATOR)
def test_kuberays_operator_refuses(which: str, path: str, value: Any, word: str) -> None:
    manifests = rendered("prod-job" if which == JOB else "prod")
    manifests = changed(manifests, which, path, value)
    faults = kuberay.operator_faults(of_kind(manifests, which.split("/")[0])[0])
    assert word in " ".join(faults)


def test_the_operator_asks_more_without_autoscaling_and_of_a_priority() -> None:
    manifest = of_kind(rendered("prod"), "RayCluster")[0]
    manifest["spec"]["workerGroupSpecs"][1]["priority"] = 1
    assert kuberay.operator_faults(manifest) == []
    manifest["spec"]["rayVersion"] = "2.55.0"
    assert "priority" in " ".join(kuberay.operator_faults(manifest))
    manifest["spec"] |= {"enableInTreeAutoscaling": False, "rayVersion": "2.60.0"}
    del manifest["spec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert "without autoscaling" in " ".join(kuberay.operator_faults(manifest))


# What only the repository's own rules refuse: the rule, and a mistake that it must name.
POLICIES: list[tuple[str, str, str, Any]] = [
    ("restricted", "Deployment/mlflow", "spec.template.spec.securityContext.runAsNonRoot", DELETED),
    ("restricted", "Deployment/mlflow", "spec.template.spec.securityContext.runAsUser", 0),
    ("restricted", "Deployment/mlflow", f"{MLFLOW}.securityContext.readOnlyRootFilesystem", False),
    ("restricted", "Deployment/mlflow", "spec.template.spec.initContainers.0.securityContext", DELETED),
    ("restricted", "StatefulSet/redis", "spec.template.spec.securityContext.seccompProfile", DELETED),
    ("restricted", "StatefulSet/redis", f"{MLFLOW}.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
    ("restricted", "StatefulSet/redis", "spec.template.spec.volumes.+", {"name": "it", "hostPath": {"path": "/"}}),
    ("restricted", "StatefulSet/redis", "spec.template.spec.hostNetwork", True),
    ("restricted", CLUSTER, f"{RAY}.securityContext.privileged", True),
    ("restricted", CLUSTER, "spec.autoscalerOptions.securityContext", DELETED),
    ("restricted", CLUSTER, f"{CPU}.template.spec.containers.0.securityContext.allowPrivilegeEscalation", DELETED),
    ("sized", "Deployment/mlflow", f"{MLFLOW}.resources.limits", {"memory": "512Mi"}),
    ("sized", "Job/mlflow-db-upgrade-3-17-2", f"{MLFLOW}.resources", {}),
    ("sized", CLUSTER, f"{RAY}.resources.limits.memory", DELETED),
    ("sized", CLUSTER, f"{RAY}.resources.limits.memory", "8Gi"),
    ("sized", CLUSTER, f"{RAY}.resources.limits.cpu", "4"),
    ("sized", CLUSTER, "spec.workerGroupSpecs.1.template.spec.containers.0.resources.requests.nvidia~com/gpu", DELETED),
    ("sized", CLUSTER, "spec.autoscalerOptions.resources.requests.cpu", DELETED),
    ("pinned", "Deployment/mlflow", f"{MLFLOW}.image", "registry.example.com:5000/mlflow"),
    ("pinned", CLUSTER, f"{RAY}.image", "equitune/trial:latest"),
    ("unlinked", "Deployment/mlflow", "spec.template.spec.enableServiceLinks", DELETED),
    ("unlinked", CLUSTER, f"{CPU}.template.spec.enableServiceLinks", True),
    ("graceful", CLUSTER, f"{CPU}.template.spec.terminationGracePeriodSeconds", 110),
    ("graceful", CLUSTER, "spec.headGroupSpec.template.spec.terminationGracePeriodSeconds", DELETED),
    ("graceful", CLUSTER, f"{RAY}.env.0.value", "80"),
    ("indoors", "Service/mlflow", "spec.type", "LoadBalancer"),
    ("indoors", "Service/mlflow", "kind", "Ingress"),
    ("indoors", CLUSTER, "spec.headGroupSpec.serviceType", "NodePort"),
    ("indoors", CLUSTER, "spec.headGroupSpec.enableIngress", True),
    ("secretless", "ServiceAccount/redis", "kind", "Secret"),
    ("secretless", "Deployment/mlflow", f"{MLFLOW}.args.+", "--backend-store-uri=postgresql+psycopg2://a:b@c/d"),
    ("secretless", CLUSTER, f"{RAY}.env.+", {"name": "RAY_AUTH_TOKEN", "value": "x"}),
    ("secretless", CLUSTER, "spec.gcsFaultToleranceOptions.redisPassword", {"value": "x"}),
    ("referred", CLUSTER, "spec.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef.key", "passwort"),
    ("referred", CLUSTER, "spec.authOptions.secretName", "ray-token"),
    ("referred", CLUSTER, f"{CPU}.template.spec.volumes.0.persistentVolumeClaim.claimName", "study"),
    ("referred", CLUSTER, f"{CPU}.template.spec.containers.0.volumeMounts.0.name", "study"),
    ("referred", CLUSTER, f"{CPU}.template.spec.serviceAccountName", DELETED),
    ("referred", "Deployment/mlflow", "spec.template.spec.volumes.2.secret.items.0.key", "auth.ini"),
    ("referred", "Deployment/mlflow", f"{MLFLOW}.env.2.valueFrom.configMapKeyRef.key", "bucket"),
    ("least_rights", "Deployment/mlflow", "spec.template.spec.automountServiceAccountToken", DELETED),
    ("least_rights", CLUSTER, f"{CPU}.template.spec.automountServiceAccountToken", True),
    ("least_rights", CLUSTER, f"{CPU}.template.spec.serviceAccountName", "ray-head"),
    ("least_rights", "ServiceAccount/mlflow", "kind", "ClusterRoleBinding"),
    ("watched", "Deployment/mlflow", f"{MLFLOW}.readinessProbe", DELETED),
    ("watched", "StatefulSet/redis", f"{MLFLOW}.livenessProbe", DELETED),
    ("placed", CLUSTER, "spec.headGroupSpec.rayStartParams.num-cpus", "2"),
    ("placed", CLUSTER, "spec.workerGroupSpecs.1.resources.driver", "1"),
    ("placed", CLUSTER, f"{CPU}.resources.driver", DELETED),
    ("placed", CLUSTER, f"{CPU}.minReplicas", 0),
    ("placed", CLUSTER, "spec.gcsFaultToleranceOptions", {"redisAddress": "redis:6379"}),
    ("placed", CLUSTER, "spec.authOptions.mode", "disabled"),
    ("placed", JOB, "spec.entrypointResources", DELETED),
    ("placed", JOB, "spec.entrypoint", "python -m equitune search /etc/equitune/study.yaml --address auto"),
    ("placed", JOB, "spec.entrypoint", "/opt/venv/bin/equitune search /etc/equitune/study.yaml --address auto --resume"),
    ("placed", JOB, "spec.entrypoint", "/opt/venv/bin/equitune search /etc/equitune/study.yaml"),
    ("selected", "Service/mlflow", "spec.selector", {"app": "mlflow"}),
    ("selected", "PodDisruptionBudget/ray-head", "spec.selector.matchLabels.ray~io/cluster", "other"),
    ("selected", "NetworkPolicy/redis", "spec.podSelector.matchLabels", {"equitune.io/part": "reddis"}),
    ("selected", "NetworkPolicy/ray", "spec.podSelector.matchExpressions.0.values.+", "ray-driver"),
    ("selected", "NetworkPolicy/ray-head-dashboard", "spec.ingress.0.from.0.podSelector.matchLabels", {"a": "b"}),
    ("ported", "NetworkPolicy/mlflow", "spec.ingress.0.ports.0.port", 5001),
    ("ported", "Service/redis", "spec.ports.0.targetPort", "reddis"),
    ("guarded", "NetworkPolicy/default-deny", "spec.policyTypes", ["Egress"]),
    ("guarded", "NetworkPolicy/default-deny", "spec.ingress", [{}]),
    ("guarded", "NetworkPolicy/redis", "spec.ingress.0.from", DELETED),
    ("guarded", "NetworkPolicy/redis", "spec.ingress.0.ports", DELETED),
    ("guarded", "NetworkPolicy/mlflow", "spec.ingress.0.from.+", {"ipBlock": {"cidr": "0.0.0.0/0"}}),
    ("guarded", "NetworkPolicy/mlflow", "spec.ingress.0.from.0.namespaceSelector", {}),
    ("guarded", "NetworkPolicy/redis", "spec.podSelector", {"matchLabels": {"equitune.io/part": "mlflow"}}),
    ("without_cloud_keys", "NetworkPolicy/ray-egress", "kind", "ConfigMap"),
    ("without_cloud_keys", "NetworkPolicy/ray-egress", "spec.policyTypes", ["Ingress"]),
    ("without_cloud_keys", "NetworkPolicy/ray-egress", "spec.podSelector.matchExpressions.0.values", ["ray-head"]),
    ("without_cloud_keys", "NetworkPolicy/ray-egress", "spec.egress.+", {}),
    ("without_cloud_keys", "NetworkPolicy/ray-egress", "spec.egress.0.to.1.ipBlock.except", DELETED),
    ("without_cloud_keys", "NetworkPolicy/ray-egress", "spec.egress.0.to.1.ipBlock.except", ["169.254.169.254/32"]),
    ("without_cloud_keys", "NetworkPolicy/ray-egress", "spec.egress.0.to.2.ipBlock.except.0", "fd00:ec3::254/128"),
    ("without_cloud_keys", "NetworkPolicy/ray-egress", "spec.egress.0.to.1.ipBlock.cidr", "192.168.0.0/16"),
    ("without_cloud_keys", "NetworkPolicy/ray-egress", "spec.egress.0.to.0", DELETED),
    ("without_cloud_keys", "NetworkPolicy/ray-egress", "spec.egress.1", DELETED),
    ("without_cloud_keys", "NetworkPolicy/mlflow", "spec.egress.1.to.0.ipBlock.except", DELETED),
    ("budgeted", "PodDisruptionBudget/ray-head", "spec", {"maxUnavailable": 0, "selector": {"matchLabels": {"ray.io/node-type": "head"}}}),
    ("budgeted", "PodDisruptionBudget/ray-drivers", "kind", "ConfigMap"),
    ("budgeted", "PodDisruptionBudget/mlflow", "spec.selector.matchLabels", {"equitune.io/part": "redis"}),
    ("mlflow_door", "Deployment/mlflow", f"{MLFLOW}.args.4", "--app-name=mlflow"),
    ("mlflow_door", "Deployment/mlflow", f"{MLFLOW}.args.2", "--workers=1"),
    ("mlflow_door", "Deployment/mlflow", f"{MLFLOW}.args.+", "--gunicorn-opts=--timeout=60"),
    ("mlflow_door", "Deployment/mlflow", f"{MLFLOW}.args.+", "--default-artifact-root=s3://bucket"),
    ("mlflow_door", "Deployment/mlflow", f"{MLFLOW}.args.5", "--no-serve-artifacts"),
    ("mlflow_door", "Deployment/mlflow", f"{MLFLOW}.env.1.value", "mlflow,localhost:*"),
    ("mlflow_door", "Deployment/mlflow", f"{MLFLOW}.env.1.value", "*"),
    ("mlflow_door", "Deployment/mlflow", "metadata.namespace", "lab"),
    ("mlflow_door", "Deployment/mlflow", f"{MLFLOW}.env.0", {"name": "HOME", "value": "/tmp"}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "which", "path", "value"), POLICIES)
def test_a_rule_catches(rule: str, which: str, path: str, value: Any) -> None:
    manifests = rendered("prod-job" if which == JOB else "prod")
    assert list(ALL_RULES[rule](manifests)) == []
    assert len(list(ALL_RULES[rule](changed(manifests, which, path, value)))) >= 1


def test_every_rule_has_a_mistake_that_it_catches() -> None:
    assert {rule for rule, *_ in POLICIES} == set(ALL_RULES)


def test_workload_identity_opens_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "equitune",
        "resources": [os.path.relpath(DEPLOY / "overlays/prod", tmp_path)],
        "components": [os.path.relpath(DEPLOY / "components/workload-identity", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run([*renderer(), str(tmp_path)], capture_output=True, text=True, check=True)
    manifests = list(yaml.safe_load_all(done.stdout))
    assert kubernetes_faults(manifests, OLDEST) == []
    faults = {rule: list(check(manifests)) for rule, check in ALL_RULES.items()}
    opened = faults.pop("without_cloud_keys")
    assert opened
    assert all(fault.startswith("NetworkPolicy/workload-identity: ") and " head" not in fault for fault in opened)
    assert not any(faults.values())
