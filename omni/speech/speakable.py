"""Written text to text that can be read aloud, aligned character by character to the original.

Handles what language models write and people do not say: markdown, code, maths, addresses, emoji,
foreign scripts. What hibari's own normalizer reads well is left to it (see ``quantities``). Called
by :mod:`omni.speech.stream` for one clause at a time.
"""

from __future__ import annotations

import re
import unicodedata

from omni.speech.aligned import Aligned, Rewrite
from omni.speech.clauses import Clause
from omni.speech.markup import read_code, read_markup
from omni.speech.maths import read_formulas, read_signs
from omni.speech.quantities import read_quantities

_LANGUAGES = {
    "py": "Python", "python": "Python", "js": "JavaScript", "javascript": "JavaScript",
    "ts": "TypeScript", "typescript": "TypeScript", "sh": "shell", "bash": "shell",
    "shell": "shell", "zsh": "shell", "console": "shell", "cpp": "C plus plus",
    "c++": "C plus plus", "cs": "C sharp", "csharp": "C sharp", "c": "C", "go": "Go",
    "rs": "Rust", "rust": "Rust", "rb": "Ruby", "ruby": "Ruby", "java": "Java",
    "kotlin": "Kotlin", "swift": "Swift", "php": "PHP", "sql": "SQL", "html": "HTML",
    "css": "CSS", "json": "JSON", "yaml": "YAML", "yml": "YAML", "toml": "TOML", "xml": "XML",
    "tex": "LaTeX", "latex": "LaTeX", "r": "R",
}  # fmt: skip

_SCRIPTS = {
    "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Chinese", "HANGUL": "Korean",
    "CYRILLIC": "Cyrillic", "ARABIC": "Arabic", "HEBREW": "Hebrew", "DEVANAGARI": "Hindi",
    "THAI": "Thai", "GREEK": "Greek", "BENGALI": "Bengali", "TAMIL": "Tamil",
    "ARMENIAN": "Armenian", "GEORGIAN": "Georgian",
}  # fmt: skip

_LETTER = r"[^\W\d_\x00-\u024f\u1e00-\u1eff]"  # a letter that is not Latin
_NAMES = f"(?:{'|'.join(sorted({*_SCRIPTS.values(), 'foreign'}))})"
_KINDS = f"{_NAMES} text|(?:(?:{'|'.join(sorted(set(_LANGUAGES.values())))}) code|Code)"
_ANNOUNCEMENT = re.compile(rf"\W*({_KINDS})\W*")


def announcement(said: str) -> str:
    """What ``said`` announces instead of reading it ("Japanese text"); empty if it reads text.

    A stream says the same announcement once, not for every clause of a long foreign answer.
    """
    found = _ANNOUNCEMENT.fullmatch(said)
    return found[1] if found else ""


def speakable(clause: Clause) -> Aligned:
    """What is said for ``clause``; may be empty.

    A code block is announced by its language ("Python code.") and its lines are not read; a run in
    a script that an English voice cannot read is named ("Japanese text").
    """
    if clause.kind == "code":
        return Aligned("", ())
    if clause.kind == "fence":
        info = clause.text.strip().strip("`~").split()
        said = f"{_LANGUAGES.get(info[0].lower(), '') if info else ''} code.".strip()
        said = said[0].upper() + said[1:]
        return Aligned(said, (*[0] * (len(said) - 1), len(clause.text)))
    text = Aligned.of(clause.text)
    for pattern, rewrite in _CHARACTERS:
        text = text.sub(pattern, rewrite)
    text = read_signs(read_quantities(read_markup(read_formulas(read_code(text)))))
    for pattern, rewrite in _REST:
        text = text.sub(pattern, rewrite)
    return text


def _script(letters: str) -> str:
    """The language or script that a run of letters is named by; empty for Latin."""
    names = {unicodedata.name(c, "").split(" ")[0].split("-")[0] for c in letters if c.isalpha()}
    for name in ("HIRAGANA", "KATAKANA"):  # Japanese mixes scripts
        if name in names:
            return _SCRIPTS[name]
    names -= {"LATIN", "FULLWIDTH", "FEMININE", "MASCULINE", "MODIFIER", "MICRO", ""}
    if not names:
        return ""
    return next((_SCRIPTS[name] for name in sorted(names) if name in _SCRIPTS), "foreign")


def _foreign(match: re.Match[str]) -> str | None:
    script = _script(match[0])
    if not script:
        return None
    return f" {script} text "


def _plain_letters(match: re.Match[str]) -> str:
    """Latin letters beyond those the voice knows, without their marks (Vietnamese)."""
    letters = unicodedata.normalize("NFD", match[0])
    return "".join(c for c in letters if not unicodedata.combining(c))


def _compatible(match: re.Match[str]) -> str | None:
    """Digits and letters in fancy dress (①, Ⅷ, ﬁ, ㎞, ３) as plain ones; hibari chokes on some."""
    plain = unicodedata.normalize("NFKC", match[0])
    if plain.isascii() and plain.isalnum():
        return plain
    return str(unicodedata.digit(match[0])) if match[0].isdigit() else None


def _symbol(match: re.Match[str]) -> str | None:
    """Emoji, pictures, box drawing and unassigned characters are silent."""
    kept = "°©®™§¶"
    if match[0] in kept or unicodedata.category(match[0]) not in (
        "So", "Sk", "Cs", "Co", "Cn", "Cf", "Mn", "Me",
    ):  # fmt: skip
        return None
    return " "


_CHARACTERS: tuple[tuple[re.Pattern[str], Rewrite], ...] = (
    (re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), ""),  # terminal colours
    (re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufe00-\ufe0f]"), ""),
    (re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]"), " "),
    (re.compile(r"[‘’ʼ`´](?=\w)(?<=\w.)"), "'"),
    (re.compile(r"[“”„«»]"), '"'),
    (re.compile(r"℃"), "°C"),
    (re.compile(r"℉"), "°F"),
    (re.compile(r"[^\x00-\xff⁰-₎]"), _compatible),
    (re.compile(r"[。．]"), ". "),
    (re.compile(r"[，、]"), ", "),
    (re.compile(r"！"), "! "),
    (re.compile(r"？"), "? "),
)

_REST: tuple[tuple[re.Pattern[str], Rewrite], ...] = (
    (re.compile(rf"{_LETTER}(?:{_LETTER}|[\u0300-\u036f\u0591-\u05c7\u064b-\u0652\u0900-\u0dff"
                rf"\u0e31-\u0e4e\u3099ー]|[ ,·](?={_LETTER}))*"), _foreign),
    (re.compile(rf"\b({_NAMES} text)(?:[\s,.;:!?·]+\1)+\b"), r"\1"),
    (re.compile(r"[\u1e00-\u1eff]"), _plain_letters),
    (re.compile(r"[^\w\s!-/:-@\[-`{-~]"), _symbol),
    (re.compile(r"(?<=\w)\s?(?:--+)\s?(?=\w)|(?<=\w) [-–] (?=\w)"), " — "),
    (re.compile(r"([!?,;:])\1+"), r"\1"),
    (re.compile(r"[ \t\u00a0\u2000-\u200a\u202f\u3000]{2,}"), " "),
    (re.compile(r"\s+([,.;:!?])"), r"\1"),
)  # fmt: skip
