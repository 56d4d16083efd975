"""The plugin of pytest: a test that has an argument ``assert_holds`` gets that of lrdyn.testing.

pytest imports this file whenever it starts, so that it stands beside the package: lrdyn, and JAX
with it, is imported by a test that asks for the fixture, and by no other.
"""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def assert_holds() -> Callable[..., Any]:
    """:func:`lrdyn.testing.assert_holds`: verify a theorem, fail where it is FALSE or undecided."""
    from lrdyn.testing import assert_holds

    return assert_holds
