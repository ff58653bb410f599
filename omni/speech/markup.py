"""Markdown, HTML, inline code and addresses as a person would read them aloud.

Used by :mod:`omni.speech.speakable`. A clause may hold only one end of a pair of marks, so marks
are removed one by one and never need their partner.
"""

from __future__ import annotations

import html
import re

from omni.speech.aligned import Aligned, Rewrite

CODE_WORDS = (
    ("===", "equals"), ("!==", "is not equal to"), ("==", "equals"), ("!=", "is not equal to"),
    ("<=", "is at most"), (">=", "is at least"), ("->", "arrow"), ("=>", "arrow"),
    ("&&", "and"), ("||", "or"), ("::", ""), ("++", "plus plus"), ("+=", "plus equals"),
    ("-=", "minus equals"), ("<", "less than"), (">", "greater than"), ("=", "equals"),
    ("+", "plus"), ("*", "star"), ("/", "slash"), ("\\", "backslash"), ("|", "pipe"),
    ("&", "and"), ("~", "tilde"), ("^", "caret"), ("%", "percent"), ("#", "hash"),
    ("@", "at"), ("$", "dollar"), ("--", "dash dash"), ("_", ""), (":", ""), ("!", "not"),
)  # fmt: skip
_CODE_WORDS = dict(CODE_WORDS)
_CODE = re.compile("|".join(re.escape(s) for s in sorted(_CODE_WORDS, key=len, reverse=True)))
_DOMAIN = r"(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|io|dev|ai|app|co|uk|de|fr|eu|info|biz|me|tv|ly)"


def read_code(text: Aligned) -> Aligned:
    """Inline code spans in words; before anything else, for nothing in them is markup or maths."""
    return text.sub(_CODE_SPAN, lambda m: say_code(m[1])).sub(_BACKTICKS, "")


def read_markup(text: Aligned) -> Aligned:
    """Markdown, HTML and addresses."""
    for pattern, rewrite in _PASSES:
        text = text.sub(pattern, rewrite)
    return text


def say_code(code: str) -> str:
    """An inline code span in words: ``my_list.append(x)`` as "my list dot append x"."""
    code = re.sub(r"\.(?=\w)", " dot ", code)
    code = re.sub(r"(?<!\w)-{1,2}(?=\w)", lambda m: " dash" * len(m[0]) + " ", code)
    code = _CODE.sub(lambda m: f" {_CODE_WORDS[m[0]]} ", code)
    code = re.sub(r"[(){}\[\]<>;\"'`]+", " ", code)
    return re.sub(r"\s+", " ", code).strip()


def say_address(address: str) -> str:
    """A URL or mail address: host and the first words of its path, without scheme and query."""
    rest = re.sub(r"^(?:https?|ftp)://|^mailto:|^www\.", "", address, flags=re.IGNORECASE)
    rest = re.sub(r"^www\.", "", rest, flags=re.IGNORECASE)
    rest = re.split(r"[?#]", rest)[0].rstrip("/")
    host, *path = rest.split("/")
    parts = [host]
    for part in path[:2]:
        words = re.sub(r"\.\w{2,4}$", "", part).replace("%20", " ")
        if not re.fullmatch(r"[A-Za-z]{1,20}(?:[-_ ][A-Za-z0-9]{1,20}){0,5}|\d{1,4}", words):
            break
        parts.append(re.sub(r"[-_]", " ", words))
    said = " slash ".join(parts)
    said = said.replace("@", " at ").replace("_", " underscore ").replace(":", " colon ")
    said = re.sub(r"(?<=\w)-(?=\w)", " dash ", said) if "@" in address else said.replace("-", " ")
    return re.sub(r"\s+", " ", said.replace(".", " dot ")).strip()


def _link(match: re.Match[str]) -> str:
    label = match["label"].strip()
    if re.fullmatch(r"\^?\d{1,3}|\^\w+", label) and not match["url"]:
        return ""  # a footnote
    if match["image"]:
        return f"image: {label}" if label else "an image"
    return label


def _row(match: re.Match[str]) -> str:
    cells = [cell.strip() for cell in match[0].strip().strip("|").split("|")]
    return ", ".join(cell for cell in cells if cell)


def _entity(match: re.Match[str]) -> str | None:
    said = html.unescape(match[0])
    return None if said == match[0] else said


def _star(match: re.Match[str]) -> str:
    """A single star between numbers or one-letter names multiplies; others are emphasis."""
    if len(match[0]) == 1:
        before = re.search(r"(\w+)( ?)$", match.string[: match.start()])
        after = re.match(r"( ?)(\w+)", match.string[match.end() :])
        if before and after and before[2] == after[1]:
            operands = (before[1], after[2])
            if before[2] or any(len(word) == 1 or word.isdigit() for word in operands):
                return "times" if before[2] else " times "
    return ""


_CODE_SPAN = re.compile(r"`+([^`\n]+)`+")
_BACKTICKS = re.compile(r"`+")
_PASSES: tuple[tuple[re.Pattern[str], Rewrite], ...] = (
    (re.compile(r"<!--.*?(?:-->|$)", re.DOTALL), ""),
    (re.compile(r"<br\s*/?>|</(?:p|li|td|th|div|h\d)>", re.IGNORECASE), ", "),
    (re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>]{0,200})?/?>"), ""),
    (re.compile(r"<((?:https?://|mailto:|[\w.+-]+@)[^<>\s]+)>"), r"\1"),
    (re.compile(r"&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]{2,10});"), _entity),
    (re.compile(r"^[ \t]*[-*+•‣◦][ \t]+(?:\[[ xX]?\][ \t]+)?", re.MULTILINE), ""),
    (
        re.compile(r"(?P<image>!?)\[(?P<label>[^\[\]\n]*)\](?P<url>\([^()\s]*(?:\s[^()]*)?\))?"),
        _link,
    ),
    (re.compile(r"[\[\]]"), ""),
    # Blocks: a rule or the line under a table's head, headings, quotes, list marks, table rows.
    (re.compile(r"^[ \t]*(?:[-*_=]{3,}|\|?[ \t]*:?-{3,}[-:| \t]*)[ \t]*$", re.MULTILINE), ""),
    (re.compile(r"^([ \t]*)#{1,6}[ \t]+(.*?)[ \t#]*$", re.MULTILINE), r"\1\2"),
    (re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE), ""),
    (re.compile(r"^([ \t]*\d{1,3})[.)][ \t]+(?=\S)", re.MULTILINE), r"\1, "),
    (re.compile(r"^[ \t]*\|.*\|?[ \t]*$", re.MULTILINE), _row),
    # Addresses before emphasis: an underscore belongs to them.
    (
        re.compile(
            r"(?:https?|ftp)://[^\s<>\"')\]]+[^\s<>\"')\].,;:!?*_]"
            r"|\bwww\.[^\s<>\"')\]]+[^\s<>\"')\].,;:!?*_]"
            rf"|\b(?:mailto:)?[\w.+-]+@(?:[a-z0-9-]+\.)+[a-z]{{2,}}\b|\b{_DOMAIN}\b(?:/[\w/.-]*\w)?",
            re.IGNORECASE,
        ),
        lambda m: say_address(m[0]),
    ),
    (re.compile(r"\*+"), _star),
    (re.compile(r"(?<!\w)_+|_+(?!\w)|~~+|(?<!=)==(?=\w)|(?<=\w)==(?!=)"), ""),
    (re.compile(r"(?<=\w)_+(?=\w)"), " "),
    (re.compile(r"\\(?=[*_#\[\]`~|>.!-])"), ""),
)
