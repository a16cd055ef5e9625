"""The rating page in a real Chromium, by mouse, by keyboard and on a phone's screen."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from evolora.human import PageStatus, Pair, RatingPage, VoteStore


class Rater:
    """A person at the page."""

    def __init__(self, driver: webdriver.Chrome, page: RatingPage, store: VoteStore) -> None:
        self.driver = driver
        self.page = page
        self.store = store

    def open(self) -> None:
        self.driver.get(self.page.url)
        self.until("return location.search === '' && document.querySelector('#shortcuts')?.offsetParent != null")

    def until(self, script: str) -> None:
        WebDriverWait(self.driver, 15, poll_frequency=0.05).until(lambda driver: driver.execute_script(script))

    @property
    def question(self) -> str:
        """The id of the question on the screen, once the page is ready for a vote; "" while it waits."""
        self.until("return document.querySelector('#work')?.getAttribute('aria-busy') === 'false'")
        return self.work.get_attribute("data-question") or ""

    @property
    def work(self) -> WebElement:
        return self.driver.find_element(By.ID, "work")

    def text(self, element: str) -> str:
        return str(self.driver.find_element(By.ID, element).get_attribute("textContent"))

    def next_after(self, question: str) -> str:
        self.until(f"return document.querySelector('#work').dataset.question !== '{question}'")
        return self.question

    def click(self, element: str) -> str:
        before = self.question
        self.driver.find_element(By.ID, element).click()
        return self.next_after(before)

    def press(self, *keys: str) -> str:
        before = self.question
        ActionChains(self.driver).send_keys(*keys).perform()
        return self.next_after(before)

    def outcomes(self) -> list[str]:
        return [vote.outcome for vote in self.store.decided()]


@pytest.fixture
def rater(chromium: webdriver.Chrome, tmp_path: Path) -> Iterator[Rater]:
    store = VoteStore(tmp_path / "votes.sqlite")
    with RatingPage(store) as page:
        chromium.delete_all_cookies()
        yield Rater(chromium, page, store)
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        chromium.get("about:blank")
    store.close()


def ask(rater: Rater, count: int = 6) -> None:
    rater.store.ask(1, [Pair(f"prompt {n}", 0, f" first {n}", 1, f" second {n}") for n in range(count)])


def test_votes_by_mouse(rater: Rater) -> None:
    ask(rater)
    rater.open()
    assert rater.page.url.partition("token=")[2] not in rater.driver.current_url
    said = []
    for element in ("choose-left", "choose-right", "choose-tie", "choose-bad", "choose-skip"):
        first_is_left = rater.text("left").startswith(" first")
        said.append({"choose-left": "ab", "choose-right": "ba"}.get(element, "")[:1] or element)
        if element in ("choose-left", "choose-right") and not first_is_left:
            said[-1] = {"a": "b", "b": "a"}[said[-1]]
        question = rater.question
        assert rater.click(element) != question
        # The vote is in the store when the page has moved on.
        assert rater.store.count() == min(len(said), 4)
    assert rater.outcomes() == [*said[:2], "tie", "bad"]
    assert "4 of 6 votes" in rater.driver.find_element(By.ID, "progress").text
    rater.click("choose-tie")
    assert "skipped" in rater.text("heading")
    rater.driver.find_element(By.ID, "unskip").click()
    rater.until("return document.querySelector('#work').dataset.state === 'question'")
    rater.click("choose-tie")
    assert rater.text("heading") == "All votes are in. Thank you!"
    assert rater.store.count() == 6


def test_votes_by_keyboard_alone(rater: Rater) -> None:
    ask(rater, 8)
    rater.open()
    expected = []
    for key in ("1", "2", Keys.ARROW_LEFT, Keys.ARROW_RIGHT):
        first_is_left = rater.text("left").startswith(" first")
        expected.append("a" if first_is_left == (key in ("1", Keys.ARROW_LEFT)) else "b")
        rater.press(key)
    rater.press("t")
    rater.press("b")
    skipped = rater.question
    last = rater.press("s")
    assert rater.outcomes() == [*expected, "tie", "bad"]
    assert rater.press("u") == skipped
    assert rater.press("s") == last
    # Without shortcuts: Tab to a button, Enter; the focus stays on that button for the next question.
    for _ in range(20):
        ActionChains(rater.driver).send_keys(Keys.TAB).perform()
        if rater.driver.switch_to.active_element.get_attribute("id") == "choose-bad":
            break
    outline = rater.driver.switch_to.active_element.value_of_css_property("outline-style")
    assert outline == "solid"
    rater.press("u")
    assert rater.driver.switch_to.active_element.get_attribute("id") == "choose-bad"
    assert rater.press(Keys.ENTER) == last
    assert rater.driver.switch_to.active_element.get_attribute("id") == "choose-bad"
    rater.press(Keys.SPACE)
    assert rater.driver.switch_to.active_element.get_attribute("id") == "heading"
    assert rater.outcomes() == [*expected, "tie", "bad", "bad", "bad"]
    rater.press("u")
    assert rater.store.count() == 7


def test_shortcuts_can_be_switched_off_and_leave_the_browsers_own_alone(rater: Rater) -> None:
    ask(rater)
    rater.open()
    question = rater.question
    ActionChains(rater.driver).key_down(Keys.CONTROL).send_keys("b").key_up(Keys.CONTROL).perform()
    rater.driver.find_element(By.ID, "shortcuts").click()
    ActionChains(rater.driver).send_keys("tb12").perform()
    assert rater.question == question
    assert rater.store.count() == 0
    rater.driver.refresh()  # the choice is kept
    ActionChains(rater.driver).send_keys("t").perform()
    assert (rater.question, rater.store.count()) == (question, 0)
    rater.driver.find_element(By.ID, "shortcuts").click()
    rater.press("t")
    assert rater.store.count() == 1


TWO_CLICKS = """
const [done] = arguments;
const before = document.querySelector('#work').dataset.question;
const observer = new MutationObserver(() => {
  if (document.querySelector('#work').dataset.question === before) return;
  observer.disconnect();
  setTimeout(() => { document.querySelector('#choose-tie').click(); done(); }, 60);
});
observer.observe(document.body, {childList: true, subtree: true});
document.querySelector('#choose-tie').click();
"""


def test_a_double_click_or_a_held_key_is_one_vote(rater: Rater) -> None:
    ask(rater)
    rater.open()
    before = rater.question
    ActionChains(rater.driver).double_click(rater.driver.find_element(By.ID, "choose-tie")).perform()
    second = rater.next_after(before)
    assert rater.store.count() == 1
    second = rater.press("u")
    # The second click comes when the next question is there already, too soon for anybody to have read it.
    rater.driver.execute_async_script(TWO_CLICKS)
    second = rater.next_after(second)
    assert rater.store.count() == 1
    held = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 't', repeat: %s, bubbles: true}));"
    rater.driver.execute_script(held % "true" * 3)
    assert rater.question == second
    rater.driver.execute_script(held % "false" + held % "true" * 5)
    rater.next_after(second)
    assert rater.store.count() == 2


def test_a_reload_keeps_the_question_and_undo_brings_the_last_one_back(rater: Rater) -> None:
    ask(rater)
    rater.open()
    first = rater.question
    rater.driver.refresh()
    assert rater.question == first
    shown = (rater.text("left"), rater.text("right"))
    second = rater.click("choose-left")
    rater.driver.refresh()
    assert rater.question == second
    assert rater.click("undo") == first
    assert (rater.text("left"), rater.text("right")) == shown
    assert rater.store.count() == 0
    rater.driver.get("about:blank")  # closed, and opened anew
    rater.open()
    assert rater.question == first


def test_markup_in_texts_is_shown_and_does_not_run(rater: Rater) -> None:
    script = " <script>window.hacked = 1; document.title = 'hacked'</script>"
    image = "<img src=x onerror=\"window.hacked = 1\"><b>bold</b><a href='javascript:alert(1)'>x</a>"
    rater.store.ask(1, [Pair(f"{script}{image}", 0, script, 1, image), Pair("next", 0, image, 1, script)])
    rater.page.status = PageStatus(message=image)
    rater.open()
    for _ in range(2):  # as the server renders it, and as the script exchanges it
        assert {rater.text("left"), rater.text("right")} == {script, image}
        assert "<script>" in rater.work.text
        assert not rater.driver.find_elements(By.CSS_SELECTOR, "#work img, #work script, #work b, #progress img, a")
        assert rater.driver.execute_script("return window.hacked === undefined && document.title !== 'hacked'")
        rater.click("choose-tie")
    assert rater.store.count() == 2


def test_empty_texts_and_white_space_are_visible(rater: Rater) -> None:
    rater.store.ask(1, [Pair("prompt", 0, "", 1, "a \n\tb ")])
    rater.open()
    sides = {rater.driver.find_element(By.ID, side).text for side in ("left", "right")}
    assert "(empty)" in sides
    marks = (
        "return [...document.querySelectorAll('.space, .line, .tab')].map(e => getComputedStyle(e, '::before').content)"
    )
    shown = "".join(rater.driver.execute_script(marks))
    assert (shown.count("·"), shown.count("↵"), shown.count("→")) == (2, 1, 1)


def test_the_page_goes_on_by_itself(rater: Rater) -> None:
    rater.page.status = PageStatus(generation=1, wanted=2, message="The run computes generation 1.")
    rater.open()
    assert rater.question == ""
    assert "The run computes generation 1." in rater.work.text
    ask(rater, 2)
    rater.next_after("")
    assert rater.driver.title.startswith("Which is better?")
    announced = rater.text("announcement")
    assert "Prompt: prompt 0." in announced
    assert "Left: " in announced
    assert " first 0." in announced
    rater.click("choose-tie")
    rater.click("choose-tie")
    assert "All votes are in" in rater.text("announcement")


def test_a_run_that_dies_is_said_and_no_vote_is_claimed(rater: Rater) -> None:
    ask(rater)
    rater.open()
    question = rater.question
    rater.page.close()
    rater.driver.find_element(By.ID, "choose-tie").click()
    rater.until("return !document.querySelector('#problem').hidden")
    assert "does not answer" in rater.text("problem")
    assert (rater.question, rater.store.count()) == (question, 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(rater: Rater, scheme: str) -> None:
    long = "Donaudampfschifffahrtsgesellschaftskapitän" * 8
    rater.store.ask(1, [Pair(long, 0, " word" * 300, 1, long), *[Pair(f"p {n}", 0, "a", 1, "b") for n in range(3)]])
    rater.page.status = PageStatus(generation=1, wanted=4, certainty=0.74, agreement=0.7, message="Message. " + long)
    driver = rater.driver
    phone = {"width": 375, "height": 667, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    rater.open()
    assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [375, 375]
    boxes = {element: driver.find_element(By.ID, element).rect for element in ("left", "right")}
    assert boxes["left"]["y"] + boxes["left"]["height"] <= boxes["right"]["y"]  # one above the other
    assert boxes["left"]["x"] == boxes["right"]["x"]
    # The buttons are in view however long the text is, named for how the texts lie, and large enough for a finger.
    for button in driver.find_elements(By.CSS_SELECTOR, ".controls button"):
        area = driver.execute_script("return arguments[0].getBoundingClientRect().toJSON()", button)
        assert area["left"] >= 0
        assert area["right"] <= 375
        assert area["bottom"] <= 667
        assert area["height"] >= 44
    assert driver.find_element(By.ID, "choose-left").accessible_name == "Upper is better"
    rater.click("choose-left")
    rater.click("choose-tie")
    assert rater.store.count() == 2


def luminance(colour: list[float]) -> float:
    """WCAG 2's relative luminance of an sRGB colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


CONTRASTS = """
// Each text's colour and the first opaque background under it.
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
return [...document.querySelectorAll('h1, h2, .text, dt, dd, small, label, .count, footer p, .message, button:enabled')]
  .filter((element) => element.offsetParent)
  .map((element) => {
    let under = element;
    const background = (node) => parse(getComputedStyle(node).backgroundColor);
    while (under.parentElement && background(under)[3] === 0) under = under.parentElement;
    const style = getComputedStyle(element);
    return [element.tagName + '.' + element.className, parse(style.color), background(under)];
  });
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(rater: Rater, scheme: str) -> None:
    ask(rater)
    rater.page.status = PageStatus(generation=1, wanted=6, certainty=0.74, agreement=0.7, message="Message.")
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    rater.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    rater.open()
    found = rater.driver.execute_script(CONTRASTS)
    assert len(found) > 15
    assert (luminance(found[0][1]) > luminance(found[0][2])) == (scheme == "dark")
    for name, ink, paper in found:
        light, dark = sorted((luminance(ink[:3]), luminance(paper[:3])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def test_every_control_and_region_has_a_name(rater: Rater) -> None:
    ask(rater)
    rater.open()
    rater.click("choose-tie")
    names = {
        button.get_attribute("id"): (button.aria_role, button.accessible_name)
        for button in rater.driver.find_elements(By.CSS_SELECTOR, "button, input:not([type=hidden])")
    }
    assert names == {
        "choose-left": ("button", "Left is better"),
        "choose-right": ("button", "Right is better"),
        "choose-tie": ("button", "Tie"),
        "choose-bad": ("button", "Both bad"),
        "choose-skip": ("button", "Skip"),
        "undo": ("button", "Undo my last vote"),
        "shortcuts": ("checkbox", "Keyboard shortcuts"),
    }
    assert rater.driver.find_element(By.ID, "votes").accessible_name == "Generation 1 1 of 6 votes"
    regions = [section.accessible_name for section in rater.driver.find_elements(By.CSS_SELECTOR, "section")]
    assert regions == ["Progress", "Prompt", "Left", "Right"]
    assert rater.driver.find_element(By.ID, "announcement").get_attribute("role") == "status"
    assert rater.driver.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


def test_it_works_without_javascript(rater: Rater) -> None:
    ask(rater, 2)
    rater.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        rater.driver.get(rater.page.url)
        WebDriverWait(rater.driver, 10).until(lambda driver: driver.find_elements(By.ID, "choose-tie"))
        rater.driver.find_element(By.ID, "choose-tie").click()
        WebDriverWait(rater.driver, 10).until(lambda _: rater.store.count() == 1)
        rater.driver.find_element(By.ID, "undo").click()
        WebDriverWait(rater.driver, 10).until(lambda _: rater.store.count() == 0)
    finally:
        rater.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_nothing_foreign_is_loaded_and_nothing_is_complained_of(rater: Rater) -> None:
    ask(rater)
    rater.driver.get_log("browser")
    rater.open()
    rater.click("choose-left")
    names = rater.driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    own = rater.page.url.partition("?")[0]
    assert len(names) >= 3
    assert all(name.startswith(own) for name in names)
    assert rater.driver.get_log("browser") == []
    # What keeps inline scripts out is in force, not only sent.
    ran = "const s = document.createElement('script'); s.textContent = 'window.inline = 1'; document.body.append(s);"
    rater.driver.execute_script(ran)
    assert rater.driver.execute_script("return window.inline === undefined")
