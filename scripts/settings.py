"""Names, ports and paths: the one place that reads the environment, and the one that names things.

Every value of the environment is checked here, before anything changes. `make help` lists the variables.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from scripts.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
FLUX_CD = ROOT / "flux-cd"
KIND_DIR = ROOT / "kind"
APP_DIR = ROOT / "app"
OVERLAYS = FLUX_CD / "applications" / "mock-cluster-aka-namespaces"
# The environments that the lab comes with, in the order of promotion. Which there are is asked of the tree: environments().
OWN_ENVIRONMENTS = ("dev", "staging", "production")

APP_NAME = "demo-app"
APP_PORT = 8000
FLUX_NAMESPACE = "flux-system"
# What the application asks of its nodes.
WORKER_LABEL = "node-role.kubernetes.io/worker"
# kubeadm's, as a label and as a taint.
CONTROL_PLANE_LABEL = "node-role.kubernetes.io/control-plane"
EDGE_NAMESPACE = "edge"
MONITORING_NAMESPACE = "monitoring"
KEDA_NAMESPACE = "keda"
# The registry's name inside the cluster: the same whatever its port on the host is, so that manifests in Git never change with it.
REGISTRY_IN_CLUSTER = "registry.lab"
# The Git server's name inside the cluster: a headless Service whose EndpointSlice setup keeps, so that it survives a change
# of address. A cluster IP would be dialled before kube-proxy knows it: that connection leaves the cluster, for whoever answers.
# The dot at the end keeps resolvers from trying the search domains first, the host's among them.
GIT_HOST_IN_CLUSTER = f"git.{FLUX_NAMESPACE}.svc.cluster.local."
GIT_PORT_INSIDE = 8080
REGISTRY_HOST_IN_CLUSTER = f"registry.{FLUX_NAMESPACE}.svc.cluster.local"
REGISTRY_PORT_INSIDE = 5000
GIT_REPOSITORY = "lab.git"
MAIN_BRANCH = "main"
EDGE_NODE_PORT = 30080
RECEIVER_NODE_PORT = 30092
RECEIVER_NAME = "git-push"
# Labels on everything that setup creates in the engine: how teardown knows its own from others'.
OWNER_LABEL = "gitops-lab.owner"
KIND_CLUSTER_LABEL = "io.x-k8s.kind.cluster"

# What the check of manifests runs, and what its dry run does: the latter is taken where it is there, not built for it alone.
CHECK_TOOLS = ("kustomize", "kubeconform", "flux")
DRY_RUN_TOOLS = ("kube-apiserver", "etcd")
# Renders HelmReleases: taken where it is there. `make helm` brings it, nothing else does.
HELM = "helm"
# The module whose program `make mirror-serve` starts, without an engine.
MIRROR_SERVER = "registry"

INOTIFY_WATCHES = 524288
INOTIFY_INSTANCES = 512
MIN_MEMORY_BYTES = 6 * 1024**3
MIN_DISK_BYTES = {"source": 30 * 1024**3, "registry": 12 * 1024**3}
# With every output in the cache, source mode only loads images.
MIN_DISK_WARM_BYTES = 8 * 1024**3


class ImageSource(StrEnum):
    """Where tools and images come from."""

    AUTO = "auto"
    REGISTRY = "registry"
    SOURCE = "source"


class MirrorLayout(StrEnum):
    """Where a mirror keeps an upstream's images: below the upstream's host name, or all together."""

    AUTO = "auto"
    PREFIX = "prefix"
    FLAT = "flat"


class Edge(StrEnum):
    """Whether the lab has an edge (Gateway API by Envoy Gateway)."""

    ENVOY = "envoy"
    NONE = "none"


class Monitoring(StrEnum):
    """Which monitoring the lab has: what MONITORING_BY_SOURCE says, kube-prometheus-stack, the small set, or none."""

    AUTO = "auto"
    FULL = "full"
    LITE = "lite"
    NONE = "none"


class Profile(StrEnum):
    """How the load of `make hpa-demo` goes over time."""

    CONSTANT = "constant"
    RAMP = "ramp"
    STEP = "step"
    SPIKE = "spike"


class HpaMetric(StrEnum):
    """What the autoscaler follows during `make hpa-demo`."""

    CPU = "cpu"
    LATENCY = "latency"


# What MONITORING=auto means: Grafana and the chart can be pulled, not built. A cluster of one's own gets none unasked.
MONITORING_BY_SOURCE = {ImageSource.REGISTRY: Monitoring.FULL, ImageSource.SOURCE: Monitoring.LITE}
# What monitoring needs on top. The small set lives in what the least machine has to spare.
MONITORING_MEMORY_BYTES = {Monitoring.FULL: 2 * 1024**3}


@dataclass(frozen=True)
class Credentials:
    """A user and a password; the password is in no printed form."""

    user: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Settings:
    """One run's names, ports and choices."""

    cluster_name: str = "gitops-lab"
    image_source: ImageSource = ImageSource.AUTO
    edge: Edge = Edge.ENVOY
    monitoring: Monitoring = Monitoring.AUTO
    edge_port: int = 8080
    registry_port: int = 5001
    git_port: int = 8090
    git_remote: str = "lab"
    git_url: str = ""
    kube_context: str = ""
    image_repository: str = ""
    subnet: str = ""
    image_mirror: str = ""
    image_mirror_layout: MirrorLayout = MirrorLayout.AUTO
    download_mirror: str = ""
    mirror_ca: Path | None = None
    versions_lock: Path | None = None
    tree: Path = FLUX_CD
    dry_run: bool = True
    # Where the check looks for charts that are not in the tree, the user's own choice first.
    charts: tuple[Path, ...] = ()
    cache_dir: Path = Path.home() / ".cache" / "gitops-lab"
    state_root: Path = Path.home() / ".local" / "state" / "gitops-lab"

    @property
    def owns_cluster(self) -> bool:
        """Whether the cluster is the embedded kind cluster, not one the user named."""
        return not self.kube_context

    @property
    def owns_git(self) -> bool:
        """Whether the Git server is the embedded one."""
        return not self.git_url

    @property
    def push_repository(self) -> str:
        """Where the application's image is pushed to, as the engine names it."""
        return self.image_repository or f"localhost:{self.registry_port}/{APP_NAME}"

    @property
    def context(self) -> str:
        """The kubeconfig context that every call carries."""
        return self.kube_context or f"kind-{self.cluster_name}"

    @property
    def network(self) -> str:
        """The engine's network of this lab: its own, so that teardown can remove it."""
        return self.cluster_name

    @property
    def registry_container(self) -> str:
        """Name of the registry's container and, on the lab's network, host."""
        return f"{self.cluster_name}-registry"

    @property
    def git_container(self) -> str:
        """Name of the Git server's container and, on the lab's network, host."""
        return f"{self.cluster_name}-git"

    @property
    def registry_volume(self) -> str:
        """Volume that keeps pushed images across clusters."""
        return f"{self.cluster_name}-registry-data"

    @property
    def git_volume(self) -> str:
        """Volume that keeps the Git repository across clusters."""
        return f"{self.cluster_name}-git-data"

    @property
    def control_plane(self) -> str:
        """Container of the control-plane node."""
        return f"{self.cluster_name}-control-plane"

    @property
    def git_push_url(self) -> str:
        """Where the working copy pushes to."""
        return self.git_url or f"http://127.0.0.1:{self.git_port}/{GIT_REPOSITORY}"

    @property
    def git_fetch_url(self) -> str:
        """Where Flux fetches from."""
        return self.git_url or f"http://{GIT_HOST_IN_CLUSTER}:{GIT_PORT_INSIDE}/flux/{GIT_REPOSITORY}"

    @property
    def state_dir(self) -> Path:
        """Logs, timings and diagnostics of this cluster."""
        return self.state_root / self.cluster_name

    @cached_property
    def tools_dir(self) -> Path:
        """The one folder in which step 2 leaves the command-line tools."""
        return self.cache_dir / "tools"


@dataclass(frozen=True)
class HpaSettings:
    """What `make hpa-demo` is asked for: at most one of rate and concurrency, 0 for what the autoscaler's size suggests."""

    environment: str = "production"
    duration_s: int = 120
    rate: int = 0
    concurrency: int = 0
    profile: Profile = Profile.CONSTANT
    wait_scale_in: bool = True
    metric: HpaMetric = HpaMetric.CPU
    fail_rate: float = 0.0


# Shorter than 30 s no measurement reaches the autoscaler; longer than 15 min nobody watches.
HPA_DURATION_S = (30, 900)
HPA_RATE = (1, 2000)
HPA_CONCURRENCY = (1, 40)
# With more than half failing it would be the failures that are measured.
HPA_FAIL_RATE_MAX = 0.5

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_REMOTE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")


def port(environ: Mapping[str, str], variable: str, default: int) -> int:
    """Return the port that a variable names; raises UsageError for what is none."""
    text = environ.get(variable, "")
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise UsageError(
            f"{variable}={text} is not a port.", f"give a number from 1 to 65535, as in {variable}={default}"
        )
    return int(text)


def folder_of(environ: Mapping[str, str], variable: str, default: Path) -> Path:
    """Return a base folder; a relative one is ignored, as the XDG specification asks."""
    text = environ.get(variable, "")
    return Path(text) if text and Path(text).is_absolute() else default


def _subnet(environ: Mapping[str, str]) -> str:
    text = environ.get("SUBNET", "")
    if not text:
        return ""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise UsageError(
            f"SUBNET={text} is not an IPv4 network: {error}.", "give one as in SUBNET=10.201.0.0/16"
        ) from None
    if network.prefixlen > 27:
        raise UsageError(f"SUBNET={text} is too small for the lab.", "give at least a /27, as in SUBNET=10.201.0.0/16")
    return str(network)


def _git_url(environ: Mapping[str, str]) -> str:
    text = environ.get("GIT_URL", "")
    parts = urlsplit(text)
    if text and parts.scheme not in ("http", "https", "ssh"):
        raise UsageError("GIT_URL is not an address that Flux can fetch from.", "give an https:// or ssh:// address")
    if parts.password or (parts.username and parts.scheme != "ssh"):
        raise UsageError(
            "GIT_URL holds a user name or a password, which would end up in logs.",
            "take them out; give the token as GIT_TOKEN (and GIT_USERNAME)",
        )
    return text


def _switch(environ: Mapping[str, str], variable: str, default: bool) -> bool:
    text = environ.get(variable, "") or str(int(default))
    if text not in ("0", "1"):
        raise UsageError(f"{variable}={text} is neither yes nor no.", f"give {variable}=1 or {variable}=0")
    return text == "1"


def _choice(environ: Mapping[str, str], variable: str, kind: type[StrEnum], default: StrEnum) -> str:
    text = environ.get(variable, "") or str(default)
    choices = [str(c) for c in kind]
    if text not in choices:
        raise UsageError(f"{variable}={text} is not known.", f"take one of: {', '.join(choices)}")
    return text


_MIRROR = re.compile(
    r"(?P<host>[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?)"
    r"(?P<prefix>(/[a-z0-9]+([._-]+[a-z0-9]+)*)*)/?"
)


def image_mirror(text: str, variable: str = "IMAGE_MIRROR") -> str:
    """Return host[:port][/prefix] of a registry; raises UsageError for anything else."""
    if text and not _MIRROR.fullmatch(text):
        # What was given is not repeated: an address with a password in it is the usual mistake.
        raise UsageError(
            f"{variable} is not host[:port][/prefix].",
            f"leave out https:// and any user, as in {variable}=mirror.example:5443/lab (user: {variable}_USER)",
        )
    return text.rstrip("/")


def _download_mirror(environ: Mapping[str, str]) -> str:
    text = environ.get("DOWNLOAD_MIRROR", "")
    parts = urlsplit(text)
    if text and (parts.scheme != "https" or not parts.hostname):
        raise UsageError(
            "DOWNLOAD_MIRROR is not an https:// address.", "as in DOWNLOAD_MIRROR=https://mirror.example/files"
        )
    if parts.username or parts.password:
        raise UsageError(
            "DOWNLOAD_MIRROR holds a user name or a password, which would end up in logs.",
            "take them out; on the image mirror's host IMAGE_MIRROR_USER holds for files too, elsewhere ~/.netrc",
        )
    return text.rstrip("/")


def _file(environ: Mapping[str, str], variable: str) -> Path | None:
    path = _path(environ, variable)
    if path and not path.is_file():
        raise UsageError(f"{variable}={path} is no file.", "give the path of a file that is there")
    return path


def _chart_folders(environ: Mapping[str, str], home: Path, cache: Path) -> tuple[Path, ...]:
    """Return where charts may lie: CHARTS, the lab's own folder, and what Helm has downloaded."""
    own = _path(environ, "CHARTS")
    if own and not own.is_dir():
        raise UsageError(f"CHARTS={own} is no folder.", "give a folder of <name>-<version>.tgz files")
    base = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
    helm = _path(environ, "HELM_CACHE_HOME") or folder_of(environ, "XDG_CACHE_HOME", base) / "helm"
    downloaded = _path(environ, "HELM_REPOSITORY_CACHE") or helm / "repository"
    return (*([own] if own else []), cache / "charts", downloaded)


def _path(environ: Mapping[str, str], variable: str) -> Path | None:
    """Return a path, absolute; not every shell expands ~ after `make NAME=`."""
    text = environ.get(variable, "")
    return Path(text).expanduser().absolute() if text else None


def mirror_credentials(environ: Mapping[str, str] | None = None, variable: str = "IMAGE_MIRROR") -> Credentials | None:
    """Return the user and password of the mirror from the environment, if they are there."""
    env = os.environ if environ is None else environ
    user, password = env.get(f"{variable}_USER", ""), env.get(f"{variable}_PASSWORD", "")
    if bool(user) != bool(password):
        raise UsageError(f"Only one of {variable}_USER and {variable}_PASSWORD is set.", "set both, or neither")
    return Credentials(user, password) if user else None


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings that the environment asks for; raises UsageError for a value that can't be used."""
    env = os.environ if environ is None else environ
    defaults = Settings()
    name = env.get("CLUSTER_NAME", "") or defaults.cluster_name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"CLUSTER_NAME={name} can't name a cluster.",
            "use at most 40 lower-case letters, digits and dashes, with a letter or digit at both ends",
        )
    ports = {
        "EDGE_PORT": port(env, "EDGE_PORT", defaults.edge_port),
        "REGISTRY_PORT": port(env, "REGISTRY_PORT", defaults.registry_port),
        "GIT_PORT": port(env, "GIT_PORT", defaults.git_port),
    }
    if len(set(ports.values())) < len(ports):
        shown = ", ".join(f"{k}={v}" for k, v in ports.items())
        raise UsageError(f"Two ports are the same: {shown}.", "give each a number of its own")
    remote = env.get("GIT_REMOTE", "") or defaults.git_remote
    if not _REMOTE_NAME.fullmatch(remote):
        raise UsageError(f"GIT_REMOTE={remote} can't name a remote.", "use letters, digits, dots and dashes, as in lab")
    home = Path(env.get("HOME", "") or Path.home())
    cache = folder_of(env, "XDG_CACHE_HOME", home / ".cache") / "gitops-lab"
    state = folder_of(env, "XDG_STATE_HOME", home / ".local" / "state") / "gitops-lab"
    return Settings(
        cluster_name=name,
        image_source=ImageSource(_choice(env, "IMAGE_SOURCE", ImageSource, defaults.image_source)),
        # Nothing leads from this machine to the edge of a cluster that setup did not make.
        edge=Edge(_choice(env, "EDGE", Edge, Edge.NONE if env.get("KUBE_CONTEXT") else defaults.edge)),
        monitoring=Monitoring(_choice(env, "MONITORING", Monitoring, defaults.monitoring)),
        edge_port=ports["EDGE_PORT"],
        registry_port=ports["REGISTRY_PORT"],
        git_port=ports["GIT_PORT"],
        git_remote=remote,
        git_url=_git_url(env),
        kube_context=env.get("KUBE_CONTEXT", ""),
        image_repository=env.get("IMAGE_REPOSITORY", ""),
        subnet=_subnet(env),
        image_mirror=image_mirror(env.get("IMAGE_MIRROR", "")),
        image_mirror_layout=MirrorLayout(
            _choice(env, "IMAGE_MIRROR_LAYOUT", MirrorLayout, defaults.image_mirror_layout)
        ),
        download_mirror=_download_mirror(env),
        mirror_ca=_file(env, "MIRROR_CA"),
        versions_lock=_path(env, "VERSIONS_LOCK"),
        dry_run=_switch(env, "DRY_RUN", defaults.dry_run),
        tree=Path(env.get("TREE", "") or FLUX_CD).expanduser(),
        charts=_chart_folders(env, home, cache),
        cache_dir=cache,
        state_root=state,
    )


def load_hpa(environ: Mapping[str, str] | None = None) -> HpaSettings:
    """Return what the environment asks `make hpa-demo` for; raises UsageError for a value that can't be used."""
    env = os.environ if environ is None else environ
    defaults = HpaSettings()
    rate = _whole(env, "HPA_RATE", 0, HPA_RATE)
    concurrency = _whole(env, "HPA_CONCURRENCY", 0, HPA_CONCURRENCY)
    if rate and concurrency:
        raise UsageError(
            f"HPA_RATE={rate} and HPA_CONCURRENCY={concurrency} both set the load.", "give one of them, or neither"
        )
    wait = env.get("WAIT_SCALE_IN", "") or "1"
    if wait not in ("0", "1"):
        raise UsageError(
            f"WAIT_SCALE_IN={wait} is not known.", "take 1 to wait for the scale-in, 0 to end with the load"
        )
    return HpaSettings(
        environment=require_environment(env.get("ENV", "") or defaults.environment),
        duration_s=_whole(env, "HPA_DURATION", defaults.duration_s, HPA_DURATION_S),
        rate=rate,
        concurrency=concurrency,
        profile=Profile(_choice(env, "HPA_PROFILE", Profile, defaults.profile)),
        wait_scale_in=wait == "1",
        metric=HpaMetric(_choice(env, "HPA_METRIC", HpaMetric, defaults.metric)),
        fail_rate=_share(env, "HPA_FAIL_RATE", HPA_FAIL_RATE_MAX),
    )


def _share(environ: Mapping[str, str], variable: str, highest: float) -> float:
    text = environ.get(variable, "") or "0"
    if not re.fullmatch(r"0|[01]?\.[0-9]{1,4}", text) or not 0 <= float(text) <= highest:
        raise UsageError(f"{variable}={text} is not a share from 0 to {highest}.", f"{variable}=0.05 for one in twenty")
    return float(text)


def _whole(environ: Mapping[str, str], variable: str, default: int, bounds: tuple[int, int]) -> int:
    text = environ.get(variable, "")
    if not text:
        return default
    lowest, highest = bounds
    if not re.fullmatch(r"[0-9]{1,9}", text) or not lowest <= int(text) <= highest:
        raise UsageError(
            f"{variable}={text} is not a whole number from {lowest} to {highest}.", f"{variable}={default or lowest}"
        )
    return int(text)


def environments(overlays: Path | None = None) -> list[str]:
    """Return the environments of this tree, or of another copy: the folders that hold an overlay."""
    found = (overlays or OVERLAYS).glob("*/kustomization.yaml")
    return sorted((p.parent.name for p in found), key=_environment_order)


def _environment_order(name: str) -> tuple[int, str]:
    own = OWN_ENVIRONMENTS
    return (own.index(name) if name in own else len(own), name)


def source_name(environment: str) -> str:
    """Return the name of an environment's GitRepository."""
    return f"{environment}-environment"


def require_environment(name: str) -> str:
    """Return the name if it is an environment of this tree; raises UsageError otherwise."""
    known = environments()
    if name not in known:
        raise UsageError(f"ENV={name or '(empty)'} is not an environment.", f"take one of: {', '.join(known)}")
    return name
