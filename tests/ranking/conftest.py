import pytest

from tests.ranking.world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A Feast repo that no test changes."""
    return make_world(tmp_path_factory.mktemp("world"))
