"""What tests of reports share."""

import pytest

from analysis import report


@pytest.fixture
def no_figures(monkeypatch):
    """Reports without figures, which take most of their time: for tests of words and tables alone."""
    monkeypatch.setattr(report, "FIGURES", ())
