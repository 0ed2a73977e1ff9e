"""Grafana's password: made once, kept by the cluster."""

from __future__ import annotations

import base64
from typing import Any

from kubernetes.client import ApiException

from scripts.monitoring import full


class Secret:
    def __init__(self, data: dict[str, str]) -> None:
        self.data = data


class Cluster:
    """The two things that are asked of `Kube`; `answer` is a Secret or the error that the API gives."""

    def __init__(self, answer: Secret | ApiException) -> None:
        self.core = self
        self.answer = answer

    def read_namespaced_secret(self, name: str, namespace: str) -> Secret:
        assert (name, namespace) == ("grafana-admin", "monitoring")
        if isinstance(self.answer, ApiException):
            raise self.answer
        return self.answer

    def call(self, method: Any, *args: str) -> Any:
        return method(*args)


def password(cluster: Cluster) -> str:
    namespace, secret = full.grafana_objects(cluster)  # type: ignore[arg-type]
    assert namespace["metadata"]["name"] == secret["metadata"]["namespace"]
    return str(secret["stringData"]["admin-password"])


def test_a_cluster_without_a_password_gets_one_of_its_own() -> None:
    first, second = (password(Cluster(ApiException(status=404))) for _ in range(2))
    assert first != second and len(first) >= 20


def test_a_password_that_is_there_stays() -> None:
    kept = base64.b64encode(b"as it was").decode()
    assert password(Cluster(Secret({"admin-password": kept}))) == "as it was"


def test_a_refusal_is_not_taken_for_a_missing_secret() -> None:
    try:
        password(Cluster(ApiException(status=403)))
    except ApiException as error:
        assert error.status == 403
    else:
        raise AssertionError("a new password was made where the old one could not be read")
