import dataclasses
from pathlib import Path

import pytest

from scripts import settings
from scripts.errors import LabError, UsageError
from scripts.settings import Edge, ImageSource, Monitoring, Settings, load

HOME = {"HOME": "/home/me"}


def test_an_empty_environment_gives_the_defaults_below_the_users_home() -> None:
    found = load(HOME)
    assert found == dataclasses.replace(
        Settings(),
        cache_dir=Path("/home/me/.cache/gitops-lab"),
        state_root=Path("/home/me/.local/state/gitops-lab"),
        charts=found.charts,
    )


CHARTS = {
    "linux": ({}, ["/home/me/.cache/gitops-lab/charts", "/home/me/.cache/helm/repository"]),
    "darwin": ({}, ["/home/me/.cache/gitops-lab/charts", "/home/me/Library/Caches/helm/repository"]),
    "the user's caches": (
        {"XDG_CACHE_HOME": "/caches"}, ["/caches/gitops-lab/charts", "/caches/helm/repository"],
    ),
    "Helm's own": ({"HELM_CACHE_HOME": "/helm"}, ["/home/me/.cache/gitops-lab/charts", "/helm/repository"]),
    "Helm's own charts": (
        {"HELM_CACHE_HOME": "/helm", "HELM_REPOSITORY_CACHE": "/downloaded"},
        ["/home/me/.cache/gitops-lab/charts", "/downloaded"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHARTS)
def test_charts_are_looked_for_where_helm_keeps_them_too(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environ, wanted = CHARTS[case]
    monkeypatch.setattr("sys.platform", "darwin" if case == "darwin" else "linux")
    assert [str(p) for p in load({**HOME, **environ}).charts] == wanted


def test_a_folder_of_charts_goes_first_and_has_to_be_there(tmp_path: Path) -> None:
    assert load({**HOME, "CHARTS": str(tmp_path)}).charts[0] == tmp_path
    with pytest.raises(UsageError, match="is no folder"):
        load({**HOME, "CHARTS": str(tmp_path / "none")})


def test_every_variable_is_taken() -> None:
    found = load(
        {
            "CLUSTER_NAME": "two",
            "IMAGE_SOURCE": "source",
            "EDGE": "none",
            "MONITORING": "lite",
            "EDGE_PORT": "1",
            "REGISTRY_PORT": "65535",
            "GIT_PORT": "9000",
            "GIT_REMOTE": "upstream",
            "GIT_URL": "https://github.com/me/lab.git",
            "KUBE_CONTEXT": "prod",
            "SUBNET": "172.30.0.0/16",
            "DRY_RUN": "0",
            "XDG_CACHE_HOME": "/caches",
            "XDG_STATE_HOME": "/states",
        }
    )
    assert found == Settings(
        cluster_name="two",
        image_source=ImageSource.SOURCE,
        edge=Edge.NONE,
        monitoring=Monitoring.LITE,
        edge_port=1,
        registry_port=65535,
        git_port=9000,
        git_remote="upstream",
        git_url="https://github.com/me/lab.git",
        kube_context="prod",
        subnet="172.30.0.0/16",
        dry_run=False,
        cache_dir=Path("/caches/gitops-lab"),
        state_root=Path("/states/gitops-lab"),
        charts=(Path("/caches/gitops-lab/charts"), Path("/caches/helm/repository")),
    )


def test_a_cluster_of_ones_own_has_no_edge_unless_asked_for() -> None:
    assert load(HOME | {"KUBE_CONTEXT": "prod"}).edge is Edge.NONE
    assert load(HOME | {"KUBE_CONTEXT": "prod", "EDGE": "envoy"}).edge is Edge.ENVOY


def test_an_empty_value_is_the_default_because_make_passes_unset_variables_on() -> None:
    names = (
        "CLUSTER_NAME",
        "IMAGE_SOURCE",
        "EDGE",
        "MONITORING",
        "EDGE_PORT",
        "REGISTRY_PORT",
        "GIT_PORT",
        "GIT_REMOTE",
    )
    others = ("GIT_URL", "KUBE_CONTEXT", "SUBNET", "DRY_RUN", "XDG_CACHE_HOME", "XDG_STATE_HOME", "YES")
    assert load(HOME | dict.fromkeys((*names, *others), "")) == load(HOME)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CLUSTER_NAME", "Lab"),
        ("CLUSTER_NAME", "-lab"),
        ("CLUSTER_NAME", "lab-"),
        ("CLUSTER_NAME", "my lab"),
        ("CLUSTER_NAME", "lab_1"),
        ("CLUSTER_NAME", "../lab"),
        ("CLUSTER_NAME", "lab;rm"),
        ("CLUSTER_NAME", "lab\n"),
        ("CLUSTER_NAME", "a" * 41),
        ("IMAGE_SOURCE", "docker"),
        ("IMAGE_SOURCE", "AUTO"),
        ("EDGE", "nginx"),
        ("MONITORING", "some"),
        *[
            (variable, value)
            for variable in ("EDGE_PORT", "REGISTRY_PORT", "GIT_PORT")
            for value in ("0", "65536", "-1", "http", "80.5", " 80", "0x50")
        ],
        ("EDGE_PORT", "²"),
        ("EDGE_PORT", "٣٣٣"),
        ("EDGE_PORT", "9" * 5000),
        ("SUBNET", "everything"),
        ("DRY_RUN", "yes"),
        ("SUBNET", "10.0.0.0/33"),
        ("SUBNET", "10.0.0.1/16"),
        ("GIT_REMOTE", "--mirror"),
        ("GIT_REMOTE", "a remote"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_variable(variable: str, value: str) -> None:
    with pytest.raises(UsageError) as refused:
        load(HOME | {variable: value})
    assert variable in refused.value.what
    assert refused.value.mend
    assert "\n" not in refused.value.what.replace(value, "")


@pytest.mark.parametrize("name", ["a", "7", "a" * 40, "lab-2", "a--b"])
def test_a_name_that_kind_takes_is_taken(name: str) -> None:
    assert load({"CLUSTER_NAME": name}).cluster_name == name


@pytest.mark.parametrize(
    "ports",
    [
        {"EDGE_PORT": "5001"},
        {"GIT_PORT": "8080"},
        {"EDGE_PORT": "7000", "REGISTRY_PORT": "7000"},
        {"EDGE_PORT": "7", "REGISTRY_PORT": "7", "GIT_PORT": "7"},
    ],
)
def test_two_equal_ports_are_refused_with_all_of_them_named(ports: dict[str, str]) -> None:
    with pytest.raises(UsageError) as refused:
        load(ports)
    for variable in ("EDGE_PORT", "REGISTRY_PORT", "GIT_PORT"):
        assert f"{variable}=" in refused.value.what
    for variable, value in ports.items():
        assert f"{variable}={value}" in refused.value.what


def test_a_refusal_shows_the_choices() -> None:
    with pytest.raises(UsageError) as refused:
        load({"IMAGE_SOURCE": "docker"})
    assert refused.value.mend == "take one of: auto, registry, source"


def test_loading_reads_nothing_but_the_environment_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_NAME", "from-the-shell")
    assert load({}).cluster_name == "gitops-lab"
    assert load().cluster_name == "from-the-shell"


@pytest.mark.parametrize(
    ("given", "owns_cluster", "owns_git", "context", "push_url"),
    [
        (Settings(), True, True, "kind-gitops-lab", "http://127.0.0.1:8090/lab.git"),
        (Settings(cluster_name="b", git_port=1), True, True, "kind-b", "http://127.0.0.1:1/lab.git"),
        (Settings(kube_context="prod"), False, True, "prod", "http://127.0.0.1:8090/lab.git"),
        (Settings(git_url="ssh://git@host/x.git"), True, False, "kind-gitops-lab", "ssh://git@host/x.git"),
    ],
)
def test_what_the_user_names_is_not_the_labs_own(
    given: Settings, owns_cluster: bool, owns_git: bool, context: str, push_url: str
) -> None:
    assert (given.owns_cluster, given.owns_git) == (owns_cluster, owns_git)
    assert (given.context, given.git_push_url) == (context, push_url)
    assert given.git_fetch_url == (given.git_url or "http://git.flux-system.svc.cluster.local.:8080/flux/lab.git")


def test_two_labs_share_no_name() -> None:
    one, two = Settings(cluster_name="one"), Settings(cluster_name="two")
    for name in (
        "context", "network", "registry_container", "git_container", "registry_volume", "git_volume", "control_plane",
        "state_dir",
    ):  # fmt: skip
        assert getattr(one, name) != getattr(two, name)
    assert one.cache_dir == two.cache_dir


def overlay(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "kustomization.yaml").touch()
    return folder


def test_environments_are_the_overlays_in_the_order_of_promotion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "OVERLAYS", overlay(tmp_path, "zeta", "production", "canary", "staging", "dev"))
    (tmp_path / "empty").mkdir()
    assert settings.environments() == ["dev", "staging", "production", "canary", "zeta"]


def test_this_tree_has_the_labs_own_environments_first() -> None:
    assert settings.environments()[:3] == ["dev", "staging", "production"]


@pytest.mark.parametrize("name", ["", "prod", "Dev", "../dev"])
def test_an_environment_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError, match="is not an environment") as refused:
        settings.require_environment(name)
    assert refused.value.mend.startswith("take one of: dev, staging, production")
    assert settings.require_environment("staging") == "staging"


def test_an_error_reads_as_what_is_wrong_and_how_to_mend_it() -> None:
    assert str(LabError("It broke.")) == "It broke."
    assert str(LabError("It broke.", "mend it", "    line 1\n    line 2")).splitlines() == [
        "It broke.",
        "    line 1",
        "    line 2",
        "To mend it: mend it",
    ]


# ---------------------------------------------------------------- mirrors


@pytest.mark.parametrize(
    ("given", "mirror"),
    [
        ("", ""),
        ("mirror.example", "mirror.example"),
        ("mirror.example:5443/team/lab/", "mirror.example:5443/team/lab"),
        ("127.0.0.1:5443", "127.0.0.1:5443"),
    ],
)
def test_a_mirror_is_a_host_and_perhaps_a_prefix(given: str, mirror: str) -> None:
    assert load({"IMAGE_MIRROR": given}).image_mirror == mirror


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("IMAGE_MIRROR", "https://mirror.example", "is not host[:port][/prefix]"),
        ("IMAGE_MIRROR", "user:hunter22@mirror.example", "is not host[:port][/prefix]"),
        ("IMAGE_MIRROR", "mirror.example/UPPER", "is not host[:port][/prefix]"),
        ("IMAGE_MIRROR_LAYOUT", "flatt", "IMAGE_MIRROR_LAYOUT=flatt is not known"),
        ("DOWNLOAD_MIRROR", "http://mirror.example/files", "is not an https:// address"),
        ("DOWNLOAD_MIRROR", "mirror.example", "is not an https:// address"),
        ("DOWNLOAD_MIRROR", "https://user:" + "hunter22@mirror.example", "holds a user name or a password"),
        ("MIRROR_CA", "/nobody/has/this.pem", "is no file"),
    ],
)
def test_a_mirror_that_can_not_be_used_is_refused_and_no_password_repeated(
    variable: str, value: str, says: str
) -> None:
    with pytest.raises(UsageError) as refused:
        load({variable: value})
    assert says in str(refused.value)
    assert refused.value.mend
    assert "hunter22" not in str(refused.value)


def test_mirror_settings_are_read(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    found = load(
        {
            "IMAGE_MIRROR_LAYOUT": "flat",
            "DOWNLOAD_MIRROR": "https://mirror.example/files/",
            "MIRROR_CA": str(ca),
            "VERSIONS_LOCK": str(tmp_path / "own.yaml"),
        }
    )
    assert (str(found.image_mirror_layout), found.download_mirror) == ("flat", "https://mirror.example/files")
    assert (found.mirror_ca, found.versions_lock) == (ca, tmp_path / "own.yaml")
    assert load({"VERSIONS_LOCK": "~/own.yaml"}).versions_lock == Path.home() / "own.yaml", "zsh leaves the ~ there"
