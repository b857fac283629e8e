"""The report in a real browser without a network, and the table in the terminal."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from twin.report.charts import _with_gaps
from twin.report.page import write_report
from twin.report.text import summary_table
from twin.report.view import read_run
from twin.store import RunStore, StoreError
from twin.types import Kpi

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM} on this host (package chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Page]]:
    contexts = []

    def show(path: Path, width: int = 1280) -> Page:
        context = browser.new_context(offline=True, viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: problems.append(request.url) if request.url[:5] not in ("file:", "data:") else None,
        )
        page.goto(path.as_uri())
        page.wait_for_selector(".plot .main-svg")
        assert problems == []
        return page

    yield show
    for context in contexts:
        context.close()


PANELS = [
    "Actions and events",
    "Throughput, Mbit/s",
    "One-way delay, 95th percentile, ms",
    "Round trip of probe packets, 95th percentile, ms",
    "Packet loss, %",
    "QoS: throughput per active UE, Mbit/s",
    "QoS degradation β since the start",
    "Active UEs",
    "gNB CPU of each slice, millicores",
    "Transport rate limit, Mbit/s",
    "PRBs: used of the slice's, and its share, %",
    "Response time, 95th percentile, ms",
]


def test_missing_samples_are_a_gap_and_not_a_line() -> None:
    times = np.array([1.0, 2.0, 5.0, 6.0])
    assert _with_gaps(times, times * 10) == ([1.0, 2.0, 2.0, 5.0, 6.0], [10.0, 20.0, None, 50.0, 60.0])


def test_a_report_opens_offline_and_shows_everything(make_run: Callable[..., Path], show: Callable[..., Page]) -> None:
    path = write_report(make_run())
    assert path.name == "report.html"
    page = show(path)
    assert page.locator("h1").inner_text() == "small"
    assert page.locator(".badge").inner_text() == "VALID"
    assert [
        text.partition("   ")[0].strip() for text in page.locator(".plot .annotation-text").all_text_contents()
    ] == PANELS
    assert page.locator("svg.topology .node").count() == 13
    assert page.locator("svg.topology .link").count() == 13
    assert "12 Mbit/s" in page.locator("svg.topology").text_content()
    # One axis for curves and actions: the same range in every panel.
    axes = page.evaluate(
        "Object.entries(document.querySelector('.plot')._fullLayout)"
        ".filter(e => /^xaxis/.test(e[0])).map(e => e[1].range)"
    )
    assert axes == [[0, 60]] * len(PANELS)
    # And each says the time below it.
    for number in range(1, len(PANELS) + 1):
        ticks = page.locator(f".plot .x{number if number > 1 else ''}tick text").all_text_contents()
        assert ticks[0] == "0 s" and ticks[-1] == "60 s"
    marks = page.evaluate(
        "document.querySelector('.plot').data.filter(t => t.mode == 'markers' && t.name).map(t => [t.name, t.x.length])"
    )
    found = dict(marks)
    assert found["event"] == 3 and found["refused"] == 1 and found["applied"] > 4
    rows = page.locator("#sla tr").all_inner_texts()
    assert any("more than 1.2, later 1 Mbit/s per active UE" in row for row in rows)
    assert any("95 % of the packets within 30 ms one way" in row and "kept" in row for row in rows)
    assert "bandwidth_mbps is not modelled here" in page.locator("#actions").inner_text()
    assert "modelled" in page.locator("header").inner_text()
    assert "measured on packets" in page.locator("footer").inner_text()


@pytest.mark.parametrize("width", [1280, 375])
def test_nothing_is_wider_than_the_screen(make_run: Callable[..., Path], show: Callable[..., Page], width: int) -> None:
    page = show(write_report(make_run(measured=True)), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('.plot .main-svg').getBoundingClientRect().width") <= width


def test_an_emulation_run_shows_probes_host_load_and_its_verdict(
    make_run: Callable[..., Path], show: Callable[..., Page]
) -> None:
    page = show(write_report(make_run(measured=True)))
    assert page.locator(".badge").inner_text() == "INVALID"
    assert "link s1-s3 loss_ratio" in page.locator(".banner").first.inner_text()
    assert "2 of 3 declared constraints" in page.locator("#probes").inner_text()
    titles = page.locator(".plot .annotation-text").all_text_contents()
    assert any(title.startswith("Host load, %") and title.endswith("CPU   memory") for title in titles)
    assert "lateness of an interval" in page.locator("#host").inner_text()


def test_two_runs_side_by_side_show_that_slicing_matters(
    make_run: Callable[..., Path], show: Callable[..., Page]
) -> None:
    on, off = make_run(), make_run(slicing=False)
    path = write_report(on, off)
    assert path == on / f"report-against-{off.name}.html"
    page = show(path)
    assert page.locator("h1").all_inner_texts() == ["small: slicing on", "small: slicing off"]
    text = page.locator("#contrast").inner_text()
    assert "One-way downlink delay under congestion" in text
    assert "The slices are apart" in text and "The slices are together" in text
    first, second = (page.locator(".plot").nth(n) for n in range(2))
    assert first.bounding_box()["y"] == second.bounding_box()["y"]
    ranges = [page.evaluate(f"document.querySelectorAll('.plot')[{n}]._fullLayout.yaxis3.range") for n in range(2)]
    assert ranges[0] == ranges[1]


def test_the_page_holds_no_address_to_load_from(make_run: Callable[..., Path]) -> None:
    text = write_report(make_run()).read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=[\"'](?!data:)", text.split("<script>")[0])
    assert "&lt;/script&gt;" in text  # the description cannot break out of its place
    assert len(text) < 8e6


def test_labels_of_links_lie_on_plates_of_their_own(make_run: Callable[..., Path], show: Callable[..., Page]) -> None:
    page = show(write_report(make_run()))
    edges = "a => a.map(e => {const b = e.getBBox(); return [b.x, b.y, b.x + b.width, b.y + b.height]})"
    boxes, nodes, labels = (
        page.locator(f"svg.topology .{kind}").evaluate_all(edges) for kind in ("plate", "node", "label")
    )
    assert len(boxes) >= 3

    def apart(one: list[float], other: list[float]) -> bool:
        return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]

    for n, box in enumerate(boxes):
        assert all(apart(box, other) for other in [*boxes[:n], *nodes])
    for label in labels:
        assert any(b[0] <= label[0] and label[2] <= b[2] and b[1] <= label[1] and label[3] <= b[3] for b in boxes)


def test_a_run_that_never_started_has_a_report(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "x")
    store.update_manifest(status="RUNNING", fidelity="emulation", seed=0)
    store.finish("FAILED", "image nosuch: not found")
    text = write_report(store.path).read_text(encoding="utf-8")
    assert "image nosuch: not found" in text


def test_a_report_that_cannot_be_written_leaves_no_part_of_it(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    before = sorted(run.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_report(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(run.iterdir()) == before
    assert write_report(run, to=tmp_path / "r.html").stat().st_size > 1_000_000


def test_the_terminal_table_has_a_row_per_slice(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    with console.file:
        console.print(summary_table(run))
    text = console.export_text()
    assert "modelled, 60 s" in text and "VALID" in text
    row = next(line for line in text.splitlines() if "urllc" in line)
    assert "kept" in row and re.search(r"\d\.\d\d", row)
    with pytest.raises(StoreError, match=r"no kpi\.sqlite"):
        summary_table(tmp_path)


def test_the_length_of_a_run_is_that_of_its_kpis(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "x")
    store.update_manifest(status="RUNNING", fidelity="flow")
    store.add_kpis(Kpi(time_s, "run", "clock_lag_s", 0.0) for time_s in (1.0, 2.0, 3.0))
    store.commit()
    assert summary_table(store.path).caption == "flow: modelled, 3 s"  # also of a run that never ended
    store.finish("FAILED", "no space left", simulated_s=9.0)
    assert summary_table(store.path).caption == "flow: modelled, 3 s"


def test_promises_follow_the_sla_in_force(make_run: Callable[..., Path]) -> None:
    view = read_run(make_run())
    assert [(promise.slice, promise.kept) for promise in view.promises if promise.slice == "urllc"] == [("urllc", True)]
    embb = next(promise for promise in view.promises if promise.slice == "embb")
    assert embb.kept is (view.last("slice:embb", "qos_degradation_ratio") <= 0.2)
    assert view.provenance("throughput_dl_bps") == "modelled" and view.provenance("qos_bps") == "derived"


def test_an_interval_in_which_nothing_arrived_breaks_a_latency_promise(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "x")
    slice_ = {"name": "a", "sst": 1, "sd": "000001", "sla": {"latency_bound_s": 0.03}}
    store.update_manifest(status="RUNNING", scenario={"topology": {"nodes": [], "links": [], "slices": [slice_]}})
    for time_s, delay_s in ((1.0, 0.01), (2.0, None), (3.0, 0.03)):
        store.add_kpis([Kpi(time_s, "slice:a", "offered_dl_bps", 1e6)])
        store.add_kpis([Kpi(time_s, "slice:a", "delay_dl_p95_s", delay_s)] if delay_s else [])
    store.finish("VALID")
    (promise,) = read_run(store.path).promises
    assert promise.kept is False
    assert promise.found == "so in 2 of 3 intervals; nothing arrived in 1; worst 30.0 ms"
