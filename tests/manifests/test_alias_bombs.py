"""YAML made to grow without end: refused in words, before kustomize sees it, in bounded memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import settings
from scripts.check.runner import check
from tests.manifests.checking import HEAD, config_map, flux, options, write

# Nine to the power of twenty values.
LINES = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
LINES += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
BOMB = config_map() + "\n".join(LINES) + "\n"
PADDED = BOMB + f"# {'x' * 50_000}\n"
# Each holds the one before: no exponent, and still the square of what is written.
CHAIN = config_map() + "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000))
KEY = config_map() + "\n".join(LINES) + "\n? *a19\n: x\n"
ITSELF = config_map() + "a: &a [*a]\n"


def indented(text: str, blanks: int) -> str:
    return "".join(f"{' ' * blanks}{line}\n" for line in text.splitlines())


RESOURCES = {"bomb.yaml": HEAD + "resources: [bomb.yaml]\n", "bomb.txt": HEAD + "resources: [bomb.txt]\n"}
CASES = {
    "small": ({"bomb.yaml": BOMB, "kustomization.yaml": RESOURCES["bomb.yaml"]}, "bomb.yaml:1"),
    "large": ({"bomb.yaml": PADDED, "kustomization.yaml": RESOURCES["bomb.yaml"]}, "bomb.yaml:1"),
    "chain": ({"bomb.yaml": CHAIN, "kustomization.yaml": RESOURCES["bomb.yaml"]}, "bomb.yaml:1"),
    "key": ({"bomb.yaml": KEY, "kustomization.yaml": RESOURCES["bomb.yaml"]}, "bomb.yaml:1"),
    "itself": ({"bomb.yaml": ITSELF, "kustomization.yaml": RESOURCES["bomb.yaml"]}, "bomb.yaml:1"),
    "without the suffix": ({"bomb.txt": PADDED, "kustomization.yaml": RESOURCES["bomb.txt"]}, "bomb.txt:1"),
    "patch": (
        {
            "bomb.yaml": PADDED,
            "own.yaml": config_map(),
            "kustomization.yaml": HEAD + "resources: [own.yaml]\npatches:\n- path: bomb.yaml\n",
        },
        "bomb.yaml:1",
    ),
    "patch in place": (
        {
            "own.yaml": config_map(),
            "kustomization.yaml": HEAD + "resources: [own.yaml]\npatches:\n- patch: |\n" + indented(BOMB, 4),
        },
        "kustomization.yaml:5",
    ),
    "patch of Flux": (
        {
            "cluster/kustomization.yaml": HEAD + "resources: [app.yaml]\n",
            "cluster/app.yaml": flux("app", "./app", "  patches:\n  - patch: |\n" + indented(BOMB, 6)),
            "app/own.yaml": config_map(metadata="  namespace: app\n"),
        },
        "cluster/app.yaml:14",
    ),
}


@pytest.mark.parametrize(("files", "place"), CASES.values(), ids=CASES)
def test_it_is_refused_and_kustomize_never_sees_it(files: dict[str, str], place: str, tmp_path: Path) -> None:
    never = tmp_path / "kustomize"
    never.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    never.chmod(0o755)
    root = write(tmp_path / "tree", files)
    report = check(replace(options(root, tmp_path / "cache"), kustomize=never)).report
    errors = [
        (f.rule, str(f.place))
        for f in report.findings
        if f.stage.value == "structure" and f.rule != "flux-source-missing"
    ]
    assert errors == [("yaml-alias", place)]
    assert not (tmp_path / "started").exists()


def test_a_variable_that_brings_aliases_is_refused_too(tmp_path: Path) -> None:
    # Flux replaces variables in the text, so that a value can be YAML of its own.
    value = "{" + ", ".join(LINES).replace("'", "") + "}"
    spec = f"  postBuild:\n    substitute:\n      bomb: '{value}'\n"
    files = {
        "cluster/kustomization.yaml": HEAD + "resources: [app.yaml]\n",
        "cluster/app.yaml": flux("app", "./app", spec),
        "app/own.yaml": config_map(data="level: ${bomb}", metadata="  namespace: app\n"),
    }
    report = check(options(write(tmp_path / "tree", files), tmp_path / "cache")).report
    assert ("substitution-breaks-yaml", "app/own.yaml:1") in [(f.rule, str(f.place)) for f in report.findings]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's here")
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (PADDED, "yaml-alias"),
        (CHAIN, "yaml-alias"),
        ("a: 1\n" * 160_000, "file-too-large"),
        ("- &a {x: 1}\n- *a\n" * 101_000, "file-too-large"),
        ("".join(f"{' ' * n}a:\n" for n in range(900)), "yaml-depth"),
    ],
    ids=["aliases", "chain", "values", "anchors defined anew", "depth"],
)
def test_it_is_refused_in_bounded_memory(text: str, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    program = (
        "import resource, sys, pathlib\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({300 * 1024**2},) * 2)\n"
        "from scripts.check import yamlfile\n"
        "print(*(p.rule for p in yamlfile.compose(pathlib.Path(sys.argv[1]).read_text())[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], cwd=settings.ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (rule, 0), done.stderr
