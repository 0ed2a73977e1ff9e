import pytest

from scripts.check import semver

# As Helm's own library decides: https://github.com/Masterminds/semver#checking-version-constraints
IN_RANGE = [
    ("1.2.3", "1.2.3", True), ("1.2.4", "1.2.3", False), ("v1.2.3", "1.2.3", True), ("1.2.3+build", "1.2.3", True),
    ("1.2.9", "1.2", True), ("1.3.0", "1.2", False), ("1.9.0", "1", True), ("1.9.0", "1.x", True), ("2.0.0", "1.x.x", False),
    ("3.4.5", "*", True), ("3.4.5", "", True), ("3.4.5-rc.1", "*", False),
    ("1.9.9", "^1.2.3", True), ("2.0.0", "^1.2.3", False), ("1.2.2", "^1.2.3", False),
    ("0.2.9", "^0.2.3", True), ("0.3.0", "^0.2.3", False), ("0.0.3", "^0.0.3", True), ("0.0.4", "^0.0.3", False),
    ("0.9.0", "^0", True), ("0.0.9", "^0.0", True), ("0.1.0", "^0.0", False),
    ("1.2.9", "~1.2.3", True), ("1.3.0", "~1.2.3", False), ("1.2.0", "~1.2", True), ("1.9.0", "~1", True), ("2.0.0", "~1", False),
    ("1.5.0", ">=1.0.0 <2.0.0", True), ("2.0.0", ">=1.0.0, <2.0.0", False), ("1.5.0", ">= 1.0.0, < 2", True),
    ("1.2.4", ">1.2", False), ("1.3.0", ">1.2", True), ("1.2.9", "<=1.2", True), ("1.3.0", "<=1.2", False), ("1.2.0", "<1.2", False),
    ("1.3.0", "1.2 - 1.4.5", True), ("1.4.6", "1.2 - 1.4.5", False), ("1.2.3", "!=1.2.3", False), ("1.2.4", "!=1.2.3", True),
    ("3.0.0", "1.x || 3.x", True), ("2.0.0", "1.x || >=3", False),
    ("2.0.0-rc.1", ">=1.0.0", False), ("2.0.0-rc.1", ">=1.0.0-0", True), ("1.0.0-alpha", ">=1.0.0-beta", False),
    ("1.0.0-rc.10", ">1.0.0-rc.9", True), ("1.0.0", ">1.0.0-rc.9", True), ("1.0.0-1", ">=1.0.0-a", False),
    ("not a version", "1.x", None), ("1.2.3", "latest", None), ("1.2.3", ">=1.0.0<2", None), ("1.2", "1.2.0", True),
]  # fmt: skip


@pytest.mark.parametrize(("version", "wanted", "holds"), IN_RANGE, ids=[f"{v} in {w}" for v, w, _ in IN_RANGE])
def test_a_version_is_in_a_range_or_not(version: str, wanted: str, holds: bool | None) -> None:
    assert semver.satisfies(version, wanted) is holds


def test_the_highest_that_fits_is_taken() -> None:
    assert semver.best(["1.2.0", "1.10.0", "1.9.0", "2.0.0", "1.11.0-rc.1", "nonsense"], "1.x") == "1.10.0"
    assert semver.best(["1.2.0"], "2.x") is None


@pytest.mark.parametrize(
    ("wanted", "exact"), [("1.2.3", True), ("=1.2.3", True), ("1.2", False), ("^1.2.3", False), ("1.2.3 || 2", False)]
)
def test_one_version_is_told_from_a_range(wanted: str, exact: bool) -> None:
    assert semver.is_exact(wanted) is exact
