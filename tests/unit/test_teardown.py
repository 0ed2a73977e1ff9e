"""What a teardown takes with it."""

from __future__ import annotations

import pytest

from scripts.errors import LabError
from scripts.teardown import Purge, purge_of


@pytest.mark.parametrize(
    ("environ", "purge"),
    [
        ({}, Purge.NOTHING),
        ({"PURGE": ""}, Purge.NOTHING),
        ({"PURGE": "0"}, Purge.NOTHING),
        ({"PURGE": "volumes"}, Purge.VOLUMES),
        ({"PURGE": "1"}, Purge.ALL),
    ],
)
def test_purge_says_how_much_goes(environ, purge):
    assert purge_of(environ) is purge


@pytest.mark.parametrize("value", ["yes", "volume", "cache", "11"])
def test_a_purge_that_is_not_known_removes_nothing(value):
    with pytest.raises(LabError, match="is not known") as refused:
        purge_of({"PURGE": value})
    assert "PURGE=volumes" in refused.value.mend
