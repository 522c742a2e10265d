"""The report in a browser: what a reader sees, drags and does not fetch, at the widths of a phone and of a desk."""

import shutil

import pytest
import small_results

from experiments.files import paths
from experiments.report import rendering

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is here: `apt-get install chromium`")
WIDTHS = {"phone": 390, "desk": 1280}
KEPT, PRUNED = "#0072B2", "#E6E6E6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The report of small results; a table is wider than any screen."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNORM_OUTPUT", str(root))
        manifest = small_results.write_results()
        table = paths.tables_folder("smoke") / "pruning_results.csv"
        wide = table.read_text("utf-8").replace("greedy_gnorm", "a_long_name_" * 20)
        (paths.tables_folder("smoke") / "wide.csv").write_text(wide, "utf-8")
        return rendering.write_report("smoke", "Small models", manifest, {}, ["show_pruning_result"]).parent


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=WIDTHS)
def page(request, browser):
    """A page; at the end nothing was fetched but files, and no script failed or complained."""
    page = browser.new_page(viewport={"width": WIDTHS[request.param], "height": 800})
    fetched, said = [], []
    page.on("request", lambda each: fetched.append(each.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    yield page
    page.close()
    assert fetched
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []
    assert said == []


def fits(page):
    """Whether the page as a whole needs no scrolling to the side."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def masks(page):
    """The numbers of blue and of grey heads in all masks, and the accuracies above them."""
    heads = [page.locator(f'#chart path[fill="{color}"]').count() for color in (KEPT, PRUNED)]
    return *heads, page.locator("#chart tspan", has_text="accuracy 0").all_text_contents()


def test_the_report_opens_with_its_answer(page, folder):
    page.goto((folder / "index.html").as_uri())
    assert fits(page)
    first = page.locator("h2").first.bounding_box()
    answer = page.get_by_text("Of 2 methods Greedy-Gnorm has")
    assert first["y"] < answer.bounding_box()["y"] < 500
    box = page.locator("section", has=page.locator("#wide")).locator(".wide")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")  # a wide table scrolls in its box
    page.get_by_role("navigation").get_by_role("link", name="Accuracy as heads go, every method").click()
    assert page.locator("#pruning_results").is_visible()
    page.locator("section img, figure img").first.scroll_into_view_if_needed()
    assert page.locator("figure img").first.evaluate("image => image.complete && image.naturalWidth > 0")
    page.get_by_role("link", name="Drag over the number of pruned heads").click()
    page.wait_for_url("**/explore.html")


def test_dragging_moves_masks_and_accuracies(page, folder):
    assert (folder / "explore.html").stat().st_size < 5e6
    page.goto((folder / "explore.html").as_uri())
    slider = page.get_by_role("slider", name="heads pruned")
    slider.wait_for()
    assert slider.input_value() == "3"
    assert masks(page) == (6, 6, ["accuracy 0.900 (at 2)", "accuracy 0.600 (at 2)"])
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.67 * box["width"], middle, steps=3)
    page.mouse.up()
    assert slider.input_value() == "4"
    assert masks(page) == (4, 8, ["accuracy 0.800", "accuracy 0.500"])
    slider.press("Home")
    assert masks(page) == (12, 0, ["accuracy 0.900", "accuracy 0.900"])
    page.get_by_role("combobox", name="Model").select_option("albert")
    page.wait_for_function("document.querySelector('#controls input').max === '4'")
    slider.press("End")
    assert masks(page) == (0, 8, ["accuracy 0.500", "accuracy 0.500"])
    assert page.locator("#chart svg").count() == 1
    assert fits(page)
    assert page.locator("#chart").evaluate("chart => chart.scrollWidth - chart.clientWidth") == 0
    assert page.get_by_text("All 4 trajectories are out of date.").is_visible()
