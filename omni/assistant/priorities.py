"""The order in which the parts thread takes its work: what a waiting person hears first."""

from enum import IntEnum


class PartPriority(IntEnum):
    FIRST_CLAUSE = 0
    FINAL_PASS = 1
    TURN_SCORE = 2
    SPEECH = 3
    LOOK = 4
    PARTIAL_PASS = 5
