"""Twenty spoken questions and what a right answer contains: benchmark and test material only."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """``pattern`` matches (ignoring case) any right answer."""

    text: str
    pattern: str

    def is_answered_by(self, answer: str) -> bool:
        return re.search(self.pattern, answer, re.IGNORECASE) is not None


QUESTIONS = (
    Question("What is the capital of France?", r"\bparis\b"),
    Question("How many days are there in a week?", r"\b(seven|7)\b"),
    Question("What is the largest planet in our solar system?", r"\bjupiter\b"),
    Question("Which ocean is the largest?", r"\bpacific\b"),
    Question("What is two plus three?", r"\b(five|5)\b"),
    Question("Who wrote the play Romeo and Juliet?", r"\bshakespeare\b"),
    Question("What color do you get when you mix blue and yellow?", r"\bgreen\b"),
    Question("What is the chemical symbol for water?", r"\bH\s?(2|two|₂)\s?O\b"),
    Question("How many legs does a spider have?", r"\b(eight|8)\b"),
    Question("What is the capital of Japan?", r"\btokyo\b"),
    Question("What do bees make?", r"\bhoney\b"),
    Question("Which planet is known as the red planet?", r"\bmars\b"),
    Question("What is the freezing point of water in degrees Celsius?", r"\b(zero|0)\b"),
    Question("How many months are in a year?", r"\b(twelve|12)\b"),
    Question("What is the opposite of hot?", r"\bcold\b"),
    Question("What is the tallest mountain in the world?", r"\beverest\b"),
    Question("What language is spoken in Brazil?", r"\bportuguese\b"),
    Question("How many minutes are in one hour?", r"\b(sixty|60)\b"),
    Question("What is the capital of Italy?", r"\brome\b"),
    Question("What gas do plants absorb from the air?", r"\bcarbon dioxide\b|\bCO\s?(2|two|₂)"),
)
