"""The page in a real browser: what it shows, what it sends, and what it must never do."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anynest.serving.page import content_security_policy, page

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

EMPTY = "Draw, drop or choose a picture."
STORED = "() => [localStorage.length, sessionStorage.length, document.cookie]"
ROUND_TRIP = "() => fetch('v2/repository/index', { method: 'POST' }).then(found => found.text())"
HIDE = """hidden => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def open_page(watch: Any, server: Any, **options: Any) -> Any:
    """The page, with a model chosen."""
    shown = watch(**options).open(server.url)
    expect(shown.locator("#facts")).to_contain_text("classes")
    return shown


def draw(shown: Any, *points: tuple[float, float]) -> None:
    """A stroke through points of the pad, in parts of its size."""
    box = shown.locator("#pad").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    shown.mouse.move(*places[0])
    shown.mouse.down()
    for place in places[1:]:
        shown.mouse.move(*place, steps=4)
    shown.mouse.up()


def one(shown: Any) -> None:
    draw(shown, (0.5, 0.2), (0.5, 0.8))


def whole_stroke(shown: Any, server: Any) -> Any:
    """The newest request with the end of ``one``: the page asks while a stroke is drawn, too."""
    for _ in range(400):
        for sent in reversed(server.received):
            if np.frombuffer(sent.data, np.uint8).reshape(8, 8)[5].max() > 100:
                return sent
        shown.wait_for_timeout(25)
    raise AssertionError("the end of the stroke was not sent")


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def heads(shown: Any) -> list[str]:
    return shown.locator("thead th .when").all_inner_texts()


# -- the file -------------------------------------------------------------------------------------
def test_nothing_comes_from_elsewhere() -> None:
    text = page()
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|script|img|iframe)[^>]*(src|href)=\"(?!data:)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)
    assert not re.search(r"<[^>]+ (style|on\w+)=", text)


def test_policy_allows_this_script_and_style_alone() -> None:
    policy = content_security_policy(page())
    assert "unsafe" not in policy
    assert len(re.findall("'sha256-", policy)) == 2
    assert policy.startswith("default-src 'none';")
    assert content_security_policy(page().replace("soon();", "soon() ;", 1)) != policy
    assert "script-src 'none'; style-src 'none'" in content_security_policy("<p>nothing</p>")


# -- drawing --------------------------------------------------------------------------------------
def test_drawing_shows_every_stage(watch: Any, server: Any) -> None:
    shown = open_page(watch, server)
    expect(shown.locator("#status")).to_have_text(EMPTY)
    one(shown)
    sent = whole_stroke(shown, server)
    expect(shown.locator("#status")).to_have_text("90 % sure. All 3 stages in 7.5 ms, of 50 ms.")
    expect(shown.locator("#label")).to_have_text("7")
    assert heads(shown) == ["2.5 ms", "5 ms", "7.5 ms"]
    rows = shown.locator("tbody tr")
    assert rows.count() == 10
    assert rows.nth(7).locator("td").all_inner_texts() == ["57", "73", "90"]
    assert rows.nth(7).locator("td.top").count() == 3
    widths = rows.nth(7).locator("i").evaluate_all("bars => bars.map(bar => bar.style.width)")
    assert [round(float(width[:-1])) for width in widths] == [57, 73, 90]
    assert sent.path == "/v2/models/digits/versions/1/infer_stream"
    assert sent.header["parameters"] == {"timeout": 50_000}
    assert sent.header["inputs"][0]["shape"] == [1, 8, 8, 1]
    pixels = np.frombuffer(sent.data, np.uint8).reshape(8, 8)
    assert pixels[2:6, 3:5].min() > 100, "a vertical stroke in the middle, white"
    assert pixels[:, [0, 1, 6, 7]].max() == 0, "on black"
    shown.get_by_role("button", name="Clear").click()
    expect(shown.locator("#status")).to_have_text(EMPTY)
    assert heads(shown) == ["–", "–", "–"]


def test_a_stage_is_shown_before_the_next_is_there(watch: Any, server: Any) -> None:
    server.gate.clear()
    shown = open_page(watch, server)
    one(shown)
    expect(shown.locator("thead th .when").first).to_have_text("2.5 ms")
    assert heads(shown)[1:] == ["–", "–"]
    expect(shown.locator("#label")).to_have_text("7")
    server.gate.set()
    expect(shown.locator("thead th .when").last).to_have_text("7.5 ms")


def test_a_skipped_stage_does_not_show_the_former_picture(watch: Any, server: Any) -> None:
    shown = open_page(watch, server)
    one(shown)
    expect(shown.locator("#status")).to_contain_text("All 3 stages")
    server.skipped = (1,)
    with shown.expect_response("**/infer_stream"):
        one(shown)
    expect(shown.locator("thead th .when").first).to_have_text("skipped")
    expect(shown.locator("thead th .when").last).to_have_text("7.5 ms")
    assert shown.locator("tbody tr").nth(7).locator("td").all_inner_texts() == ["", "73", "90"]


def test_keyboard_alone_draws(watch: Any, server: Any) -> None:
    shown = open_page(watch, server)
    for _ in range(10):  # in the order of the controls
        if shown.evaluate("document.activeElement.id") == "pad":
            break
        shown.keyboard.press("Tab")
    for key in ("ArrowUp", "Space", "ArrowDown", "ArrowDown", "Space"):
        shown.keyboard.press(key)
    expect(shown.locator("#status")).to_contain_text("All 3 stages")
    shown.keyboard.press("Delete")
    expect(shown.locator("#status")).to_have_text(EMPTY)


def test_touch_draws(watch: Any, server: Any) -> None:
    shown = open_page(watch, server, has_touch=True, viewport={"width": 360, "height": 780})
    shown.locator("#pad").tap()
    expect(shown.locator("#status")).to_contain_text("All 3 stages")


# -- pictures -------------------------------------------------------------------------------------
HALVES = np.zeros((64, 64, 3), np.uint8)
HALVES[:, :32], HALVES[:, 32:] = (250, 10, 30), (20, 40, 200)


def give(shown: Any, how: str, data: bytes) -> None:
    """Hand a picture to the page in one of three ways."""
    if how == "choose":
        file = {"name": "p.png", "mimeType": "image/png", "buffer": data}
        shown.get_by_label("Choose a picture").set_input_files(file)
        return
    shown.evaluate(
        """([how, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "p.png", { type: "image/png" }));
          const options = { bubbles: true, cancelable: true };
          document.body.dispatchEvent(how === "drop"
            ? new DragEvent("drop", { ...options, dataTransfer: transfer })
            : new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
        }""",
        [how, list(data)],
    )


@pytest.mark.parametrize("how", ["choose", "drop", "paste"])
def test_a_picture_is_sent_in_the_size_of_the_model(watch: Any, server: Any, how: str) -> None:
    server.models["digits"].channels = 3
    shown = open_page(watch, server)
    give(shown, how, png(HALVES))
    expect(shown.locator("#status")).to_contain_text("All 3 stages")
    sent = server.received[-1]
    assert sent.header["inputs"][0]["shape"] == [1, 8, 8, 3]
    pixels = np.frombuffer(sent.data, np.uint8).reshape(8, 8, 3).astype(int)
    assert np.abs(pixels[:, :3] - HALVES[0, 0]).max() <= 2
    assert np.abs(pixels[:, 5:] - HALVES[0, -1]).max() <= 2


def test_grey_is_what_pillow_makes_of_colour(watch: Any, server: Any) -> None:
    shown = open_page(watch, server)
    give(shown, "choose", png(HALVES))
    expect(shown.locator("#status")).to_contain_text("All 3 stages")
    pixels = np.frombuffer(server.received[-1].data, np.uint8).reshape(8, 8).astype(int)
    wanted = np.array(Image.fromarray(HALVES).convert("L")).astype(int)
    assert np.abs(pixels[:, 0] - wanted[0, 0]).max() <= 1
    assert np.abs(pixels[:, 7] - wanted[0, -1]).max() <= 1
    count = len(server.received)
    with shown.expect_response("**/infer_stream"):
        shown.get_by_role("button", name="Invert").click()
    inverted = np.frombuffer(server.received[count].data, np.uint8).reshape(8, 8).astype(int)
    assert np.abs(inverted + pixels - 255).max() <= 2


def test_what_is_no_picture_is_said(watch: Any, server: Any) -> None:
    shown = open_page(watch, server)
    give(shown, "drop", b"no picture")
    expect(shown.locator("#status")).to_contain_text('"p.png" is no picture')
    assert not server.received


# -- deadlines and refusals -----------------------------------------------------------------------
def test_a_short_deadline_shows_which_depth_was_shed(watch: Any, server: Any) -> None:
    shown = open_page(watch, server)
    one(shown)
    expect(shown.locator("#status")).to_contain_text("All 3 stages")
    server.done = 1
    shown.get_by_role("slider").press("Home")
    expect(shown.locator("#status")).to_have_text(
        "57 % sure. The deadline of 1 ms came after stage 1 of 3: stages 2 and 3 were shed."
    )
    assert server.received[-1].header["parameters"] == {"timeout": 1000}
    assert heads(shown) == ["2.5 ms", "shed", "shed"]
    assert shown.locator("tbody td.shed").count() == 20
    assert shown.locator("#marks .bubble.gone").all_inner_texts() == ["2", "3"]


@pytest.mark.parametrize(
    ("reason", "text", "without"),
    [
        ("confident", "Stage 2 of 3 is confident enough: stage 3 was not needed.", "not needed"),
        ("load", "The server is full and stopped at stage 2 of 3: stage 3 was shed.", "shed"),
        ("failure", "Stage 2 of 3: stage 3 failed.", "failed"),
    ],
)
def test_why_there_is_no_more_depth(
    watch: Any, server: Any, reason: str, text: str, without: str
) -> None:
    server.done, server.reason = 2, reason
    shown = open_page(watch, server)
    one(shown)
    expect(shown.locator("#status")).to_have_text(f"73 % sure. {text}")
    assert heads(shown) == ["2.5 ms", "5 ms", without]


@pytest.mark.parametrize(
    ("key", "shown_as", "microseconds"),
    [("Home", "1 ms", 1000), ("End", "1 s", 1_000_000), ("ArrowRight", "51 ms", 51_000)],
)
def test_deadlines_go_from_1_ms_to_1_s(
    watch: Any, server: Any, key: str, shown_as: str, microseconds: int
) -> None:
    shown = open_page(watch, server)
    slider = shown.get_by_role("slider", name="Deadline")
    slider.press(key)
    expect(shown.locator("#chosen")).to_have_text(shown_as)
    expect(slider).to_have_attribute("aria-valuetext", shown_as)
    one(shown)
    expect(shown.locator("#status")).to_contain_text("All 3 stages")
    assert server.received[-1].header["parameters"]["timeout"] == microseconds


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (504, "No answer in time: line <b>of</b> the server"),
        (503, "Refused at once: line <b>of</b> the server"),
        (429, "Refused at once: line <b>of</b> the server"),
    ],
)
def test_a_refusal_is_a_line(watch: Any, server: Any, status: int, text: str) -> None:
    shown = open_page(watch, server)
    one(shown)
    expect(shown.locator("#status")).to_contain_text("All 3 stages")
    server.refusal = (status, "line <b>of</b> the server")
    one(shown)
    expect(shown.locator("#status")).to_have_text(text)
    expect(shown.locator("#status")).to_have_class("bad")
    assert heads(shown) == (["too late"] * 3 if status == 504 else ["–"] * 3)
    expect(shown.locator("#label")).to_be_empty()


# -- safety ---------------------------------------------------------------------------------------
def test_names_are_text(watch: Any, server: Any) -> None:
    name, label = "<img src=x onerror=alert(1)>", "<b onclick='alert(2)'>seven</b>"
    server.models[name] = server.models.pop("digits")
    server.models[name].labels = [label] * 10
    shown = open_page(watch, server)
    expect(shown.get_by_label("Model").locator("option")).to_have_text(name)
    one(shown)
    expect(shown.locator("#label")).to_have_text(label)
    expect(shown.locator("tbody th").first).to_have_text(label)
    assert shown.locator("img, b[onclick]").count() == 0


def test_foreign_scripts_do_not_run(watch: Any, server: Any) -> None:
    watched = watch()
    shown = watched.open(server.url)
    blocked = shown.evaluate(
        """() => new Promise(resolve => {
          document.addEventListener("securitypolicyviolation",
            event => resolve(event.effectiveDirective));
          const script = document.createElement("script");
          try { script.text = "window.hacked = true"; document.body.append(script); }
          catch (error) { resolve(String(error)); }
        })"""
    )
    assert "script" in blocked.lower() or "trusted" in blocked.lower()
    assert shown.evaluate("window.hacked") is None
    watched.complaints.clear()  # of the script


def test_the_token_is_asked_for_and_kept_in_memory(watch: Any, server: Any) -> None:
    server.token = "open sesame"
    shown = watch().open(server.url)
    field = shown.get_by_label("Token")
    field.fill("wrong")
    field.press("Enter")
    expect(field).to_be_visible()
    expect(field).to_be_empty()
    field.fill(server.token)
    shown.get_by_role("button", name="Use").click()
    expect(shown.locator("#facts")).to_contain_text("classes")
    expect(field).to_be_hidden()
    one(shown)
    expect(shown.locator("#status")).to_contain_text("All 3 stages")
    assert server.received[-1].authorization == f"Bearer {server.token}"
    assert shown.evaluate(STORED) == [0, 0, ""]


# -- the live strip and the load ------------------------------------------------------------------
def test_the_strip_shows_what_the_server_counts(watch: Any, server: Any) -> None:
    server.metrics = lambda: metrics(server.polls)
    shown = open_page(watch, server)
    one(shown)
    expect(shown.locator("#chart-depth .now")).to_have_text("1.5")
    per_second = {
        key: float(shown.locator(f"#chart-{key} .now span").inner_text())
        for key in ("answered", "refused")
    }
    assert per_second["refused"] / per_second["answered"] == pytest.approx(1 / 4, rel=0.1)
    expect(shown.locator("#chart-load .now")).to_have_text(
        re.compile(r"^[1-9]\d* % \(stage 1: 25\)$")
    )
    assert shown.locator("#chart-depth path").last.get_attribute("d").startswith("M")


def test_a_server_without_metrics_is_not_polled(watch: Any, server: Any) -> None:
    server.metrics = None
    shown = open_page(watch, server)
    expect(shown.locator("#strip")).to_have_text("This server has no /metrics.")
    one(shown)
    expect(shown.locator("#status")).to_contain_text("All 3 stages")
    assert server.polls == 1


def metrics(polls: int) -> str:
    """As many answers of stage 1 as of stage 2, and half as many refusals, each time."""
    return f"""# TYPE anynest_answers counter
anynest_answers_total{{model="digits",version="1",stage="1"}} {10 * polls}
anynest_answers_total{{model="digits",version="1",stage="2"}} {10 * polls}
anynest_requests_total{{model="digits",outcome="answered",reason=""}} {20 * polls}
anynest_requests_total{{model="digits",outcome="refused",reason="late"}} {5 * polls}
anynest_step_seconds_sum{{model="digits",stage="1"}} {0.2 * polls}
anynest_mandatory_utilisation 0.25
"""


def test_the_load_is_bounded_and_stops(watch: Any, server: Any) -> None:
    watched = watch()
    watched.page.clock.install()
    shown = watched.open(server.url)
    expect(shown.locator("#facts")).to_contain_text("classes")
    server.done = 2
    button = shown.locator("#send")
    button.click()
    expect(button).to_have_text("Stop")
    shown.clock.run_for(10_100)
    expect(button).to_have_text("Send 200/s")
    expect(shown.locator("#result")).to_have_attribute("data-done", re.compile(r"\d+"))
    sent = int(shown.locator("#result").get_attribute("data-done"))
    assert 0 < sent <= 2000
    assert sum(received.rows for received in server.received) == sent
    assert {received.path.rpartition("/")[2] for received in server.received} == {"infer"}
    texts = shown.locator("#counts li").all_inner_texts()
    counts = {text.rpartition(" ")[0]: int(text.rpartition(" ")[2]) for text in texts}
    assert counts.pop("late") >= 0
    assert counts["stage 2"] == sent
    assert sum(counts.values()) == 2000
    shown.clock.run_for(5_000)
    assert sum(received.rows for received in server.received) == sent


def test_late_answers_are_counted_and_few_are_in_flight(watch: Any, server: Any) -> None:
    server.gate.clear()
    watched = watch()
    watched.page.clock.install()
    shown = watched.open(server.url)
    expect(shown.locator("#facts")).to_contain_text("classes")
    shown.get_by_role("slider").press("Home")
    shown.locator("#send").click()
    shown.clock.run_for(2_000)
    expect(shown.locator("#counts")).to_contain_text("connections busy")
    shown.wait_for_timeout(5)  # the deadline is 1 ms
    server.gate.set()
    shown.locator("#send").click()
    expect(shown.locator("#result")).to_have_attribute("data-done", re.compile(r"\d+"))
    assert int(shown.locator("#result").get_attribute("data-done")) >= 16
    expect(shown.locator("#counts li").last).to_have_text(re.compile(r"^late (1[6-9]|[2-9]\d)"))


@pytest.mark.parametrize("how", ["button", "hidden"])
def test_the_load_can_be_stopped(watch: Any, server: Any, how: str) -> None:
    server.refusal = (503, "no time")
    watched = watch()
    watched.page.clock.install()
    shown = watched.open(server.url)
    expect(shown.locator("#facts")).to_contain_text("classes")
    shown.locator("#send").click()
    shown.clock.run_for(1_000)
    expect(shown.locator("#counts")).to_contain_text(re.compile(r"refused [1-9]"))
    if how == "button":
        shown.locator("#send").click()
    else:
        shown.evaluate(HIDE, True)
    expect(shown.locator("#send")).to_have_text("Send 200/s")
    expect(shown.locator("#result")).to_have_attribute("data-done", re.compile(r"\d+"))
    count = len(server.received)
    shown.clock.run_for(10_000)
    assert len(server.received) == count


def test_a_hidden_page_does_not_poll(watch: Any, server: Any) -> None:
    watched = watch()
    watched.page.clock.install()
    shown = watched.open(server.url)
    expect(shown.locator("#health")).to_have_text("ready")
    shown.evaluate(HIDE, True)
    shown.evaluate(ROUND_TRIP)  # a poll that was on its way has been counted
    polls = server.polls
    for _ in range(4):
        shown.clock.run_for(1_100)
        shown.evaluate(ROUND_TRIP)
    assert server.polls == polls
    shown.evaluate(HIDE, False)
    with shown.expect_request("**/metrics"):
        shown.clock.run_for(1_100)


# -- looks ----------------------------------------------------------------------------------------
LOOKS = {
    "wide-light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 900}},
    "wide-dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 900}},
    "phone-light": {"color_scheme": "light", "viewport": {"width": 360, "height": 780}},
    "phone-dark": {"color_scheme": "dark", "viewport": {"width": 360, "height": 780}},
}
# the least contrast of any text with the nearest opaque background behind it (WCAG 2.2)
CONTRASTS = """() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = colour => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(value => value / 255)
    .map(value => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].filter(child => child.nodeType === 3)
      .map(child => child.data).join("").trim();
    const seen = node.checkVisibility({ visibilityProperty: true });
    if (!text || !seen || node.closest("#hint, script, option")) continue;
    let behind = node;
    while (rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const pair = [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor];
    const [a, b] = pair.map(colour => light(rgba(colour))).sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), text]);
  }
  return found;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("look", LOOKS)
def test_every_look_is_readable(watch: Any, server: Any, tmp_path: Path, look: str) -> None:
    """Set ANYNEST_SCREENSHOTS to a folder to keep the pictures."""
    server.models["digits"].labels = [f"class {number}" for number in range(10)]
    server.done = 2
    server.metrics = lambda: metrics(server.polls)
    shown = open_page(watch, server, **LOOKS[look])
    draw(shown, (0.3, 0.2), (0.7, 0.2), (0.45, 0.85))
    expect(shown.locator("#status")).to_contain_text("stage 3 was shed")
    expect(shown.locator("#chart-depth .now")).to_have_text("1.5")
    width = shown.evaluate("document.documentElement.scrollWidth")
    assert width <= LOOKS[look]["viewport"]["width"]
    contrasts = shown.evaluate(CONTRASTS)
    assert len(contrasts) > 30
    assert min(contrasts)[0] >= 4.5, min(contrasts)
    folder = Path(os.environ.get("ANYNEST_SCREENSHOTS", tmp_path))
    picture = Image.open(io.BytesIO(shown.screenshot(full_page=True, path=folder / f"{look}.png")))
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_every_control_has_a_name(watch: Any, server: Any) -> None:
    server.models["digits"].channels = 3
    shown = open_page(watch, server)
    for role, name in (
        ("combobox", "Model"),
        ("slider", "Deadline"),
        ("button", "Clear"),
        ("button", "Invert"),
        ("button", "Send 200/s"),
    ):
        expect(shown.get_by_role(role, name=name)).to_be_visible()
    for label in ("Choose a picture", "Colour of the ink"):
        expect(shown.get_by_label(label)).to_be_visible()
    expect(shown.get_by_role("application", name=re.compile("Drawing pad"))).to_be_visible()
    assert shown.locator("[aria-live], [role=status]").count() >= 1


def test_nothing_moves_where_motion_is_reduced(watch: Any, server: Any) -> None:
    shown = open_page(watch, server, reduced_motion="reduce")
    one(shown)
    expect(shown.locator("#status")).to_contain_text("All 3 stages")
    durations = "bars => bars.map(bar => getComputedStyle(bar).transitionDuration)"
    assert set(shown.locator(".bar i").evaluate_all(durations)) == {"0s"}
