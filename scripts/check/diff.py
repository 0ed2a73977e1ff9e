"""What a change does: the rendered objects of two states of a tree, side by side, environment by environment."""

from __future__ import annotations

import difflib
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.check.fluxobjects import FluxObject
from scripts.check.model import Rendered, Report, Resource, Stage
from scripts.check.origin import split
from scripts.check.renderer import Applied
from scripts.check.runner import Options, check
from scripts.check.scratch import scratch
from scripts.errors import LabError, UsageError
from scripts.git import git
from scripts.kube import Kube, owner_labels

_HASH = re.compile(r"-[a-z0-9]{10}$")
_MASK = "***"
_CONTEXT_LINES = 3
# Longer differences than this are cut in Markdown: a pull request's comment ends at 65,536 characters.
_MARKDOWN_LINES = 400
_FIELD_MANAGER = "kustomize-controller"


@dataclass(frozen=True)
class ObjectChange:
    """One object that differs."""

    subject: str
    # added, removed, changed or not compared
    verb: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class EnvironmentChange:
    """What differs in one rendering: an environment, or another folder that is applied by itself."""

    name: str
    objects: tuple[ObjectChange, ...]


def compare(before: Sequence[Rendered], after: Sequence[Rendered]) -> list[EnvironmentChange]:
    """Return what differs, by rendering; those without a difference are left out."""
    old, new = _by_name(before), _by_name(after)
    changes = []
    for name in sorted({*old, *new}):
        objects = tuple(_object_changes(old.get(name, ()), new.get(name, ())))
        if objects:
            changes.append(EnvironmentChange(name, objects))
    return changes


def _by_name(rendered: Sequence[Rendered]) -> dict[str, tuple[tuple[Resource, str], ...]]:
    found: dict[str, tuple[tuple[Resource, str], ...]] = {}
    for each in rendered:
        name = each.kustomization or "."
        names = ", ".join(each.flux_kustomizations)
        if names and names != name.rpartition("/")[2]:
            name = f"{name} ({names})"
        found[name] = tuple(zip(each.resources, split(each.text), strict=True))
    return found


def _object_changes(
    before: Sequence[tuple[Resource, str]], after: Sequence[tuple[Resource, str]]
) -> Iterator[ObjectChange]:
    old = {_identity(resource): (resource, text) for resource, text in before}
    new = {_identity(resource): (resource, text) for resource, text in after}
    for key in sorted({*old, *new}):
        left, right = old.get(key), new.get(key)
        if left and right and left[1] == right[1]:
            continue
        verb = "changed" if left and right else "added" if right else "removed"
        left_text, right_text = _masked(left, right)
        lines = difflib.unified_diff(left_text, right_text, lineterm="", n=_CONTEXT_LINES)
        shown = right or left
        assert shown is not None
        yield ObjectChange(shown[0].subject, verb, tuple(lines)[2:])


def _identity(resource: Resource) -> tuple[str, str, str, str]:
    """Return what an object is known by, without the hash that follows its content."""
    name = _HASH.sub("", resource.name) if resource.kind in ("ConfigMap", "Secret") else resource.name
    return resource.api_version.rpartition("/")[0], resource.kind, resource.namespace, name


def _masked(left: tuple[Resource, str] | None, right: tuple[Resource, str] | None) -> tuple[list[str], list[str]]:
    """Return both texts as lines; of Secrets only which values differ is told."""
    if all(side is None or side[0].kind != "Secret" for side in (left, right)):
        return (left[1] if left else "").splitlines(), (right[1] if right else "").splitlines()
    old = left[0].data if left else None
    new = right[0].data if right else None
    return _secret_lines(old, new, "before"), _secret_lines(new, old, "after")


def _secret_lines(secret: Mapping[str, Any] | None, other: Mapping[str, Any] | None, when: str) -> list[str]:
    import yaml

    if secret is None:
        return []
    shown = dict(secret)
    for field in ("data", "stringData"):
        values = secret.get(field)
        if isinstance(values, Mapping):
            others = (other or {}).get(field) or {}
            shown[field] = {
                key: _MASK if other is None or others.get(key) == value else f"{_MASK} ({when})"
                for key, value in values.items()
            }
    metadata = dict(shown.get("metadata") or {})
    if "annotations" in metadata:
        # kubectl keeps a copy of what it applied there.
        metadata["annotations"] = {
            k: _MASK if k == "kubectl.kubernetes.io/last-applied-configuration" else v
            for k, v in (metadata["annotations"] or {}).items()
        }
        shown["metadata"] = metadata
    return yaml.dump(shown, Dumper=yaml.CSafeDumper, sort_keys=False, width=10_000).splitlines()


def against_revision(options: Options, base: str) -> list[EnvironmentChange]:
    """Return what the tree, as it lies on disk, changes against a Git revision."""
    options = replace(options, stages=(Stage.STRUCTURE, Stage.BUILD))
    after = _report(options, "the tree")
    with checked_out(options.root, base) as root:
        before = _report(replace(options, root=root, store_name=str(options.root.resolve())), base) if root else None
    if before is None:
        return compare((), after.rendered)
    lost = _not_rendered(before, after, base) + _not_rendered(after, before, "the tree")
    names = {change.name for change in lost}
    kept = [[r for r in report.rendered if r.kustomization not in names] for report in (before, after)]
    return sorted([*compare(*kept), *lost], key=lambda c: c.name)


def _not_rendered(report: Report, other: Report, where: str) -> list[EnvironmentChange]:
    """Return the HelmReleases that one state's charts are not at hand for: without both there is nothing to compare."""
    rendered = {r.kustomization for r in other.rows if r.release and r.built}
    return [
        EnvironmentChange(r.kustomization, (ObjectChange(f"in {where}", "not compared", (r.note,)),))
        for r in report.rows
        if r.release and not r.built and r.kustomization in rendered
    ]


def _report(options: Options, what: str) -> Report:
    report = check(options, need_renderings=True).report
    broken = [r.kustomization or "." for r in report.rows if not r.built and r.note.endswith("is broken")]
    failed = [f.kustomization or "." for f in report.findings if f.stage is Stage.BUILD and not report.ok]
    if broken or failed:
        raise LabError(
            f"{', '.join(sorted({*broken, *failed}))} can't be built in {what}, so there is nothing to compare.",
            "make kustomize-check says why" if what == "the tree" else f"take another BASE than {what}",
        )
    return report


@contextmanager
def checked_out(root: Path, revision: str) -> Iterator[Path | None]:
    """Write a revision's files into a temporary folder; yields the tree's root in it, None if it has no such folder."""
    root = root.resolve()
    top = Path(git("rev-parse", "--show-toplevel", root=root).stdout.strip())
    commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", check=False, root=root).stdout.strip()
    if not commit:
        raise UsageError(f"BASE={revision} is not a revision of {top}.", "name a branch, a tag or a commit")
    with tempfile.TemporaryDirectory(prefix="gitops-lab-archive-") as apart:
        archive = Path(apart) / "archive.tar"
        git("archive", f"--output={archive}", commit, root=top, timeout_s=120)
        with scratch("revision", archive.stat().st_size) as folder:
            with tarfile.open(archive) as tar:
                # Links are kept as they are, out of the tree or not: the check tells of them, and follows none out.
                tar.extractall(folder, filter="tar")
            # Where a repository ends is told by its .git.
            (Path(folder) / ".git").touch()
            found = Path(folder) / root.relative_to(top)
            yield found if found.is_dir() else None


def against_cluster(kube: Kube, applied: Sequence[Applied]) -> list[EnvironmentChange]:
    """Return what applying the tree would change in a cluster, by the API server's own dry run and Flux's inventories."""
    there = {(k["metadata"]["namespace"], k["metadata"]["name"]): k for k in kube.list_custom("Kustomization")}
    changes = []
    for each in applied:
        if not each.rendering.built or not each.flux:
            continue
        flux = next((f for f in each.flux if (f.namespace, f.name) in there), each.flux[0])
        live = there.get((flux.namespace, flux.name))
        if live is None:
            why = f"the cluster has no Kustomization {flux.namespace}/{flux.name}: left out there, or not applied yet"
            objects = [_not_compared(each, why)]
        else:
            objects = [*_dry_run(kube, each, flux), *_pruned(live, each.rendering.resources)]
        if objects:
            changes.append(EnvironmentChange(f"{each.rendering.spec.folder} ({flux.name})", tuple(objects)))
    return changes


def _not_compared(applied: Applied, why: str) -> ObjectChange:
    count = len(applied.rendering.resources)
    return ObjectChange(f"{count} object{'s' * (count != 1)}", "not compared", (why,))


def _dry_run(kube: Kube, applied: Applied, flux: FluxObject) -> Iterator[ObjectChange]:
    """Yield what would be added or changed; where the API server refuses to say, why it does."""
    objects = [_as_flux_applies(r, flux) for r in applied.rendering.resources]
    done = kube.kubectl(
        "diff", "--server-side", "--force-conflicts", f"--field-manager={_FIELD_MANAGER}", "--filename", "-",
        check=False, timeout_s=120, input_text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
    )  # fmt: skip
    if done.exit_code > 1:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        yield _not_compared(applied, f"the cluster refuses: {said[-1]}")
    else:
        yield from _kubectl_changes(done.stdout)


def _pruned(kustomization: Mapping[str, Any], resources: Sequence[Resource]) -> Iterator[ObjectChange]:
    """Yield what a Kustomization applied and would no longer, by its inventory of `namespace_name_group_kind`."""
    if not (kustomization.get("spec") or {}).get("prune"):
        return
    # kustomize gives a namespace to what it does not know to stand outside of them too; an inventory has it empty there.
    kept = {
        (namespace, r.name, r.api_version.rpartition("/")[0], r.kind)
        for r in resources
        for namespace in (r.namespace, "")
    }
    for entry in ((kustomization.get("status") or {}).get("inventory") or {}).get("entries") or []:
        namespace, _, rest = str(entry["id"]).partition("_")
        name, group, kind = rest.rsplit("_", 2)
        # A colon, as in the names of roles, is written as two.
        name = name.replace("__", ":")
        if (namespace, name, group, kind) not in kept:
            subject = ".".join(part for part in (group, entry.get("v"), kind, namespace, name) if part)
            yield ObjectChange(subject, "removed", ())


def _as_flux_applies(resource: Resource, flux: FluxObject) -> dict[str, Any]:
    """Return an object with the labels that kustomize-controller puts on all it applies."""
    data = dict(resource.data)
    metadata = dict(data.get("metadata") or {})
    owner = owner_labels(flux.name, flux.namespace)
    metadata["labels"] = {**(metadata.get("labels") or {}), **owner}
    data["metadata"] = metadata
    return data


def _kubectl_changes(text: str) -> Iterator[ObjectChange]:
    """Yield the changes in the output of `kubectl diff`, which masks Secrets itself."""
    for part in re.split(r"^diff .*\n", text, flags=re.MULTILINE):
        lines = part.splitlines()
        header = next((line for line in lines if line.startswith("+++ ")), "")
        if not header:
            continue
        # A file of the form group.version.kind.namespace.name, in a temporary folder.
        name = header.split()[1].rpartition("/")[2]
        body = [line for line in lines if not line.startswith(("--- ", "+++ "))]
        added = all(line.startswith(("+", "@")) for line in body)
        yield ObjectChange(name, "added" if added else "changed", tuple(body))


def as_text(changes: Sequence[EnvironmentChange], base: str) -> Iterator[str]:
    """Yield the differences as lines for a terminal."""
    for change in changes:
        yield f"── {change.name}"
        for each in change.objects:
            yield f"{each.verb} {each.subject}"
            yield from (f"  {line}" for line in each.lines)
    yield _closing(changes, base)


def as_markdown(changes: Sequence[EnvironmentChange], base: str) -> str:
    """Return the differences for a pull request: one fold per environment."""
    parts = [f"### What this changes against `{base}`", "", _closing(changes, base), ""]
    for change in changes:
        lines = [line for each in change.objects for line in (f"# {each.verb} {each.subject}", *each.lines)]
        cut = len(lines) - _MARKDOWN_LINES
        if cut > 0:
            lines = [*lines[:_MARKDOWN_LINES], f"# … and {cut} more lines"]
        # A fence longer than any in the text can't be closed by it.
        fence = "`" * max(3, 1 + max((len(m.group()) for m in re.finditer("`+", "\n".join(lines))), default=0))
        verbs = _counts(change.objects)
        parts += [
            f"<details><summary><b>{change.name}</b>: {verbs}</summary>", "", f"{fence}diff", *lines, fence,
            "", "</details>", "",
        ]  # fmt: skip
    return "\n".join(parts)


def _closing(changes: Sequence[EnvironmentChange], base: str) -> str:
    if not changes:
        return f"Nothing that is applied differs from {base}."
    return f"{_counts([o for c in changes for o in c.objects])} in {len(changes)} kustomizations, against {base}."


def _counts(objects: Sequence[ObjectChange]) -> str:
    counts = {verb: sum(o.verb == verb for o in objects) for verb in ("added", "changed", "removed", "not compared")}
    return ", ".join(f"{count} {verb}" for verb, count in counts.items() if count)
