"""A copy of the project for the tests of a file."""

import pytest

from tree import Tree, copied


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Tree:
    return copied(tmp_path_factory.mktemp("tree"))
