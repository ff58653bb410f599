"""What the page looks like, to eyes and to screen readers."""

from __future__ import annotations

from page_driver import Page, type_message

LONG_ANSWER = " ".join(f"word{number}" for number in range(60))

CONTRASTS = """
const parse = (css) => css.match(/[\\d.]+/g).map(Number);
const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
const rgb = (css) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = css;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => {
    const c = v / 255;
    return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const backdrop = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = rgb(getComputedStyle(at).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return rgb("white");
};
const found = {};
for (const element of document.querySelectorAll("p, h1, h2, button, input, label, kbd, .unheard")) {
  if (!element.checkVisibility() || !(element.innerText || element.placeholder)) continue;
  const style = getComputedStyle(element);
  const pair = [luminance(rgb(style.color)), luminance(backdrop(element))].sort((a, b) => b - a);
  const name = `${element.tagName}#${element.id}.${element.className}`;
  found[name] = (pair[0] + 0.05) / (pair[1] + 0.05);
}
return found;
"""


def test_text_meets_wcag_aa_contrast_in_light_and_dark(typing: tuple[Page, str]) -> None:
    page, url = typing
    page.open(url)
    type_message(page, LONG_ANSWER)
    page.wait(lambda p: p.phase == "speaking" and p.events("omni.output_audio.played"))
    page.click("stop")
    page.wait(lambda p: p.text(".unheard"))
    page.click("talk")  # no microphone here: a notice
    page.wait(lambda p: p.text("#notice"))
    backgrounds = set()
    for _ in range(2):
        page.click("theme")
        page.wait(
            lambda p: p.js("return document.getAnimations().every((a) => !a.transitionProperty)")
        )
        contrasts = page.js(CONTRASTS)
        assert len(contrasts) >= 14
        assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}
        backgrounds.add(page.js("return getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_every_control_has_a_name_and_the_transcript_is_a_log(typing: tuple[Page, str]) -> None:
    page, url = typing
    page.open(url)
    page.driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = [(n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if "role" in n]
    controls = [(role, name) for role, name in roles if role in {"button", "textbox"}]
    assert len(controls) == 6
    assert all(name for _, name in controls), controls
    assert ("log", "Transcript") in roles
    assert ("main", "") in roles
    assert any(role == "status" for role, _ in roles)
