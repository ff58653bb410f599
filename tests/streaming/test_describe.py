"""Live description, rule by rule, on a virtual clock."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from omni_encoders.declining import NOT_A_GUIDE
from omni_encoders.wording import ABSTENTIONS, num_words
from omni_streaming.describe import Describer
from omni_streaming.describe_settings import (
    NOTICE,
    AskModel,
    DescribeSettings,
    LookForText,
    Say,
    StopSpeaking,
)

from omni.scene import Scene
from tests.streaming.describing import ROOM, World, at, scene, settled, sign, thing

EMPTY = scene()
HEARING = ("change", "framing")


# --- Changes only --------------------------------------------------------------------------------


def test_a_static_scene_is_described_once() -> None:
    world = World()
    world.show(ROOM, 60_000)
    assert world.said() == [
        NOTICE,
        "In front of you: a person ahead, about 3 metres; a chair on the left, about 2 metres.",
    ]


def test_the_notice_names_what_cannot_be_seen() -> None:
    world = World()
    world.show(ROOM, 1_000)
    (notice,) = world.said()
    assert all(word in notice for word in ("Not a mobility aid", "steps", "kerbs", "glass"))


def test_what_appears_and_goes_is_told_once() -> None:
    world = settled()
    world.show(scene(*ROOM.things, thing("dog", 0.9, track=3)), 10_000)
    world.show(ROOM, 10_000)
    assert world.said()[2:] == [
        "A dog has appeared on the right.",
        "The dog on the right has gone.",
    ]


def test_what_comes_again_too_soon_to_be_told_holds_nothing_else_up() -> None:
    world = settled()
    dog = thing("dog", 0.9, track=3)
    world.show(scene(*ROOM.things, dog), 5_000)
    world.show(ROOM, 5_000)
    again = thing("dog", 0.9, track=4)
    world.show(scene(*ROOM.things, again), 3_000)
    world.show(scene(ROOM.things[0], again), 6_000)
    assert world.said()[2:] == [
        "A dog has appeared on the right.",
        "The dog on the right has gone.",
        "The person ahead has gone.",
    ]


def test_somebody_who_walks_across_is_told() -> None:
    world = settled()

    def look(now_ms: int) -> Scene:
        x = min(0.5 + (now_ms - 20_000) / 5_000, 0.92)
        return scene(ROOM.things[0], thing("person", x, track=2, metres=3.0))

    world.run(12_000, look)
    assert world.said()[2:] == ["The person is now on the right, about 3 metres."]


def test_somebody_on_another_track_elsewhere_has_moved_and_not_come() -> None:
    """Trackers lose who walks fast: neither "gone" nor "appeared" may come of it."""
    world = settled()
    world.show(scene(ROOM.things[0], thing("person", 0.92, track=9, metres=3.0)), 15_000)
    assert world.said()[2:] == ["The person is now on the right, about 3 metres."]


def test_a_second_of_a_kind_is_news_even_while_the_first_blinks() -> None:
    world = settled()
    two = (*ROOM.things, thing("person", 0.92, track=9, metres=3.0))
    world.run(10_000, lambda now_ms: scene(*(two if now_ms % 1_000 else two[:1] + two[2:])))
    assert world.said()[2:] == ["A person has appeared on the right, about 3 metres."]


def test_a_move_is_told_of_somebody_who_cannot_be_mistaken_for_another() -> None:
    world = settled(scene(*ROOM.things, thing("person", 0.25, track=3, metres=6.0)))
    others = (ROOM.things[0], thing("person", 0.25, track=3, metres=6.0))
    world.show(scene(*others, thing("person", 0.92, track=2, metres=3.0)), 10_000)
    assert world.said()[2:] == []
    world.show(scene(ROOM.things[0], thing("person", 0.1, track=2, metres=3.0)), 3_000)
    assert not [text for text in world.said() if "is now" in text], "the other may be hidden"


def test_a_move_is_told_only_to_another_direction_than_was_told_last() -> None:
    seen = scene(thing("person", 0.05, track=2, metres=3.0), motion=0.0)
    world = settled(seen)
    turned = thing("person", 0.45, track=2, metres=3.0)
    world.show(scene(turned, motion=0.5), 1_000)
    world.show(scene(turned), 5_000)
    world.show(scene(thing("person", 0.08, track=2, metres=2.0)), 6_000)
    assert not [text for text in world.said() if "is now" in text]
    world.show(scene(thing("person", 0.92, track=2, metres=2.0)), 6_000)
    assert world.said()[-1] == "The person is now on the right, about 2 metres."


def test_one_of_several_who_goes_is_not_called_the_person() -> None:
    stays, goes = ROOM.things[1], thing("person", 0.9, track=3, metres=3.0)
    world = settled(scene(stays, goes))
    world.show(scene(stays), 6_000)
    world.show(EMPTY, 6_000)
    assert world.said()[2:] == ["A person on the right has gone.", "The person ahead has gone."]


def test_turning_the_camera_is_no_departure() -> None:
    world = settled()
    world.show(scene(motion=0.8), 2_000)
    world.show(scene(thing("couch", 0.5, track=9, metres=2.0)), 10_000)
    assert world.said()[2:] == ["A couch ahead, about 2 metres."]


def test_what_is_not_found_in_another_place_is_not_there() -> None:
    """A thing may be missed in a picture or two, but not when these show another place."""
    for motion, is_there in ((0.0, True), (1.0, False)):
        world = settled(scene(thing("cat", 0.5, track=9)))
        world.show(replace(ROOM, motion=motion), 400)
        world.command("front")
        world.show(ROOM, 400)
        assert ("cat" in world.said("answer")[0]) is is_there


def test_a_detector_that_loses_a_parked_car_for_three_seconds_has_nothing_to_tell() -> None:
    world = settled(scene(*ROOM.things, thing("car", 0.9, track=5, metres=15.0)))
    both = scene(*ROOM.things, thing("car", 0.9, track=6, metres=15.0))
    world.run(60_000, lambda now_ms: ROOM if now_ms % 9_000 < 3_000 else both)
    assert world.said()[2:] == []


def test_what_comes_far_away_is_told_to_those_who_want_everything() -> None:
    far = scene(*ROOM.things, thing("person", 0.9, track=5, metres=25.0))
    for verbosity, is_told in (("brief", False), ("normal", False), ("detailed", True)):
        world = settled(ROOM, DescribeSettings(verbosity=verbosity))
        world.show(far, 8_000)
        assert bool(world.said()[2:]) is is_told


def test_another_room_gets_an_overview() -> None:
    world = settled()
    world.show(scene(motion=0.8), 3_000)
    world.show(EMPTY, 2_000)
    room = [
        thing(name, x, track=n)
        for n, (name, x) in enumerate([("bed", 0.1), ("tv", 0.5), ("couch", 0.9)], start=20)
    ]
    world.show(scene(*room), 10_000)
    assert world.said()[2:] == [
        "In front of you: a bed on the left; a TV ahead; a couch on the right."
    ]


@pytest.mark.parametrize("turn_ms", [200, 600, 1_000, 3_000])
def test_a_turn_to_another_room_is_told_in_one_utterance_and_soon(turn_ms: int) -> None:
    """A detector finds one thing at once and the others a little later. 200 ms: a cut."""
    world = settled()
    names = (("dog", 0.5), ("bed", 0.1), ("tv", 0.4), ("couch", 0.9))
    room = [thing(name, x, track=n) for n, (name, x) in enumerate(names, start=20)]
    world.show(scene(motion=0.9), turn_ms)
    stopped_ms = world.now_ms
    world.run(15_000, lambda now_ms: scene(*room[: 1 if now_ms < stopped_ms + 500 else 4]))
    told = [one for one in world.spoken[2:] if one.kind == "change"]
    assert told[0].begun_ms is not None
    assert told[0].begun_ms - stopped_ms < 2_500
    if turn_ms >= 600:  # the camera was known to move
        whole = "a dog and a TV ahead; a bed on the left; a couch on the right."
        assert [one.text for one in told] == [f"In front of you: {whole}"]


def test_whoever_walks_on_is_told_at_once() -> None:
    world = settled()
    world.show(scene(*ROOM.things, motion=0.5), 3_000)
    began_ms = world.now_ms
    dog = thing("dog", 0.9, track=9)
    world.run(6_000, lambda ms: scene(*ROOM.things, dog, motion=0.5 if ms % 600 else 0.05))
    assert world.spoken[2].text == "A dog on the right."
    assert world.spoken[2].asked_ms - began_ms <= 1_000


def test_a_single_weak_finding_after_a_turn_does_not_hide_that_nothing_is_there() -> None:
    for blink in (thing("chair", 0.2, track=1, confidence=0.3), thing("cup", 0.8, confidence=0.4)):
        world = settled()
        world.show(scene(motion=0.8), 3_000)
        world.show(scene(ROOM.things[0], motion=0.2), 200)  # the turn's last, slow part
        world.show(EMPTY, 1_600)
        world.show(scene(blink), 200)
        world.show(EMPTY, 10_000)
        assert world.said()[2:] == ["I recognise nothing here."], blink


def test_turning_to_where_nothing_is_found_is_told_once() -> None:
    world = settled()
    world.show(scene(motion=0.8), 3_000)
    world.show(EMPTY, 60_000)
    assert world.said()[2:] == ["I recognise nothing here."]
    world.show(ROOM, 3_000)
    world.show(scene(motion=0.8), 1_000)
    world.show(EMPTY, 30_000)
    assert world.said()[4:] == ["I recognise nothing here."]


def test_an_empty_picture_is_admitted_once() -> None:
    world = World()
    world.show(EMPTY, 30_000)
    assert world.said() == [NOTICE, "I recognise nothing here."]


def test_brief_users_hear_of_people_only_and_detailed_ones_of_everything() -> None:
    new = (thing("cup", 0.1, track=5, size=0.05), thing("person", 0.9, track=6))
    for verbosity, heard in (
        ("brief", ["A person has appeared on the right."]),
        ("normal", ["A person has appeared on the right."]),
        (
            "detailed",
            ["A person has appeared on the right. A cup has appeared on the left."],
        ),
    ):
        world = settled(EMPTY, DescribeSettings(verbosity=verbosity))  # type: ignore[arg-type]
        world.show(scene(*new), 10_000)
        assert world.said()[2:] == heard


# --- Warnings ------------------------------------------------------------------------------------


CAR = thing("car", 0.15, track=7, growth=0.5, size=0.35, metres=6.0)


def test_a_warning_is_asked_for_in_the_very_look_and_cuts_off_everything() -> None:
    world = settled()
    world.assistant_speaks(60)
    world.show(ROOM, 1_000)
    world.show(scene(*ROOM.things, CAR), 200)
    warning = world.spoken[-1]
    assert (warning.text, warning.asked_ms) == ("Car approaching, on the left!", world.now_ms)
    assert warning.interrupts
    assert world.spoken[-2].is_cut


def test_a_warning_does_not_wait_for_the_user_to_finish() -> None:
    world = settled()
    world.describer.user_speaks(True, world.now_ms)
    world.show(scene(CAR), 200)
    assert world.said("hazard") == ["Car approaching, on the left!"]


def test_the_same_thing_is_warned_of_again_only_after_a_while_or_much_closer() -> None:
    world = settled(EMPTY)
    world.show(scene(CAR), 5_800)
    assert len(world.said("hazard")) == 1
    world.show(scene(CAR), 1_000)
    assert len(world.said("hazard")) == 2
    world.show(scene(CAR), 2_000)
    closer = thing("car", 0.2, track=7, growth=0.5, size=0.6, metres=3.0)
    world.show(scene(closer), 400)
    assert len(world.said("hazard")) == 3


def test_another_track_number_is_no_new_danger() -> None:
    world = settled(EMPTY)

    def look(now_ms: int) -> Scene:
        return scene(thing("car", 0.15, track=now_ms, growth=0.5, size=0.35, metres=6.0))

    world.run(5_000, look)
    assert len(world.said("hazard")) == 1


def test_one_picture_is_enough_only_when_it_is_very_near() -> None:
    world = settled(EMPTY)
    world.show(scene(thing("car", 0.5, track=4, growth=2.0, frames=1, metres=9.0)), 200)
    assert world.said("hazard") == []
    world.show(scene(thing("dog", 0.5, track=5, frames=1, metres=0.8)), 200)
    assert world.said("hazard") == ["Dog very near, ahead!"]


@pytest.mark.parametrize(
    "harmless",
    [
        thing("car", 0.5, track=3, metres=20.0),  # parked
        thing("car", 0.05, track=3, growth=0.5, size=0.1),  # far to the side and small
        thing("person", 0.5, track=3, growth=0.5, metres=25.0),
        thing("chair", 0.5, track=3, growth=0.9, metres=1.0),
        thing("car", 0.5, track=3, growth=0.9, metres=5.0, confidence=0.2),
    ],
)
def test_what_is_harmless_is_not_warned_of(harmless: object) -> None:
    world = settled(EMPTY)
    world.show(scene(harmless), 5_000)  # type: ignore[arg-type]
    assert world.said("hazard") == []


def test_somebody_who_stays_near_is_warned_of_once() -> None:
    world = World()
    world.show(scene(thing("person", 0.5, track=1, metres=0.8, size=0.5)), 60_000)
    assert world.said("hazard") == ["Person very near, ahead!"]
    assert len(world.said("change")) == 1


def test_what_a_warning_cut_off_is_said_again() -> None:
    world = World()
    world.show(ROOM, 8_000)
    assert world.said()[-1].startswith("In front of you: a person")
    world.show(scene(*ROOM.things, CAR), 400)
    world.show(ROOM, 12_000)
    kinds = [one.kind for one in world.spoken]
    assert kinds == ["framing", "change", "hazard", "change"]
    assert "a person ahead" in world.said()[-1]


def test_a_question_during_a_warning_is_answered_after_it() -> None:
    world = settled()
    world.show(scene(*ROOM.things, CAR), 400)
    world.hear("Is it safe to cross?")
    (warning,) = [one for one in world.spoken if one.kind == "hazard"]
    assert not warning.is_cut
    world.show(ROOM, 6_000)
    assert not warning.is_cut
    assert world.said("answer") == [NOT_A_GUIDE]


def test_an_answer_that_a_warning_cut_off_is_given_again_and_no_other() -> None:
    world = settled()
    world.hear("Is it safe to cross?")
    world.show(ROOM, 600)
    world.show(scene(*ROOM.things, CAR), 200)
    world.show(ROOM, 12_000)
    assert world.said("answer") == [NOT_A_GUIDE] * 2
    world.hear("Is there a dog?")
    world.show(ROOM, 600)
    world.hear("Is there a chair?")  # whoever asks on wants no more of the answer before
    world.show(ROOM, 12_000)
    assert [text[:5] for text in world.said("answer")[2:]] == ["I do ", "Yes: "]


def test_a_model_without_eyes_is_asked_about_nothing_here_and_now() -> None:
    world = settled()
    assert world.hear("Who wrote Hamlet?") is None
    assert world.hear("Would you say the road is clear?") == "answer"
    world.show(ROOM, 8_000)
    assert world.hear("Is he waiting for somebody?") == "answer"
    world.show(ROOM, 8_000)
    what = "a person ahead, about 3 metres; a chair on the left, about 2 metres."
    assert world.said("answer") == [NOT_A_GUIDE, f"I cannot tell. I see: {what}"]
    late = World()
    assert late.hear("Is he waiting for somebody?") == "answer"
    assert [one.text for one in late.actions if isinstance(one, Say)] == ["I have no picture yet."]
    native = settled(ROOM, DescribeSettings(has_native_sight=True))
    assert native.hear("Is he smiling at me?") is None
    assert native.hear("Would you say the road is clear?") == "answer"


@pytest.mark.parametrize(
    ("x", "motion", "growth", "frames", "is_warned"),
    [
        (0.9, 0.5, 0.0, 1, False),
        (0.1, 0.5, 0.0, 2, False),
        (0.9, 0.5, 0.0, 3, True),
        (0.9, 0.5, 0.3, 2, True),
        (0.9, 0.1, 0.0, 1, True),
        (0.6, 0.5, 0.0, 1, True),
    ],
)
def test_who_is_cut_off_at_the_side_of_a_turning_picture_is_looked_at_three_times(
    x: float, motion: float, growth: float, frames: int, is_warned: bool
) -> None:
    """Half a person seems taller and nearer than they are."""
    world = settled(EMPTY)
    one = thing("person", x, track=1, metres=1.0, growth=growth, frames=frames)
    world.show(scene(one, motion=motion), 200)
    assert bool(world.said("hazard")) is is_warned


def test_who_fills_the_picture_of_a_turning_camera_is_warned_of_at_once() -> None:
    world = settled(EMPTY)
    world.show(scene(thing("person", 0.5, size=1.0, metres=0.5, frames=1), motion=0.5), 200)
    assert world.said("hazard") == ["Person very near, ahead!"]


def test_what_keeps_us_from_seeing_is_told_however_much_was_said_and_in_quiet() -> None:
    """Who hears nothing believes that nothing comes near."""
    for quiet, hazards, is_told in ((False, True, 1), (True, True, 1), (True, False, 0)):
        world = World(DescribeSettings(quiet=quiet, hazards=hazards), ms_per_word=900)
        world.run(
            40_000,
            lambda now_ms: scene(
                *(thing(f"gadget {now_ms // 2_000}-{n}", 0.2 + n * 0.3, track=n) for n in range(3))
            ),
        )
        begun_ms = world.now_ms
        world.show(scene(condition="covered"), 20_000)
        told = [one for one in world.spoken if one.text == ABSTENTIONS["covered"]]
        assert len(told) == is_told
        assert all(one.asked_ms - begun_ms < 8_000 for one in told)
        world.show(EMPTY, 3_000)
        world.show(scene(condition="covered"), 10_000)
        assert world.said().count(ABSTENTIONS["covered"]) == 2 * is_told


def test_whoever_asks_at_once_has_the_first_look() -> None:
    world = World()
    world.show(ROOM, 200)
    world.command("front")
    world.show(ROOM, 1_000)
    assert world.said("answer")[0].startswith("In front of you: a person ahead")


def test_a_question_while_text_is_read_is_answered_first_and_the_text_read_then() -> None:
    text = scene(*ROOM.things, lettering=(sign("Way out"),))
    world = settled()
    world.command("read")
    world.show(ROOM, 400)
    assert world.hear("Who wrote Hamlet?") is None
    world.show(text, 400)
    world.assistant_speaks(20)
    world.show(text, 3_000)
    assert not world.spoken[-1].is_cut
    world.show(ROOM, 12_000)
    assert world.said()[-1] == "It says: Way out."
    world.command("read")
    world.show(ROOM, 400)
    assert world.hear("Is there a chair?") == "answer"
    world.show(text, 12_000)
    assert not any(one.is_cut for one in world.spoken if one.text.startswith("Yes: a chair"))
    assert world.said()[-2:] == ["Yes: a chair on the left, about 2 metres.", "It says: Way out."]


def test_warnings_can_be_switched_off() -> None:
    world = settled(EMPTY, DescribeSettings(hazards=False))
    world.show(scene(CAR), 5_000)
    assert world.said("hazard") == []


def test_the_more_urgent_of_two_dangers_cuts_off_the_other() -> None:
    world = settled(EMPTY)
    person = thing("person", 0.5, track=1, growth=0.5, metres=5.0)
    world.show(scene(person), 200)
    world.show(scene(person, thing("bus", 0.8, track=2, metres=2.0, size=0.6)), 200)
    assert world.said("hazard") == ["Person approaching, ahead!", "Bus very near, on the right!"]


@pytest.mark.parametrize(
    ("growth", "metres", "is_warned"),
    [
        (0.5, 7.7, False),
        (0.34, 4.4, False),
        (0.24, 6.0, False),
        (0.45, 5.0, True),
        (0.25, 2.5, True),
    ],
)
def test_somebody_who_walks_is_warned_of_when_contact_is_near(
    growth: float, metres: float, is_warned: bool
) -> None:
    """The first three are of a street video in which nobody comes near the camera."""
    world = settled(EMPTY)
    for _ in range(3):
        world.show(scene(thing("person", 0.5, track=1, growth=growth, metres=metres)), 200)
    assert bool(world.said("hazard")) is is_warned


@pytest.mark.parametrize(("tall", "is_warned"), [(0.25, False), (0.5, True)])
def test_somebody_small_who_comes_into_the_picture_is_no_danger(
    tall: float, is_warned: bool
) -> None:
    """Cut off by its edge they have no distance, and grow while more of them comes to be seen."""
    world = settled(EMPTY)
    for _ in range(3):
        world.show(scene(thing("person", 0.6, track=1, growth=0.31, size=tall)), 200)
    assert bool(world.said("hazard")) is is_warned


# --- Time ----------------------------------------------------------------------------------------


def test_late_and_old_pictures_are_not_used() -> None:
    describer = Describer(DescribeSettings(), 0)
    describer.see(at(scene(CAR), 1_000), 4_000)
    assert [one.text for one in describer.actions() if isinstance(one, Say)] == [NOTICE]
    describer.see(at(EMPTY, 5_000), 5_000)
    describer.see(at(scene(CAR), 4_900), 5_100)
    assert describer.actions() == []


def test_nothing_old_is_said_when_its_turn_comes() -> None:
    """A dog comes and goes while the assistant gives a long answer: neither is news any more."""
    world = settled()
    world.assistant_speaks(60)
    world.show(scene(*ROOM.things, thing("dog", 0.9, track=3)), 5_000)
    world.show(ROOM, 30_000)
    assert world.said(*HEARING)[2:] == []


def test_what_came_during_an_answer_is_told_from_the_newest_picture() -> None:
    world = settled()
    world.assistant_speaks(30)
    world.show(scene(*ROOM.things, thing("dog", 0.9, track=3)), 20_000)
    last = world.spoken[-1]
    assert last.text == "A dog has appeared on the right."
    assert last.asked_ms - last.frame_at_ms == 0


def test_an_utterance_that_never_begins_is_made_again_from_a_new_picture() -> None:
    describer = Describer(DescribeSettings(), 0)
    asked = []
    for now_ms in range(100, 12_000, 100):
        describer.see(at(ROOM, now_ms), now_ms)
        asked += [(now_ms, one.text) for one in describer.actions() if isinstance(one, Say)]
    assert [text for _, text in asked] == [NOTICE] * 3
    assert [now_ms for now_ms, _ in asked] == [100, 4_200, 8_300]


# --- How much ------------------------------------------------------------------------------------


def crowd(num: int) -> list[object]:
    names = ("person", "car", "chair", "dog", "potted plant", "dining table")
    return [
        thing(names[n % 6], (n * 0.37) % 1, track=n + 100, metres=2 + n % 9) for n in range(num)
    ]


def test_a_still_user_hears_thirty_words_and_a_moving_one_twelve() -> None:
    world = World()
    world.show(scene(*crowd(60)), 20_000)  # type: ignore[arg-type]
    assert 15 <= num_words(world.said("change")[0]) <= 30
    world = World()
    world.show(scene(*crowd(60), motion=0.5), 20_000)  # type: ignore[arg-type]
    assert 5 <= num_words(world.said("change")[0]) <= 12


def test_a_lively_place_leaves_most_of_the_time_to_the_ears() -> None:
    world = World(ms_per_word=450)

    def look(now_ms: int) -> Scene:
        """Every two seconds the place is another one, with things never seen before."""
        num = now_ms // 2_000
        return scene(
            *(thing(f"gadget {num}-{n}", 0.2 + n * 0.3, track=num * 3 + n) for n in range(3))
        )

    world.run(120_000, look)
    assert 0.2 < world.largest_share("change", "framing") <= 0.4


def test_the_same_sentence_is_not_said_twice_in_a_minute_but_then() -> None:
    world = settled()
    dog = scene(*ROOM.things, thing("dog", 0.9, track=3))
    world.run(150_000, lambda now_ms: dog if now_ms % 32_000 < 8_000 else ROOM)
    asked = [one.asked_ms for one in world.spoken if one.text == "A dog has appeared on the right."]
    assert len(asked) >= 2
    assert all(60_000 <= after - before < 100_000 for before, after in pairwise(asked))


def test_at_one_picture_a_second_two_missed_ones_are_a_blink() -> None:
    world = World()
    world.show(ROOM, 30_000, step_ms=1_000)
    world.run(60_000, lambda now_ms: ROOM if now_ms // 1_000 % 6 > 1 else EMPTY, step_ms=1_000)
    assert len(world.spoken) == 2
    world.show(EMPTY, 10_000, step_ms=1_000)
    assert world.said()[2:] == ["The person ahead has gone."]


def test_motion_has_hysteresis() -> None:
    world = settled()
    world.show(scene(*ROOM.things, motion=0.5), 200)
    assert not world.describer.is_moving
    world.show(scene(*ROOM.things, motion=0.5), 600)
    assert world.describer.is_moving
    world.show(scene(*ROOM.things, motion=0.05), 1_000)
    world.show(scene(*ROOM.things, motion=0.2), 200)
    world.show(scene(*ROOM.things, motion=0.05), 1_000)
    assert world.describer.is_moving
    world.show(scene(*ROOM.things, motion=0.05), 1_000)
    assert not world.describer.is_moving


def test_a_command_that_ends_later_speech_repeats_nothing_that_was_heard() -> None:
    """Asking to read does not cut the notice off until there is something to read."""
    world = World()
    world.show(EMPTY, 1_000)
    world.command("read")
    world.show(EMPTY, 5_000)
    world.show(scene(lettering=(sign("EXIT"),)), 200)
    world.show(EMPTY, 20_000)
    assert world.said() == [NOTICE, "Reading.", "It says: EXIT.", "I recognise nothing here."]


def test_a_notice_that_a_command_cuts_off_is_said_again() -> None:
    world = World()
    world.show(ROOM, 1_000)
    world.command("front")
    world.show(ROOM, 20_000)
    assert [one.kind for one in world.spoken] == ["framing", "answer", "framing"]
    assert world.said("framing") == [NOTICE, NOTICE]


# --- The user ------------------------------------------------------------------------------------


DOG_TOO = scene(*ROOM.things, thing("dog", 0.9, track=3))


def test_nobody_is_talked_over_and_a_talk_with_others_is_left_alone() -> None:
    world = settled()
    world.describer.user_speaks(True, world.now_ms)
    world.show(DOG_TOO, 5_000)
    world.describer.user_speaks(False, world.now_ms)
    stopped_ms = world.now_ms
    world.show(DOG_TOO, 10_000)
    (change,) = [one for one in world.spoken[2:] if one.kind == "change"]
    assert 3_000 <= change.asked_ms - stopped_ms <= 3_400


def test_a_question_is_answered_before_anything_is_described() -> None:
    world = settled()
    assert world.hear("How tall is the Eiffel tower?") is None
    world.show(DOG_TOO, 4_000)
    world.assistant_speaks(10)
    world.show(DOG_TOO, 10_000)
    assert [one.kind for one in world.spoken[2:]] == ["assistant", "change"]
    assert world.spoken[3].asked_ms - (world.spoken[2].ended_ms or 0) >= 700


def test_talking_ends_a_description() -> None:
    world = World()
    world.show(ROOM, 8_000)
    world.describer.user_speaks(True, world.now_ms)
    assert StopSpeaking() in world.take()
    world.describer.user_speaks(False, world.now_ms)
    world.show(ROOM, 20_000)
    assert len(world.said("change")) == 1


# --- Commands ------------------------------------------------------------------------------------


def test_what_is_in_front_of_me_is_answered_at_once_even_during_an_answer() -> None:
    world = settled()
    world.assistant_speaks(60)
    (action,) = world.command("front")
    assert isinstance(action, Say)
    assert (action.kind, action.interrupts) == ("answer", True)
    assert action.text.startswith("In front of you: a person ahead")


def test_an_answer_lets_a_warning_be_heard() -> None:
    world = settled()
    world.show(scene(*ROOM.things, CAR), 400)
    assert world.command("front") == []
    world.show(ROOM, 6_000)
    assert [one.kind for one in world.spoken[2:]] == ["hazard", "answer"]
    assert not world.spoken[2].is_cut


def test_more_tells_what_was_left_out_until_nothing_is() -> None:
    kinds = ["bed", "tv", "clock", "vase", "book", "oven", "sink", "cup", "bowl", "fork"]
    things = [thing(kind, (n + 0.5) / 10, track=n + 1) for n, kind in enumerate(kinds)]
    world = settled(scene(*things))
    for _ in range(3):
        assert world.hear("Tell me more, please.") == "more"
        world.show(scene(*things), 15_000)
    text = " ".join(world.said("change", "answer")).lower()
    assert all(kind in text for kind in kinds)
    assert world.said("answer")[-1] == "That is all I see."


def test_repeat_says_it_again() -> None:
    world = settled(DOG_TOO)
    last = world.said()[-1]
    for _ in range(3):
        world.command("repeat")
        assert world.said()[-1] == f"I said: {last}"
    world = World()
    for _ in range(3):
        world.command("repeat")
        assert world.said()[-1] == "I have said nothing yet."


def test_say_that_again_after_an_answer_of_the_model_is_for_the_model() -> None:
    world = settled()
    world.assistant_speaks(5)
    world.show(ROOM, 5_000)
    assert world.hear("Say that again") is None


def test_quiet_leaves_warnings_and_answers() -> None:
    world = settled()
    assert world.hear("Be quiet!") == "quiet"
    world.show(DOG_TOO, 5_000)
    world.show(scene(*DOG_TOO.things, CAR), 3_000)
    world.command("front")
    world.show(DOG_TOO, 8_000)
    assert [one.kind for one in world.spoken[2:]] == ["answer", "hazard", "answer"]
    assert world.hear("Start describing again") == "resume"
    world.show(scene(*DOG_TOO.things, thing("bicycle", 0.8, track=8)), 10_000)
    assert world.said()[-1] == "A bicycle has appeared on the right."


def test_stop_is_silence_at_once_and_for_a_while() -> None:
    world = World()
    world.show(ROOM, 8_000)
    assert world.command("stop") == [StopSpeaking()]
    num = len(world.spoken)
    world.show(DOG_TOO, 2_800)
    assert len(world.spoken) == num


def test_read_it_looks_for_text_and_reads_it_as_it_stands() -> None:
    world = settled()
    assert world.hear("Could you read this for me?") == "read"
    assert world.actions[-1] == LookForText()
    world.show(ROOM, 1_000)
    world.show(scene(*ROOM.things, lettering=(sign("Platform 9"), sign("to London"))), 200)
    assert world.said("text") == ["It says: Platform 9 to London."]


def test_text_that_does_not_come_is_admitted() -> None:
    world = settled()
    world.command("read")
    world.show(ROOM, 12_000)
    assert world.said("answer") == ["Reading.", "I could not read it in time."]


def test_a_model_that_sees_is_asked_for_overviews_but_never_for_warnings() -> None:
    world = World(DescribeSettings(has_native_sight=True))
    world.show(ROOM, 20_000)
    asked = [one for one in world.actions if isinstance(one, AskModel)]
    assert [one.kind for one in asked] == ["change"]
    assert "at most 30 words" in asked[0].prompt
    (answer,) = world.command("front")
    assert isinstance(answer, AskModel)
    world.show(scene(*ROOM.things, CAR), 200)
    assert world.said("hazard") == ["Car approaching, on the left!"]
