"""KEDA, brought on demand: its images made ready for the nodes, its Flux Kustomization applied, waited for, taken away.

What it consists of stands in Git (flux-cd/infrastructure/_components/keda) and is applied by Flux; what depends on the
machine, where the images come from, is written into the Flux Kustomization, as setup does with its root.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from scripts import appimage, console, images, packing, pins, provide, sourcebuild
from scripts.cache import Cache
from scripts.docker import docker
from scripts.errors import LabError
from scripts.hpa.facts import EXTERNAL_API
from scripts.kube import Kube, Object, condition, is_ready
from scripts.outcome import Outcome
from scripts.settings import (
    FLUX_CD,
    FLUX_NAMESPACE,
    KEDA_NAMESPACE,
    REGISTRY_IN_CLUSTER,
    ImageSource,
    Settings,
)
from scripts.versions import Versions
from scripts.waiting import wait_for

MODULE = "keda"
IMAGES = ("keda", "keda-adapter")
KUSTOMIZATION_FILE = FLUX_CD / "bootstrap" / "with-keda" / "keda.yaml"
# The operator makes certificates and ends itself once, and the kubelet takes a minute to bring changed Secrets to a pod.
READY_TIMEOUT_S = 300
GONE_TIMEOUT_S = 120


def flux_kustomization(overrides: Sequence[Object] = ()) -> Object:
    """Return KEDA's Flux Kustomization as Git has it, with images from elsewhere."""
    found: Object = yaml.load(KUSTOMIZATION_FILE.read_text(), yaml.CSafeLoader)
    if overrides:
        found["spec"]["images"] = list(overrides)
    return found


def ensure(settings: Settings, kube: Kube, versions: Versions, log_dir: Path) -> Outcome:
    """Make KEDA run in the cluster; what is there is left alone."""
    source, _ = provide.choose_source(settings)
    overrides = _from_registry(settings, versions) if source is ImageSource.REGISTRY else _names(versions)
    wanted = flux_kustomization(overrides)
    found = _find(kube)
    if found and found["spec"].get("images") == wanted["spec"]["images"] and not pending(kube):
        return Outcome(False, f"KEDA {versions.images[MODULE].tag} is installed")
    console.line(f"installing KEDA (first time): {_how(source, versions, settings)}")
    with console.Board() as board, board.task("KEDA"):
        if source is ImageSource.SOURCE:
            _push_built(settings, versions, overrides, log_dir)
        kube.apply([wanted])
        wait_for(
            "KEDA serves the external metrics API", lambda: pending(kube), timeout_s=READY_TIMEOUT_S, interval_s=1.0,
            mend="make status says what is not ready; make keda-remove takes KEDA away again",
        )  # fmt: skip
    return Outcome(True, f"KEDA {versions.images[MODULE].tag} installed")


def _how(source: ImageSource, versions: Versions, settings: Settings) -> str:
    if source is ImageSource.REGISTRY:
        return "its two images are pulled by the nodes"
    built = Cache(settings.cache_dir).find(MODULE, sourcebuild.entry_keys(versions)[MODULE])
    return "its two images are built from the cache" if built else "built from source, which takes about ten minutes"


def _from_registry(settings: Settings, versions: Versions) -> list[Object]:
    """Return the images as Flux overrides them: by the publisher's digest, where one is known."""
    pinned = pins.effective(settings, versions)
    found: list[Object] = []
    for image in (pinned.images[name] for name in IMAGES):
        held: Object = {"digest": image.digest} if image.digest else {"newTag": image.tag}
        found.append({"name": image.image, **held})
    return found


def _names(versions: Versions) -> list[Object]:
    """Return the images as Flux overrides them in source mode: the lab's registry, tagged by what they are made from."""
    keys = sourcebuild.SourceSet(keys=sourcebuild.entry_keys(versions))
    recipes = {recipe.name: recipe for recipe in images.load_recipes(versions)}
    return [
        {
            "name": versions.images[name].image,
            "newName": f"{REGISTRY_IN_CLUSTER}/{name}",
            "newTag": images.recipe_key(recipes[name], keys)[:16],
        }
        for name in IMAGES
    ]


def _push_built(settings: Settings, versions: Versions, overrides: Sequence[Object], log_dir: Path) -> None:
    """Build the images and push them where the nodes pull from, as the application's is."""
    if not settings.owns_cluster:
        raise LabError(
            "An existing cluster can't pull images that are built here.",
            "IMAGE_SOURCE=registry, where the nodes can reach ghcr.io",
        )
    recipes = {recipe.name: recipe for recipe in images.load_recipes(versions)}
    built: sourcebuild.SourceSet | None = None
    for name, override in zip(IMAGES, overrides, strict=True):
        tag = override["newTag"]
        if appimage.pushed_digest(settings, tag, name):
            continue
        built = built or sourcebuild.ensure_on_demand(Cache(settings.cache_dir), versions, MODULE, log_dir)
        local, _ = images.ensure_image(recipes[name], built)
        pushed = f"localhost:{settings.registry_port}/{name}:{tag}"
        console.note(f"pushing {name}:{tag}")
        docker("tag", local, pushed)
        docker("push", "--quiet", pushed, timeout_s=600)
    if built:
        packing.pack(built.folders.values())


def _find(kube: Kube) -> Object | None:
    name = flux_kustomization()["metadata"]["name"]
    return next((k for k in kube.list_custom("Kustomization", FLUX_NAMESPACE) if k["metadata"]["name"] == name), None)


def is_installed(kube: Kube) -> bool:
    """Whether KEDA was brought, running or not."""
    return _find(kube) is not None


def pending(kube: Kube) -> list[str]:
    """Return what keeps KEDA from serving, one line each."""
    from kubernetes.client import ApiException

    found = _find(kube)
    if found is None:
        return ["its Flux Kustomization is not there"]
    if not is_ready(found):
        return [f"Kustomization {found['metadata']['name']}: {condition(found).get('message', 'not reconciled yet')}"]
    try:
        service = kube.get(f"/apis/apiregistration.k8s.io/v1/apiservices/{EXTERNAL_API}")
    except ApiException as error:
        if error.status != 404:
            raise
        return [f"{EXTERNAL_API} is not there"]
    available = condition(service, "Available")
    if available.get("status") != "True":
        return [f"{EXTERNAL_API}: {available.get('message') or 'has not answered yet'}"]
    return []


def remove(kube: Kube) -> Outcome:
    """Take KEDA away with all that belongs to it; Flux deletes what it had applied."""
    found = _find(kube)
    if found is None:
        return Outcome(False, "KEDA is not installed")
    in_use = [f"{o['metadata']['namespace']}/{o['metadata']['name']}" for o in _scaled_objects(kube)]
    if in_use:
        raise LabError(
            f"KEDA is in use: {', '.join(in_use)}.", "end the run of `make hpa-demo` that uses it, or take those away"
        )
    kube.kubectl("--namespace", FLUX_NAMESPACE, "delete", "kustomizations.kustomize.toolkit.fluxcd.io",
                 found["metadata"]["name"], "--wait=false")  # fmt: skip

    def gone() -> list[str]:
        names = [n.metadata.name for n in kube.call(kube.core.list_namespace).items]
        return [f"namespace {KEDA_NAMESPACE} is still there"] if KEDA_NAMESPACE in names or _find(kube) else []

    with console.Board() as board, board.task("KEDA goes"):
        wait_for("KEDA is gone", gone, timeout_s=GONE_TIMEOUT_S, interval_s=0.5, mend="make status")
    return Outcome(True, "KEDA removed")


def _scaled_objects(kube: Kube) -> list[Object]:
    from kubernetes.client import ApiException

    try:
        found = kube.get("/apis/keda.sh/v1alpha1/scaledobjects")
    except ApiException as error:
        if error.status != 404:
            raise
        return []
    items: list[Object] = found["items"]
    return items
