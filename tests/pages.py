"""A report page in a browser: what is drawn on it, and the numbers in its tables."""

import browser as ui


def check_drawn(page):
    """Every image is drawn at the size that the page gives it, nothing was fetched, and nothing is run."""
    script = "return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.width, i.alt])"

    def loaded():
        found = page.execute_script(script)
        return found if all(image[0] for image in found) else None

    images = ui.wait(page, loaded, "the images")
    for _, width, height, shown, alt in images:
        assert min(width, height, shown) > 100
        assert alt
    assert page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert page.execute_script("return document.scripts.length") == 0
    page_width = page.execute_script("return document.documentElement.scrollWidth")
    assert page_width <= page.execute_script("return innerWidth"), "the page is wider than the window"


def tiles(page, section=""):
    """{what: (number in full, as shown)} of the first numbers on a page."""
    found = {}
    for tile in page.find_elements("css selector", f"{section} .tiles > div"):
        number = tile.find_elements("css selector", "data")
        text = tile.find_element("css selector", ".value").text
        found[tile.find_element("tag name", "dt").text] = (
            float(number[0].get_attribute("value")) if number else None,
            text,
        )
    return found


def table(page, heading):
    """A table's rows, {heading: (text, number, deviation)}."""
    part = page.find_element("css selector", f"table[aria-labelledby={heading}]")
    names = [th.text.replace("\n", " ") for th in part.find_elements("css selector", "thead th")]
    rows = []
    for row in part.find_elements("css selector", "tbody tr"):
        cells = []
        for cell in row.find_elements("css selector", "th, td"):
            number = cell.find_elements("css selector", "data")
            values = [number[0].get_attribute(name) if number else None for name in ("value", "data-deviation")]
            cells.append((cell.text, *(None if value is None else float(value) for value in values)))
        rows.append(dict(zip(names, cells, strict=True)))
    return rows
