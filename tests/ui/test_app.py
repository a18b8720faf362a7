"""The page in a real browser, on a tiny model: nothing from elsewhere, two tabs, hostile text, a stopped job."""

import random
import threading
import time
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import pytest
from support.commands import LIMIT
from support.edits import same, strong, weights
from support.trained import trained

from knowedit import wrap
from knowedit.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")  # what it uses of pandas
HOSTILE = "<script>window.ran=1</script><img src=x onerror='window.ran=2'>\x1b[31m Zarn"


@pytest.fixture(scope="module")
def served():
    """`knowedit.ui.app.served`: gradio takes seconds to import, for which other tests need not wait."""
    pytest.importorskip("gradio")
    from knowedit.ui.app import served

    return served


@pytest.fixture(scope="module")
def desk():
    """That of the page, with a model of its own: a job may go on when its tab is closed and the next test begins."""
    from knowedit.ui.jobs import Desk

    return Desk(wrap(deepcopy(trained().hf), deepcopy(trained().tokenizer), name=trained().name))


@pytest.fixture(scope="module")
def address(served, desk):
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("knowedit.ui.app.Desk", lambda model: desk)
            patch.setattr("gradio.networking.url_ok", lambda url: True)  # which waits for three seconds at most
            address = stack.enter_context(served(desk.model))
        yield address


def served_weights(desk):
    """Of the served model, once no job is at work on it."""
    desk.worker.submit(lambda: None).result(LIMIT)
    return weights(desk.model)


@contextmanager
def opened(browser, address, width=1280, scheme="light"):
    """The page in a tab that remembers what went wrong: requests to elsewhere, messages, errors."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(1000 * LIMIT)
    tab, wrong = context.new_page(), []
    local = (address, "data:", "blob:")
    tab.on("request", lambda request: None if request.url.startswith(local) else wrong.append(request.url))
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.append(dialog.message))
    try:
        tab.goto(address)
        tab.wait_for_selector("#ask")
        yield tab, wrong
    finally:
        context.close()


def ask(tab, prompt, subject, answer=""):
    for name, text in (("prompt", prompt), ("subject", subject), ("target", answer)):
        tab.locator(f"#{name} :is(textarea, input)").fill(text)
    tab.click("#ask")


def load(tab, folder):
    tab.locator("#folder :is(textarea, input)").fill(str(folder))
    tab.click("#load")


def test_a_fact_is_asked_located_edited_and_put_back_without_a_word_from_elsewhere(browser, address, desk, tmp_path):
    base = weights(trained())
    edit = strong("Zarn", "Bexum").save(tmp_path / "edit")
    with opened(browser, address) as (tab, wrong):
        ask(tab, "Zarn lives in", "Zarn")
        tab.wait_for_selector("#asked .strip")
        tab.click("#locate")
        tab.wait_for_selector("#located table")
        tab.locator("#located th button").nth(1).click()  # which sorts by score
        assert tab.locator("#located th").nth(1).get_attribute("aria-sort") == "descending"
        before = tab.inner_text("#live")
        tab.locator("#all input[type=range]").focus()
        for _ in range(10):
            tab.keyboard.press("ArrowLeft")
        tab.wait_for_function("was => document.querySelector('#live').innerText != was", arg=before)
        tab.locator("#cards input").first.click()
        tab.wait_for_selector("#card details")
        tab.locator("#layer label").nth(2).click()
        tab.wait_for_selector("#seen section[aria-label='Inside layer 2']")
        load(tab, edit)
        tab.wait_for_selector("#stack .stack li")
        tab.click("#compare-edits")
        tab.wait_for_selector("#compared .twins")
        ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id).filter(Boolean)")
        assert len(ids) == len(set(ids)) and {"asked", "located", "compared"} <= set(ids)
        assert tab.evaluate("[...document.querySelectorAll('.told section')].every(e => e.ariaLabel)")
        tab.click("#share")
        with tab.expect_download() as page:
            tab.click("#page")
        assert page.value.path().read_text().startswith("<!doctype html>")
        assert "are edited" in tab.inner_text("#stack") and same(served_weights(desk), base)
        with opened(browser, address) as (other, _):  # which has a stack of its own
            ask(other, "Zarn lives in", "Zarn")
            other.wait_for_selector("#stack section")
            assert "No edit is on" in other.inner_text("#stack") and "Aldor" in other.inner_text("#asked .bars")
        tab.click("#take-all-off")
        tab.get_by_text("bit for bit").wait_for()
        assert wrong == []
    assert same(served_weights(desk), base)


def test_radio_buttons_are_one_stop_of_the_tab_key_and_arrows_choose(browser, address):
    with opened(browser, address) as (tab, wrong):
        tab.locator("#layer input").nth(1).focus()  # which is chosen: the middle one
        tab.keyboard.press("ArrowRight")
        assert tab.evaluate("document.activeElement === document.querySelectorAll('#layer input')[2]")
        assert tab.locator("#layer input").nth(2).is_checked()
        tab.locator(".status.problem", has_text="no fact was asked").first.wait_for()  # it was chosen, as by a click
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.closest('#layer') === null")
        tab.keyboard.press("Shift+Tab")
        assert tab.evaluate("document.activeElement === document.querySelectorAll('#layer input')[2]")
        tab.locator("#prompt :is(textarea, input)").focus()
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert wrong == []


def test_nothing_is_done_to_a_tab_when_its_page_is_loaded(tmp_path):
    """It would be done behind the first click, where that comes early, and take away what was asked."""
    pytest.importorskip("gradio")
    from knowedit.ui.app import build
    from knowedit.ui.jobs import Desk

    page = build(Desk(trained()), tmp_path)
    assert not [done for done in page.fns.values() if any(event == "load" for _, event in done.targets)]


def test_hostile_text_and_wrong_input_are_said_in_a_line(browser, address, tmp_path):
    with opened(browser, address) as (tab, wrong):
        assert tab.evaluate("document.querySelector('#asked').offsetHeight") == 0  # nothing asked leaves no gap
        ask(tab, f"{HOSTILE} lives in", "Zarn")
        tab.wait_for_selector("#asked .strip")
        ask(tab, "Zarn lives in", "Zarn", HOSTILE)
        tab.locator(".status.problem", has_text="does not know the target").wait_for()
        ask(tab, "nobody lives in", "Zarn")
        tab.locator(".status.problem", has_text="is not in the prompt").wait_for()
        load(tab, tmp_path / "<img src=x onerror='window.ran=3'>")
        tab.locator("#stage-5 .status.problem").wait_for()
        assert tab.evaluate("window.ran") is None and wrong == []


def test_a_stopped_job_says_so_and_the_next_one_runs(browser, address, monkeypatch):
    begun = threading.Event()

    def endless(tab, report):
        while True:
            begun.set()
            report("counting")
            time.sleep(0.001)

    monkeypatch.setattr("knowedit.ui.locating.locate", endless)
    with opened(browser, address) as (tab, wrong):
        ask(tab, "Zarn lives in", "Zarn")
        tab.wait_for_selector("#asked .strip")
        tab.click("#locate")
        assert begun.wait(LIMIT)
        tab.locator("#stage-3 .status.busy").wait_for()
        tab.locator("#stage-3 .stop").click()
        tab.get_by_text("stopped; nothing was changed").wait_for()
        ask(tab, "Quill lives in", "Quill")
        tab.locator("#asked .strip", has_text="Quill").wait_for()
        assert wrong == []


PRESS = """draw => {
  const pressable = "button, input[type=radio], input[type=checkbox], input[type=range]";
  const seen = [...document.querySelectorAll(`.stage :is(${pressable})`)].filter(one => one.offsetParent !== null);
  const one = seen[Math.floor(draw * seen.length)];
  one.focus();
  if (one.type !== "range") one.click();
  return one.type;
}"""
"""Chosen and pressed in one go: what stands where on the page changes while jobs end."""


def click_at_random(tab, clicks, seed=0):
    """Press what can be pressed, in an order that `seed` decides, whether what was pressed before is done or not."""
    draw = random.Random(seed)
    for _ in range(clicks):
        if tab.evaluate(PRESS, draw.random()) == "range":
            tab.keyboard.press(draw.choice(["ArrowLeft", "ArrowRight", "Home", "End"]))


def test_whatever_is_clicked_the_bits_are_back_when_all_is_taken_off(browser, address, desk, tmp_path):
    base, hashed = weights(trained()), trained().weights_hash()
    edit = strong("Zarn", "Bexum").save(tmp_path / "edit")
    with opened(browser, address) as (tab, wrong):
        ask(tab, "Zarn lives in", "Zarn")
        tab.locator("#new :is(textarea, input)").fill("Cirra")
        load(tab, edit)
        tab.wait_for_selector("#stack .stack li")
        click_at_random(tab, 15)
        tab.evaluate("document.querySelectorAll('.stop').forEach(stop => stop.click())")
        tab.wait_for_function("!document.querySelector('.status.busy')")
        tab.click("#take-all-off")
        tab.locator("#stack", has_text="No edit is on").wait_for()
        assert wrong == []
    assert same(served_weights(desk), base) and desk.model.weights_hash() == hashed


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_never_scrolls_sideways_on_a_phone(browser, address, tmp_path, scheme):
    edit = strong("Zarn", "Bexum").save(tmp_path / "edit")
    with opened(browser, address, 375, scheme) as (tab, _):
        ask(tab, "Zarn lives in Aldor and " * 5 + "Zarn lives in", "Zarn")
        tab.wait_for_selector("#asked .strip")
        tab.click("#locate")
        tab.wait_for_selector("#located table")
        load(tab, edit)
        tab.wait_for_selector("#stack .stack li")
        tab.click("#inside")
        tab.wait_for_selector("#seen .flow")
        beyond = "e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll')"
        assert tab.evaluate(f"[...document.querySelectorAll('.stage *')].filter({beyond}).map(e => e.outerHTML)") == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # gradio closes not what it opened
def test_a_port_that_is_taken_is_said(address, served):
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(InputError, match=f"the port {port}"), served(trained(), port):
        pass
