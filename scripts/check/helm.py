"""A chart rendered as Flux's helm-controller installs it: Helm, then its post-renderers, then a namespace for each object.

Helm runs on its own: no cluster, no repository, none of the user's settings or plugins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.check import origin, yamlfile
from scripts.check.build import GO_ENV, dump, with_metadata
from scripts.check.charts import Chart
from scripts.check.kinds import is_cluster_scoped
from scripts.check.scratch import scratch
from scripts.process import CommandError, run

HELM_TIMEOUT_S = 60
HOOK = "helm.sh/hook"
_INDEX = "gitops-lab.invalid/index"
_SOURCE = re.compile(r"^---\n# Source: (?P<path>.*)\n", re.MULTILINE)
_DOCUMENT = re.compile(r"^---(?:[ \t].*)?$\n?", re.MULTILINE)
_DEFINITIONS = re.compile(r"[^/]+(?:/charts/[^/]+)*/crds/")
_PLACE = re.compile(r"(?P<path>[\w.+-]+(?:/[\w.+@ -]+)*/[\w.+@-]+\.\w+):(?P<line>[0-9]+)")
_YAML_ERROR = re.compile(r"YAML parse error on (?P<path>\S+): (?P<why>.*)")
_SCHEMA_ERROR = re.compile(r"- at '(?P<pointer>[^']*)': (?P<why>.*)")


@dataclass(frozen=True)
class Job:
    """What one HelmRelease asks Helm for."""

    chart: Chart
    name: str
    namespace: str
    values: Mapping[str, Any]
    kubernetes: str = ""
    api_versions: tuple[str, ...] = ()
    definitions: bool = True
    hooks: bool = True
    check_values: bool = True
    post_renderers: tuple[Mapping[str, Any], ...] = ()
    post_render_hooks: bool = True
    common: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> list[object]:
        """Everything that the result depends on besides the programs."""
        return [
            self.chart.digest, self.chart.name, self.name, self.namespace, self.values, self.kubernetes, self.api_versions,
            self.definitions, self.hooks, self.check_values, self.post_renderers, self.post_render_hooks, self.common,
        ]  # fmt: skip


@dataclass(frozen=True)
class Made:
    """One rendered object and the chart's file that it comes from, as Helm names it: `web/templates/service.yaml`."""

    data: dict[str, Any]
    template: str

    @property
    def is_hook(self) -> bool:
        """Whether Helm runs it at a certain moment, rather than keeping it."""
        return HOOK in (((self.data.get("metadata") or {}).get("annotations")) or {})


@dataclass
class HelmError(Exception):
    """What Helm refuses: which rule it is, what it says, and where."""

    rule: str
    message: str
    mend: str
    # The chart's file, as Helm names it, and the line in it.
    template: str = ""
    line: int = 0
    # Where in the values.
    pointer: str = ""


def render(helm: Path, kustomize: Path, job: Job) -> list[Made]:
    """Return the objects of a release; raises HelmError for what Flux would fail at too."""
    with scratch("helm") as name:
        folder = Path(name)
        objects = list(_objects(_template(helm, job, folder)))
        for index, renderer in enumerate(job.post_renderers):
            objects = _post_rendered(kustomize, objects, renderer, job, folder / f"post-{index}")
    if job.common:
        objects = [o if _is_definition(o) else Made(with_metadata(o.data, job.common), o.template) for o in objects]
    return objects


def _template(helm: Path, job: Job, folder: Path) -> str:
    values = folder / "values.json"
    values.write_text(json.dumps(job.values))
    chart = job.chart.lay_out(folder / "chart")
    options = ["--include-crds"] * job.definitions + ["--no-hooks"] * (not job.hooks)
    options += ["--skip-schema-validation"] * (not job.check_values)
    options += ["--kube-version", job.kubernetes] if job.kubernetes else []
    options += ["--api-versions", ",".join(job.api_versions)] if job.api_versions else []
    try:
        done = run(
            [
                helm,
                "template",
                job.name,
                chart,
                "--namespace",
                job.namespace,
                "--values",
                values,
                "--skip-tests",
                *options,
            ],
            timeout_s=HELM_TIMEOUT_S,
            env=_environment(folder),
            check=False,
        )
    except CommandError as error:
        raise HelmError("helm-template", error.what, "look at the chart's templates: they may loop") from None
    if done.exit_code != 0:
        raise _explained(done.stderr)
    return done.stdout


def _environment(folder: Path) -> dict[str, str]:
    """Return variables that leave Helm without the user's settings, plugins, repositories and cluster."""
    own = {f"HELM_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    own |= {"HELM_PLUGINS": str(folder / "plugins"), "HELM_DEBUG": "false", "HELM_NAMESPACE": "default"}
    own |= {f"HELM_{kind}_CONFIG": str(folder / f"no-{kind.lower()}") for kind in ("REPOSITORY", "REGISTRY")}
    own |= {f"HELM_{kind}_CACHE": str(folder / kind.lower()) for kind in ("REPOSITORY", "CONTENT")}
    return {**GO_ENV, **own, "KUBECONFIG": str(folder / "no-cluster")}


def _objects(text: str) -> Iterator[Made]:
    """Yield what Helm printed: each template's documents, lists taken apart."""
    parts = _SOURCE.split(f"---\n{text.removeprefix('---').lstrip(chr(10))}")
    for template, content in zip(parts[1::2], parts[2::2], strict=True):
        for document in _DOCUMENT.split(content):
            try:
                data = yamlfile.load_one(document)
            except ValueError as error:
                raise HelmError("helm-template", f"it renders to what {error}", "mend the template", template) from None
            if data is None:
                continue
            if not isinstance(data, dict):
                message = "it renders to something that is no object"
                raise HelmError("helm-template", message, "mend the template", template)
            items = data.get("items") if str(data.get("kind", "")).endswith("List") else None
            for item in items if isinstance(items, list) else [data]:
                if isinstance(item, dict):
                    yield Made(item, template)


def _is_definition(made: Made) -> bool:
    """Whether an object comes from a chart's crds/, which Helm neither templates nor post-renders."""
    return bool(_DEFINITIONS.match(made.template))


def _post_rendered(
    kustomize: Path, objects: list[Made], renderer: Mapping[str, Any], job: Job, folder: Path
) -> list[Made]:
    """Return objects after one of Flux's post-renderers: patches and images by kustomize."""
    given = renderer.get("kustomize")
    wanted = {k: given[k] for k in ("patches", "images") if given.get(k)} if isinstance(given, Mapping) else {}
    if not wanted:
        return objects
    rest = [i for i, o in enumerate(objects) if not _is_definition(o) and (job.post_render_hooks or not o.is_hook)]
    folder.mkdir()
    marked = (dump(_marked(objects[i].data, str(i))) for i in rest)
    (folder / "helm-output.yaml").write_text("---\n".join(marked))
    (folder / "kustomization.yaml").write_text(json.dumps({"resources": ["helm-output.yaml"], **wanted}))
    try:
        done = run([kustomize, "build", folder], timeout_s=HELM_TIMEOUT_S, env=GO_ENV, check=False)
        why = done.stderr.strip().removeprefix("Error: ").replace(f"{folder}/", "") if done.exit_code else ""
    except CommandError as error:
        why = error.what
    if why:
        raise HelmError(
            "helm-post-render",
            f"its post-renderer fails: {why}",
            "mend spec.postRenderers",
            pointer="/spec/postRenderers",
        )
    result: list[Made] = [o for i, o in enumerate(objects) if i not in set(rest)]
    for text in origin.split(done.stdout):
        data = yamlfile.load_one(text)
        index = int(data["metadata"]["annotations"].pop(_INDEX))
        if not data["metadata"]["annotations"]:
            del data["metadata"]["annotations"]
        result.append(Made(data, objects[index].template))
    return result


def _marked(data: Mapping[str, Any], mark: str) -> dict[str, Any]:
    metadata = dict(data.get("metadata") or {})
    metadata["annotations"] = {**(metadata.get("annotations") or {}), _INDEX: mark}
    return {**data, "metadata": metadata}


def in_namespace(made: Sequence[Made], namespace: str, crds: Mapping[tuple[str, str], bool]) -> list[Made]:
    """Return objects with the namespace that Helm applies them in, where they name none and their kind has one."""
    found = []
    for each in made:
        data = each.data
        metadata = data.get("metadata") or {}
        cluster_wide = is_cluster_scoped(str(data.get("apiVersion", "")), str(data.get("kind", "")), crds)
        if isinstance(metadata, dict) and not metadata.get("namespace") and not cluster_wide:
            data = {**data, "metadata": {**metadata, "namespace": namespace}}
        found.append(Made(data, each.template))
    return found


def _explained(stderr: str) -> HelmError:
    """Return what Helm's error means."""
    lines = [line for line in stderr.splitlines() if not line.startswith(("level=", "time=", "WARNING"))]
    text = "\n".join(lines).removeprefix("Error: ").partition("\n\nUse --debug")[0].strip() or stderr.strip()
    if "values don't meet the specifications" in text:
        faults = list(_SCHEMA_ERROR.finditer(text))
        told = "; ".join(f"{f['pointer'] or 'values'}: {f['why']}" for f in faults) or " ".join(text.split())
        pointer = f"/spec/values{faults[0]['pointer']}" if faults else "/spec/values"
        message = f"its values don't fit the chart's values.schema.json: {told}"
        return HelmError("helm-values-schema", message, "mend the values", pointer=pointer)
    if "incompatible with Kubernetes" in text:
        return HelmError("helm-kubernetes", " ".join(text.split()), "take a version of the chart for this Kubernetes")
    yaml = _YAML_ERROR.search(text)
    if yaml:
        message = (
            f"the template renders to what is not YAML: {yaml['why'].removeprefix('error converting YAML to JSON: ')}"
        )
        return HelmError("helm-template", message, "mend the template, or the values that it gets", yaml["path"])
    places = list(_PLACE.finditer(text))
    # Of templates that include each other the innermost is where it fails.
    template, line = (places[-1]["path"], int(places[-1]["line"])) if places else ("", 0)
    return HelmError(
        "helm-template", " ".join(text.split()), "mend the template, or the values that it gets", template, line
    )
