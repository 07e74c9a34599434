"""The site in a real browser, opened as files: charts are drawn, cells open, runs are compared, phones can read it.

It needs chromium and chromedriver (Debian: chromium, chromium-driver); selenium is of the extra dev.
"""

import shutil
from pathlib import Path

import pytest
from test_site import EVIL, make_lab

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"),
]
PAGES = (
    *("index.html", "tables.html", "tables/sn_table2-digits.html", "runs.html", "runs/aaaaaaaa.html"),
    *("runs/bbbbbbbb.html", "compare.html#aaaaaaaa,bbbbbbbb", "deviations.html"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("lab")
    make_lab(place)
    return place / "site"


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


def open_page(browser, site: Path, page: str, width: int = 1280) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("about:blank")  # a change of the anchor alone loads nothing
    browser.get(f"{site.as_uri()}/{page}")
    if "compare" in page:
        wait(browser, "return document.querySelector('#compared').dataset.shown")
    wait(browser, "return [...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))")


def wait(browser, script: str):
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(script))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", PAGES)
def test_pages_open_as_files_at_any_width(browser, site, page, width):
    """No error in the console, nothing that a stranger wrote was run, and what is wide scrolls inside the page."""
    open_page(browser, site, page, width)
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    assert browser.title != "taken" and not browser.find_elements("css selector", "img[onerror]")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_cell_opens_its_runs(browser, site):
    open_page(browser, site, "tables/sn_table2-digits.html")
    cell = browser.find_element("css selector", ".cells details")
    link = cell.find_element("css selector", "a")
    assert not link.is_displayed()
    cell.find_element("css selector", "summary").click()
    assert link.text.startswith("seed 0: 98.0")
    link.click()
    assert wait(browser, "return document.querySelector('h1').textContent").split()[0] == "norm=bn"


def test_curves_tell_their_values_and_axes_change(browser, site):
    from selenium.webdriver.common.action_chains import ActionChains

    open_page(browser, site, "runs/aaaaaaaa.html")
    plot = "document.querySelector('[data-chart=\"curve-loss\"] .plot')"
    box = browser.execute_script(f"const p = {plot}; p.scrollIntoView({{block: 'center'}}); return p")
    ActionChains(browser).move_to_element(box).perform()
    assert wait(browser, f"return {plot}.querySelector('.hoverlayer').textContent")
    browser.execute_script(f"Plotly.relayout({plot}, {{'xaxis.range': [1, 2]}})")
    wait(browser, f"return {plot}._fullLayout.xaxis.range[0] === 1")
    buttons = box.find_elements("css selector", ".updatemenu-button")
    next(button for button in buttons if button.text == "log").click()
    wait(browser, f"return {plot}._fullLayout.yaxis.type === 'log'")


def test_names_of_layers_are_text_where_the_pointer_is(browser, site):
    open_page(browser, site, "runs/bbbbbbbb.html")
    plot = "document.querySelector('[data-chart=\"ratio-map\"] .plot')"
    browser.execute_script(f"Plotly.Fx.hover({plot}, {{xval: 0, yval: 1}})")  # the first layer at the first moment
    assert EVIL in wait(browser, f"return {plot}.querySelector('.hoverlayer').textContent")
    assert not browser.find_elements("css selector", ".hoverlayer a, .hoverlayer image, .hoverlayer script")


def test_two_runs_are_ticked_and_compared(browser, site):
    open_page(browser, site, "runs.html")
    button = browser.find_element("id", "compare")
    assert not button.is_enabled()
    for key in ("aaaaaaaa", "bbbbbbbb"):
        browser.find_element("css selector", f"[data-run={key}]").click()
    button.click()
    wait(browser, "return document.querySelector('#compared')?.dataset.shown === 'aaaaaaaa,bbbbbbbb'")
    assert EVIL in browser.find_element("id", "compared").text  # of the settings that differ
    lines = "return document.querySelector('#compared .plot').data.map((trace) => [trace.name, trace.line.dash])"
    assert ["training, A", "solid"] in browser.execute_script(lines)
    assert ["training, B", "dash"] in browser.execute_script(lines)


def test_an_address_with_another_key_loads_nothing_else(browser, site):
    open_page(browser, site, "compare.html#../../secret,aaaaaaaa")
    sources = browser.execute_script("return [...document.scripts].map((script) => script.src)")
    assert not [source for source in sources if "secret" in source]


def test_words_find_claims(browser, site):
    open_page(browser, site, "index.html")
    box = browser.find_element("css selector", "[data-finds]")
    box.send_keys("sn_iclr bn_drop")
    box.clear()
    box.send_keys("bn_drop")
    shown = [c for c in browser.find_elements("css selector", ".claim") if c.is_displayed()]
    assert 0 < len(shown) < 5 and all("bn_drop" in claim.text for claim in shown)
    assert "of" in browser.find_element("css selector", ".found").text
