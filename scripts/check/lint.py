"""`make kustomize-lint`: what is valid and still unsafe or can't work, found in the rendered objects.

Each rule is a small function (lint_rules_*.py). A rule is silenced for one object by an annotation that carries the
reason, in the form that kube-linter knows, whose names of rules are taken where a rule is the same::

    ignore-check.kube-linter.io/host-path: "node-exporter reads the host's /proc"
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from scripts.check import lint_rules_pods, lint_rules_policies, lint_rules_references
from scripts.check.lint_inventory import Inventory, Item
from scripts.check.lint_rule import Context, Rule, Warn
from scripts.check.model import Finding, Rendered, Severity, Stage

SILENCE = "ignore-check.kube-linter.io/"
SILENCE_ALL = "kube-linter.io/ignore-all"
SILENCE_RULE = "silence-without-reason"
RULES: tuple[Rule, ...] = (*lint_rules_pods.RULES, *lint_rules_references.RULES, *lint_rules_policies.RULES)


def lint(rendered: Sequence[Rendered], kubernetes: str = "") -> list[Finding]:
    """Return what the rules find in rendered objects.

    Args:
        rendered: every kustomization that is applied by itself: one's objects may be what another's refer to.
        kubernetes: the pinned version, as in v1.37.0; empty takes that of versions.yaml.
    """
    context = Context(Inventory(rendered), _release(kubernetes or _pinned()))
    found = [finding for item in context.seen.items for finding in _judge(item, context)]
    return sorted(found, key=lambda f: (f.kustomization, f.place.file, f.place.line, f.subject, f.rule, f.message))


def _judge(item: Item, context: Context) -> Iterator[Finding]:
    yield from _empty_silences(item)
    for rule in RULES:
        if (item.kind in rule.kinds or "*" in rule.kinds) and not _is_silenced(item, rule.id):
            for message in rule.check(item, context):
                severity = Severity.WARNING if isinstance(message, Warn) else Severity.ERROR
                yield _finding(item, rule.id, str(message), rule.mend, severity)


def _is_silenced(item: Item, rule_id: str) -> bool:
    return any(_reason(item, key) for key in (SILENCE + rule_id, SILENCE_ALL))


def _reason(item: Item, key: str) -> str:
    # What a HelmRelease is silenced for, all that its chart renders is.
    reason = item.annotations.get(key) or (item.rendered.release_annotations or {}).get(key)
    return reason.strip() if isinstance(reason, str) else ""


def _empty_silences(item: Item) -> Iterator[Finding]:
    for key in item.annotations:
        if isinstance(key, str) and (key.startswith(SILENCE) or key == SILENCE_ALL) and not _reason(item, key):
            yield _finding(
                item,
                SILENCE_RULE,
                f"annotation {key} gives no reason, so it silences nothing",
                f'write it: {key}: "why"',
            )


def _finding(item: Item, rule: str, message: str, mend: str, severity: Severity = Severity.ERROR) -> Finding:
    return Finding(
        stage=Stage.LINT,
        rule=rule,
        message=message,
        mend=mend,
        place=item.resource.place,
        subject=item.resource.subject,
        kustomization=item.rendered.kustomization,
        severity=severity,
    )


def _pinned() -> str:
    from scripts import versions

    return versions.load().kubernetes


def _release(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def rules_table() -> str:
    """Return the rules as a Markdown table, as how-to-run.MD has it: a test holds both equal."""
    rows = [f"| `{r.id}` | {r.reason} | {r.mend} |" for r in RULES]
    return "\n".join(["| rule | why | how to mend it |", "|---|---|---|", *rows])
