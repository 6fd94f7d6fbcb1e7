"""deploy/compose.yaml with its parts, Envoy's twin of the edge, and the systemd unit."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rearview.config import load_config
from support.commands import check_command
from support.require import skip_or_fail

pytestmark = pytest.mark.unit

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
MOST_EXPOSED = 2.5
"""Of 10, as `systemd-analyze security` counts."""


def read(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read("compose.yaml")["services"]
    return found


def test_compose_is_what_the_compose_specification_says() -> None:
    try:
        import compose_spec
    except ImportError:
        skip_or_fail("compose-spec is not installed: it has wheels for Linux")
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(interpolated(text))
    names = compose_spec.PyCompose.from_json(json.dumps(content)).service_names()
    assert set(names) == {"rearview", "redis", "prometheus", "grafana", "envoy"}
    content["services"]["redis"]["imagee"] = "x"
    with pytest.raises(ValueError, match="imagee"):
        compose_spec.PyCompose.from_json(json.dumps(content))


def interpolated(text: str) -> str:
    """As Compose does before it reads: a variable has its default, or some value if it must be set."""
    return re.sub(r"\$\{\w+:([-?])([^}]*)\}", lambda found: found[2] if found[1] == "-" else "set", text)


def test_every_file_that_is_mounted_is_there(services: dict[str, dict[str, Any]]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", ())]
    binds = {mount["source"] for mount in mounts if mount["type"] == "bind"}
    made_by_hand = {"./compose/tls"}
    assert {source for source in binds if not (DEPLOY / source).exists()} <= made_by_hand
    assert all(mount["read_only"] for mount in mounts if mount["type"] == "bind")
    assert {mount["source"] for mount in mounts if mount["type"] == "volume"} == set(
        read("compose.yaml")["volumes"]
    )
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert "compose/tls" in readme


def test_only_the_edge_is_open_to_others(services: dict[str, dict[str, Any]]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"envoy": ["8443:8443"], "grafana": ["127.0.0.1:3000:3000"]}
    assert read("compose.yaml")["networks"]["inside"]["internal"] is True
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert re.fullmatch(r".+:(v?\d[\d.]*|\$\{TAG:-cpu\})", service["image"]), name
        assert "mem_limit" in service


def test_the_service_is_told_of_its_neighbours_and_scraped(services: dict[str, dict[str, Any]]) -> None:
    config = load_config(read("compose/rearview.yaml"))
    assert config.directory.redis_url == "redis://redis:6379"
    prometheus = read("compose/prometheus.yml")
    targets = {
        target
        for job in prometheus["scrape_configs"]
        for each in job["static_configs"]
        for target in each["targets"]
    }
    ports = [config.ingress.metrics_port, *(span.metrics_port for span in config.spans)]
    assert targets == {f"rearview:{port}" for port in ports}
    rules = (DEPLOY / "compose/rules.yml").read_text(encoding="utf-8")
    jobs = {job["job_name"] for job in prometheus["scrape_configs"]}
    assert set(re.findall(r'job="([^"]+)"', rules)) <= jobs, "a rule asks for a job that is not scraped"
    stop_s = float(services["rearview"]["stop_grace_period"].rstrip("s"))
    assert stop_s > config.ingress.drain_grace_s


def test_the_rules_are_those_of_kubernetes() -> None:
    made = runpy.run_path(str(DEPLOY / "compose/rules.py"))["text"]()
    assert (DEPLOY / "compose/rules.yml").read_text(encoding="utf-8") == made, "run deploy/compose/rules.py"


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    if (program := shutil.which("promtool")) is None:
        skip_or_fail("promtool is not installed (Debian: apt install prometheus)")
    for name in ("prometheus.yml", "rules.yml"):
        text = (DEPLOY / "compose" / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/etc/prometheus/", f"{tmp_path}/"))
    run = subprocess.run(
        [program, "check", "config", "--lint=all", "--lint-fatal", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_grafana_finds_our_dashboards(services: dict[str, dict[str, Any]]) -> None:
    (provider,) = read("compose/grafana/dashboards.yaml")["providers"]
    mounts = {mount["target"]: mount["source"] for mount in services["grafana"]["volumes"]}
    folder = DEPLOY / mounts[provider["options"]["path"]]
    assert {path.stem for path in folder.glob("*.json")} == {"service", "capacity", "tenants", "stages"}
    (source,) = read("compose/grafana/datasources.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_the_twins_of_the_edge_bound_the_same() -> None:
    haproxy = (DEPLOY / "haproxy/haproxy.cfg").read_text(encoding="utf-8")
    (listener,) = read("envoy/envoy.yaml")["static_resources"]["listeners"]
    (chain,) = listener["filter_chains"]
    connections, manager = (each["typed_config"] for each in chain["filters"])
    limit, tokens, _ = (each["typed_config"] for each in manager["http_filters"])
    assert f"maxconn {connections['max_connections']}\n" in haproxy
    streams = manager["http2_protocol_options"]["max_concurrent_streams"]
    assert f"tune.h2.max-concurrent-streams {streams}\n" in haproxy
    bucket = limit["token_bucket"]
    assert (bucket["max_tokens"], bucket["fill_interval"]) == (200, "10s")
    assert "http_req_rate(10s)" in haproxy
    assert "sc_http_req_rate(0) gt 200" in haproxy
    assert f"timeout client {manager['stream_idle_timeout']}\n" in haproxy
    paths = {route["match"]["prefix"] for route in routes(manager)}
    assert paths == set(re.findall(r"/(?:rearview|grpc)\.\S+/", haproxy))
    assert all(route["route"]["timeout"] == "0s" for route in routes(manager))
    assert tokens["providers"]["issuer"]["forward"] is True, "the ingress decides"


def routes(manager: dict[str, Any]) -> list[dict[str, Any]]:
    (host,) = manager["route_config"]["virtual_hosts"]
    found: list[dict[str, Any]] = host["routes"]
    return found


def test_what_envoy_takes_for_a_signed_token_is_one() -> None:
    (listener,) = read("envoy/envoy.yaml")["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][1]["typed_config"]
    (rule,) = manager["http_filters"][1]["typed_config"]["rules"]
    (header,) = rule["match"]["headers"]
    pattern = header["string_match"]["safe_regex"]["regex"]
    assert re.fullmatch(pattern, "Bearer aGVhZA.Ym9keQ.c2ln")
    assert re.fullmatch(pattern, "Bearer aGVhZA.Ym9keQ."), "not signed is not good"
    assert not re.fullmatch(pattern, "Bearer example-token-studio")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that this machine has."""
    text = (DEPLOY / "systemd/rearview.service").read_text(encoding="utf-8")
    path = tmp_path / "rearview.service"
    path.write_text(text.replace("/opt/rearview/bin/rearview", sys.executable))
    return path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        skip_or_fail("systemd-analyze is not installed (Debian: apt install systemd)")
    command = [program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_unit_is_one_that_systemd_reads(unit: Path) -> None:
    run = analyze("verify", "--man=no", unit)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")
    unit.write_text(unit.read_text() + "\n[Service]\nProtectSystm=strict\n")
    assert "ProtectSystm" in analyze("verify", "--man=no", unit).stderr


def test_the_unit_is_exposed_to_little(unit: Path) -> None:
    run = analyze("security", "--offline=true", f"--threshold={round(10 * MOST_EXPOSED)}", unit)
    assert run.returncode == 0, run.stdout[-400:]


def test_the_unit_starts_a_command_that_there_is_and_lets_it_drain() -> None:
    text = (DEPLOY / "systemd/rearview.service").read_text(encoding="utf-8")
    (started,) = re.findall(r"^ExecStart=\S+/rearview (.+)$", text, re.MULTILINE)
    check_command(started.split())
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    (signal,) = re.findall(r"^KillSignal=(\w+)$", text, re.MULTILINE)
    assert signal == "SIGINT"
    assert int(stop_s) > load_config(DEPLOY / "pocket-cpu-container.yaml").ingress.drain_grace_s
