"""Rules about what chooses pods: services, budgets, network policies; and about MLflow's door."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from manifests import Manifest, containers, name, of_kind, pods
from policies import FOREIGN_PODS, RULES, Faults


def chosen(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a selector chooses a pod with these labels."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    return all(labels.get(it["key"]) in it["values"] for it in selector.get("matchExpressions", []))


def _selectors(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    spec = manifest["spec"]
    if manifest["kind"] == "Service":
        yield "selector", {"matchLabels": spec["selector"]}
    elif manifest["kind"] == "PodDisruptionBudget":
        yield "selector", spec["selector"]
    elif manifest["kind"] == "NetworkPolicy":
        yield "podSelector", spec["podSelector"]
        for direction, end in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction, []):
                for peer in rule.get(end, []):
                    if "podSelector" in peer:
                        yield direction, peer["podSelector"]


def selected(manifests: list[Manifest]) -> Faults:
    """Every selector chooses something: one that does not is valid, and does nothing."""
    labels = [pod["metadata"]["labels"] for _, pod in pods(manifests)]
    for manifest in of_kind(manifests, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        for which, selector in _selectors(manifest):
            if not any(chosen(selector, known) for known in [*labels, *FOREIGN_PODS]):
                yield f"{name(manifest)}: its {which} {selector} chooses no pod"
            for expression in selector.get("matchExpressions", []):
                for value in expression["values"]:
                    if not any(known.get(expression["key"]) == value for known in labels):
                        yield f"{name(manifest)}: no pod has {expression['key']}: {value}"


def ported(manifests: list[Manifest]) -> Faults:
    """What a policy or a service opens is a port of the pods it chooses."""
    for manifest in of_kind(manifests, "Service", "NetworkPolicy"):
        spec = manifest["spec"]
        if manifest["kind"] == "Service":
            selector, wanted = {"matchLabels": spec["selector"]}, {port["targetPort"] for port in spec["ports"]}
        else:
            selector = spec["podSelector"]
            wanted = {port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])}
        for where, pod in pods(manifests):
            if "ports" not in str(spec) or not chosen(selector, pod["metadata"]["labels"]):
                continue
            open_ports = [port for _, content in containers(pod) for port in content.get("ports", [])]
            there = {port["containerPort"] for port in open_ports} | {port.get("name") for port in open_ports}
            if manifest["kind"] == "NetworkPolicy" and not open_ports:
                continue  # a job among those that a policy chooses
            if not wanted <= there:
                yield f"{name(manifest)}: {where} has no port {wanted - there}"


def guarded(manifests: list[Manifest]) -> Faults:
    """Nothing is reached unless a policy says so, no policy lets everybody in, and no port is open to everybody but Ray's own."""
    policies = of_kind(manifests, "NetworkPolicy")
    closed = [it for it in policies if it["spec"]["podSelector"] == {} and "ingress" not in it["spec"]]
    if not any("Ingress" in it["spec"]["policyTypes"] for it in closed):
        yield "no policy that denies by default"
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from"):
                yield f"{name(policy)}: it lets everybody in"
            for peer in rule.get("from", []):
                if not peer.get("podSelector"):
                    yield f"{name(policy)}: it lets more in than pods that it names"
                elif "namespaceSelector" in peer and chosen(peer["podSelector"], FOREIGN_PODS[0]) is False:
                    yield f"{name(policy)}: it lets pods of every namespace in"
            if not rule.get("ports") and name(policy) != "NetworkPolicy/ray":
                yield f"{name(policy)}: it opens every port"
    for where, pod in pods(manifests):
        labels = pod["metadata"]["labels"]
        serves = any(content.get("ports") for _, content in containers(pod))
        if serves and not any(
            it["spec"]["podSelector"] and chosen(it["spec"]["podSelector"], labels) for it in policies
        ):
            yield f"{where}: no policy says who may reach it"


# Where machines of a cloud give their keys away, and addresses that a trial or a driver needs.
METADATA = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd20:ce::254")
NEEDED = ("10.0.0.7", "203.0.113.7", "2001:db8::7")
DNS_CACHE = {"ipBlock": {"cidr": "169.254.20.10/32"}}


def _reaches(policy: Manifest, address: str) -> bool:
    """Whether a policy opens an address, on any port."""
    for rule in policy["spec"].get("egress", []):
        for peer in rule.get("to") or [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]:
            block, wanted = peer.get("ipBlock"), ip_address(address)
            holes = block.get("except", []) if block else []
            if block and wanted in ip_network(block["cidr"]) and not any(wanted in ip_network(hole) for hole in holes):
                return True
    return False


def without_cloud_keys(manifests: list[Manifest]) -> Faults:
    """Ray's pods, where others' code runs, and MLflow's do not reach what gives a machine's keys away; Ray's all else."""
    policies = [it for it in of_kind(manifests, "NetworkPolicy") if "Egress" in it["spec"]["policyTypes"]]
    for where, pod in pods(manifests):
        labels = pod["metadata"]["labels"]
        of_ray = labels.get("equitune.io/part") in ("ray-head", "ray-worker")
        if not of_ray and labels.get("equitune.io/part") != "mlflow":
            continue
        own = [it for it in policies if chosen(it["spec"]["podSelector"], labels)]
        if not own:
            yield f"{where}: no policy says what it reaches"
        for policy in own:
            for address in METADATA:
                if _reaches(policy, address):
                    yield f"{name(policy)}: {where} reaches {address}"
        rules = [rule for policy in own for rule in policy["spec"].get("egress", [])]
        for address in NEEDED if of_ray else ():
            if not any(_reaches(policy, address) for policy in own):
                yield f"{where}: it does not reach {address}"
        if of_ray and not any({"namespaceSelector": {}} in rule.get("to", []) for rule in rules):
            yield f"{where}: it does not reach other pods by name"
        if of_ray and not any(DNS_CACHE in rule.get("to", []) for rule in rules):
            yield f"{where}: it does not reach the machine's DNS cache"


def budgeted(manifests: list[Manifest]) -> Faults:
    """Of pods of a custom resource Kubernetes takes an integer minAvailable alone; what serves or drives has a budget."""
    budgets = of_kind(manifests, "PodDisruptionBudget")
    for budget in budgets:
        of_ray = any(key.startswith("ray.io/") for key in budget["spec"]["selector"].get("matchLabels", {}))
        if of_ray and not isinstance(budget["spec"].get("minAvailable"), int):
            yield f"{name(budget)}: an integer minAvailable"
    for where, pod in pods(manifests):
        labels = pod["metadata"]["labels"]
        needs = (where.startswith("RayCluster") and where.endswith((" head", " cpu"))) or where == "Deployment/mlflow"
        if needs and not any(chosen(budget["spec"]["selector"], labels) for budget in budgets):
            yield f"{where}: no PodDisruptionBudget"


def mlflow_door(manifests: list[Manifest]) -> Faults:
    """MLflow checks users and hosts, proxies artefacts, and starts no job runner."""
    (server,) = [it for it in of_kind(manifests, "Deployment") if it["metadata"]["name"] == "mlflow"]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    options = dict(argument.partition("=")[::2] for argument in container["args"][1:])
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    if container["args"][0] != "server" or options.get("--app-name") != "basic-auth" or not options.get("--port"):
        yield "a server with users and its port given"
    for option in ("--gunicorn-opts", "--waitress-opts", "--default-artifact-root", "--disable-security-middleware"):
        if option in options:
            yield f"{option} opens a door"
    if not options.get("--artifacts-destination"):
        yield "artefacts go through the server"
    hosts = (values.get("ALLOWED_HOSTS") or "").split(",")
    space = server["metadata"]["namespace"]
    forms = ["mlflow", f"mlflow.{space}", f"mlflow.{space}.svc", f"mlflow.{space}.svc.cluster.local"]
    missing = {f"{form}{port}" for form in forms for port in ("", ":5000")} | {"localhost:*"}
    if missing - set(hosts) or "*" in hosts:
        yield f"allowed hosts: {missing - set(hosts)} missing, or everybody"
    if values.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION") != "false":
        yield "its job runner takes 2 GB"
    needed = {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_CONFIG_PATH", "MLFLOW_AUTH_ADMIN_PASSWORD"}
    if absent := (needed | {"MLFLOW_FLASK_SERVER_SECRET_KEY"}) - set(values):
        yield f"{absent} missing"


ALL_RULES = RULES | {
    rule.__name__: rule for rule in (selected, ported, guarded, without_cloud_keys, budgeted, mlflow_door)
}
