"""deploy/k8s: rendered, and consistent with settings, commands, ports and docker-compose.yml.

No cluster is used. Without a program that renders, these tests are skipped.
"""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cli.commands.kong import PROBE_PORT
from scoreboard.errors import ScoreboardError
from scoreboard.runtime.settings import describe
from scoreboard.runtime.settings import load as load_settings
from scoreboard.security.addresses import trusted_networks
from streamer.server import grace_s as streamer_grace_s
from tests.deploy.compose import environment as compose_environment
from tests.deploy.compose import kong_image
from tests.support.clients.commands import check_command
from tests.support.fakes.stack import load_template
from tests.support.manifests import (
    ADMIN_OVERLAYS,
    COMPONENT,
    MANIFESTS,
    NAMESPACE,
    OVERLAYS,
    PLACEHOLDER,
    Container,
    Installation,
    choose,
    copy_manifests,
    render,
    settings_to_fill_in,
    template_of,
)
from tests.support.monitoring import selectors_of, unknown_metrics
from tests.support.network_policies import selects
from tests.support.repository import ROOT

ALERT_JOBS = {f"scoreboard-{name}" for name in ("api", "admin", "streamer", "flusher", "kong-sync")}
CUSTOM = {"PodMonitor", "PrometheusRule", "ScaledObject"}
SERVICES = ("api", "streamer", "flusher", "kong")
ALL = (*OVERLAYS, *ADMIN_OVERLAYS)


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_manifests(tmp_path_factory.mktemp("manifests"))


@pytest.fixture(scope="module")
def rendered(overlays: Path) -> dict[str, Installation]:
    return {name: Installation(render(overlays / name)) for name in ALL}


@pytest.fixture(params=ALL)
def found(request: pytest.FixtureRequest, rendered: dict[str, Installation]) -> Installation:
    return rendered[request.param]


@pytest.fixture
def dev(rendered: dict[str, Installation]) -> Installation:
    return rendered["dev"]


@pytest.fixture
def prod(rendered: dict[str, Installation]) -> Installation:
    return rendered["prod"]


def ours(found: Installation) -> list[Container]:
    """Return the containers of our image that run our programs, with their settings."""
    return [
        one for one in found.containers if one.image == "scoreboard" and one.name != "form-cluster"
    ]


# Files ------------------------------------------------------------------------------------------


def test_every_file_belongs_to_a_kustomization() -> None:
    for path in MANIFESTS.rglob("*.yaml"):
        if path.name == "kustomization.yaml" or "secrets" in path.parts:
            continue
        listed = (path.parent / "kustomization.yaml").read_text()
        assert path.name in listed, path


def test_the_base_needs_no_operator_and_has_no_secret() -> None:
    objects = render(MANIFESTS / "base")
    kinds = {one["kind"] for one in objects}
    assert kinds.isdisjoint(CUSTOM | {"Secret"})
    assert all("." not in one["apiVersion"].split("/")[0] or
               one["apiVersion"].split("/")[0].endswith("k8s.io") for one in objects)  # fmt: skip


def test_only_dev_has_secrets_and_git_has_none_of_them(
    rendered: dict[str, Installation],
) -> None:
    assert rendered["dev"].of("Secret")
    assert not rendered["prod"].of("Secret")
    assert not rendered["prod-hpa"].of("Secret")
    for path in MANIFESTS.rglob("*.yaml"):
        if "secrets" not in path.parts:
            assert "stringData" not in path.read_text()
    ignored = ["git", "check-ignore", "-q", "deploy/k8s/overlays/dev/secrets/api/redis"]
    if (ROOT / ".git").exists():
        assert subprocess.run(ignored, cwd=ROOT, check=False).returncode == 0


def test_the_copy_of_the_rules_is_current() -> None:
    subprocess.run([sys.executable, MANIFESTS / "build.py", "--check"], check=True)


def test_the_rules_are_those_of_prometheus(prod: Installation) -> None:
    for path in (ROOT / "deploy/prometheus/rules").glob("*.yml"):
        rule = prod.get("PrometheusRule", f"scoreboard-{path.stem}")
        assert rule["spec"] == yaml.safe_load(path.read_text())


def test_an_outdated_copy_of_the_rules_is_found(overlays: Path) -> None:
    copy = overlays.parent
    rules = copy / "components/monitoring/rules.yaml"
    text = rules.read_text()
    rules.write_text(text.replace("ApiDown", "ApiAway"))
    done = subprocess.run(
        [sys.executable, copy / "build.py", "--check"], capture_output=True, text=True, check=False
    )
    rules.write_text(text)
    assert done.returncode == 1
    assert "out of date" in done.stderr


def test_the_dashboards_are_those_of_grafana(prod: Installation) -> None:
    folder = ROOT / "deploy/grafana/dashboards"
    assert prod.get("ConfigMap", "scoreboard-dashboards")["data"] == {
        path.name: path.read_text() for path in folder.glob("*.json")
    }


def test_no_object_is_too_large_to_apply(found: Installation) -> None:
    # `kubectl apply` without --server-side stores it in an annotation of at most 256 KiB.
    for one in found.documents:
        assert len(json.dumps(one)) < 256 * 1024, one["metadata"]["name"]


def test_every_object_is_in_the_namespace_and_part_of_the_system(found: Installation) -> None:
    for one in found.documents:
        metadata = one["metadata"]
        assert (one["kind"] == "Namespace") or metadata["namespace"] == NAMESPACE
        assert metadata["labels"]["app.kubernetes.io/part-of"] == "scoreboard"
    for workload in found.workloads:
        labels = template_of(workload)["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "scoreboard"
        assert labels["app.kubernetes.io/name"] == workload["metadata"]["name"]
        assert labels[COMPONENT] == workload["metadata"]["labels"][COMPONENT]


# Settings ---------------------------------------------------------------------------------------


def test_every_container_starts_with_its_environment(found: Installation) -> None:
    known = {name for name, _, _ in describe()}
    for container in ours(found):
        environ = dict(container.environment)
        named = {name for name in environ if name.startswith("SCOREBOARD_")}
        assert named <= known, container.name
        settings = load_settings(environ)
        assert trusted_networks(settings.trusted_hops)
        assert settings.secrets in {"file", "aws"}


def test_settings_of_pods_are_used_by_a_container(found: Installation) -> None:
    """A variable that no program reads would be a mistake in its name."""
    (settings,) = [
        one for one in found.of("ConfigMap") if one["metadata"]["name"].startswith("settings-")
    ]
    text = "".join(path.read_text() for path in MANIFESTS.rglob("*.yaml"))
    known = {name for name, _, _ in describe()} | {"AWS_REGION"}
    for name in settings["data"].keys() - known:
        assert f"$({name})" in text or f"data.{name}" in text, name


def test_services_have_the_environment_of_compose(dev: Installation) -> None:
    """Differences are those of the two networks."""
    differs = {
        "SCOREBOARD_ISSUER", "SCOREBOARD_JWKS_URL", "SCOREBOARD_SIGN_IN_ISSUER",
        "SCOREBOARD_TRUSTED_HOPS",
    }  # fmt: skip
    only_here = {"SCOREBOARD_VIEWERS"}
    for service in ("api", "streamer", "flusher"):
        expected = {
            name: value
            for name, value in compose_environment(service).items()
            if not name.startswith("AWS_") and name not in differs
        }
        actual = dev.container(service).environment
        assert {name: actual.get(name) for name in expected} == expected
    all_of_compose = {
        name for service in ("api", "streamer", "flusher") for name in compose_environment(service)
    }
    added = {name for name in dev.container("api").environment if name.startswith("SCOREBOARD_")}
    assert added - all_of_compose == only_here


@pytest.mark.parametrize("overlay", ADMIN_OVERLAYS)
def test_administrators_have_an_api_of_their_own(
    rendered: dict[str, Installation], overlay: str
) -> None:
    """It differs from the public one by the operator's logins."""
    found = rendered[overlay]
    api, admin = found.container("api"), found.container("admin")
    prefix = admin.environment["SECRETS_PREFIX"]
    assert admin.environment == {
        **api.environment,
        "SCOREBOARD_ADMIN_API": "true",
        "SCOREBOARD_ADMIN_REDIS_SECRET": f"{prefix}operator/redis",
        "SCOREBOARD_ADMIN_DATABASE_SECRET": f"{prefix}operator/database",
    }
    assert (admin.command, admin.ports) == (api.command, api.ports)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle"):
        assert admin.spec[probe] == api.spec[probe]
    for pod in ("terminationGracePeriodSeconds", "securityContext"):
        assert admin.pod[pod] == api.pod[pod]
    target = f"--admin-target=admin:{admin.ports['http']}"
    assert target in found.container("kong", "sync").command


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_the_component_there_is_nothing_of_administrators(
    rendered: dict[str, Installation], overlay: str
) -> None:
    found = rendered[overlay]
    assert "admin" not in {one["metadata"]["name"] for one in found.of("Deployment", "Service")}
    assert "--admin-target" not in " ".join(found.container("kong", "sync").command)


def test_the_administrators_pod_mounts_the_secrets_of_the_api_and_the_operator(
    rendered: dict[str, Installation],
) -> None:
    found = rendered["dev-admin"]
    admin = found.container("admin")
    for name in ("REDIS", "DATABASE", "ADMIN_REDIS", "ADMIN_DATABASE"):
        folder, _, key = admin.environment[f"SCOREBOARD_{name}_SECRET"].rpartition("/")
        secret = admin.mounts()[folder]["secret"]["secretName"]
        assert key in found.get("Secret", secret)["data"]


def test_the_component_of_the_secrets_needs_that_of_administrators_before_it(
    overlays: Path, tmp_path: Path
) -> None:
    """In the other order its pod has no secrets, which the comment of the component says."""
    copied = shutil.copytree(overlays.parents[1], tmp_path / "deploy") / "k8s/overlays/dev"
    file = copied / "kustomization.yaml"
    listed = "- ../../components/secret-files\n"
    file.write_text(file.read_text().replace(listed, f"{listed}- ../../components/admin\n"))
    assert set(Installation(render(copied)).container("admin").mounts()) == {"/tmp"}


def test_kong_has_the_environment_of_compose(dev: Installation) -> None:
    expected = compose_environment("kong")
    actual = dict(dev.container("kong").environment)
    assert actual.pop("KONG_DNS_ORDER") == "LAST,A,CNAME"
    folder = "/var/lib/scoreboard/config"
    expected["REDIS_PASSWORD_FILE"] = f"{folder}/redis-password"
    del expected["KONG_ADMIN_LISTEN"]  # that of the image, on loopback: the sidecar shares it
    assert actual == expected
    sync = dev.container("kong", "sync")
    assert f"--output={actual['KONG_DECLARATIVE_CONFIG']}" in sync.command
    assert f"--password-file={actual['REDIS_PASSWORD_FILE']}" in sync.command
    for container in (sync, dev.container("kong")):
        assert container.mounts()[folder]["emptyDir"]["medium"] == "Memory"


def test_the_streamer_is_limited_to_what_was_measured(found: Installation) -> None:
    settings = load_settings(dict(found.container("streamer").environment))
    assert settings.viewers == 5000
    for scaled in found.of("ScaledObject"):
        if scaled["metadata"]["name"] == "streamer":
            trigger = scaled["spec"]["triggers"][0]["metadata"]
            assert int(trigger["threshold"]) == settings.viewers * 0.7


def test_what_is_not_filled_in_is_refused() -> None:
    """Neither the cluster nor the services accept the placeholders."""
    found = Installation(render(MANIFESTS / "overlays/prod"))
    networks = [
        peer["ipBlock"]["cidr"]
        for policy in found.of("NetworkPolicy")
        for rule in policy["spec"].get("egress", ())
        for peer in rule.get("to", ())
        if "ipBlock" in peer
    ]
    assert networks.count(PLACEHOLDER) == 3
    for container in ours(found):
        with pytest.raises(ScoreboardError, match=f"_REDIS: '{PLACEHOLDER}'"):
            load_settings(dict(container.environment))
    for container in found.containers:
        assert PLACEHOLDER in container.spec["image"]


@pytest.mark.parametrize("name", ["SCOREBOARD_ACKNOWLEDGE", "SCOREBOARD_VOUCHED_REDIS"])
def test_no_service_starts_without_the_decision_on_redis(prod: Installation, name: str) -> None:
    for container in ours(prod):
        with pytest.raises(ScoreboardError, match=name):
            load_settings({**container.environment, name: PLACEHOLDER})


def test_no_proxy_is_trusted_by_a_placeholder() -> None:
    with pytest.raises(ScoreboardError, match="SCOREBOARD_TRUSTED_HOPS"):
        trusted_networks((PLACEHOLDER,))


def test_prod_vouches_for_a_redis_that_hides_its_settings(prod: Installation) -> None:
    """Redis of AWS refuses CONFIG GET, and no service starts unless the operator vouches for it."""
    for name in ("api", "flusher", "operator", "open"):
        settings = load_settings(dict(prod.container(name).environment))
        assert settings.vouched_redis
        assert settings.acknowledge == "committed"


def test_a_renamed_namespace_is_renamed_everywhere(tmp_path: Path) -> None:
    """Only a dashboard, rule or name of an account may still contain the name of the product."""
    overlay = copy_manifests(tmp_path) / "prod"
    file = overlay / "kustomization.yaml"
    file.write_text(file.read_text().replace("namespace: scoreboard\n", "namespace: other\n"))
    found = Installation(render(overlay))
    assert found.get("Namespace", "other")
    for query in queries_of(found):
        assert 'namespace="other"' in query


def queries_of(found: Installation) -> list[str]:
    """Return the queries by which KEDA scales: of the streamer and of the flusher."""
    queries = [
        trigger["metadata"]["query"]
        for scaled in found.of("ScaledObject")
        for trigger in scaled["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    ]
    assert len(queries) == 2
    return queries


def test_the_page_lists_what_to_fill_in() -> None:
    page = (ROOT / "docs/how-to/kubernetes.md").read_text()
    rows = re.findall(r"^ *\| `([A-Z_]+)`((?:, `[A-Z_]+`)*) \|", page, re.MULTILINE)
    listed = {name for first, more in rows for name in [first, *re.findall("[A-Z_]+", more)]}
    assert set(settings_to_fill_in()) <= listed
    text = (MANIFESTS / "overlays/prod/settings.env").read_text()
    assert listed <= set(re.findall(r"^(\w+)=", text, re.MULTILINE))


# Commands, ports, probes ------------------------------------------------------------------------


def lines_of(container: Container) -> list[list[str]]:
    """Return the command, or the lines of a script that run `scoreboard`."""
    words = container.command
    if words[:2] == ["sh", "-euc"]:
        script = words[2].replace("$board", "main")
        lines = [shlex.split(line) for line in script.splitlines()]
        return [line for line in lines if line[0] == "scoreboard"]
    return [words]


def test_every_command_exists_with_its_options(found: Installation) -> None:
    seen = set()
    for container in ours(found):
        for line in lines_of(container):
            match line:
                case ["python", "-m", module]:
                    assert importlib.util.find_spec(f"{module}.__main__")
                case ["scoreboard", *words]:
                    check_command(words)
                    seen.add(words[0])
                case _:
                    assert line == ["sleep", "4h"]
    assert seen >= {"db", "board", "action", "reseed", "kong"}


def test_a_command_with_an_unknown_option_is_found() -> None:
    with pytest.raises(click.NoSuchOption):
        check_command(["kong", "sync", "--publik"])


def test_ports_are_those_of_the_settings(found: Installation) -> None:
    settings = load_settings(dict(found.container("api").environment))
    assert found.container("api").ports == {
        "http": settings.api_port,
        "metrics": settings.api_metrics_port,
    }
    assert found.container("streamer").ports == {
        "ws": settings.ws_port,
        "metrics": settings.ws_metrics_port,
    }
    assert found.container("flusher").ports == {"metrics": settings.flusher_metrics_port}
    assert settings.api_workers == settings.ws_workers == 1
    assert found.container("kong", "sync").ports == {"sync-metrics": PROBE_PORT}
    image = kong_image()
    assert found.container("kong").ports == {
        "proxy": int(image["KONG_PROXY_LISTEN"].rpartition(":")[2]),
        "status": int(image["KONG_STATUS_LISTEN"].rpartition(":")[2]),
    }
    # The Admin API is for the sidecar only.
    assert image["KONG_ADMIN_LISTEN"].startswith("127.0.0.1:")


def test_probes_ask_ports_and_paths_that_are_served(found: Installation) -> None:
    served = {
        "metrics": {"/health/live", "/health/ready"},
        "sync-metrics": {"/health/live"},
        "status": {"/status", "/status/ready"},
        "http": {"/isalive"},
    }
    for container in found.containers:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.spec.get(kind, {}).get("httpGet")
            if probe is not None:
                assert probe["port"] in container.ports
                assert probe["path"] in served[probe["port"]]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_three_probes_and_liveness_needs_no_store(
    found: Installation, service: str
) -> None:
    spec = found.container(service).spec
    assert spec["livenessProbe"]["httpGet"]["path"] in {"/health/live", "/status"}
    assert spec["readinessProbe"]["httpGet"]["path"] in {"/health/ready", "/status/ready"}
    startup = spec["startupProbe"]
    assert startup["httpGet"] == spec["livenessProbe"]["httpGet"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60


def test_a_pod_has_time_to_drain(found: Installation) -> None:
    settings = load_settings(dict(found.container("api").environment))
    kong_s = int(kong_image()["KONG_NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT"].removesuffix("s"))
    needed_s = {
        "api": settings.drain_s,
        "streamer": streamer_grace_s(settings),
        "flusher": settings.drain_s,
        "kong": kong_s,
    }
    for service, drain_s in needed_s.items():
        container = found.container(service)
        hook = container.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        # Kong keeps an answer of DNS for 5 s, and CoreDNS one for another 5 s.
        assert hook.get("seconds", 0) >= {"api": 15, "streamer": 15, "kong": 10}.get(service, 0)
        grace_s = container.pod["terminationGracePeriodSeconds"]
        assert drain_s + hook.get("seconds", 0) < grace_s


def test_a_rollout_keeps_every_pod_until_its_successor_is_ready(found: Installation) -> None:
    for service in SERVICES:
        strategy = found.get("Deployment", service)["spec"]["strategy"]["rollingUpdate"]
        assert strategy == {"maxSurge": 1, "maxUnavailable": 0}


# What refers to what ----------------------------------------------------------------------------


def is_of_nobody(found: Installation, one: dict[str, Any]) -> bool:
    """Return whether this is the monitor of administrators, where these have no api."""
    deployments = {workload["metadata"]["name"] for workload in found.of("Deployment")}
    return one["metadata"]["name"] == "scoreboard-admin" and "admin" not in deployments


def test_selectors_select_the_workload_of_their_name(found: Installation) -> None:
    for one in found.of("Service", "PodDisruptionBudget", "PodMonitor"):
        selector = one["spec"]["selector"]
        selector = {"matchLabels": selector} if one["kind"] == "Service" else selector
        chosen = {
            workload["metadata"]["name"]
            for workload in found.workloads
            if selects(selector, template_of(workload)["metadata"]["labels"])
        }
        name = one["metadata"]["name"].removeprefix("scoreboard-").removesuffix("-sync")
        assert chosen == (set() if is_of_nobody(found, one) else {name})


def test_services_and_monitors_name_ports_of_their_pods(found: Installation) -> None:
    for one in found.of("Service", "PodMonitor"):
        if is_of_nobody(found, one):
            continue
        selector = one["spec"]["selector"]
        component = selector.get("matchLabels", selector)[COMPONENT]
        named = {
            name: number
            for container in found.containers
            if container.component == component
            for name, number in container.ports.items()
        }
        ports = one["spec"].get("ports", [])
        assert len({port["name"] for port in ports}) == len(ports)
        for port in ports:
            assert port["targetPort"] in named
            # A headless Service does not translate ports.
            if one["spec"].get("clusterIP") == "None":
                assert port["port"] == named[port["targetPort"]]
        for endpoint in one["spec"].get("podMetricsEndpoints", []):
            assert endpoint["port"] in named


def test_every_service_has_a_budget(found: Installation) -> None:
    budgets = {one["metadata"]["name"]: one["spec"] for one in found.of("PodDisruptionBudget")}
    present = {one["metadata"]["name"] for one in found.workloads}
    assert budgets.keys() == set(SERVICES) | ({"admin", "valkey-cluster"} & present)
    for name, spec in budgets.items():
        assert spec["maxUnavailable"] == 1
        # A node of a cluster that is not ready may be the only one with the newest data.
        policy = "IfHealthyBudget" if name == "valkey-cluster" else "AlwaysAllow"
        assert spec["unhealthyPodEvictionPolicy"] == policy


def test_every_autoscaled_workload_has_one_autoscaler(rendered: dict[str, Installation]) -> None:
    expected = {"dev": [], "prod": ["api", "flusher", "streamer"], "prod-hpa": ["api", "streamer"]}
    expected |= {name: expected[name.removesuffix("-admin")] for name in ADMIN_OVERLAYS}
    expected["dev-cluster"] = []
    for overlay, found in rendered.items():
        scalers = found.of("HorizontalPodAutoscaler", "ScaledObject")
        targets = sorted(one["spec"]["scaleTargetRef"]["name"] for one in scalers)
        assert targets == expected[overlay]
        for workload in found.of("Deployment"):
            # Otherwise each `kubectl apply` would undo what the autoscaler decided.
            is_scaled = workload["metadata"]["name"] in targets
            assert ("replicas" in workload["spec"]) != is_scaled


def test_autoscalers_start_at_the_number_of_pods_of_the_base(
    rendered: dict[str, Installation],
) -> None:
    base = {
        one["metadata"]["name"]: one["spec"]["replicas"]
        for one in render(MANIFESTS / "base")
        if one["kind"] == "Deployment"
    }
    assert base["api"] == 3
    for found in rendered.values():
        for one in found.of("HorizontalPodAutoscaler", "ScaledObject"):
            spec = one["spec"]
            least = spec.get("minReplicas") or spec["minReplicaCount"]
            most = spec.get("maxReplicas") or spec["maxReplicaCount"]
            assert least == base[spec["scaleTargetRef"]["name"]]
            assert least < most


def test_the_two_components_of_autoscaling_exclude_each_other(
    overlays: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(overlays.parents[1], tmp_path / "deploy") / "k8s/overlays/prod"
    choose(copied / "kustomization.yaml", ("keda",))
    file = copied / "kustomization.yaml"
    file.write_text(
        file.read_text().replace("components:\n", "components:\n- ../../components/hpa\n")
    )
    with pytest.raises(AssertionError, match=r"may not add resource|already registered"):
        render(copied)


def test_viewers_leave_slowly(rendered: dict[str, Installation]) -> None:
    """Each pod that goes makes its viewers reconnect."""
    keda = rendered["prod"].get("ScaledObject", "streamer")["spec"]
    behaviors = [
        rendered["prod-hpa"].get("HorizontalPodAutoscaler", "streamer")["spec"]["behavior"],
        keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
    ]
    for behavior in behaviors:
        assert behavior["scaleDown"] == {
            "stabilizationWindowSeconds": 900,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}],
        }
    assert "fallback" not in keda


def test_scaling_asks_for_metrics_that_exist_with_their_labels(prod: Installation) -> None:
    for query in queries_of(prod):
        assert unknown_metrics(query) == set()
        for selector in selectors_of(query):
            labels = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
            assert labels.pop("namespace") == NAMESPACE
            assert labels in ({}, {"state": "open"})


def test_monitors_give_the_jobs_of_the_rules(prod: Installation) -> None:
    jobs = {
        endpoint["relabelings"][0]["replacement"]
        for one in prod.of("PodMonitor")
        for endpoint in one["spec"]["podMetricsEndpoints"]
    }
    assert jobs == ALERT_JOBS | {"kong"}
    for one in prod.of("PodMonitor"):
        (endpoint,) = one["spec"]["podMetricsEndpoints"]
        assert endpoint["relabelings"] == [
            {"targetLabel": "job", "replacement": one["metadata"]["name"]}
        ]


# Secrets ----------------------------------------------------------------------------------------


def test_files_of_secrets_are_mounted_where_settings_name_them(dev: Installation) -> None:
    named = 0
    for container in ours(dev):
        for name in ("SCOREBOARD_REDIS_SECRET", "SCOREBOARD_DATABASE_SECRET"):
            path = container.environment.get(name, "")
            if path:
                folder, _, key = path.rpartition("/")
                secret = container.mounts()[folder]["secret"]["secretName"]
                assert key in dev.get("Secret", secret)["data"], path
                named += 1
    assert named == 12


def test_a_pod_mounts_the_secrets_of_its_own_service_only(dev: Installation) -> None:
    expected = {
        "api": {"api"}, "streamer": {"streamer"}, "flusher": {"flusher"}, "kong": {"kong"},
        "operator": {"operator"}, "open": {"operator"}, "valkey": {"valkey"},
        "valkey-counters": {"counters"}, "postgres": {"postgres"}, "oauth": set(),
        "migrate": {"owner", "api", "streamer", "flusher", "operator", "rotator", "monitor"},
    }  # fmt: skip
    for workload in dev.workloads:
        text = json.dumps(template_of(workload)["spec"])
        mounted = set(re.findall(r'"scoreboard-([a-z]+)-[a-z0-9]{10}"', text))
        assert mounted == expected[workload["metadata"]["name"]]


def test_files_of_secrets_can_be_read_by_their_group_only(dev: Installation) -> None:
    for container in dev.containers:
        for volume in container.mounts().values():
            source = volume.get("secret") or volume.get("projected")
            if source is not None:
                assert source["defaultMode"] == 0o440
                assert container.pod["securityContext"]["fsGroup"] > 0


def test_secrets_of_aws_have_the_names_of_the_stack(rendered: dict[str, Installation]) -> None:
    template = load_template()["Resources"]
    names = {
        one["Properties"]["Name"]["!Sub"].replace("${Environment}", "production")
        for one in template.values()
        if one["Type"] == "AWS::SecretsManager::Secret"
    }
    for overlay in ("prod", "prod-hpa"):
        for container in ours(rendered[overlay]):
            for setting in ("SCOREBOARD_REDIS_SECRET", "SCOREBOARD_DATABASE_SECRET"):
                name = container.environment.get(setting, "")
                assert name in {"", "rds!cluster-owner"} | names, name


def test_each_account_has_its_own_role(rendered: dict[str, Installation]) -> None:
    for overlay in ("prod", "prod-hpa"):
        found = rendered[overlay]
        accounts = {one["metadata"]["name"]: one for one in found.of("ServiceAccount")}
        used = {container.pod["serviceAccountName"] for container in found.containers}
        assert accounts.keys() == used
        for name, account in accounts.items():
            role = account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
            assert role == f"arn:aws:iam::123456789012:role/{name}"


# Pods -------------------------------------------------------------------------------------------


def test_the_namespace_enforces_the_restricted_profile(found: Installation) -> None:
    labels = found.get("Namespace", NAMESPACE)["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"


def test_pods_follow_the_restricted_profile(found: Installation) -> None:
    allowed = {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim"}
    for container in found.containers:
        pod, security = container.pod, container.spec["securityContext"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        for volume in pod.get("volumes", []):
            assert set(volume) - {"name"} <= allowed
        assert all("hostPort" not in port for port in container.spec.get("ports", []))


def test_pods_get_no_token_and_no_variables_of_services(found: Installation) -> None:
    for workload in found.workloads:
        pod = template_of(workload)["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
    for account in found.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_our_images_run_as_the_user_of_the_dockerfile(found: Installation) -> None:
    for container in found.containers:
        if container.image.startswith("scoreboard"):
            assert container.pod["securityContext"]["runAsUser"] == 10001
            assert container.pod["securityContext"]["runAsGroup"] == 10001


def test_containers_request_what_they_need(found: Installation) -> None:
    for container in found.containers:
        resources = container.spec["resources"]
        assert resources["requests"].keys() == {"cpu", "memory"}
        # No limit of CPU: it would delay what an event loop serves.
        assert resources["limits"].keys() == {"memory"}
        if container.image == "scoreboard":
            assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_volumes_in_memory_are_bounded_and_inside_the_limit(found: Installation) -> None:
    for workload in found.workloads:
        pod = template_of(workload)["spec"]
        limits = [mebibytes(one["resources"]["limits"]["memory"]) for one in pod["containers"]]
        sizes = [
            mebibytes(volume["emptyDir"]["sizeLimit"])
            for volume in pod.get("volumes", [])
            if "emptyDir" in volume
        ]
        assert sum(sizes) <= sum(limits) / 2


def mebibytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


def test_images_are_pinned(found: Installation, request: pytest.FixtureRequest) -> None:
    by_name: dict[str, set[str]] = {}
    for container in found.containers:
        image = container.spec["image"]
        assert "@sha256:" in image or re.search(r":[^:/]+$", image), image
        assert not image.endswith(":latest")
        by_name.setdefault(container.image, set()).add(image)
    assert all(len(images) == 1 for images in by_name.values())
    if "prod" in request.node.callspec.id:
        assert all("@sha256:" in one for images in by_name.values() for one in images)


def test_pods_are_spread_over_zones_and_nodes(found: Installation) -> None:
    for service in SERVICES:
        spec = found.container(service).pod["topologySpreadConstraints"]
        keys = {one["topologyKey"] for one in spec}
        assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for one in spec:
            assert one["labelSelector"] == {"matchLabels": {COMPONENT: service}}


def test_jobs_end_and_are_removed(found: Installation) -> None:
    for workload in found.of("Job", "CronJob"):
        spec = workload["spec"]
        job = spec["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else spec
        assert job["activeDeadlineSeconds"] > 0
        assert job["ttlSecondsAfterFinished"] >= 0
        assert job["template"]["spec"]["restartPolicy"] in {"OnFailure", "Never"}


def test_rotations_never_run_at_the_same_time(rendered: dict[str, Installation]) -> None:
    rotate = rendered["prod-hpa"].get("CronJob", "rotate")["spec"]
    assert rotate["concurrencyPolicy"] == "Forbid"
    assert len(rotate["schedule"].split()) == 5
    containers = [one for one in ours(rendered["prod-hpa"]) if one.component == "rotator"]
    kinds = {one.command[-1]: one.environment for one in containers}
    assert kinds.keys() == {"db", "redis", "kong"}
    assert kinds["kong"]["REDIS_URL"] == kinds["kong"]["COUNTERS_URL"]
    assert kinds["kong"]["SCOREBOARD_REDIS_SECRET"].endswith("rotator/counters")


# The cluster ------------------------------------------------------------------------------------


@pytest.fixture
def clustered(rendered: dict[str, Installation]) -> Installation:
    return rendered["dev-cluster"]


def test_the_cluster_takes_the_place_of_the_one_server(
    dev: Installation, clustered: Installation
) -> None:
    def names(found: Installation) -> set[tuple[str, str]]:
        return {
            (one["kind"], re.sub("-[a-z0-9]{10}$", "", one["metadata"]["name"]))
            for one in found.documents
        }

    gone = {("StatefulSet", "valkey"), ("Service", "valkey")}
    gone |= {("NetworkPolicy", "valkey"), ("NetworkPolicy", "to-valkey")}
    assert names(dev) - names(clustered) == gone
    assert clustered.container("kong").environment == dev.container("kong").environment
    for name in ("api", "streamer", "flusher", "operator", "open"):
        theirs, ours = dev.container(name).environment, clustered.container(name).environment
        changed = {key for key in ours if ours[key] != theirs.get(key)}
        assert changed == {"REDIS_URL", "SCOREBOARD_ACKNOWLEDGE", "SCOREBOARD_REPLICAS"}


def test_addresses_of_the_cluster_are_its_pods(clustered: Installation) -> None:
    nodes = clustered.get("StatefulSet", "valkey-cluster")["spec"]
    expected = [f"valkey-cluster-{n}.{nodes['serviceName']}:6379" for n in range(nodes["replicas"])]
    url = clustered.container("api").environment["REDIS_URL"]
    assert url == "redis+cluster://" + ",".join(expected)
    form = clustered.container("form-cluster")
    assert [word for word in form.command if word.endswith(":6379")] == expected
    service = clustered.get("Service", nodes["serviceName"])["spec"]
    assert service["publishNotReadyAddresses"] is True
    assert '"$HOSTNAME.valkey-cluster"' in clustered.container("valkey-cluster").command[-1]


def test_nodes_start_together_and_are_updated_one_by_one(clustered: Installation) -> None:
    nodes = clustered.get("StatefulSet", "valkey-cluster")["spec"]
    assert nodes["podManagementPolicy"] == "Parallel"
    assert nodes["updateStrategy"] == {"type": "RollingUpdate"}
    container = clustered.container("valkey-cluster")
    assert "livenessProbe" not in container.spec
    conf = container.mounts()["/usr/local/etc/valkey-cluster"]["configMap"]["name"]
    assert (
        "\nshutdown-on-sigterm failover\n"
        in clustered.get("ConfigMap", conf)["data"]["valkey.conf"]
    )
    assert container.pod["terminationGracePeriodSeconds"] == 60
    ports = container.ports
    assert ports["bus"] == ports["redis"] + 10_000  # where the other nodes look for it


def test_nodes_mount_what_their_settings_include(clustered: Installation) -> None:
    container = clustered.container("valkey-cluster")
    mounted = container.mounts()
    for path in ("/usr/local/etc/valkey/valkey.conf", "/usr/local/etc/valkey-cluster/valkey.conf"):
        folder, _, key = path.rpartition("/")
        text = clustered.get("ConfigMap", mounted[folder]["configMap"]["name"])["data"][key]
        for line in text.splitlines():
            word, _, file = line.partition(" ")
            if word in {"include", "aclfile"} and "secrets" in file:
                folder, _, key = file.rpartition("/")
                secret = mounted[folder]["secret"]["secretName"]
                assert key in clustered.get("Secret", secret)["data"], line


def test_nodes_of_the_cluster_are_spread(clustered: Installation) -> None:
    spread = clustered.container("valkey-cluster").pod["topologySpreadConstraints"]
    wanted = {one["topologyKey"]: one["whenUnsatisfiable"] for one in spread}
    assert wanted == {
        "topology.kubernetes.io/zone": "ScheduleAnyway",
        "kubernetes.io/hostname": "DoNotSchedule",
    }
