"""From the API server's answers to findings: its own words, a rule to know them by, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scripts.check.dryrun_api import Answer
from scripts.check.dryrun_fields import each_error, field_in, pointer_of
from scripts.check.lint_inventory import dig
from scripts.check.lint_removed import REMOVALS
from scripts.check.model import Finding, Rendered, Resource, Severity, Stage


@dataclass(frozen=True)
class _Kind:
    rule: str
    mend: str


# What admission says in words only, and what the reason of a Status says; the first that fits names the finding.
_BY_WORDS: Mapping[str, _Kind] = {
    "violates PodSecurity": _Kind(
        "pod-security", "give the pod the security context that is named, or the namespace a wider level"
    ),
    "ValidatingAdmissionPolicy": _Kind("admission-policy", "make the object fit the policy, or change the policy"),
    "exceeded quota": _Kind("quota", "ask for less, or raise the ResourceQuota"),
    "failed quota": _Kind(
        "quota", "state what the quota counts (requests, limits), or give the namespace a LimitRange"
    ),
    "field not declared in schema": _Kind("unknown-field", "mend the field's name or where it stands"),
    "unknown field": _Kind("unknown-field", "mend the field's name or where it stands"),
    "field is immutable": _Kind(
        "immutable-field",
        "give the object another name, or let Flux replace it (annotation kustomize.toolkit.fluxcd.io/force: enabled)",
    ),
}
_BY_REASON: Mapping[str, _Kind] = {
    "Invalid": _Kind("invalid", "give the field a value that the API server takes"),
    "Forbidden": _Kind("forbidden", "look at the limits and policies of the namespace"),
    "BadRequest": _Kind("bad-request", "mend the object: the API server can't read it"),
    "NotFound": _Kind("not-found", "make what is named exist, or name something that does"),
    "Conflict": _Kind("conflict", "render the object in one place only"),
}
_OTHERS = _Kind("refused", "mend what the API server names")


def refusal(
    answer: Answer,
    resource: Resource,
    rendered: Rendered,
    prefix: str = "",
    severity: Severity = Severity.ERROR,
    within: tuple[str, ...] = (),
) -> Iterator[Finding]:
    """Yield what a refusal says: one finding per field that it names.

    `within` is where in the object the refused thing stands: the template of a pod.
    """
    start = "".join(f"/{step}" for step in within)
    thing = dig(resource.data, *within)
    details = answer.body.get("details") or {}
    causes = [c for c in details.get("causes") or [] if isinstance(c, Mapping) and c.get("message")]
    said = [(f"{c['field']}: {c['message']}", str(c["field"])) for c in causes if c.get("field")]
    said += [(str(c["message"]), field_in(str(c["message"]))) for c in causes if not c.get("field")]
    # A policy's causes repeat its message without its name.
    if not said or any(words in answer.message for words in ("ValidatingAdmissionPolicy", "violates PodSecurity")):
        said = [(error, field_in(error)) for error in each_error(answer.message)]
    for message, field in dict.fromkeys(said):
        kind = next((k for words, k in _BY_WORDS.items() if words in message), None)
        kind = kind or _BY_REASON.get(answer.reason, _OTHERS)
        pointer = start + pointer_of(field, thing) if field else start
        yield finding(kind.rule, prefix + message, kind.mend, resource, rendered, severity, pointer)


def warnings(answer: Answer, resource: Resource, rendered: Rendered) -> Iterator[Finding]:
    """Yield what the API server warns of; deprecated versions are the linter's."""
    for text in answer.warnings:
        if (resource.api_version, resource.kind) not in REMOVALS:
            yield finding("warning", text, "the API server takes it; see whether it is meant", resource, rendered)


def finding(
    rule: str,
    message: str,
    mend: str,
    resource: Resource,
    rendered: Rendered,
    severity: Severity | None = None,
    pointer: str = "",
) -> Finding:
    """Return a finding of the dry run about a rendered object."""
    return Finding(
        stage=Stage.DRY_RUN,
        rule=rule,
        message=message,
        mend=mend,
        place=resource.place,
        subject=resource.subject,
        kustomization=rendered.kustomization,
        severity=severity or Severity.WARNING,
        pointer=pointer,
    )
