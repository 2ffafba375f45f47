"""An installed Chromium for tests of pages; none is downloaded."""

import shutil

import pytest

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needed = pytest.mark.skipif(not PATH, reason="there is no Chromium to try the page in")


def launch(play):
    """Starts it without a window, for `playwright.sync_api.sync_playwright`."""
    return play.chromium.launch(executable_path=PATH, args=["--no-sandbox"])
