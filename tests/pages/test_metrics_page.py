"""docs/metrics.md is what the metrics say."""

from __future__ import annotations

import pytest
from pages.metrics_page import PAGE, page

pytestmark = pytest.mark.unit


def test_the_page_is_what_the_metrics_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/pages/metrics_page.py"
