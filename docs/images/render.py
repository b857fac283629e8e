#!/usr/bin/env python3
"""Cut the pictures of the README out of a report: the network, and charts of both runs.

python docs/images/render.py runs/ID     (the first of `make scenario`; needs `make setup-test` and Chromium)
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
CHARTS_PX = 662  # actions, throughput and one-way delay of two runs side by side


def pictures(page: Page) -> None:
    """Write the pictures from an open report."""
    charts = page.locator("#charts").bounding_box()  # as long as nothing is scrolled
    assert charts is not None
    page.screenshot(
        path=HERE / "quickstart-kpis.png",
        full_page=True,
        clip={"x": charts["x"], "y": charts["y"], "width": charts["width"], "height": CHARTS_PX},
    )
    page.locator("svg.topology").screenshot(path=HERE / "quickstart-network.png")


def main() -> int:
    """Render the report of the run folder given as the only argument."""
    if len(sys.argv) != 2 or not (report := Path(sys.argv[1]).resolve() / "report.html").is_file():
        print("usage: python docs/images/render.py RUN_FOLDER (with a report.html)", file=sys.stderr)
        return 2
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.goto(report.as_uri())
        page.wait_for_selector("#plot-0 .main-svg")
        pictures(page)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
