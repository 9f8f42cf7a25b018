"""Pictures of this folder's own store, in Chromium: the Dagster UI, the report, the inspection and search pages.

    embed-pipeline run && python docs/screenshots.py

Starts the UI and the endpoint on free ports, takes each page once it is loaded, and writes ``docs/images/``. Needs a
store with a deployed release, and Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from embed_pipeline.settings import load_settings

IMAGES = Path(__file__).parent / "images"
_START_SECONDS = 180
_LOAD_MILLISECONDS = 30_000


@dataclass(frozen=True)
class Page:
    """A page: name, address (``{ui}``, ``{endpoint}``, ``{inspect}``, ``{report}``: what is served), size in pixels."""

    name: str
    address: str
    width: int = 1500
    height: int = 1000


PAGES = (
    Page("graph", "{ui}/asset-groups", height=700),
    Page("dataset", "{ui}/assets/qa_dataset?view=overview", height=1900),
    Page("checks", "{ui}/assets/qa_dataset?view=checks"),
    Page("evaluation", "{ui}/assets/retrieval_evaluation?view=overview", height=1700),
    Page("report", "{report}", width=1200, height=1500),
    Page("inspect", "{inspect}/?state=rejected&sort=overall&order=descending", width=1300, height=900),
    Page("search", "{endpoint}/?q=what happens when the iterator of a for loop is exhausted", width=1300, height=900),
)


def main() -> None:
    """Take every page, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(page.name for page in PAGES)}")
    parser.add_argument("--chromium", help="the browser's program")
    arguments = parser.parse_args()
    browser = arguments.chromium or next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        parser.error("no Chromium on the path; name one with --chromium")
    unknown = sorted(set(arguments.names) - {page.name for page in PAGES})
    if unknown:
        parser.error(f"no page {', '.join(unknown)}")
    IMAGES.mkdir(exist_ok=True)
    report = (load_settings().paths.store / "reports" / "report.html").resolve()
    if not report.exists():
        parser.error(f"{report} is not there: run embed-pipeline run first")
    with (
        _served("ui", "/server_info", "{") as ui,
        _served("serve", "/search?q=words", '"state":"ready"') as endpoint,
        _served("inspect", "/", "<h1>") as inspect,
    ):
        addresses = {"ui": ui, "endpoint": endpoint, "inspect": inspect, "report": report.as_uri()}
        for page in PAGES:
            if not arguments.names or page.name in arguments.names:
                _take(browser, page, page.address.format(**addresses).replace(" ", "%20"))


@contextmanager
def _served(command: str, path: str, said: str) -> Iterator[str]:
    """The address of a command of ours that serves, once ``path`` answers and says so."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = [sys.executable, "-m", "embed_pipeline.cli", command, "--port", str(port)]
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL)  # noqa: S603 - ourselves
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(process, address + path, said)
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, said: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"what should serve {address} ended with {process.returncode}")
        try:
            with urllib.request.urlopen(address) as answer:  # noqa: S310 - our own address
                if said in answer.read().decode():
                    return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.5)
    raise SystemExit(f"{address} did not answer {said} within {_START_SECONDS} s")


def _take(browser: str, page: Page, address: str) -> None:
    target = IMAGES / f"{page.name}.png"
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    size = f"--window-size={page.width},{page.height}"
    wait = f"--virtual-time-budget={_LOAD_MILLISECONDS}"
    command = [browser, *options, size, wait, f"--screenshot={target}", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the user's browser
    if done.returncode or not target.exists():
        raise SystemExit(f"{browser} took no picture of {address}: {done.stderr[-500:]}")
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
