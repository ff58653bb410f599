"""Items, what of them was heard, and the context they make."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from omni_streaming.conversation import (
    MAX_HISTORY_AUDIO_BYTES,
    Content,
    Item,
    ItemList,
    Spoken,
    estimate_tokens,
)

from omni.types import AudioPart, CallPart, Mark, ResultPart, TextPart
from tests.streaming.invariants import check_context

TEXT = "one two three four"
SECOND = 24_000


def user(item_id: str, text: str = "hello") -> Item:
    return Item(item_id, "message", "user", [Content("input_text", text)])


def turn(item_id: str, transcript: str | None) -> Item:
    return Item(item_id, "message", "user", [Content("input_audio", transcript, item_id)])


def call(item_id: str, call_id: str, response_id: str | None = None) -> Item:
    return Item(
        item_id, "function_call", name="f", arguments="{}", call_id=call_id, response_id=response_id
    )


def output(item_id: str, call_id: str) -> Item:
    return Item(item_id, "function_call_output", call_id=call_id, output="42")


def spoken(item_id: str = "a1", *, is_complete: bool = True) -> Item:
    """TEXT spoken in four seconds, a word each, sent one second apart from time 10 s on."""
    speech = Spoken()
    for index, end in enumerate((3, 7, 13, 18)):
        speech.add(SECOND, [Mark((index + 1) * SECOND, end)], 10_000 + 1000 * index)
    speech.is_complete = is_complete
    content = [Content("output_audio", TEXT)]
    item = Item(item_id, "message", "assistant", content, response_id="r1", spoken=speech)
    item.status = "completed" if is_complete else "in_progress"
    return item


def speech_of(item: Item) -> Spoken:
    assert item.spoken is not None
    return item.spoken


def rendered(*items: Item) -> list[tuple[str, tuple[object, ...]]]:
    listed = ItemList()
    for item in items:
        listed.insert(item)
    context = listed.render("", ())
    check_context(context)
    return [(m.role, m.parts) for m in context.messages]


# --- What was heard ------------------------------------------------------------------------------


def test_the_clock_counts_audio_as_played_in_real_time() -> None:
    speech = speech_of(spoken())
    assert speech.played_samples(9_000) == 0
    assert speech.played_samples(11_500) == SECOND + SECOND // 2
    assert speech.played_samples(99_000) == 4 * SECOND


def test_an_underrun_stops_the_clock() -> None:
    speech = Spoken()
    speech.add(SECOND, [], 1_000)
    speech.add(SECOND, [], 5_000)  # came late: the client was silent from 2 s to 5 s
    assert speech.played_samples(4_000) == SECOND
    assert speech.played_samples(5_500) == SECOND + SECOND // 2


def test_words_count_as_heard_when_their_last_sample_was_played() -> None:
    speech = speech_of(spoken())
    assert speech.heard(TEXT) == TEXT
    speech.stop(12_999)
    assert speech.heard(TEXT) == "one two"


def test_a_report_beats_the_clock_and_truncation_beats_the_report() -> None:
    speech = speech_of(spoken())
    speech.stop(13_000)
    assert speech.heard(TEXT) == "one two three"
    speech.report(1_200, 13_050)
    assert speech.heard(TEXT) == "one"
    speech.truncated_ms = 2_000
    assert speech.heard(TEXT) == "one two"
    speech.report(4_000, 13_100)
    assert speech.heard(TEXT) == "one two"


def test_the_clock_goes_on_from_the_last_report() -> None:
    speech = speech_of(spoken())
    speech.report(0, 11_500)  # the client began to play 1.5 s late
    assert speech.played_samples(12_500) == SECOND
    speech.stop(13_600)
    assert speech.heard(TEXT) == "one two"


def test_an_answer_is_not_cut_by_speech_long_after_its_last_report() -> None:
    item = spoken()
    items = ItemList()
    items.insert(item)
    speech_of(item).report(1_000, 11_000)
    items.stop_speech(60_000)
    assert speech_of(item).heard(TEXT) == TEXT


def test_only_the_first_stop_counts() -> None:
    speech = speech_of(spoken())
    speech.stop(11_000)
    speech.stop(14_000)
    assert speech.heard(TEXT) == "one"


def test_an_answer_still_being_made_is_heard_as_far_as_its_audio() -> None:
    speech = Spoken()
    speech.add(SECOND, [Mark(SECOND, 3)], 0)
    speech.stop(60_000)
    assert speech.heard("one two three") == "one"


def test_nothing_played_is_nothing_heard() -> None:
    item = spoken()
    speech_of(item).stop(9_000)
    assert rendered(user("u1"), item) == [("user", (TextPart("hello"),))]


def test_without_alignment_whole_words_count_in_proportion() -> None:
    speech = Spoken()
    speech.add(4 * SECOND, [], 0)
    speech.is_complete = True
    speech.stop(2_600)
    assert speech.heard("aaaa bbbb cccc dddd") == "aaaa bbbb "


def test_marks_count_from_the_start_of_the_response() -> None:
    speech = Spoken(first_char=10, first_sample=SECOND)
    speech.add(2 * SECOND, [Mark(2 * SECOND, 14), Mark(3 * SECOND, 18)], 0)
    speech.stop(1_000)
    assert speech.heard("four five") == "four"


@given(
    stop_ms=st.integers(8_000, 16_000),
    later_ms=st.integers(8_000, 16_000),
    is_complete=st.booleans(),
)
def test_what_was_heard_is_a_prefix_and_grows_with_time(
    stop_ms: int, later_ms: int, is_complete: bool
) -> None:
    first, second = speech_of(spoken(is_complete=is_complete)), speech_of(spoken())
    second.is_complete = is_complete
    first.stop(min(stop_ms, later_ms))
    second.stop(max(stop_ms, later_ms))
    assert TEXT.startswith(first.heard(TEXT))
    assert second.heard(TEXT).startswith(first.heard(TEXT))


# --- Items ---------------------------------------------------------------------------------------


def test_items_are_inserted_first_after_and_last() -> None:
    items = ItemList()
    assert items.insert(user("b")) is None
    assert items.insert(user("d")) == "b"
    assert items.insert(user("a"), "root") is None
    assert items.insert(user("c"), "b") == "b"
    assert [i.id for i in items] == ["a", "b", "c", "d"]
    assert items.previous_id("c") == "b"
    with pytest.raises(KeyError):
        items.insert(user("e"), "nothing")


def test_a_deleted_item_is_gone_with_its_audio() -> None:
    items = ItemList()
    items.insert(turn("t1", "hi"))
    items.keep_audio("t1", bytes(100), 16_000)
    assert items.delete("t1") is not None
    assert items.delete("t1") is None
    assert items.audio("t1") is None
    items.keep_audio("t1", bytes(100), 16_000)
    assert items.audio("t1") is None


def test_kept_audio_is_bounded_and_the_oldest_goes_first() -> None:
    items = ItemList()
    size = MAX_HISTORY_AUDIO_BYTES // 4
    for index in range(6):
        items.insert(turn(f"t{index}", "hi"))
        items.keep_audio(f"t{index}", bytes(size), 16_000)
    assert [items.audio(f"t{i}") is not None for i in range(6)] == [False] * 2 + [True] * 4


# --- The context ---------------------------------------------------------------------------------


def test_turns_are_audio_and_silent_turns_are_left_out() -> None:
    assert rendered(turn("t1", None), turn("t2", ""), turn("t3", "hi")) == [
        ("user", (AudioPart("t1"),)),
        ("user", (AudioPart("t3", "hi"),)),
    ]


def test_an_answer_being_made_and_a_notice_are_left_out() -> None:
    notice = Item("n", "message", "assistant", [Content("output_text", "Sorry")], is_notice=True)
    assert rendered(spoken(is_complete=False), notice) == []


def test_the_items_of_one_response_are_one_message() -> None:
    context = rendered(spoken(), call("c1", "x", "r1"), output("o1", "x"), call("c2", "y", "r2"))
    assert context == [
        ("assistant", (TextPart(TEXT), CallPart("x", "f", "{}"))),
        ("tool", (ResultPart("x", "42"),)),
        ("assistant", (CallPart("y", "f", "{}"),)),
    ]


def test_an_output_without_its_call_is_left_out() -> None:
    assert rendered(output("o1", "x"), call("c1", "x")) == [
        ("assistant", (CallPart("x", "f", "{}"),))
    ]


def listed(count: int) -> ItemList:
    items = ItemList()
    for index in range(count):
        items.insert(user(f"u{index}", "word " * 60))
    return items


def test_a_full_context_loses_its_oldest_items_with_room_to_spare() -> None:
    items = listed(20)
    each = estimate_tokens("word " * 60) + 8
    assert items.shrink("", "auto", each * 20)
    assert len(items.render("", ()).messages) == 20
    assert items.shrink("", "auto", each * 10)
    kept = items.render("", ()).messages
    assert len(kept) == 8  # 80% of 10
    assert len(items) == 20, "the client's items stay"
    items.insert(user("new", "word " * 60))
    assert items.shrink("", "auto", each * 10)
    assert items.render("", ()).messages[:8] == kept, "the context is cut rarely, then grows"


def test_truncation_follows_the_sessions_setting() -> None:
    each = estimate_tokens("word " * 60) + 8
    assert not listed(20).shrink("", "disabled", each * 10)
    items = listed(20)
    ratio = {"type": "retention_ratio", "retention_ratio": 0.5}
    assert items.shrink("", ratio, each * 10)
    assert len(items.render("", ()).messages) == 5
    items = listed(20)
    limits = {**ratio, "token_limits": {"post_instructions": each * 4}}
    assert items.shrink("", limits, each * 100)
    assert len(items.render("", ()).messages) == 2


def test_the_newest_item_stays_whatever_its_size() -> None:
    items = listed(1)
    assert items.shrink("", "auto", 10)
    assert len(items.render("", ()).messages) == 1


def item_of(kind: str, item_id: str, call_id: str, stop_ms: int) -> Item:
    match kind:
        case "user":
            return user(item_id)
        case "turn":
            return turn(item_id, "hi")
        case "silent":
            return turn(item_id, "")
        case "call":
            return call(item_id, call_id)
        case "output":
            return output(item_id, call_id)
    item = spoken(item_id)
    if kind == "cut":
        speech_of(item).stop(stop_ms)
    return item


kinds = st.lists(
    st.sampled_from(["user", "turn", "silent", "spoken", "cut", "call", "output"]), max_size=20
)


@given(kinds=kinds, limit=st.integers(0, 200), deleted=st.sets(st.integers(0, 19)))
def test_any_conversation_makes_a_valid_context(
    kinds: list[str], limit: int, deleted: set[int]
) -> None:
    items = ItemList()
    for index, kind in enumerate(kinds):
        items.insert(item_of(kind, f"i{index}", f"call{index % 3}", 10_000 + index * 500))
    for index in deleted:
        items.delete(f"i{index}")
    items.shrink("", "auto", limit)
    check_context(items.render("", ()))
