"""The order in which Flux applies what was rendered: parents before their children, dependencies before what needs them."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.check.fluxobjects import dependencies_of
from scripts.check.renderer import Applied


def in_apply_order(applied: Sequence[Applied]) -> list[Applied]:
    """Return renderings in the order of application; those of a circle, which Flux never applies, come last."""
    by_name: dict[tuple[str, str, str], list[Applied]] = {}
    for each in applied:
        for flux in each.flux:
            for scope in each.scopes:
                by_name.setdefault((scope, flux.namespace, flux.name), []).append(each)

    def waits_for(each: Applied) -> list[Applied]:
        needed = [parent for parent in each.parents if parent is not each]
        for flux in each.flux:
            for namespace, name, _ in dependencies_of(flux):
                for scope in each.scopes:
                    needed += by_name.get((scope, namespace, name), [])
        return needed

    ordered: list[Applied] = []
    left = list(applied)
    done: set[int] = set()
    while left:
        ready = [a for a in left if all(id(n) in done for n in waits_for(a))] or left
        ordered += ready
        done |= {id(a) for a in ready}
        left = [a for a in left if id(a) not in done]
    return ordered
