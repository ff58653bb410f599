"""The page's audio worklets, rendered in a real browser."""

from __future__ import annotations

import numpy as np
import pytest
from page_driver import Page

RENDER = """
const [rate, seconds, code, done] = arguments;
(async () => {
  const context = new OfflineAudioContext(1, rate * seconds, rate);
  await new Function("context", `return (async () => {${code}})()`)(context).then(done);
})();
"""


def offline(page: Page, rate_hz: int, seconds: float, code: str) -> list[float]:
    """Run ``code`` on an offline audio context in the page; it returns samples."""
    samples: list[float] = page.driver.execute_async_script(RENDER, rate_hz, seconds, code)
    return samples


CAPTURE_TONE = """
await context.audioWorklet.addModule("capture-worklet.js");
const tone = new OscillatorNode(context, {frequency: %s});
const node = new AudioWorkletNode(context, "capture", {numberOfOutputs: 1});
const samples = [];
node.port.onmessage = ({data}) => samples.push(...new Int16Array(data.pcm));
tone.connect(node).connect(context.destination);
tone.start();
await context.startRendering();
await new Promise((resolve) => setTimeout(resolve, 100));  // the last messages
return samples.map((sample) => sample / 32767);
"""


@pytest.mark.parametrize("rate_hz", [24_000, 44_100, 48_000])
def test_microphone_of_any_rate_becomes_24_khz_without_aliases(
    typing: tuple[Page, str], rate_hz: int
) -> None:
    page, url = typing
    page.open(url)
    tone = np.array(offline(page, rate_hz, 1, CAPTURE_TONE % 1000))
    assert len(tone) == pytest.approx(24_000, abs=600)
    middle = tone[4800:19_200]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * 24_000 / len(middle) == pytest.approx(1000, abs=2)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(np.sqrt(0.5), rel=0.02)
    if rate_hz > 24_000:  # above half of 24 kHz: must vanish, not fold back
        folded = np.array(offline(page, rate_hz, 1, CAPTURE_TONE % 16_000))[4800:19_200]
        assert np.sqrt(np.mean(folded**2)) < 0.005


PLAY_PIECES = """
await context.audioWorklet.addModule("playback-worklet.js");
const options = {numberOfInputs: 0, outputChannelCount: [1]};
const node = new AudioWorkletNode(context, "playback", options);
const reports = [];
node.port.onmessage = ({data}) => reports.push(data);
let from = 0;
for (const length of [1, 127, 128, 129, 1000, 7, 4000]) {
  const samples = Float32Array.from({length}, (_, index) => (from + index + 1) / 10000);
  node.port.postMessage({type: "push", item: "a", samples}, [samples.buffer]);
  from += length;
}
node.port.postMessage({type: "end", item: "a"});
node.connect(context.destination);
await new Promise((resolve) => setTimeout(resolve, 100));  // let the messages arrive
const rendered = (await context.startRendering()).getChannelData(0);
await new Promise((resolve) => setTimeout(resolve, 100));
return [...rendered, ...reports.map(({samples}) => samples)];
"""


def test_pieces_of_speech_are_played_without_a_gap_and_counted_exactly(
    typing: tuple[Page, str],
) -> None:
    page, url = typing
    page.open(url)
    result = offline(page, 24_000, 1, PLAY_PIECES)
    rendered, reports = np.array(result[:24_000]), result[24_000:]
    num_samples = 1 + 127 + 128 + 129 + 1000 + 7 + 4000
    expected = np.arange(1, num_samples + 1) / 10_000
    np.testing.assert_allclose(rendered[:num_samples], expected, atol=1e-6)
    assert not rendered[num_samples:].any()
    assert reports == [0, 1200, 2400, 3600, 4800, num_samples]
