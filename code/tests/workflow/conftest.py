"""A copy of the project for the tests of a file."""

import pytest

from workflow_tree import Tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"))
