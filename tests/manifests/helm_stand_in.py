"""Stands in for Helm where `make test` may not build it: as much of `helm template` as the tests' charts need.

The same tests run with Helm itself in tests/helm (`make test-helm`), which holds this to what Helm does.
"""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

Values = dict[str, Any]


def fail(text: str) -> None:
    sys.exit(f"Error: {text}\n\nUse --debug flag to render out invalid YAML")


def merged(base: Values, over: Values) -> Values:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def evaluated(expression: str, scope: Values, at: str) -> str:
    word, *rest = re.findall(r'"[^"]*"|[^\s|]+', expression)
    if word == "required":
        message, word, *rest = rest
        if not evaluated(word, scope, at):
            fail(f"execution error at ({at}): {message[1:-1]}")
    if word == ".Capabilities.APIVersions.Has":
        text = str(rest[0].strip('"') in scope["Capabilities"]["APIVersions"]).lower()
        return json.dumps(text) if "quote" in rest else text
    value: Any = scope
    for step in word.strip(".").split("."):
        if value is None:
            fail(f"{at}\n  executing at <{word}>:\n    nil pointer evaluating interface {{}}.{step}")
        value = value.get(step) if isinstance(value, dict) else None
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return json.dumps(text) if "quote" in rest else text


def rendered(text: str, scope: Values, name: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        line = text.count("\n", 0, match.start()) + 1
        column = match.start() - text.rfind("\n", 0, match.start()) + 2
        return evaluated(match[1], scope, f"{name}:{line}:{column}")

    return re.sub(r"\{\{-?\s*(.*?)\s*-?\}\}", replaced, text)


def chart(folder: Path, given: Values, scope: Values, prefix: str, options: list[str]) -> None:
    about = yaml.safe_load((folder / "Chart.yaml").read_text())
    inner = {yaml.safe_load((f / "Chart.yaml").read_text())["name"]: f for f in sorted(folder.glob("charts/*/"))}
    missing = [d["name"] for d in about.get("dependencies", []) if d["name"] not in inner]
    if missing:
        fail(f"found in Chart.yaml, but missing in charts/ directory: {', '.join(missing)}")
    own = yaml.safe_load((folder / "values.yaml").read_text()) if (folder / "values.yaml").exists() else {}
    values = merged(own or {}, given)
    name = f"{prefix}{about['name']}"
    if "--include-crds" in options:
        for file in sorted(folder.glob("crds/*.yaml")):
            print(f"---\n# Source: {name}/crds/{file.name}\n{file.read_text()}")
    for key, below in inner.items():
        chart(below, values.get(key, {}), scope, f"{name}/charts/", options)
    for file in sorted(folder.glob("templates/*.yaml")):
        path = f"{name}/templates/{file.name}"
        text = rendered(file.read_text(), {**scope, "Values": values, "Chart": {"Name": about["name"]}}, path)
        hook = re.search(r"helm.sh/hook: (\S+)", text)
        if hook and (hook[1] == "test" or "--no-hooks" in options):
            continue
        print(f"---\n# Source: {path}\n{text}")


def main(arguments: list[str]) -> None:
    command, release, folder, *options = arguments
    assert command == "template", arguments
    chosen = dict(pairwise(options))
    values = json.loads(Path(chosen["--values"]).read_text())
    served = chosen.get("--api-versions", "").split(",")
    scope = {
        "Release": {"Name": release, "Namespace": chosen["--namespace"]},
        "Capabilities": {"KubeVersion": {"Version": chosen.get("--kube-version", "")}, "APIVersions": served},
    }
    chart(Path(folder), values, scope, "", options)


if __name__ == "__main__":
    main(sys.argv[1:])
