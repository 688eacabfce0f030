import pytest

from spoor.base.errors import UsageError
from spoor.base.release_names import check_release_name


@pytest.mark.parametrize("name", ["a", "base-3", "z" * 41, "m2-2026"])
def test_good_names(name: str) -> None:
    assert check_release_name(name) == name


@pytest.mark.parametrize("name", ["", "Base", "3-base", "-a", "a_b", "a.b", "a/b", "../a", "z" * 42, "a\n", "é"])
def test_bad_names_are_usage_errors(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a release"):
        check_release_name(name)
