"""setup-all: a list of seven steps that a stranger can read aloud. Steps that don't need each other overlap."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts import (
    appimage,
    cluster,
    console,
    endpoints,
    flux,
    flux_sync,
    git,
    labfacts,
    manifests,
    mirrors,
    nodeimages,
    preflight,
    sidecars,
    timings,
)
from scripts import provide as providing
from scripts.cache import Cache, lock, now_iso
from scripts.docker import engine_info
from scripts.engine import ensure_engine
from scripts.errors import LabError, UsageError
from scripts.kube import Kube
from scripts.monitoring import chart, mode
from scripts.outcome import Outcome
from scripts.reasons import explain_now as explain
from scripts.settings import APP_NAME, Edge, ImageSource, Monitoring, Settings, environments
from scripts.sourcebuild import is_warm
from scripts.versions import Image, Versions
from scripts.waiting import wait_for

STEPS = (
    "preflight",
    "tools and images",
    "cluster",
    "validate the manifests",
    "application image",
    "Flux and bootstrap",
    "wait and verify",
)
NODES = 3
# Images that manifests in Git name by tag: in registry mode the nodes get them by digest, under that tag.
PRELOADED = ("metrics-server", "envoy-gateway", "envoy")
READY_TIMEOUT_S = 600
ENDPOINT_TIMEOUT_S = 120


@dataclass
class Run:
    """One run of setup: what the steps hand to each other, and their times."""

    settings: Settings
    versions: Versions
    log_dir: Path
    provided: providing.Provided | None = None
    source: ImageSource = ImageSource.SOURCE
    engine: dict[str, Any] = field(default_factory=dict)
    head: str = ""
    steps: list[timings.StepTiming] = field(default_factory=list)

    @property
    def have(self) -> providing.Provided:
        """What step 2 left."""
        assert self.provided is not None
        return self.provided

    @property
    def kube(self) -> Kube:
        """The cluster's API."""
        return Kube(self.settings.context, self.have.tool("kubectl"))


def setup_all(settings: Settings, versions: Versions) -> None:
    """Bring the lab up, or to where it should be; raises LabError naming what is wrong."""
    log_dir = settings.state_dir / "logs"
    run = Run(settings, versions, log_dir)
    started, started_at = time.monotonic(), now_iso()
    ok = False
    try:
        with lock(settings.state_dir / "setup.lock", "this lab"), console.Board() as board:
            _run_steps(run, board)
        ok = True
    finally:
        total = time.monotonic() - started
        if run.steps:
            timings.record(settings, timings.RunTiming(started_at, str(run.source), ok, total, tuple(run.steps)))
    _salute(run, total)


def _run_steps(run: Run, board: console.Board) -> None:
    step = _Stepper(run, board)
    step(1, check_preconditions)
    step(2, get_tools_and_images)
    creating = threading.Event()
    nobody_follows = run.settings.owns_cluster and not cluster.node_containers(run.settings)
    with ThreadPoolExecutor(9, "step") as pool:
        # 4, 5 and the push to Git need tools, registry and Git server, not the cluster. Nothing is pushed, and nothing of 6
        # starts, before 4 has passed. 6 begins once the API server answers, long before the workers have joined.
        network = pool.submit(make_network, run)
        registry = pool.submit(start_sidecars, run, network)
        made = pool.submit(step, 3, lambda r: make_cluster(r, network, registry, creating))
        step(4, validate_manifests)
        image = pool.submit(step, 5, lambda r: build_application(r, registry))
        # Nothing may ask for an image before it is in the registry: a failed pull backs off for seconds.
        pushed = pool.submit(push_to_git, run, registry if nobody_follows else image)
        reach_cluster(run, creating, made)
        wired = pool.submit(wire_nodes, run)
        told = pool.submit(tell_of_registry, run)
        loaded = pool.submit(load_images, run, wired)
        spread = pool.submit(spread_images, run, loaded)
        new = creating.is_set()
        flux_done = pool.submit(step, 6, lambda r: bootstrap_flux(r, new, pushed, image, loaded, made))
        for done in (made, image, told, flux_done, spread):
            _result(done)
    step(7, wait_and_verify)


def _result(future: Future[Any]) -> Any:
    return future.result()


class _Stepper:
    """Runs a step: its live line, its finished line, its time."""

    def __init__(self, run: Run, board: console.Board) -> None:
        self._run = run
        self._board = board

    def __call__(self, number: int, action: Callable[[Run], Outcome]) -> None:
        label = f"{number}/7 {STEPS[number - 1]}"
        started = time.monotonic()
        try:
            with self._board.task(label):
                outcome = action(self._run)
        except BaseException:
            console.done(label, time.monotonic() - started, "failed", ok=False)
            raise
        seconds = time.monotonic() - started
        self._run.steps.append(timings.StepTiming(STEPS[number - 1], seconds, outcome.changed))
        console.done(label, seconds, outcome.what)


def check_preconditions(run: Run) -> Outcome:
    """Step 1: find what would go wrong later, before anything is created."""
    require_complete_target(run.settings)
    run.head = git.working_copy().head
    run.source, why = providing.choose_source(run.settings)
    console.line(f"  image source: {run.source} ({why})")
    run.settings = replace(run.settings, monitoring=mode.choose(run.settings, run.source))
    console.line(f"  monitoring: {run.settings.monitoring}")
    engine = ensure_engine(run.settings) if run.settings.owns_cluster else Outcome(False, "existing cluster")
    run.engine = engine_info() or {}
    warm = run.source is ImageSource.REGISTRY or is_warm(
        Cache(run.settings.cache_dir), run.versions, run.settings.monitoring is not Monitoring.NONE
    )
    raised = preflight.raise_inotify()
    findings = labfacts.run_checks(run.settings, run.source, warm)
    preflight.require(findings)
    return Outcome(engine.changed or raised.changed, engine.what + (f", {raised.what}" if raised.changed else ""))


def require_complete_target(settings: Settings) -> None:
    """Refuse an existing cluster without the addresses that it, unlike the embedded one, can't be given."""
    if settings.owns_cluster:
        return
    missing = [n for n, v in (("GIT_URL", settings.git_url), ("IMAGE_REPOSITORY", settings.image_repository)) if not v]
    if missing:
        raise UsageError(
            f"KUBE_CONTEXT={settings.kube_context} needs {' and '.join(missing)} too: that cluster can't reach this lab's own.",
            "set GIT_URL to a repository and IMAGE_REPOSITORY to an image name (host/name) that the cluster can reach",
        )


def get_tools_and_images(run: Run) -> Outcome:
    """Step 2: the same tools and images, whichever source they come from."""
    run.provided, outcome = providing.provide(run.settings, run.versions, run.source, run.log_dir)
    providing.remember_source(run.settings, run.source)
    mode.remember(run.settings, run.settings.monitoring)
    return outcome


def make_network(run: Run) -> Outcome:
    """Make the network that nodes, registry and Git server stand on."""
    if not run.settings.owns_cluster:
        return Outcome(False, "Git and images as named")
    return cluster.ensure_network(run.settings)


def start_sidecars(run: Run, network: Future[Outcome]) -> Outcome:
    """Start the registry and the Git server on the lab's network."""
    outcomes = [_result(network)]
    if run.settings.owns_cluster:
        outcomes.append(sidecars.ensure_registry(run.settings, run.have.registry_image))
        if run.settings.owns_git:
            outcomes.append(sidecars.ensure_git_server(run.settings, run.have.git_server_image))
    return Outcome(any(o.changed for o in outcomes), ", ".join(o.what for o in outcomes))


def make_cluster(
    run: Run, network: Future[Outcome], sidecars_up: Future[Outcome], creating: threading.Event
) -> Outcome:
    """Step 3: the kind cluster, while registry and Git server start; `creating` is set when a new one is begun."""
    _result(network)
    if not run.settings.owns_cluster:
        if not run.kube.is_up():
            raise LabError(
                f"The cluster of KUBE_CONTEXT={run.settings.kube_context} does not answer.",
                "check it with `kubectl --context … get nodes`",
            )
        return Outcome(False, f"using {run.settings.kube_context}; {_result(sidecars_up).what}")
    cgroup_v1 = str(run.engine.get("CgroupVersion", "2")) == "1"
    kind = run.have.tool("kind")
    made = cluster.ensure_cluster(run.settings, kind, run.have.node_image, cgroup_v1, creating.set)
    cluster.label_workers(run.kube)
    beside = _result(sidecars_up)
    return Outcome(made.changed or beside.changed, f"{made.what}; {beside.what}")


def reach_cluster(run: Run, creating: threading.Event, made: Future[Any]) -> None:
    """Wait until the cluster's API server answers, and see to it that the context points there."""
    settings, port = run.settings, ""

    def pending() -> list[str]:
        nonlocal port
        if creating.is_set() and not port:
            port = cluster.api_port(settings)
        return [] if cluster.api_answers(port) or made.done() else ["the API server does not answer yet"]

    limit_s = cluster.CREATE_TIMEOUT_S + READY_TIMEOUT_S
    wait_for("the cluster's API server answers", pending, timeout_s=limit_s, interval_s=0.5)
    if made.done():
        _result(made)
    if settings.owns_cluster and creating.is_set():
        cluster.ensure_context(settings, run.have.tool("kind"))


def wire_nodes(run: Run) -> None:
    """Wire the registry (and a mirror) into the nodes' containerd."""
    settings = run.settings
    if not settings.owns_cluster:
        return
    cluster.wire_registry(settings)
    if run.have.mirror:
        names = mirrors.upstreams(run.have.versions)
        host = mirrors.host_for_nodes(run.have.mirror.host)
        cluster.put_files(settings, mirrors.hosts_files(run.have.mirror, names, host))


def tell_of_registry(run: Run) -> None:
    """Tell tools where the lab's registry is, unless that is known; nothing in the cluster waits for it."""
    if not run.settings.owns_cluster:
        return
    kube, wanted = run.kube, cluster.hosting_config_map(run.settings)
    name, namespace = wanted["metadata"]["name"], wanted["metadata"]["namespace"]
    listed = kube.call(kube.core.list_namespaced_config_map, namespace, field_selector=f"metadata.name={name}")
    if [found.data for found in listed.items] != [wanted["data"]]:
        kube.apply([wanted])


def validate_manifests(run: Run) -> Outcome:
    """Step 4: nothing that can't be built or isn't valid reaches the cluster."""
    return manifests.validate(run.settings, run.versions, run.have.tools_dir)


def build_application(run: Run, sidecars_up: Future[Outcome]) -> Outcome:
    """Step 5: the application's image, under a tag of its content, in the registry."""
    _result(sidecars_up)
    image, outcome = appimage.ensure_app_image(
        run.settings,
        run.have.python_base,
        run.versions.python_in_image,
        str(run.engine.get("Architecture", "x86_64")),
        run.head,
    )
    wanted = appimage.manifest_tag()
    if wanted != image.tag and run.settings.owns_cluster and not appimage.pushed_digest(run.settings, wanted):
        console.warn(
            f"Git asks for {APP_NAME}:{wanted}, which the registry does not have; "
            f"`make deploy` builds the current sources ({image.tag}) and moves Git to them"
        )
    return outcome


def load_images(run: Run, wired: Future[None]) -> Outcome:
    """Bring the images (and the chart) that Git names and nodes do not have, before anything asks for them."""
    _result(wired)
    if not run.settings.owns_cluster:
        return Outcome(False, "images as named")
    if not run.have.pin_images:
        return nodeimages.ensure_loaded(run.settings, run.have.monitoring_images)
    # The platform's pods prefer the control plane.
    pulled = nodeimages.ensure_pulled([run.settings.control_plane], _pinned_images(run))
    if not (run.have.mirror and chart.is_from_lab(run.settings)):
        return pulled
    copied = chart.ensure_chart(run.settings, run.have.mirror, run.have.versions.charts[mode.CHART])
    return Outcome(pulled.changed or copied.changed, f"{pulled.what}, {copied.what}")


def spread_images(run: Run, loaded: Future[Outcome]) -> None:
    """Bring the same images to the workers: should a pod come to one, it is not pulled by a tag that has moved on."""
    _result(loaded)
    if run.settings.owns_cluster and run.have.pin_images:
        workers = [node for node in cluster.node_containers(run.settings) if node != run.settings.control_plane]
        nodeimages.ensure_pulled(workers, _pinned_images(run))


def _pinned_images(run: Run) -> list[Image]:
    """Return what manifests in Git name by tag; first what runs on every node."""
    names = (*mode.images(run.settings.monitoring), *PRELOADED)
    return [run.have.versions.images[name] for name in sorted(names, key=lambda name: name not in mode.ON_EVERY_NODE)]


def push_to_git(run: Run, after: Future[Any]) -> Outcome:
    """Push this clone's commit and the environments' branches: a first push takes seconds that the cluster needs anyway."""
    _result(after)
    remote = git.ensure_remote(run.settings)
    pushed = git.push_main(run.settings, run.head)
    branches = git.ensure_environment_branches(run.settings)
    return Outcome(any(o.changed for o in (remote, pushed, branches)), pushed.what)


def bootstrap_flux(
    run: Run, new: bool, in_git: Future[Outcome], image: Future[Any], loaded: Future[Outcome], made: Future[Any]
) -> Outcome:
    """Step 6: Flux, following the Git repository that this clone is pushed to."""
    settings, kube = run.settings, run.kube
    installed = flux.ensure_flux(settings, kube, run.have.tool("flux"), run.have.versions, run.have.pin_images)
    pushed = _result(in_git)
    # Without an edge Flux leaves most of them out; and it never takes away what Git never had.
    if new and settings.edge is not Edge.NONE and git.is_published(settings):
        flux.define_early(kube, run.have.tool("kustomize"))
    _result(image)
    brought = _result(loaded)
    subnet = cluster.network_subnet(settings) if settings.owns_cluster else ""
    credentials = git.credentials(settings, os.environ)
    rooted = flux.ensure_bootstrap(
        settings, kube, subnet, credentials, before_root=lambda: wait_for_dns(kube, made) if new else None
    )
    # Why a cluster could not be made says more than that its Flux is not ready.
    _result(made)
    if settings.owns_git:
        flux.connect_git_server(settings, kube)
    outcomes = (installed, pushed, rooted, brought)
    return Outcome(any(o.changed for o in outcomes), ", ".join(o.what for o in (installed, pushed, rooted)))


def wait_for_dns(kube: Kube, made: Future[Any]) -> None:
    """Wait until the cluster knows names: a Git server that can't be found yet is asked for again only seconds later."""

    def pending() -> list[str]:
        failed = made.done() and made.exception()
        return [] if failed or cluster.dns_answers(kube) else ["CoreDNS is not Ready"]

    wait_for("the cluster's DNS answers", pending, timeout_s=READY_TIMEOUT_S, explain=lambda: explain(kube))


def wait_and_verify(run: Run) -> Outcome:
    """Step 7: every node and Kustomization Ready, every endpoint answering."""
    settings, kube = run.settings, run.kube
    if settings.owns_cluster:
        cluster.wait_for_nodes(kube, NODES)
    ready = flux_sync.wait_until_ready(settings, kube, READY_TIMEOUT_S, lambda: explain(kube))
    checked = wait_for_endpoints(settings, kube)
    return Outcome(False, f"{ready} Kustomizations Ready, {checked} endpoints answer")


def wait_for_endpoints(settings: Settings, kube: Kube) -> int:
    """Wait until every endpoint of every environment answers and return how many there are."""
    count = 0

    def pending() -> list[str]:
        nonlocal count
        results = endpoints.check_all(settings, kube)
        count = len(results)
        return [f"{r.environment}{r.path}: {r.why}" for r in results if not r.ok]

    wait_for(
        "every endpoint answers",
        pending,
        timeout_s=ENDPOINT_TIMEOUT_S,
        interval_s=0.3,
        mend="`make status` shows what is not ready",
        explain=lambda: explain(kube),
    )
    return count


def _salute(run: Run, total: float) -> None:
    settings = run.settings
    timings.show_run(run.steps, total)
    console.line("")
    console.line(f"The lab is up: context {settings.context}, Git remote `{settings.git_remote}`.", "bold")
    for environment in environments():
        if settings.edge is Edge.NONE:
            console.line(f"  {environment}: make port-forward ENV={environment}")
        else:
            console.line(f"  http://{endpoints.host_of(environment)}:{settings.edge_port}/")
    console.line("Next: `make status`, or change flux-cd/, commit, and `make push`.", "dim")
