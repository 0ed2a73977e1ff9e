"""What a person does with a running lab: deploy, push, reconcile, look at logs, reach an environment."""

from __future__ import annotations

import time

from scripts import appimage, console, endpoints, flux, flux_sync, git
from scripts import provide as providing
from scripts.cache import now_iso
from scripts.docker import engine_info
from scripts.errors import LabError, UsageError
from scripts.kube import Kube
from scripts.process import background, run
from scripts.reasons import explain_now
from scripts.settings import APP_NAME, APP_PORT, MAIN_BRANCH, Settings, environments
from scripts.versions import Versions

LIVE_TIMEOUT_S = 240


def lab_kube(settings: Settings) -> Kube:
    """Return the lab's API; raises LabError if it does not answer."""
    kube = Kube(settings.context, settings.tools_dir / "kubectl")
    if not kube.is_up():
        raise LabError(
            f"The cluster of context {settings.context} does not answer.",
            "make setup-all for a new lab, make resume after a restart, make doctor to look for the cause",
        )
    return kube


def live_namespaces(settings: Settings) -> frozenset[str]:
    """Return the cluster's namespaces; none where no cluster answers."""
    kube = Kube(settings.context)
    if not kube.is_up():
        return frozenset()
    return frozenset(n.metadata.name for n in kube.call(kube.core.list_namespace).items)


def push(settings: Settings) -> None:
    """Push the current commit and wait until every Kustomization is Ready; environments get and lose their branches."""
    copy = git.require_clean()
    kube = lab_kube(settings)
    git.ensure_remote(settings)
    started = time.monotonic()
    outcome = git.push_main(settings, copy.head)
    if not outcome.changed and git.remote_branches(settings).get(MAIN_BRANCH) != copy.head:
        raise LabError(
            f"The remote's {MAIN_BRANCH} is ahead of this clone; there is nothing to push.",
            f"git pull --rebase {settings.git_remote} {MAIN_BRANCH}",
        )
    branches = git.ensure_environment_branches(settings)
    if not settings.owns_git:
        # Nobody tells Flux of a push to a Git host of the user's own.
        flux_sync.request_reconcile(kube, f"push-{time.monotonic_ns()}", kustomizations=())
    said = f"{outcome.what}, {branches.what}" if branches.changed else outcome.what
    console.done("push", time.monotonic() - started, said)
    wait_until_live(settings, kube)


def wait_until_live(settings: Settings, kube: Kube) -> None:
    """Wait until every Kustomization is Ready at its branch's commit."""
    started = time.monotonic()
    with console.Board() as board, board.task("waiting until it is live"):
        ready = flux_sync.wait_until_ready(settings, kube, LIVE_TIMEOUT_S, lambda: explain_now(kube), interval_s=0.1)
    console.done("live", time.monotonic() - started, f"{ready} Kustomizations Ready")


def deploy(settings: Settings, versions: Versions) -> None:
    """Build the application, push it under its content's tag, move Git (and so dev) to it, and wait until it is live."""
    git.require_clean()
    kube = lab_kube(settings)
    git.ensure_remote(settings)
    source, _ = providing.choose_source(settings)
    provided, _ = providing.provide(settings, versions, source, settings.state_dir / "logs")
    started = time.monotonic()
    engine = engine_info() or {}
    with console.Board() as board, board.task("building the application"):
        image, outcome = appimage.ensure_app_image(
            settings,
            provided.python_base,
            versions.python_in_image,
            str(engine.get("Architecture", "x86_64")),
            git.working_copy().head,
        )
    console.done("image", time.monotonic() - started, outcome.what)
    if appimage.set_manifest_tag(image.tag):
        git.git("commit", "--message", f"Deploy {APP_NAME} {image.tag}", "--", *appimage.TAGGED)
        console.line(f"  committed: {APP_NAME}:{image.tag}, for dev now and for the others by promotion")
    push(settings)
    _require_running(kube, image.tag)


def _require_running(kube: Kube, tag: str) -> None:
    deployment = flux.app_deployment(kube, "dev")
    running = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    if not running.endswith(f":{tag}"):
        raise LabError(f"dev runs {running}, not {tag}.", "make status")


def reconcile(settings: Settings) -> None:
    """Ask Flux to look at everything now, and wait until all is Ready."""
    kube = lab_kube(settings)
    asked = flux_sync.request_reconcile(kube, f"{now_iso()}-{time.monotonic_ns()}")
    console.line(f"asked {len(asked)} sources and Kustomizations")
    wait_until_live(settings, kube)


def logs(settings: Settings, environment: str) -> int:
    """Follow the logs of an environment's pods until Ctrl-C (in a pipe: print what is there)."""
    kube = lab_kube(settings)
    args = [
        str(kube.kubectl_path), "--context", kube.context, "--namespace", environment, "logs",
        "--selector", f"app.kubernetes.io/name={APP_NAME}", "--all-containers", "--prefix", "--tail", "100",
        "--max-log-requests", "20",
    ]  # fmt: skip
    if console.is_live():
        import os

        os.execv(args[0], [*args, "--follow"])
    console.raw(run(args, timeout_s=60).stdout or "(no logs yet)")
    return 0


def port_forward(settings: Settings, environment: str) -> int:
    """Forward a local port to an environment until Ctrl-C."""
    import os

    kube = lab_kube(settings)
    text = os.environ.get("PORT", "") or str(APP_PORT)
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise UsageError(f"PORT={text} is not a port.", "give a number from 1 to 65535, as in PORT=8000")
    with endpoints.forwarded(kube, environment, int(text)) as port:
        console.line(f"http://127.0.0.1:{port}/ is {environment}; Ctrl-C ends it")
        try:
            with background(["sleep", "infinity"]) as forever:
                forever.process.wait()
        except KeyboardInterrupt:
            console.line("ended")
    return 0


def test_endpoints(settings: Settings) -> int:
    """Request all endpoints of all environments and print a table; 1 if one does not answer as it should."""
    kube = lab_kube(settings)
    results = endpoints.check_all(settings, kube)
    console.table(
        f"{len(results)} endpoints in {len(environments())} environments",
        ["environment", "path", "status", "time", ""],
        [
            [r.environment, r.path, str(r.status or "-"), f"{1000 * r.seconds:.0f} ms", "ok" if r.ok else r.why]
            for r in results
        ],
    )
    return 0 if all(r.ok for r in results) else 1
