"""Headless Chromium on NNI's web UI: what a user reads and clicks there. Names in the page are those of NNI 3.0."""

import itertools
import os
import shutil
from contextlib import contextmanager

import psutil
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

SIZE = 1400, 900  # of the page, in pixels
ROWS = "[data-automationid=DetailsRow]"
MODAL = ".compare-modal"  # of one trial's intermediate results
LABEL = ".//*[normalize-space()='{}']"


# -- starting and stopping -----------------------------------------------------------------------------------------


def programs():
    """Paths of Chromium and its driver. Without them a test is skipped; it fails in CI, where .ci/run installs them."""
    found = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in found:
        reason = "chromium and chromedriver are needed; on Debian run: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return found


def family(pid):
    """A process and all that came from it; nothing where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(processes, seconds=10):
    """Wait for processes to end and kill those that do not; returns the latter."""
    _, left = psutil.wait_procs(processes, timeout=seconds)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=seconds)
    return left


@contextmanager
def chromium(profile):
    """A browser with its files in the folder ``profile`` that reaches nothing but 127.0.0.1; ended with the block."""
    binary, driver = programs()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "headless=new",
        f"user-data-dir={profile}",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "disable-background-networking",
        "disable-breakpad",
        "disable-component-update",
        "disable-dev-shm-usage",  # /dev/shm is small in containers
        "disable-gpu",
        "no-first-run",
        *(["no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(f"--{argument}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        width, height = SIZE
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield browser
    finally:
        processes = family(browser.service.process.pid)
        try:
            browser.quit()
        finally:
            end(processes)


# -- anywhere ------------------------------------------------------------------------------------------------------


def wait(browser, found, what):
    """What ``found()`` returns once that is true; ``what`` is for the error after 30 seconds."""
    return WebDriverWait(browser, 30, poll_frequency=0.1).until(lambda _: found(), f"{what} did not appear")


def elements(browser, selector, what=None):
    return wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, selector), what or selector)


def errors(browser):
    """What the console calls severe since the last look, but for the fonts that NNI fetches from Microsoft."""
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in severe if ".cdn.office.net/" not in message]


def rest(browser):
    """Wait until nothing moves on the page; its picture as PNG."""
    last = [b""]

    def still():
        last.append(browser.get_screenshot_as_png())
        return last.pop(0) == last[0]

    wait(browser, still, "a page at rest")
    return last[0]


def picture(browser, path):
    """A screenshot. Icons are left blank: their font is one that cannot be fetched here, and boxes would show."""
    hide = "const s = document.createElement('style'); s.innerHTML = 'i[data-icon-name] {visibility: hidden}';"
    style = browser.execute_script(f"{hide} document.head.append(s); return s")
    path.write_bytes(rest(browser))
    browser.execute_script("arguments[0].remove()", style)


def cells(browser, table):
    """A table's rows as dicts from NNI's names of the columns to texts; a second line is a button's icon."""
    rows = elements(browser, f"{table} {ROWS}")
    columns = [row.find_elements(By.CSS_SELECTOR, "[role=gridcell]") for row in rows]
    return [{c.get_attribute("data-automation-key"): c.text.partition("\n")[0] for c in row} for row in columns]


def options(browser, picker):
    """Open a drop-down list; its items by their texts."""
    picker.click()

    def open_list():
        items = browser.find_elements(By.CSS_SELECTOR, ".ms-Dropdown-callout [role=option]")
        texts = [item.text for item in items]  # empty while the list unfolds
        return all(texts) and dict(zip(texts, items, strict=True))

    return wait(browser, open_list, "the open list")


# -- overview ------------------------------------------------------------------------------------------------------


def counts(browser):
    """The overview's numbers of trials: {"Succeeded": 4, "Running": 0, ...}."""
    numbers = elements(browser, ".trialCount .count p")
    return {p.find_element(By.XPATH, "preceding-sibling::*[1]").text: int(p.text) for p in numbers}


# -- trials detail -------------------------------------------------------------------------------------------------


def row(browser, trial):
    """A trial's row of the table."""
    elements(browser, f"#tableList {ROWS}", "the table of trials")
    return browser.find_element(By.XPATH, f"//*[@id='tableList']//*[@role='row'][{LABEL.format(trial)}]")


def expand(browser, trial):
    """Open a trial's row; the element below it."""
    arrow = row(browser, trial).find_element(By.CSS_SELECTOR, "[data-icon-name=ChevronRight]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", arrow)
    arrow.click()
    (opened,) = elements(browser, "#tableList .openRow")
    return opened


def tab(browser, name):
    """Choose one of the charts above the table."""
    elements(browser, f"[role=tab][name='{name}']")[0].click()


def intermediate(browser, trial):
    """Open the dialog with a trial's intermediate results; the dialog."""
    row(browser, trial).find_element(By.CSS_SELECTOR, "button[title=Intermediate]").click()
    elements(browser, f"{MODAL} canvas")
    rest(browser)
    return browser.find_element(By.CSS_SELECTOR, MODAL)


def keys(browser):
    """Open the dialog's list of what can be drawn; its items by their texts."""
    return options(browser, browser.find_element(By.CSS_SELECTOR, f"{MODAL} .ms-Dropdown"))


def choose(browser, item):
    """Click on an item of a list and wait for what that draws."""
    item.click()
    rest(browser)


def curve(browser):
    """The values that the dialog tells of its curve's points, one after the other under the mouse; None for a gap."""
    canvas = browser.find_element(By.CSS_SELECTOR, f"{MODAL} canvas")
    place = "chart.getOption().series[0].data.map((value, i) => chart.convertToPixel({seriesIndex: 0}, [i, value]))"
    return [None if y is None else _tooltip(browser, canvas, x, y) for x, y in _of_chart(browser, MODAL, place)]


def curves(browser):
    """What the chart of all intermediate results draws: {trial: values}."""
    elements(browser, ".intermediate-graph canvas")
    wait(browser, lambda: drawn(browser, ".intermediate-graph canvas") > 1000, "the chart of all trials")
    series = "chart.getOption().series.map(line => [line.name, line.data])"
    return dict(_of_chart(browser, ".intermediate-graph", series))


def _of_chart(browser, place, expression):
    """A JavaScript expression of ``chart``, the object that draws there; React keeps it, the page does not."""
    return browser.execute_script(
        f"""
        const element = document.querySelector('{place} .echarts-for-react');
        let node = element[Object.keys(element).find(key => key.startsWith('__reactFiber'))];
        while (!node.stateNode?.getEchartsInstance) node = node.return;
        const chart = node.stateNode.getEchartsInstance();
        return {expression};
        """
    )


def _tooltip(browser, canvas, x, y):
    """The number in the box that comes up with the mouse on a point."""

    def shown():
        boxes = browser.find_elements(By.CSS_SELECTOR, f"{MODAL} .tooldetailAccuracy")
        return "".join(box.text for box in boxes)  # nothing where they are hidden

    def move(x, y):
        chain = ActionChains(browser, duration=20)
        middle = canvas.size["width"] / 2, canvas.size["height"] / 2
        chain.move_to_element_with_offset(canvas, round(x - middle[0]), round(y - middle[1])).perform()

    move(2, 2)  # away from the last box, which may lie over the next point
    wait(browser, lambda: not shown(), "the chart without a tooltip")
    steps = itertools.cycle((0, 1))
    text = wait(browser, lambda: move(x + next(steps), y) or shown(), f"a tooltip at {x:.0f}, {y:.0f}")
    return float(text.rpartition("Intermediate metric: ")[2])


def axes(browser):
    """The hyper-parameter chart's axes, from left to right."""
    return [label.text for label in elements(browser, ".parcoords .dimension .label")]


def drawn(browser, canvas):
    """How many pixels of a canvas are not transparent."""
    script = """
        const canvas = document.querySelector(arguments[0]);
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return data.filter((value, index) => index % 4 == 3 && value > 0).length;
        """
    return browser.execute_script(script, canvas)


def tensorboard(browser, trials):
    """Tick trials and press TensorBoard; the text of the dialog that follows."""
    for trial in trials:
        row(browser, trial).find_element(By.CSS_SELECTOR, ".ms-Checkbox").click()
    browser.find_element(By.XPATH, f"//*[@id='tableList']//button[{LABEL.format('TensorBoard')}]").click()
    return elements(browser, ".ms-Dialog-main")[0].text
