"""The examples of docs/python.md give what stands there."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_examples_of_the_page_run():
    tests = doctest.testfile(str(PAGE), module_relative=False)
    assert tests.attempted > 10 and tests.failed == 0
