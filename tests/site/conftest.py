"""One browser for all tests of the site, and the built pages it looks at."""

import functools
import os
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for folder in ("book/_tools", "book/_ext", "tests/site"):
    sys.path.insert(0, str(ROOT / folder))

from browser import MISSING, chromium  # noqa: E402
from built_site import SITE  # noqa: E402

ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="module")
def site() -> Path:
    if not (SITE / "book" / "index.html").exists():
        pytest.fail(
            "the site is not built: run `make book` (or `make test`, which builds it first)"
        )
    return SITE


@pytest.fixture(scope="module")
def browser(site):
    path = chromium()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield instance
        instance.close()


@pytest.fixture(scope="module")
def light(browser):
    context = browser.new_context(
        color_scheme="light", reduced_motion="reduce", viewport={"width": 1280, "height": 900}
    )
    yield context
    context.close()


@pytest.fixture
def tab(light):
    page = light.new_page()
    yield page
    page.close()


@pytest.fixture(scope="module")
def served(site):
    """The address of the site on this machine's own loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
