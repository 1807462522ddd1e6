"""The explorer in a real JupyterLab, driven in headless Chromium as a reader would: steps, hovers,
changes B, compares; saves the notebook, and opens it again where no kernel runs.

Needs a Chromium on the PATH and `pip install -e '.[browser]'`; skipped without.
DYNASURGE_SCREENSHOTS=FOLDER keeps pictures of what was seen, in the light theme and in the dark
one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]
CELL = """import dynasurge
from dynasurge.plots.explorer import Explorer
Explorer(dynasurge.load_pair({draft!r}, {target!r}, device="cpu"), prompt="w5 w17 w8 w40", prompt_len=32, B=8, fill=True)"""


@pytest.fixture(params=["light", "dark"])
def lab(
    request: Any, tmp_path: Path, tiny_folders: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """(theme, address) of a JupyterLab that serves one notebook, explore.ipynb in tmp_path."""
    draft, target = tiny_folders["llama"]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(CELL.format(draft=draft, target=target))],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    nbformat.write(notebook, tmp_path / "explore.ipynb")
    themes = (
        tmp_path / "settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    )
    themes.parent.mkdir(parents=True)
    themes.write_text(json.dumps({"theme": f"JupyterLab {request.param.title()}"}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    options = ["--IdentityProvider.token=", "--LabApp.news_url=None", "--ServerApp.port_retries=0"]
    options += ["--ServerApp.disable_check_xsrf=True"]  # a test may end its kernel
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),  # also where it keeps what it trusts
    }
    server = subprocess.Popen(
        [*command, *options],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield request.param, address
    finally:
        server.terminate()
        server.wait(30)


def opened(page: Any, address: str, notebook: str = "explore.ipynb") -> None:
    """Open a notebook, with the cursor in its cell. A cell that is run before its kernel is there
    is lost, so wait for that."""
    page.goto(f"{address}/lab/tree/{notebook}?reset")
    page.click(".jp-Cell .cm-content", timeout=90_000)
    page.get_by_text("| Idle").wait_for(timeout=90_000)


def stands_in(page: Any) -> None:
    """The page takes the widget's place: nothing else is shown, and it steps by its keys."""
    frame = page.frame_locator(".dynasurge-page iframe")
    frame.locator(".stage svg").wait_for(timeout=60_000)
    sync_api.expect(page.get_by_text("Error displaying widget")).to_be_hidden()
    assert page.locator(".jp-OutputArea-child:visible").count() == 1
    frame.locator("main").click(position={"x": 5, "y": 5})
    page.keyboard.press("End")
    sync_api.expect(frame.locator(".strip .now")).to_have_count(1)
    now, _, last = frame.locator("output").inner_text().partition(" (0 to ")
    assert now == last.rstrip(")") != "0"
    page.keyboard.press("Home")
    frame.locator(".node").nth(1).hover()
    sync_api.expect(frame.locator(".tip")).to_contain_text("p ")


@pytest.mark.parametrize("lab", ["light"], indirect=True)
def test_a_saved_explorer_is_a_page_wherever_no_kernel_runs(
    lab: tuple[str, str], tmp_path: Path
) -> None:
    """Saved and opened again, with and without widget state; not trusted; exported, offline."""
    _, address = lab
    shots = Path(os.environ.get("DYNASURGE_SCREENSHOTS", tmp_path))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        opened(page, address)
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".dynasurge .stage svg", timeout=90_000)
        status = page.locator(".dynasurge .status")
        sync_api.expect(status).not_to_contain_text("decoding", timeout=60_000)
        page.wait_for_timeout(6000)  # a kernel that is there has answered
        sync_api.expect(page.locator(".dynasurge .stage svg")).to_be_visible()
        sync_api.expect(page.locator(".dynasurge-page")).to_be_hidden()
        for state in (False, True):
            if state:
                page.get_by_role("menuitem", name="Settings").click()
                page.get_by_text("Save Widget State Automatically").click()
                page.click(".jp-Cell .cm-content")
                page.wait_for_timeout(1000)
            page.keyboard.press("Control+s")
            page.wait_for_timeout(2000)
            shutil.copy(tmp_path / "explore.ipynb", tmp_path / f"state-{state}.ipynb")
        page.close()
        end_kernels(address)
        for state in (False, True):
            saved = tmp_path / f"state-{state}.ipynb"
            assert ("widgets" in json.loads(saved.read_text())["metadata"]) == state
            page = browser.new_page(viewport={"width": 1200, "height": 1000})
            opened(page, address, saved.name)
            stands_in(page)
            page.screenshot(path=shots / f"explorer-saved-{state}.png")
            page.close()
        strange = nbformat.read(tmp_path / "state-False.ipynb", as_version=4)
        strange.cells[0].source += "  # from elsewhere"  # so its signature is wrong
        nbformat.write(strange, tmp_path / "strange.ipynb")
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        opened(page, address, "strange.ipynb")
        sync_api.expect(page.locator(".jp-OutputArea img")).to_be_visible()
        assert page.locator(".jp-OutputArea").inner_text().strip() == ""
        page.screenshot(path=shots / "explorer-not-trusted.png")
        export = [sys.executable, "-m", "nbconvert", "--to", "html", "state-False.ipynb"]
        subprocess.run(export, cwd=tmp_path, check=True, capture_output=True)
        page = browser.new_page(offline=True, viewport={"width": 1200, "height": 1000})
        page.goto((tmp_path / "state-False.html").as_uri())
        stands_in(page)
        page.screenshot(path=shots / "explorer-exported.png")
        browser.close()


def end_kernels(address: str) -> None:
    with urllib.request.urlopen(f"{address}/api/kernels") as answer:
        kernels = json.load(answer)
    for kernel in kernels:
        place = f"{address}/api/kernels/{kernel['id']}"
        urllib.request.urlopen(urllib.request.Request(place, method="DELETE")).close()


def test_a_reader_explores_a_generation(lab: tuple[str, str], tmp_path: Path) -> None:
    theme, address = lab
    shots = Path(os.environ.get("DYNASURGE_SCREENSHOTS", tmp_path))
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        opened(page, address)
        # From here on what goes wrong is ours; a lab that has just started misses some resources of
        # its own.
        page.on(
            "console",
            lambda message: errors.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.keyboard.press("Control+Enter")
        status = page.locator(".dynasurge .status")

        def settled(text: str) -> None:
            """Every view says this, and has decoded to its end."""
            for number in range(status.count()):
                sync_api.expect(status.nth(number)).to_contain_text(text, timeout=60_000)
                sync_api.expect(status.nth(number)).not_to_contain_text("decoding", timeout=60_000)

        page.wait_for_selector(".dynasurge .stage svg", timeout=90_000)
        settled("step 0 ·")
        page.locator(".jp-OutputArea select").first.select_option(index=2)  # a bundled prompt
        page.wait_for_timeout(300)
        settled("step 0 · 8 drafted")
        page.click(".dynasurge .stage", position={"x": 300, "y": 300})
        for number in range(1, 6):
            page.keyboard.press("ArrowRight")
            settled(f"step {number} ·")
        page.keyboard.press("ArrowLeft")
        settled("step 4 ·")
        page.locator('button[title="next step"]').click()
        settled("step 5 ·")
        page.keyboard.press("ArrowLeft")  # the keys are the explorer's, not the notebook's
        settled("step 4 ·")
        sync_api.expect(status).to_contain_text("ms: draft")
        page.locator(".dynasurge .node").nth(1).hover()
        tip = page.locator(".dynasurge .tip")
        for fact in ("p ", "q ", "slot value", "node 1"):
            sync_api.expect(tip).to_contain_text(fact)
        page.screenshot(path=shots / f"explorer-{theme}-hover.png")
        panel = page.locator(".dynasurge .panel")
        sync_api.expect(panel).to_be_hidden()
        page.locator(".dynasurge .node").nth(1).click()
        page.mouse.move(2, 2)
        for fact in ("node 1", "target, p", "draft, q"):
            sync_api.expect(panel).to_contain_text(fact)
        sync_api.expect(panel.locator("table").nth(0).locator("tr")).to_have_count(5)
        sync_api.expect(panel.locator("table").nth(1).locator("tr.own")).to_have_count(1)
        page.screenshot(path=shots / f"explorer-{theme}-pinned.png")
        page.keyboard.press("Escape")
        sync_api.expect(panel).to_be_hidden()
        page.keyboard.press("Enter")
        sync_api.expect(panel).to_contain_text("the bonus token")
        page.keyboard.press("ArrowRight")
        sync_api.expect(panel).to_be_hidden()
        code = page.locator(".dynasurge .code")
        sync_api.expect(code).to_contain_text(
            "dynasurge.trace(pair, prompt, mode='dTree', T=0.6, P=1.0"
        )
        page.locator('.widget-dropdown:has(label:text-is("B")) select').first.select_option("128")
        settled("128 drafted")  # a text of its own, which may be shorter
        page.get_by_text("compare two settings").click()
        page.locator('.widget-dropdown:has(label:text-is("rule")) select').nth(1).select_option(
            "traversal"
        )
        sync_api.expect(status).to_have_count(2)
        sync_api.expect(status.nth(1)).to_contain_text("(traversal)")
        settled(" drafted, ")
        page.mouse.move(2, 2)
        page.screenshot(path=shots / f"explorer-{theme}-compare.png")
        for width in (1100, 900, 700):
            page.set_viewport_size({"width": width, "height": 1100})
            page.wait_for_timeout(500)
            page.screenshot(path=shots / f"explorer-{theme}-{width}.png")
            sideways = "e => e.scrollWidth - e.clientWidth"
            assert page.locator(".jp-OutputArea-output").first.evaluate(sideways) <= 0, width
            assert page.locator(".jp-OutputArea").first.evaluate(sideways) <= 0, width
        paper = page.eval_on_selector(
            ".dynasurge .frame", "e => getComputedStyle(e).backgroundColor"
        )
        browser.close()
    assert errors == []
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 17, 17)"}[theme]
