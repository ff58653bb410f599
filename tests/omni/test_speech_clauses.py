"""The clause splitter: where it cuts, and that chunking never changes it."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.speech.clauses import Clause, ClausePolicy, Splitter

FRAGMENTS = [
    "Hello", "world", "and", "the", "Dr.", "e.g.", "U.S.", "3.14", "1,000", ".", ",", "?!", "...",
    ":", ";", "—", " - ", "\n", "\n\n", "```", "~~~", "`", "**", "[", "](http://x.y)", "$$", "\\(",
    "\\)", "- ", "1. ", "# ", "|", "(", ")", '"', "”", "😀", "。", "，", "é", "こん", " ", " ", " ",
    "\x00", "\t", "word" * 30,
]  # fmt: skip


def clauses(text: str, policy: ClausePolicy | None = None) -> list[Clause]:
    return list(Splitter(policy or ClausePolicy()).push(text).cuts(final=True))


def texts(text: str) -> list[str]:
    return [clause.text for clause in clauses(text)]


def in_chunks(text: str, cuts: list[int]) -> list[Clause]:
    """The clauses of ``text`` pushed in pieces that end at ``cuts``, each cut off at once."""
    splitter, found = Splitter(ClausePolicy()), list[Clause]()
    bounds = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    for begin, end in itertools.pairwise(bounds):
        splitter = splitter.push(text[begin:end])
        while (cut := splitter.cut()) is not None:
            clause, splitter = cut
            found.append(clause)
    return found + list(splitter.cuts(final=True))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join), st.data())
def test_any_chunking_gives_the_same_clauses(text: str, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=20))
    assert in_chunks(text, cuts) == in_chunks(text, []) == in_chunks(text, list(range(len(text))))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_clauses_concatenate_to_the_text(text: str) -> None:
    assert "".join(texts(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes. It is.", ["Yes.", " It is."]),
        ("Dr. Smith paid $3.14 to J. K. Rowling.", ["Dr. Smith paid $3.14", " to J. K. Rowling."]),
        ("In the U.S. Army. Yes", ["In the U.S. Army.", " Yes"]),
        ("Fruit, e.g. apples. More", ["Fruit, e.g. apples.", " More"]),
        ("It is 5 p.m. now. Go", ["It is 5 p.m. now.", " Go"]),
        ('He said "Stop!" Then he left.', ['He said "Stop!"', " Then he left."]),
        ("What?! No...", ["What?!", " No..."]),
        ("Wait... what is this", ["Wait... what is this"]),
        ("See example.com now. Bye", ["See example.com now.", " Bye"]),
        ("你好。再见！", ["你好。", "再见！"]),
    ],
)
def test_sentences_end_where_a_reader_would_stop(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


def test_the_first_clause_ends_at_a_comma_after_three_words() -> None:
    assert texts("Well, of course, you can, my friend") == [
        "Well, of course,",
        " you can, my friend",
    ]


def test_a_comma_is_spoken_without_waiting_for_what_follows() -> None:
    cut = Splitter(ClausePolicy()).push("Of course you can,").cut()
    assert cut is not None
    assert cut[0].text == "Of course you can,"


def test_a_comma_in_a_number_is_no_end() -> None:
    assert Splitter(ClausePolicy()).push("There are about 1,").cut() is None
    assert texts("There are about 1,250 of them")[0].startswith("There are about 1,250")


def test_the_first_clause_without_punctuation_is_cut_at_a_word_boundary() -> None:
    text = "the quick brown fox jumps over the lazy dog again and again"
    first = texts(text)[0]
    assert len(first.split()) <= ClausePolicy().first_max_words
    assert text[len(first)] == " "


def test_later_clauses_are_whole_sentences() -> None:
    text = "Sure thing, friend. " + "First one, then two, then three. " * 3
    assert texts(text.strip())[1:] == [" First one, then two, then three."] * 3


def test_a_long_sentence_is_cut_within_the_limits() -> None:
    policy = ClausePolicy()
    for clause in clauses("word " * 500)[1:]:
        assert len(clause.text.split()) <= policy.max_words
    for clause in clauses("x" * 5000):
        assert len(clause.text) <= policy.max_chars


def test_a_span_that_must_stay_whole_is_not_cut() -> None:
    text = "Call `a. B, c` or [a link. Yes, a link](http://x.y) or \\(a, b. C\\) now"
    for span in ("`a. B, c`", "[a link. Yes, a link]", "\\(a, b. C\\)"):
        assert any(span in clause for clause in texts(text))


def test_an_open_bracket_does_not_hold_speech_back_for_ever() -> None:
    splitter = Splitter(ClausePolicy()).push("This [is open. " + "and goes on. " * 60)
    assert splitter.cut() is not None


def test_wrapped_lines_are_one_sentence_and_list_items_are_not() -> None:
    assert texts("a line that\ngoes on here. End") == ["a line that\ngoes on here.", " End"]
    assert texts("Take:\n- milk\n- bread") == ["Take:", "\n- milk", "\n- bread"]
    assert texts("# Title\nText") == ["# Title", "\nText"]


def test_a_code_block_is_one_announcement_and_silent_lines() -> None:
    text = "Try this:\n```python\nprint('a. B')\n\nx = 1\n```\nDone."
    assert [(clause.kind, clause.text) for clause in clauses(text)] == [
        ("prose", "Try this:"),
        ("fence", "\n```python"),
        ("code", "\nprint('a. B')"),
        ("code", "\n\nx = 1"),
        ("code", "\n```"),
        ("prose", "\nDone."),
    ]


def test_a_code_block_is_announced_before_it_is_complete() -> None:
    splitter = Splitter(ClausePolicy()).push("```py\nimport")
    assert [clause.kind for clause in splitter.cuts()] == ["fence"]


def test_cutting_a_long_answer_takes_linear_time() -> None:
    """Each decision sees a bounded look ahead, so one letter more costs no more at the end."""
    splitter = Splitter(ClausePolicy())
    longest = 0
    for letter in re.sub(r"\s+", " ", "Lorem ipsum dolor sit amet, consectetur. " * 60):
        splitter = splitter.push(letter)
        while (cut := splitter.cut()) is not None:
            splitter = cut[1]
        longest = max(longest, len(splitter.pending))
    assert longest <= 2 * ClausePolicy().max_chars
