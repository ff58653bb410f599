"""The page that describes for those who use it: by keys alone, by screen reader, on any screen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from page_driver import Page, require_browser
from see_driver import (
    ENTER,
    ESCAPE,
    SHIFT,
    SPACE,
    TAB,
    VOICE,
    Describing,
    open_page,
    serving_sight,
    start,
    until,
    violations,
    watching,
)

Sight = tuple[Page, Describing, str]
SCREENS = [(320, 568), (390, 844), (768, 1024), (1280, 800)]

SQUEEZED = """
const problems = [];
if (document.documentElement.scrollWidth > innerWidth) {
  problems.push(`scrolls sideways: ${document.documentElement.scrollWidth} > ${innerWidth}`);
}
const top = document.querySelector("dialog[open]") ?? document.body;
const shown = [...top.querySelectorAll("button, select, label, h1, h2, p, video, #log, a")]
  .filter((element) => element.checkVisibility() && !element.closest(".visually-hidden"));
const boxes = shown.map((element) => [element, element.getBoundingClientRect()]);
for (const [element, box] of boxes) {
  const name = `${element.tagName}#${element.id} ${element.innerText?.slice(0, 20)}`;
  if (box.left < -0.5 || box.right > innerWidth + 0.5) problems.push(`cut off: ${name}`);
  if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0) {
    problems.push(`too narrow for its words: ${name}`);
  }
  const isTarget = element.matches("button, select, a, .check");
  if (isTarget && (box.height < 43.5 || box.width < 43.5)) {
    problems.push(`small target ${box.width} x ${box.height}: ${name}`);
  }
  for (const [other, theirs] of boxes) {
    if (other === element || other.contains(element) || element.contains(other)) continue;
    const width = Math.min(box.right, theirs.right) - Math.max(box.left, theirs.left);
    const height = Math.min(box.bottom, theirs.bottom) - Math.max(box.top, theirs.top);
    const isInLog = element.closest("#log") || other.closest("#log");
    if (width > 1 && height > 1 && !isInLog) {
      problems.push(`${name} overlaps ${other.tagName}#${other.id}`);
    }
  }
}
return problems;
"""


@pytest.fixture(scope="module")
def sight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sight]:
    require_browser()
    server = Describing()
    with (
        serving_sight(server) as url,
        watching(tmp_path_factory.mktemp("sight")) as page,
    ):
        yield page, server, url
        assert page.js("return watched.errors") == []


@pytest.fixture
def screen(sight: Sight) -> Iterator[Sight]:
    """Puts the screen back as it was."""
    yield sight
    sight[0].driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    sight[0].driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def resize(page: Page, width: int, height: int, *, scale: float = 1) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.wait(lambda p: p.js("return innerWidth") == width)


def prefer(page: Page, **features: str) -> None:
    wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})


def into_state(page: Page, server: Describing, url: str, state: str) -> None:
    """Bring the page there: start, running, settings, hazard, error."""
    if state == "start":
        open_page(page, url)
        return
    start(page, server, url)
    server.say("change", "A kitchen. A cup is on the table on the left, about 1 metre.")
    if state == "running":
        page.wait(lambda p: p.phase == "listening" and len(p.turns) == 1)
    if state == "settings":
        page.click("settings-open")
    if state == "hazard":
        server.say("hazard", "Car ahead, about 5 metres, coming nearer.")
        page.wait(lambda p: p.text("#hazard"))
    if state == "error":
        server.refuses = (1013, "rate_limit_exceeded")
        server.drop(1011)
        page.wait(lambda p: p.phase == "lost")


STATES = ["start", "running", "settings", "hazard", "error"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing_wrong(screen: Sight, state: str, scheme: str) -> None:
    page, server, url = screen
    prefer(page, prefers_color_scheme=scheme)
    into_state(page, server, url, state)
    assert violations(page) == []


def test_axe_would_find_something_wrong(sight: Sight) -> None:
    page, _, url = sight
    open_page(page, url)
    page.js("document.getElementById('talk').replaceChildren()")
    assert any(found.startswith("button-name") for found in violations(page))


@pytest.mark.parametrize(("width", "height"), SCREENS)
@pytest.mark.parametrize("state", STATES)
def test_nothing_is_cut_off_overlaps_or_is_too_small_to_hit(
    screen: Sight, state: str, width: int, height: int
) -> None:
    page, server, url = screen
    resize(page, width, height)
    into_state(page, server, url, state)
    assert page.js(SQUEEZED) == []
    if state == "start":
        box = page.js("return document.getElementById('talk').getBoundingClientRect().toJSON()")
        wide = page.js("return document.documentElement.clientWidth")
        assert box["width"] >= min(wide, 960) - 36, "the one button is as wide as the page"
        assert box["height"] >= 160
        assert box["bottom"] <= height


@pytest.mark.parametrize("state", STATES)
def test_text_twice_as_large_still_fits(screen: Sight, state: str) -> None:
    page, server, url = screen
    resize(page, 640, 400, scale=2)  # 200% of 1280 x 800
    into_state(page, server, url, state)
    assert page.js(SQUEEZED) == []
    resize(page, 320, 568)
    page.js("document.documentElement.style.fontSize = '200%'")  # larger text alone
    width = page.js("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]


def test_nothing_moves_for_those_who_asked_for_that(screen: Sight) -> None:
    page, server, url = screen
    prefer(page, prefers_reduced_motion="reduce")
    for state in STATES:
        into_state(page, server, url, state)
        moving = page.js(
            "return document.getAnimations().filter(({playState}) => playState === 'running')"
            ".length"
        )
        assert moving == 0, state


def test_everything_is_reached_and_worked_with_keys_alone(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    name = (
        "const at = document.activeElement; return at.id || at.dataset.command || at.name ||"
        " at.href || at.tagName"
    )
    assert page.focused == "talk"
    reached = []
    for _ in range(20):
        page.press(TAB)
        reached.append(page.js(name))
        if reached[-1] == "other-page":
            break
    assert reached[:-1] == [
        *("front", "read", "repeat", "more", "quiet", "stop", "camera", "help"),
        *("settings-open", "end", "log"),
    ]
    for _ in range(len(reached)):
        page.press(SHIFT, TAB)
    assert page.focused == "talk", "it is the first"
    page.press(TAB)
    assert page.js(name) == "front"
    page.press(ENTER)
    until(page, lambda: server.commands == ["front"])
    page.press(TAB)
    page.press(SPACE)
    until(page, lambda: server.commands == ["front", "read"])

    page.js("document.getElementById('settings-open').focus()")
    page.press(ENTER)
    page.wait(lambda p: p.focused == "spokenBy")
    inside = []
    for _ in range(12):
        inside.append(page.js(name))
        if inside[-1] == "settings-close":
            break
        page.press(TAB)
    assert inside == [
        *("spokenBy", "verbosity", "speed", "directions", "units", "listening"),
        *("hazards", "earcons", "shortcuts", "settings-close"),
    ]
    page.press("r")  # letters choose in the form; they are no commands there
    page.press(ESCAPE)
    page.wait(lambda p: p.focused == "settings-open")
    assert server.commands == ["front", "read"]

    page.js("document.getElementById('end').focus()")
    page.press(ENTER)
    page.wait(lambda p: p.phase == "ended" and p.focused == "talk")
    page.press(SPACE)
    page.wait(lambda p: p.phase == "listening")


def test_focus_is_always_to_be_seen(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    page.js("document.activeElement.blur()")
    for _ in range(12):
        page.press(TAB)
        style = page.js(
            "const {outlineStyle, outlineWidth} = getComputedStyle(document.activeElement);"
            "return [outlineStyle, parseFloat(outlineWidth)]"
        )
        assert style[0] != "none"
        assert style[1] >= 2


def test_names_roles_and_keys_are_told_to_the_screen_reader(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    page.driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = [
        (n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if not n["ignored"]
    ]
    names = [name.strip() for role, name in found if role == "button"]
    assert names == [
        "Listening. Press to turn the microphone off",
        *("What is in front of me", "Read text", "Repeat", "More", "Quiet"),
        *("Stop speaking", "Switch camera", "Help", "Settings", "End"),
    ]
    assert ("log", "What was said") in found
    assert ("main", "") in found
    assert len([role for role, _ in found if role == "status"]) == 1, "one announcer"
    assert not [name for role, name in found if role == "Video"], "the picture is for others"
    keys = page.js(
        "return Object.fromEntries([...document.querySelectorAll('[data-command]')]"
        ".map((e) => [e.dataset.command, e.ariaKeyShortcuts ?? e.getAttribute('aria-keyshortcuts')"
        "]))"
    )
    assert keys == {
        "front": "F",
        "read": "T",
        "repeat": "R",
        "more": "M",
        "quiet": "Q",
        "stop": "Escape",
        "camera": "C",
        "help": "?",
    }
    page.press(SHIFT, "?")
    page.wait(lambda p: "T: read text" in p.text("#announcer"))


def test_limits_and_privacy_are_written_on_the_page(sight: Sight) -> None:
    page, _, url = sight
    open_page(page, url)
    warning = "Not a mobility aid. It does not see steps, kerbs or glass."
    assert page.text("#mobility") == warning
    described = page.js(
        "return document.getElementById(document.getElementById('talk')"
        ".getAttribute('aria-describedby')).textContent"
    )
    assert described == warning, "a screen reader says it with the first button"
    assert "keeps no picture unless" in page.text("#privacy")
    assert "tells you" in page.text("#privacy")


def test_a_server_that_keeps_pictures_is_said_aloud_once_and_stays_written(sight: Sight) -> None:
    page, server, url = sight
    words = "This server keeps the pictures of your camera."
    open_page(page, url)
    page.js(VOICE)
    server.refuses, server.is_recording = None, True
    try:
        page.press(ENTER)
        page.wait(lambda p: p.phase == "listening")
        page.wait(lambda p: words in p.js("return watched.spoken"))
        server.send(server.updated())
        server.say("change", "A dog on the left.")
        page.wait(lambda p: "A dog" in p.text("#turns"))
    finally:
        server.is_recording = False
    assert page.js("return watched.spoken").count(words) == 1
    assert words in page.text("#privacy")
    assert "keeps no picture" not in page.text("#privacy")
    server.drop(1011)  # the next server keeps none
    page.press(ENTER)
    page.wait(lambda p: "keeps no picture unless" in p.text("#privacy"))


def test_hazard_is_told_apart_by_words_not_by_colour_alone(sight: Sight) -> None:
    page, server, url = sight
    into_state(page, server, url, "hazard")
    kinds = page.js(
        "return [...document.querySelectorAll('.turn')].map((turn) => ["
        "turn.querySelector('.who').textContent, getComputedStyle(turn).backgroundColor])"
    )
    assert [who for who, _ in kinds] == ["Omni sees", "Warning"]
    assert kinds[0][1] != kinds[1][1]
    before = page.js(
        "return getComputedStyle(document.getElementById('hazard'), '::before').content"
    )
    assert before == '"Warning: "'
