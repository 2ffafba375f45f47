"""The page to try a judge, in a real browser without a window."""

import pytest
from playwright.sync_api import sync_playwright

from edit_rl_jax.rewards.serving import server as S
from tests import browser as chromium

from .test_serving import TOKEN, Levels, picture, serving

pytestmark = chromium.needed


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        browser = chromium.launch(play)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url():
    with serving(S.create_app(Levels(), TOKEN)) as url:
        yield url


class Page:
    """The page of a server, opened in a window of `width` pixels; `faults` are what the browser complains of."""

    def __init__(self, browser, url, width):
        self.page, self.faults = browser.new_page(viewport={"width": width, "height": 800}), []
        self.page.set_default_timeout(20_000)
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))
        self.page.on("console", lambda m: self.faults.append(m.text) if m.type == "error" else None)
        self.requests = []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(url)

    def give(self, label, name, content):
        self.page.get_by_label(label, exact=False).first.set_input_files(
            {"name": name, "mimeType": "image/png", "buffer": content}
        )

    def status(self, *parts):
        for part in parts:
            self.page.locator("#status").get_by_text(part).wait_for()

    def figures(self):
        """{title: {row: text}} of the results."""
        self.page.locator("section.result").first.wait_for()
        read = "s => Object.fromEntries([...s.querySelectorAll('tr')].map(r => [...r.children].map(c => c.innerText)))"
        sections = self.page.locator("section.result").all()
        return {s.get_attribute("aria-label"): s.evaluate(read) for s in sections}

    def shown(self):
        return self.page.locator("#results").inner_text()


@pytest.fixture(params=[400, 1200])
def page(browser, url, request):
    opened = Page(browser, url, request.param)
    yield opened
    opened.page.close()


def test_one_edit_by_keyboard(page, url):
    """A bad file is named, a wrong token refused and asked for again; then scores, reasons and time are shown."""
    page.give("Source image", "before.png", picture(40))
    page.give("Edited image", "notes.txt", b"not an image")
    page.status("notes.txt is not an image")
    page.page.get_by_role("button", name="Score").click()
    page.status("edited image")
    page.give("Edited image", "after.png", picture(20))
    page.page.get_by_label("Instruction").focus()
    page.page.keyboard.type("make it darker")
    page.page.keyboard.press("Tab")
    page.page.keyboard.type("a wrong token")
    page.page.keyboard.press("Enter")
    page.status("refused this token")
    assert page.page.evaluate("document.activeElement.id") == "token"
    page.page.get_by_label("Token").fill(TOKEN)
    page.page.keyboard.press("Enter")
    rows = page.figures()["Edit"]
    assert rows == {
        "Prompt following": "20 ± 0 of 25",
        "Consistency": "25 ± 0 of 25",
        "Naturalness": "20 ± 0 of 25",
        "Artifacts": "25 ± 0 of 25",
        "Overall": "20 ± 0 of 25",
    }
    page.status("Judged in")
    assert "make it darker" in page.shown()
    assert not page.page.get_by_label("Token").is_visible()  # asked for once
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(r.startswith((url, "data:", "blob:")) for r in page.requests)
    assert [f for f in page.faults if "401" not in f] == []


def test_two_edits_side_by_side(page):
    """The tabs work by keyboard; the better edit is marked; an edit that cannot be judged says why."""
    page.page.get_by_role("tab", name="One edit").focus()
    page.page.keyboard.press("ArrowRight")
    assert page.page.get_by_role("tab", name="Two edits").get_attribute("aria-selected") == "true"
    page.give("Source image", "before.png", picture(40))
    page.give("First edited image", "a.png", picture(5))
    page.give("Second edited image", "b.png", picture(24))
    page.page.get_by_label("Instruction").fill("make it darker")
    page.page.get_by_label("Token").fill(TOKEN)
    page.page.get_by_role("button", name="Score").click()
    found = page.figures()
    assert found["First edit"]["Prompt following"].startswith("5 ")
    assert found["Second edit"]["Prompt following"].startswith("24 ")
    assert "Second edit: the better one" in page.shown() and "First edit: the better" not in page.shown()
    first, second = (s.bounding_box() for s in page.page.locator("section.result").all())
    assert (first["y"] == second["y"]) == (page.page.viewport_size["width"] > 600)
    assert page.faults == []


def test_the_page_wants_no_token_and_nothing_from_elsewhere(url):
    import urllib.request

    with urllib.request.urlopen(url + "/") as answer:
        policy, text = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "http://" not in text and "https://" not in text and TOKEN not in text
