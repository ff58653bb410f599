"""What is said for what is written, and that every said word knows its original characters."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.speech.aligned import Aligned
from omni.speech.clauses import Clause
from omni.speech.phonemes import MAX_PHONEMES, Phonemizer
from omni.speech.speakable import announcement, speakable


@pytest.fixture(scope="module")
def phonemizer() -> Phonemizer:
    return Phonemizer()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("**Note:** this is *very* __important__.", "Note: this is very important."),
        ("## A heading ##", "A heading"),
        ("- [x] buy [milk](https://shop.example.com/a?b=c)", "buy milk"),
        ("1. First, wash it", "1, First, wash it"),
        ("> quoted", "quoted"),
        ("| Name | Age |", "Name, Age"),
        ("|------|-----|", ""),
        ("![a cat](cat.png)", "image: a cat"),
        ("as shown [1] before[^2]", "as shown before"),
        ("<b>bold</b> &amp; more<br/>next", "bold and more, next"),
        ("call `my_list.append(x)` now", "call my list dot append x now"),
        ("if `a == b && c` holds", "if a equals b and c holds"),
        ("see https://www.example.com/docs/getting-started?x=1#y.",
         "see example dot com slash docs slash getting started."),
        ("mail bob.x@my-site.com", "mail bob dot x at my dash site dot com"),
        ("$E = mc^2$", "E equals m c squared"),
        (r"\(\frac{a}{b}\) and $\sqrt{x}$", "a over b and the square root of x"),
        (r"$$\sum_{i=1}^{n} x_i$$", "the sum from i equals 1 to n of x sub i"),
        ("x ≥ 5 and y ≠ 2", "x is at least 5 and y is not equal to 2"),
        ("10⁻³ and H₂O and x²", "10 to the power of minus 3 and H2O and x squared"),
        ("20€ or 3.50 € or -$3", "€20 or €3.50 or minus $3"),
        ("$3-5 or $5/month", "3 to 5 dollars or $5 per month"),
        ("5 km² at 10 m/s", "5 square kilometers at 10 meters per second"),
        ("1 m, 2 m, 100g, 12V", "1 meter, 2 meters, 100 grams, 12 volts"),
        ("in 2h 30m or 1h 1m", "in 2 hours 30 minutes or 1 hour 1 minute"),
        ("v2.0.1 at 192.168.1.1", "version 2 point 0 point 1 at 192 dot 168 dot 1 dot 1"),
        ("on 31.12.2024", "on December 31, 2024"),
        ("100k users, 3x faster", "100 thousand users, 3 times faster"),
        ("1e-5", "1 times 10 to the power of minus 5"),
        ("1½ cups, ⅓ full", "1 and a half cups, a third full"),
        ("(555) 123-4567", "5 5 5, 1 2 3, 4 5 6 7"),
        ("e.g. a, i.e. b, etc. & C#", "for example a, that is b, et cetera and C sharp"),
        ("word -- word - word", "word — word — word"),
        ("2*3 and a * b", "2 times 3 and a times b"),
        ("done ✅ 😀 now", "done now"),
        ("the word こんにちは means hi", "the word Japanese text means hi"),
        ("привет мир", "Cyrillic text"),
        ("α and Ω", "alpha and capital omega"),
        ("Tiếng Việt, naïve", "Tieng Viet, naïve"),
        ("\x1b[31mred\x1b[0m and\x00 more", "red and more"),
        ("① Ⅷ ﬁne ３", "1 VIII fine 3"),
        ("item(s) 5-10% 9:00-17:00", "items 5 to 10% 9:00 to 17:00"),
    ],
)  # fmt: skip
def test_what_people_do_not_say_is_rewritten(written: str, said: str) -> None:
    assert speakable(Clause(written)).text.strip() == said


@pytest.mark.parametrize(
    "text",
    [
        "It costs $1,234.56.",
        "at 7:30 pm",
        "Jan 5, 2024",
        "5 km",
        "the 2nd of 3",
        "Dr. Smith",
        "50%",
    ],
)
def test_what_the_normalizer_reads_well_is_left_alone(text: str) -> None:
    assert speakable(Clause(text)) == Aligned.of(text)


def test_a_code_block_is_announced_by_its_language() -> None:
    assert speakable(Clause("\n```py", "fence")).text == "Python code."
    assert speakable(Clause("```", "fence")).text == "Code."
    assert speakable(Clause("\nx = 1", "code")).text == ""


def test_an_announcement_is_told_from_text() -> None:
    assert announcement(" Chinese text. ") == "Chinese text"
    assert announcement("Python code.") == "Python code"
    assert announcement("This is the text.") == announcement("The code.") == ""


def test_every_word_ends_at_its_original_characters() -> None:
    written = "Use **bold** and [a link](http://x.y) for 5 km² or `foo_bar`, see."
    said = speakable(Clause(written))
    ends = {
        word[0]: written[: said.num_chars(word.end())] for word in re.finditer(r"\S+", said.text)
    }
    assert ends["bold"] == "Use **bold**"
    assert ends["link"] == "Use **bold** and [a link](http://x.y)"
    assert ends["kilometers"].endswith("5 km²")
    assert ends["bar,"].endswith("`foo_bar`,")
    assert ends["see."] == written


MARKUP = ["**", "*", "_", "`", "$", "\\(", "{", "}", "[", "](http://x.y)", "# ", "- ", "|", "<b>",
          "&amp;", "5 km", "20€", "1e-5", "9" * 40, "1,000", "v1.2.3", "a@b.co", "😀", "é", "こん",
          "α", "½", "⁻³", "'", '"', "…", "—", "Dr.", "word", "the", ",", ".", "!", "\n", " ", " ",
          "٣", "①", "ª", "%", "12:30", "^2", "=", "~", "\x00", "Chapter IV", "->"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=80) | st.lists(st.sampled_from(MARKUP), max_size=30).map("".join))
def test_any_text_has_phonemes_with_growing_alignment(phonemizer: Phonemizer, text: str) -> None:
    said = speakable(Clause(text))
    assert len(said.ends) == len(said.text)
    assert list(said.ends) == sorted(said.ends)
    assert not said.ends or said.ends[-1] <= len(text)
    last = 0
    for phrase in phonemizer.phrases(said.text):
        assert len(phonemizer.ids(phrase.phonemes)) <= MAX_PHONEMES + 2
        position = 0
        for num_phonemes, num_chars in phrase.words:
            assert position < num_phonemes <= len(phrase.phonemes)
            assert last < num_chars <= len(said.text)
            position, last = num_phonemes, num_chars


def test_phonemes_say_what_the_whole_pipeline_says(phonemizer: Phonemizer) -> None:
    """Aligning takes the pipeline apart; put together it must say the same."""
    from hibari.g2p import G2P

    text = 'On Jan 5, 2024 at 7:30 pm, Dr. Smith paid $9.99 for 5 km of it\'s "rope" (red)!'
    (phrase,) = phonemizer.phrases(text)
    assert phrase.phonemes == G2P()(text)


def test_rewritten_words_align_to_the_words_they_replace(phonemizer: Phonemizer) -> None:
    text = "We ran 5 km on 12/25/2024 and stopped."
    (phrase,) = phonemizer.phrases(text)
    ends = [text[:num_chars].split()[-1] for _, num_chars in phrase.words]
    assert ends == ["We", "ran", "5", "km", "on", "12/25/2024", "and", "stopped."]


def test_a_very_long_word_is_split_for_the_model(phonemizer: Phonemizer) -> None:
    phrases = list(phonemizer.phrases("la" * 3000 + " " + "9 " * 400))
    assert len(phrases) > 1
    assert all(len(phrase.phonemes) <= MAX_PHONEMES for phrase in phrases)
