"""The run that tests of exports share."""

from __future__ import annotations

import pytest
from helpers_export import make_run

from adarec_fast.training import Run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"))
