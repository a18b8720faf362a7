"""The page in a real browser: no request, no sideways scroll, the numbers of the record, and nobody's code runs."""

import json
import re
import shutil
from contextlib import contextmanager

import pytest
import torch
from support.commands import LIMIT
from support.edits import strong
from support.trained import facts, trained

from knowedit import ExplainConfig, explain
from knowedit.errors import InputError
from knowedit.facts import Neighbour
from knowedit.report.page import printing
from knowedit.report.page.html import check_page_path, number, page, save_page, shown, token

HOSTILE = (
    "<script>window.ran=1</script><img src=x onerror='window.ran=2'>\"'&lt;</script><b>bold</b>"
    " $x_{$ \\frac [red]red[/red] \x1b[31mansi\x1b[0m \u202eltr {{ 7*7 }} {% raw %} javascript:window.ran=3"
)
WIDTHS = (375, 768, 1280)


@pytest.fixture(scope="module")
def told():
    torch.manual_seed(0)
    others = tuple(Neighbour(f.prompt, f.target, f.subject) for f in facts()[2:6:2])
    return explain(trained(), None, strong("Zarn", "Bexum", neighbours=others), ExplainConfig(draws=20))


@pytest.fixture(scope="module")
def hostile(told):
    """The same record with hostile text in every place where text comes from outside."""
    ours = {"role", "kind", "schema", "version", "weights_hash", "content_hash", "method", "template"}

    def spoiled(value, name=None):
        if isinstance(value, dict):
            return {key: spoiled(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [spoiled(item, name) for item in value]
        return f"{HOSTILE}{value}" if isinstance(value, str) and name not in ours else value

    found = spoiled(told)
    found["fact"]["template"] = f"{HOSTILE.replace('{', '(')} {{}} {HOSTILE}"
    return found | {"notes": {"parts": HOSTILE, "proof": HOSTILE}, "parts": None, "proof": None}


@contextmanager
def opened(browser, text, tmp_path, width=1280, scheme="light", script=True):
    """The page in a tab that remembers what went wrong: requests, messages, errors."""
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
    )
    context.set_default_timeout(1000 * LIMIT)
    tab, wrong = context.new_page(), []
    tab.on("request", lambda request: wrong.append(request.url) if request.url != file.as_uri() else None)
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.append(dialog.message))
    try:
        tab.goto(file.as_uri())
        yield tab, wrong
    finally:
        context.close()


def plain_number(text: str) -> tuple[float, float]:
    """What a shown number says, and half of its last digit; read by other means than it was written."""
    bare = text.replace("\N{MINUS SIGN}", "-").replace("\N{NARROW NO-BREAK SPACE}", "").replace(",", "")
    scale = 0.01 if bare.endswith("%") else 1.0
    bare = bare.removesuffix("%")
    mantissa, _, power = bare.partition("e")
    half = 0.5 * 10.0 ** -len(mantissa.partition(".")[2]) * 10.0 ** int(power or 0)
    return float(bare) * scale, half * scale * (1 + 1e-9)


# ---------------------------------------------------------------- what a reader sees


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["told", "hostile"])
def test_it_asks_for_nothing_and_never_scrolls_sideways(browser, request, tmp_path, which, width):
    with opened(browser, page(request.getfixturevalue(which)), tmp_path, width) as (tab, wrong):
        for summary in tab.locator("summary").all():
            summary.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("document.body.scrollWidth") <= width
        lines = "[...document.querySelectorAll('button:not(th button)')].filter(b => b.getClientRects().length)"
        assert max(tab.evaluate(f"{lines}.map(b => b.clientHeight / parseFloat(getComputedStyle(b).lineHeight))")) < 2
        assert wrong == []


def test_its_numbers_are_those_of_the_record(browser, told, tmp_path):
    with opened(browser, page(told), tmp_path) as (tab, _):
        found = tab.evaluate(
            "[...document.querySelectorAll('data')].map(d => [d.dataset.path, d.value, d.textContent])"
        )
        embedded = tab.evaluate("document.getElementById('record').textContent")
        cells = tab.evaluate("[...document.querySelectorAll('#map-mlp rect')].map(r => r.dataset.said)")
    assert json.loads(embedded) == json.loads(json.dumps(told))
    assert len(found) > 150
    for path, value, text in found:
        wanted = told
        for name in path.split("."):
            wanted = wanted[int(name) if isinstance(wanted, list) else name]
        assert json.loads(value) == wanted, path
        if text.startswith("<"):
            assert 0 < wanted < plain_number(text[1:])[0], (path, text)
        else:
            said, half = plain_number(text)
            assert abs(said - wanted) <= half, (path, text, wanted)
    chapters = {path.partition(".")[0] for path, *_ in found}
    assert {"prediction", "lens", "parts", "trace", "recall", "neurons", "cards", "proof", "edit"} <= chapters
    trace = told["trace"]
    scores = [score - trace["low"]["value"] for row in trace["maps"]["mlp"]["scores"] for score in row]
    assert len(cells) == len(scores)
    for said, score in zip(cells, scores, strict=True):
        value, half = plain_number(said.rpartition(": ")[2])
        assert abs(value - score) <= half


def test_the_largest_parts_of_the_logit_are_named(told):
    layers = told["parts"]["layers"]
    most = {name: max(range(len(layers)), key=lambda i: abs(layers[i][name])) for name in ("mlp", "attention")}
    paths = [f'data-path="parts.layers.{layer}.{name}"' for name, layer in most.items()]
    caption = next(part for part in page(told).split("<figcaption>") if part.startswith("Logits that each"))
    assert all(path in caption.partition("</figcaption>")[0] for path in paths)


def test_the_maps_of_a_trace_have_one_scale_on_which_the_clean_run_is_marked(browser, told, tmp_path):
    trace = told["trace"]
    low = trace["low"]["value"]
    with opened(browser, page(told), tmp_path) as (tab, _):
        opacities = {
            kind: tab.evaluate(
                f"[...document.querySelectorAll('#map-{kind} rect')].map(r => r.getAttribute('fill-opacity'))"
            )
            for kind in trace["maps"]
        }
        mark = tab.evaluate("document.querySelector('.scale i').style.left")
    effects = {kind: [score - low for row in found["scores"] for score in row] for kind, found in trace["maps"].items()}
    reach = max(abs(effect) for values in effects.values() for effect in [*values, trace["high"] - low])
    for kind, values in effects.items():
        assert [float(o) for o in opacities[kind]] == pytest.approx([abs(v) / reach for v in values], abs=5e-4)
    assert float(mark.rstrip("%")) == pytest.approx(100 * (trace["high"] - low) / reach, abs=5e-3)


def test_hostile_text_is_only_ever_text(browser, hostile, tmp_path):
    text = page(hostile)
    assert "\x1b" not in text and "\u202e" not in text
    with opened(browser, text, tmp_path) as (tab, wrong):
        assert wrong == [] and tab.evaluate("window.ran") is None
        assert tab.locator("script").count() == 2 and tab.locator("img, b:not(.move b), iframe, object").count() == 0
        seen = tab.inner_text("h1")
        assert "<script>window.ran=1</script>" in seen and "$x_{$" in seen and "\\x1b[31mansi" in seen
        assert "[red]red[/red]" in seen and "{{ 7*7 }}" in seen and "\\u202eltr" in seen
        assert "<script>window.ran=1</script>" in tab.title()
        assert json.loads(tab.evaluate("document.getElementById('record').textContent")) == hostile


def test_only_its_own_script_may_run(browser, told, tmp_path):
    broken = page(told).replace("</body>", "<script>window.ran=1</script></body>")
    with opened(browser, broken, tmp_path) as (tab, wrong):
        assert tab.evaluate("window.ran") is None
        assert any("Content Security Policy" in message for message in wrong)


# ---------------------------------------------------------------- accessible, in light and dark, on paper

CONTRAST = """() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.getClientRects().length) continue;
    const [one, two] = [light(parse(getComputedStyle(node).color)), light(under(node))].sort();
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) found.push([walker.currentNode.textContent.trim(), ratio]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(browser, told, tmp_path, scheme):
    with opened(browser, page(told), tmp_path, scheme=scheme) as (tab, _):
        for summary in tab.locator("summary").all():
            summary.click()
        assert tab.evaluate(CONTRAST) == []
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        tab.get_by_role("button", name="Switch between light and dark").click()
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != background
        assert tab.evaluate(CONTRAST) == []


def test_it_can_be_heard(browser, told, tmp_path):
    with opened(browser, page(told), tmp_path) as (tab, _):
        levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))")
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
        assert tab.get_attribute("html", "lang") == "en"
        unnamed = "[...document.querySelectorAll('[role=img],[role=group],aside,nav')].filter(e => !e.ariaLabel).length"
        assert tab.evaluate(unnamed) == 0
        assert tab.evaluate("[...document.querySelectorAll('button')].filter(b => !b.textContent.trim()).length") == 0
        assert tab.evaluate("[...document.querySelectorAll('th')].filter(t => !t.scope).length") == 0
        ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        named = (
            "[...document.querySelectorAll('[aria-labelledby],[aria-controls],a[href]')]"
            ".map(e => e.getAttribute('aria-labelledby') ?? e.getAttribute('aria-controls') ?? e.hash.slice(1))"
        )
        assert set(tab.evaluate(named)) <= set(ids)
        drawings = "[...document.querySelectorAll('svg')].filter(s => s.ariaHidden !== 'true' && !s.ariaLabel).length"
        assert tab.evaluate(drawings) == 0


def test_maps_are_switched_and_tables_sorted(browser, told, tmp_path):
    with opened(browser, page(told), tmp_path) as (tab, wrong):
        maps = tab.locator(".heat-map")
        assert [m.is_visible() for m in maps.all()] == [True, False, False]
        tab.get_by_role("button", name="attention").click()
        assert [m.is_visible() for m in maps.all()] == [False, False, True]
        cell = tab.locator("#map-attention rect").first
        cell.hover()
        assert tab.inner_text("#map-attention .readout") == cell.get_attribute("data-said")

        head = tab.locator("section:has(#prediction) th", has_text="probability")
        column = "section:has(#prediction) tbody tr td:nth-child(3) data"
        for order in ("descending", "ascending"):
            head.get_by_role("button").click()
            assert head.get_attribute("aria-sort") == order
            values = [float(v) for v in tab.locator(column).evaluate_all("all => all.map(d => d.value)")]
            assert values == sorted(values, reverse=order == "descending")
        with tab.expect_download() as download:
            tab.get_by_role("button", name="Save the record").click()
        assert json.loads(download.value.path().read_text(encoding="utf-8")) == json.loads(json.dumps(told))
        assert wrong == []


def test_without_a_script_and_on_paper_all_maps_are_there(browser, told, tmp_path):
    with opened(browser, page(told), tmp_path, script=False) as (tab, _):
        assert all(m.is_visible() for m in tab.locator(".heat-map").all())
        assert not any(b.is_visible() for b in tab.locator("button:not(th button)").all())
    with opened(browser, page(told), tmp_path, scheme="dark") as (tab, wrong):
        tab.emulate_media(media="print")
        assert all(m.is_visible() for m in tab.locator(".heat-map").all())
        assert not any(b.is_visible() for b in tab.locator("button:not(th button)").all())
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.evaluate(CONTRAST) == []
        assert tab.pdf(format="A4").startswith(b"%PDF") and wrong == []


# ---------------------------------------------------------------- without a browser


def test_a_page_without_an_edit_or_an_unknown_fact(told):
    text = page(told | {"edit": None})
    assert 'id="edit"' not in text and "Bexum</span></h1>" not in text
    asked = [each | {"rank": 7, "probability": 0.001} for each in told["prediction"]["prompts"]]
    unknown = told["prediction"] | {"known": False, "rank": 7, "probability": 0.001, "prompts": asked}
    text = page(told | {"prediction": unknown})
    body = text[: text.index('id="record"')]
    assert "does not say" in body and "instead" in body
    claims = ("carry", "carries", "Without its neurons", "The proof", "heat-map", "Looked up in layer", "raise the")
    for claim in claims:
        assert claim not in body.partition("</style>")[2], claim
    assert body.count("in none of the ways to ask") == 3
    once = [asked[0], asked[1] | {"rank": 1}, *asked[2:]]
    assert "in none of the ways to ask" not in page(told | {"prediction": unknown | {"prompts": once}})
    for name in ("lens", "parts", "trace", "recall", "neurons", "cards", "proof"):
        without = {"proof": None, "cards": None} if name == "neurons" else {}
        refused = told | without | {name: None, "notes": {name: f"this model cannot have {name}"}}
        assert f"this model cannot have {name}." in page(refused)
    doubtful = told["neurons"] | {"warning": "the scores of a layer miss 41% <of> F"}
    assert "The scores of a layer miss 41% &lt;of&gt; F." in page(told | {"neurons": doubtful})
    none = told["neurons"] | {"neurons": [], "note": "no neuron raises this"}
    assert "no neuron raises this" in page(told | {"neurons": none, "proof": None})


def test_numbers_for_people():
    narrow, minus = "\N{NARROW NO-BREAK SPACE}", "\N{MINUS SIGN}"
    for value, kind, wanted in (
        (0.70161, "percent", f"70.2{narrow}%"),
        (0.0004, "percent", f"<0.1{narrow}%"),
        (0.0, "percent", f"0.0{narrow}%"),
        (-0.8404, "change", f"{minus}84.0{narrow}%"),
        (-0.0001, "change", f"0.0{narrow}%"),
        (0.1234, "score", "+0.123"),
        (-0.00004, "score", f"{minus}4e{minus}05"),
        (46080, "integer", "46,080"),
        (0.005, "p", "0.005"),
        (8.2e-7, "tiny", f"8e{minus}07"),
        (0.0, "tiny", "0e+00"),
    ):
        assert shown(value, kind) == wanted
    assert "data" not in number({"a": [None]}, "a.0")


def test_tokens_show_their_spaces():
    assert re.sub("<[^>]+>", "", str(token(" Paris"))) == "·Paris"
    assert "&lt;b&gt;" in token("<b>") and "\\x1b" in token("\x1b[0m") and "∅" in token("")


def test_a_page_goes_to_a_file_or_nowhere(told, tmp_path):
    assert save_page(told, tmp_path / "a.html").read_text(encoding="utf-8") == page(told)
    (tmp_path / "other").touch()
    assert (tmp_path / "a.html").stat().st_mode == (tmp_path / "other").stat().st_mode
    for path, words in (("a.txt", "expected .html"), ("no/a.html", "make it first"), (".", "ends in")):
        with pytest.raises(InputError, match=words):
            check_page_path(tmp_path / path)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        check_page_path(tmp_path / "folder.html")
    assert {f.name for f in tmp_path.iterdir()} == {"a.html", "other", "folder.html"}


def test_a_page_is_printed_by_a_browser_that_is_here(told, tmp_path):
    if not any(map(shutil.which, printing.BROWSERS)):
        pytest.skip("no Chromium on this machine; scripts/test.sh installs it as root")
    pdf = save_page(told, tmp_path / "a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF") and len(pdf) > 20_000
    assert [f.name for f in tmp_path.iterdir()] == ["a.pdf"]


def test_without_a_browser_or_with_one_that_fails_there_is_no_pdf(told, tmp_path, monkeypatch):
    monkeypatch.setattr(printing, "BROWSERS", ("false",))  # a program that prints nothing
    with pytest.raises(InputError, match="the browser printed no PDF .*; write .html and print it by hand"):
        save_page(told, tmp_path / "a.pdf")
    monkeypatch.setattr(printing, "BROWSERS", ("no-such-browser",))
    with pytest.raises(InputError, match="none is on this machine; install one, or write .html"):
        check_page_path(tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_the_same_record_makes_the_same_page(told):
    assert page(told) == page(json.loads(json.dumps(told)))
    assert page(told | {"fact": told["fact"] | {"target": "Cirra"}}) != page(told)
