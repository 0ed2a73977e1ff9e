import threading
from pathlib import Path

import pytest
import yaml

from scripts.errors import LabError
from scripts.lockfile import LockFile
from scripts.versions import Image

A, B = "a" * 64, "b" * 64
ALPINE = Image("docker.io/library/alpine", "3.22")


@pytest.fixture
def lock(tmp_path: Path) -> LockFile:
    return LockFile(tmp_path / "versions.lock.yaml", tmp_path / "locks")


def test_nothing_is_recorded_before_the_first_use(lock: LockFile) -> None:
    assert lock.tool_digest("vegeta", "v1", "linux/amd64") == ""
    assert not lock.path.exists()


def test_a_record_is_found_again_for_its_version_and_platform_only(lock: LockFile) -> None:
    assert lock.record_tool("vegeta", "v1", "linux/amd64", A)
    assert lock.record_tool("vegeta", "v1", "darwin/arm64", B)
    assert lock.tool_digest("vegeta", "v1", "linux/amd64") == A
    assert lock.tool_digest("vegeta", "v1", "linux/arm64") == ""
    assert lock.tool_digest("vegeta", "v2", "linux/amd64") == ""


def test_a_sha512_is_a_record_too(lock: LockFile) -> None:
    lock.record_tool("kube-apiserver", "v1", "linux/amd64", A * 2)
    assert lock.tool_digest("kube-apiserver", "v1", "linux/amd64") == A * 2
    with pytest.raises(ValueError, match="is not a digest"):
        lock.record_tool("kube-apiserver", "v1", "linux/arm64", A + "b")


def test_writing_the_same_again_changes_nothing(lock: LockFile) -> None:
    lock.record_tool("vegeta", "v1", "linux/amd64", A)
    before = lock.path.stat().st_mtime_ns
    assert not lock.record_tool("vegeta", "v1", "linux/amd64", A)
    assert lock.path.stat().st_mtime_ns == before


def test_a_changed_digest_under_an_unchanged_version_is_refused(lock: LockFile) -> None:
    lock.record_tool("vegeta", "v1", "linux/amd64", A)
    with pytest.raises(LabError) as refused:
        lock.record_tool("vegeta", "v1", "linux/amd64", B)
    assert "vegeta v1 for linux/amd64 changed under an unchanged version" in str(refused.value)
    assert A in str(refused.value)
    assert B in str(refused.value)
    assert "FORCE=1" in refused.value.mend
    assert lock.tool_digest("vegeta", "v1", "linux/amd64") == A


def test_a_changed_digest_is_taken_when_forced(lock: LockFile) -> None:
    lock.record_tool("vegeta", "v1", "linux/amd64", A)
    assert lock.record_tool("vegeta", "v1", "linux/amd64", B, force=True)
    assert lock.tool_digest("vegeta", "v1", "linux/amd64") == B


def test_a_new_version_drops_the_sums_of_the_old_one(lock: LockFile) -> None:
    lock.record_tool("vegeta", "v1", "linux/amd64", A)
    lock.record_tool("vegeta", "v1", "linux/arm64", A)
    lock.record_tool("vegeta", "v2", "linux/amd64", B)
    assert dict(lock.read().tools["vegeta"].digests) == {"linux/amd64": B}


def test_an_image_is_resolved_once(lock: LockFile) -> None:
    asked = []

    def resolve(tagged: str) -> str:
        asked.append(tagged)
        return f"sha256:{A}"

    first = lock.ensure_image(ALPINE, resolve)
    second = lock.ensure_image(ALPINE, resolve)
    assert first == second
    assert first.reference == f"docker.io/library/alpine:3.22@sha256:{A}"
    assert asked == ["docker.io/library/alpine:3.22"]


def test_a_pinned_image_is_neither_resolved_nor_recorded(lock: LockFile) -> None:
    pinned = Image("docker.io/library/alpine", "3.22", f"sha256:{B}")
    assert lock.ensure_image(pinned, lambda _: pytest.fail("was resolved")) == pinned
    assert not lock.path.exists()


@pytest.mark.parametrize("answer", ["", A, "sha256:abc", f"md5:{A}"])
def test_an_answer_that_is_no_digest_is_not_recorded(lock: LockFile, answer: str) -> None:
    with pytest.raises(LabError, match="is not an image digest"):
        lock.ensure_image(ALPINE, lambda _: answer)
    assert not lock.path.exists()


def test_an_image_tag_that_moved_is_refused(lock: LockFile) -> None:
    lock.record_image(ALPINE.tagged, f"sha256:{A}")
    with pytest.raises(LabError, match=r"alpine:3\.22 changed under an unchanged version"):
        lock.record_image(ALPINE.tagged, f"sha256:{B}")


def test_the_file_is_sorted_and_reads_as_plain_yaml(lock: LockFile) -> None:
    for name in ("zot", "age"):
        lock.record_tool(name, "v1", "linux/arm64", A)
        lock.record_tool(name, "v1", "darwin/arm64", B)
    lock.record_image("quay.io/z:1", f"sha256:{A}")
    lock.record_image("docker.io/a:1", f"sha256:{B}")
    data = yaml.safe_load(lock.path.read_text())
    assert list(data) == sorted(data)
    assert list(data["tools"]) == ["age", "zot"]
    assert list(data["images"]) == ["docker.io/a:1", "quay.io/z:1"]


@pytest.mark.parametrize(
    "text",
    [
        "tools: [",
        "- a\n",
        "tools: {vegeta: v1}\n",
        f"tools: {{vegeta: {{version: v1, digests: {{linux/amd64: {A[:-1]}}}}}}}\n",
    ],
)
def test_a_damaged_file_is_refused_and_kept(lock: LockFile, text: str) -> None:
    lock.path.write_text(text)
    with pytest.raises(LabError, match=r"versions\.lock\.yaml can't be read"):
        lock.record_tool("vegeta", "v1", "linux/amd64", A)
    assert lock.path.read_text() == text


def test_records_made_at_once_are_all_kept(lock: LockFile) -> None:
    names = [f"tool-{i}" for i in range(8)]
    threads = [threading.Thread(target=lock.record_tool, args=(n, "v1", "linux/amd64", A)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lock.read().tools) == names
