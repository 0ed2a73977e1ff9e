"""`make kustomize-diff LIVE=1`: what the tree would change in the lab that runs."""

from __future__ import annotations

DEV = "flux-cd/applications/mock-cluster-aka-namespaces/dev/kustomization.yaml"


def told(output: str) -> list[tuple[str, str]]:
    """Return verb and object of each difference, the hashes of generated names left out."""
    words = [line.split() for line in output.splitlines()]
    found = [(w[0], w[1]) for w in words if len(w) == 2 and w[0] in ("added", "changed", "removed")]
    return sorted((verb, name.rpartition("-")[0] if "ConfigMap" in name else name) for verb, name in found)


def test_a_live_comparison_tells_what_a_change_adds_changes_and_takes_away(clone, make):
    as_pushed = make("kustomize-diff", root=clone.path, LIVE="1")
    assert as_pushed.code == 0, as_pushed.output
    assert told(as_pushed.output) == [], as_pushed.output
    clone.edit(DEV, "FAIL_RATE=0", "FAIL_RATE=0.003")
    changed = make("kustomize-diff", root=clone.path, LIVE="1")
    assert changed.code == 0, changed.output
    # A value of the configuration makes a ConfigMap of another name, which the pods and their role then name.
    assert told(changed.output) == [
        ("added", "v1.ConfigMap.dev.demo-app-config"),
        ("changed", "apps.v1.Deployment.dev.demo-app"),
        ("changed", "rbac.authorization.k8s.io.v1.Role.dev.demo-app"),
        ("removed", "v1.ConfigMap.dev.demo-app-config"),
    ]
    assert '"0.003"' in changed.output
