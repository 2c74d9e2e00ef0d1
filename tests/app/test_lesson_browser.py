"""The lesson's line in a real Chromium: dragged, moved by the keys, kept through a reload."""

from __future__ import annotations

import re

import pytest
from chromium import PATIENCE, settled
from playwright.sync_api import Browser, Page, expect

from app.lesson import STEPS
from app.lesson.step import Step

pytestmark = pytest.mark.browser


def test_a_weight_is_dragged_and_the_prediction_kept(address: str, browser_page: Page) -> None:
    page = browser_page
    page.goto(f"{address}/learn")
    handle = page.get_by_role("slider", name="Where the weight gets another code")
    expect(handle).to_be_visible()
    keep = page.get_by_role("button", name="Keep my prediction")
    expect(keep).to_be_disabled()
    start = float(handle.get_attribute("aria-valuenow") or "nan")

    # With the keys.
    handle.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    expect(handle).to_have_attribute("aria-valuenow", f"{start + 0.02:.3f}")
    expect(page.get_by_text(f"moved it by {0.02:+.3f}")).to_be_visible()

    # With a mouse.
    settled(page)
    box = handle.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=5)
    page.mouse.up()
    expect(page.get_by_text(f"moved it by {0.02:+.3f}")).to_have_count(0)
    assert float(handle.get_attribute("aria-valuenow") or "nan") > start + 0.05
    settled(page)

    keep.click()
    expect(page.get_by_text("You said")).to_be_visible()
    fixed = page.get_by_role("slider", name="Where you put it")
    expect(fixed).to_have_attribute("aria-disabled", "true")
    page.wait_for_url(re.compile("my-line="))
    page.reload()
    expect(page.get_by_text("You said")).to_be_visible()
    settled(page)
    # Paper is black on white, in the dark theme, too.
    page.emulate_media(color_scheme="dark")
    for view, place in (("My+sheet", ".sheet td"), ("Lesson", "h2")):
        page.goto(re.sub("view=[^&]*", f"view={view}", page.url))
        settled(page)
        words = page.locator(place).first
        expect(words).to_be_visible()
        expect(page.locator(".stApp")).to_have_css("color-scheme", "dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        expect(words).to_have_css("color", "rgb(17, 17, 17)")
        expect(page.locator(":root")).to_have_css("background-color", "rgb(255, 255, 255)")
        for behind in ("body", ".stApp", "[data-testid=stMain]"):
            expect(page.locator(behind)).to_have_css("background-color", "rgba(0, 0, 0, 0)")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        page.emulate_media(media="screen")
        expect(words).not_to_have_css("color", "rgb(17, 17, 17)")
    page.emulate_media(color_scheme="light")
    settled(page)
    page.set_viewport_size({"width": 1280, "height": 400})
    page.get_by_role("button", name="Next").click()  # at the foot, to which one has scrolled
    expect(page.get_by_role("heading", name=STEPS[1].question)).to_be_in_viewport()
    settled(page)


def test_a_projector_is_large_from_the_first_moment(address: str, browser_page: Page) -> None:
    page = browser_page
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto(f"{address}/learn?projector=on", wait_until="domcontentloaded")
    # Before a script of Streamlit's has run: nothing moves when it does.
    expect(page.locator(":root")).to_have_css("font-size", "24px", timeout=1)
    expect(page.get_by_role("heading", name=STEPS[0].question)).to_be_in_viewport()
    keep = page.get_by_role("button", name="Keep my prediction")
    expect(keep).to_be_in_viewport(ratio=1)  # one screen a step
    expect(page.get_by_test_id("stSidebar")).to_be_hidden()
    settled(page)
    page.get_by_test_id("stCheckbox").filter(has_text="Projector").click()
    expect(page.locator(":root")).not_to_have_css("font-size", "24px")
    expect(page.get_by_test_id("stSidebar")).to_be_visible()
    settled(page)


def test_no_other_page_is_a_projectors(address: str, browser_page: Page) -> None:
    page = browser_page
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto(f"{address}/glossary?projector=on")
    expect(page.get_by_text("which another page reads")).to_be_visible()
    expect(page.get_by_test_id("stSidebar")).to_be_visible()
    expect(page.locator(":root")).not_to_have_css("font-size", "24px")
    settled(page)


def test_what_a_teacher_reads_stays_open_while_answers_come(
    address: str, browser: Browser, browser_page: Page
) -> None:
    teacher = browser_page

    def answered() -> None:
        student = browser.new_page()
        student.goto(f"{address}/learn?step=3")
        student.get_by_role("slider").press("ArrowRight")
        student.get_by_role("button", name="Keep my prediction").click()
        expect(student.get_by_text("You said")).to_be_visible()
        student.close()

    answered()
    teacher.goto(f"{address}/learn?view=Teacher")
    said = teacher.get_by_test_id("stExpander").filter(has_text=STEPS[2].title)
    label = said.locator("summary").inner_text()
    said.locator("summary").click()
    expect(said.locator("details")).to_have_attribute("open", "")
    answered()
    expect(said.locator("summary")).not_to_have_text(label)
    expect(said.get_by_text(STEPS[2].counted)).to_be_visible()
    settled(teacher)


def test_a_student_is_one_after_a_reload_and_is_led_to_the_answer_by_the_keyboard(
    address: str, browser: Browser
) -> None:
    def student() -> Page:
        page = browser.new_context().new_page()
        page.goto(f"{address}/learn?step=4")
        return page

    def answer(page: Page) -> None:
        keep = page.get_by_role("button", name="Keep my prediction")
        expect(keep).to_be_disabled()  # nobody has put the handle where it stands
        page.get_by_role("slider").press("ArrowRight")
        expect(keep).to_be_enabled()
        keep.focus()
        page.keyboard.press("Enter")
        expect(page.locator(".st-key-lesson-said")).to_be_focused()
        settled(page)

    one, other = student(), student()
    answer(one)
    answer(other)
    counted = other.get_by_text("What the class said (").inner_text()
    one.reload()
    expect(one.get_by_text("You said")).to_be_visible()
    settled(one)
    expect(one.locator(".st-key-lesson-said")).not_to_be_focused()  # it was not asked for just now
    one.goto(
        f"{address}/learn?view=My+sheet&{one.url.partition('?')[2]}".replace("view=Lesson", "")
    )
    one.get_by_role("button", name="Begin again").click()
    expect(one.get_by_role("heading", name=STEPS[0].question)).to_be_visible()
    one.goto(f"{address}/learn?step=4")
    answer(one)
    assert one.get_by_text("What the class said (").inner_text() == counted
    for page in (one, other):
        page.context.close()


# The highest: the others of the first nine are lower by what these have more.
@pytest.mark.parametrize("step", [STEPS[1], STEPS[5], STEPS[8]], ids=lambda step: step.key)
def test_on_a_projector_question_and_button_are_on_one_screen(
    address: str, browser: Browser, step: Step
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    try:
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}/learn?projector=on&step={STEPS.index(step) + 1}")
        for part in (
            page.get_by_role("heading", name=step.question),
            page.get_by_role("button", name="Keep my prediction"),
        ):
            expect(part).to_be_visible()
            settled(page)
            expect(part).to_be_in_viewport(ratio=1)
    finally:
        page.close()


def test_a_projectors_link_fits_a_telephone(address: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    said = f"step={len(STEPS)}&my-sign=mansu,passed,passed,passed,failed"
    try:
        page.set_default_timeout(PATIENCE)
        for shown, part in (
            ("step=1", page.get_by_role("radio", name=str(len(STEPS)), exact=True)),
            (said, page.get_by_test_id("stTable").get_by_role("table")),
        ):
            page.goto(f"{address}/learn?projector=on&{shown}")
            part.wait_for()  # a verdict is measured first
            settled(page)
            box = part.bounding_box()
            assert box is not None and box["x"] + box["width"] <= 390
    finally:
        page.close()
