"""The modules of the page that describes, each by itself, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from page_driver import Page, chromium, require_browser
from see_driver import Describing, open_page, serving_sight
from test_page_sound import RENDER


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    require_browser()
    with (
        serving_sight(Describing()) as url,
        chromium(tmp_path_factory.mktemp("profile")) as page,
    ):
        open_page(page, url)
        yield page


def run(page: Page, code: str, *arguments: object) -> Any:
    """Run ``code`` as the body of an async function in the page; returns its value."""
    return page.driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        f"(async (...given) => {{{code}}})(...arguments).then(done, (e) => done(`${{e.stack}}`))",
        *arguments,
    )


def test_pace_halves_and_shrinks_while_behind_and_recovers(page: Page) -> None:
    found = run(
        page,
        "const {Pace} = await import('/frames.js');"
        "const pace = new Pace();"
        "const at = (bytes, hidden = false) => pace.next(bytes, hidden);"
        "return [at(0), at(1e6), at(1e6), at(1e6), at(1e6),"
        "...Array.from({length: 12}, () => at(0)), at(0, true)]",
    )
    assert found[0] == {"maySend": True, "side": 640, "waitMs": 300}
    behind = found[1:5]
    assert [step["waitMs"] for step in behind] == [600, 1200, 2400, 2400]
    assert [step["side"] for step in behind] == [480, 320, 320, 320]
    assert not any(step["maySend"] for step in behind)
    waits = [step["waitMs"] for step in found[5:17]]
    assert waits == sorted(waits, reverse=True)
    assert found[16] == found[0]
    assert found[17]["waitMs"] == 2000


def test_picture_counts_as_frozen_after_ten_seconds_without_any_change(page: Page) -> None:
    found = run(
        page,
        "const {Stillness} = await import('/camera.js');"
        "const watch = new Stillness();"
        "const same = [1, 2, 3], other = [1, 2, 4];"
        "return [[same, 0], [same, 9999], [same, 10000], [other, 10300], [other, 20299],"
        "[other, 20300]].map(([pixels, ms]) => watch.look(new Uint8ClampedArray(pixels), ms))",
    )
    assert found == [False, False, True, False, False, True]


def test_sentences_do_not_depend_on_how_the_text_was_cut(page: Page) -> None:
    text = 'A cup is 2.5 m away. "Stop!" says the sign. Is that a dog? I am not sure… It moves'
    found = run(
        page,
        "const {Sentences} = await import('/announcer.js');"
        "const [text] = given;"
        "return [1, 2, 3, 7, 1000].map((length) => {"
        "  const sentences = new Sentences(), found = [];"
        "  for (let k = 0; k < text.length; k += length) {"
        "    found.push(...sentences.push(text.slice(k, k + length)));"
        "  }"
        "  return [...found, sentences.end()]; })",
        text,
    )
    assert found[0] == [
        "A cup is 2.5 m away.",
        '"Stop!" says the sign.',
        "Is that a dog?",
        "I am not sure…",
        "It moves",
    ]
    assert all(sentences == found[0] for sentences in found)


ANNOUNCER = """
const {Announcer} = await import("/announcer.js");
const status = document.createElement("p"), alert = document.createElement("p");
const log = [];
const startedMs = performance.now();
for (const [name, element] of Object.entries({status, alert})) {
  new MutationObserver((changes) => {
    for (const {addedNodes, removedNodes} of changes) {
      const ms = Math.round(performance.now() - startedMs);
      for (const {data} of removedNodes) log.push([name, "-", data, ms]);
      for (const {data} of addedNodes) log.push([name, "+", data, ms]);
    }
  }).observe(element, {childList: true});
}
const announcer = new Announcer(status, alert, () => false);
announcer.setReader(true);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
%s
return log;
"""


def test_sentences_that_come_together_are_one_announcement_after_600_ms(page: Page) -> None:
    code = "announcer.sentence('One.'); await sleep(200); announcer.sentence('Two.');"
    (only,) = run(page, ANNOUNCER % (code + "await sleep(1500);"))
    assert only[:3] == ["status", "+", "One. Two."]
    assert only[3] >= 800


def test_same_words_twice_are_cleared_before_they_are_set_again(page: Page) -> None:
    code = "announcer.tell('Again.'); await sleep(900); announcer.tell('Again.'); await sleep(900);"
    assert [entry[:3] for entry in run(page, ANNOUNCER % code)] == [
        ["status", "+", "Again."],
        ["status", "-", "Again."],
        ["status", "+", "Again."],
    ]


def test_words_that_never_pause_are_announced_all_the_same(page: Page) -> None:
    code = "for (let k = 0; k < 15; k += 1) { announcer.sentence(`${k}.`); await sleep(200); }"
    first = run(page, ANNOUNCER % code)[0]
    assert first[2].startswith("0. 1. 2.")
    assert first[3] <= 2900


def test_hazard_is_set_in_the_alert_at_once_and_drops_what_waits(page: Page) -> None:
    code = "announcer.sentence('A shop.'); announcer.hazard('Car ahead.'); await sleep(1500);"
    (only,) = run(page, ANNOUNCER % code)
    assert only[:3] == ["alert", "+", "Car ahead."]
    assert only[3] < 600


def test_stop_drops_what_waits_to_be_announced(page: Page) -> None:
    code = "announcer.sentence('A shop.'); await sleep(100); announcer.clear(); await sleep(1200);"
    assert run(page, ANNOUNCER % code) == []


def test_browsers_voice_waits_for_omnis_and_says_everything_once(page: Page) -> None:
    spoken = run(
        page,
        "const {Announcer} = await import('/announcer.js');"
        "const spoken = [];"
        "speechSynthesis.getVoices = () => [{}];"
        "speechSynthesis.speak = ({text}) => spoken.push(text);"
        "let isSpeaking = true;"
        "const region = document.createElement('p');"
        "const announcer = new Announcer(region, region, () => isSpeaking);"
        "const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));"
        "announcer.tell('One.'); announcer.tell('Two.');"
        "await sleep(300); const early = spoken.length; isSpeaking = false; await sleep(300);"
        "announcer.tell('Three.');"
        "delete speechSynthesis.getVoices; delete speechSynthesis.speak;"
        "return [early, ...spoken, region.textContent]",
    )
    assert spoken == [0, "One. Two.", "Three.", ""]


EARCON = """
const {Earcons} = await import("/earcons.js");
const earcons = new Earcons();
earcons.open(context);
const ms = earcons.play("%s");
const rendered = (await context.startRendering()).getChannelData(0);
return [ms, ...rendered];
"""


def test_each_state_has_its_own_short_sound(page: Page) -> None:
    names = ["connected", "cameraOn", "cameraOff", "heartbeat", "lost", "hazard", "talk", "sent"]
    sounds = {}
    for name in names:
        ms, *samples = page.driver.execute_async_script(RENDER, 24_000, 1, EARCON % name)
        sounds[name] = np.array(samples)
        audible = np.flatnonzero(np.abs(sounds[name]) > 0.003)
        assert audible.size > 0, name
        assert audible[-1] <= ms * 24 + 24
        assert ms <= 700
        assert np.abs(np.diff(sounds[name])).max() < 0.2, f"{name} clicks"
    loudest = {name: np.abs(sound).max() for name, sound in sounds.items()}
    assert loudest["hazard"] == max(loudest.values())
    assert loudest["heartbeat"] == min(loudest.values())
    for name in names:
        for other in names[names.index(name) + 1 :]:
            assert np.abs(sounds[name] - sounds[other]).max() > 0.02, (name, other)


def test_tick_comes_after_15_s_of_silence_only_while_sounds_are_on(page: Page) -> None:
    found = run(
        page,
        "const {Earcons} = await import('/earcons.js');"
        "const earcons = new Earcons();"
        "earcons.open(new OfflineAudioContext(1, 24000, 24000));"
        "const played = [];"
        "const plain = earcons.play.bind(earcons);"
        "earcons.play = (name) => { const ms = plain(name); if (ms) played.push(name); };"
        "const now = performance.now;"
        "let ms = 100000;"
        "performance.now = () => ms;"
        "try {"
        "  earcons.noteSound(); earcons.beat();"
        "  ms += 14999; earcons.beat(); const before = played.length;"
        "  ms += 1; earcons.beat(); earcons.beat(); const after = played.length;"
        "  earcons.isOn = false; ms += 60000; earcons.beat();"
        "  return [before, after, played.length];"
        "} finally { performance.now = now; }",
    )
    assert found == [0, 1, 1]


def test_settings_that_are_not_known_fall_back_to_their_defaults(page: Page) -> None:
    found = run(
        page,
        "const {Settings} = await import('/see-settings.js');"
        "localStorage.setItem('omni.see', JSON.stringify({verbosity: 'loud', units: 'steps'}));"
        "const kept = new Settings();"
        "localStorage.setItem('omni.see', '{');"
        "const broken = new Settings();"
        "localStorage.clear();"
        "return [kept.verbosity, kept.units, broken.units]",
    )
    assert found == ["normal", "steps", "metric"]
