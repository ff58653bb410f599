"""Numbers, money, units and short forms that hibari's normalizer does not read or reads wrongly.

Used by :mod:`omni.speech.speakable`. What is left alone here on purpose (hibari reads it right):
cardinals, ordinals, decimals, years, $1,234.56, $5M, times, ISO and US dates, 5 km, 20 °C, 50%,
1/2, 5-10, Dr., No. 5, World War II.
"""

from __future__ import annotations

import re

from omni.speech.aligned import Aligned, Rewrite

NUM = r"\d+(?:,\d{3})*(?:\.\d+)?"
_UNITS = {
    "m": "meter", "g": "gram", "l": "liter", "L": "liter", "dm": "decimeter", "ha": "hectare",
    "ns": "nanosecond", "μs": "microsecond", "µs": "microsecond", "μm": "micrometer",
    "V": "volt", "kV": "kilovolt", "mV": "millivolt", "W": "watt", "mW": "milliwatt",
    "Wh": "watt hour", "mA": "milliamp", "Ω": "ohm", "J": "joule", "kJ": "kilojoule",
    "kcal": "kilocalorie", "cal": "calorie", "N": "newton", "Pa": "pascal", "kPa": "kilopascal",
    "hPa": "hectopascal", "dB": "decibel", "t": "ton", "dl": "deciliter", "cl": "centiliter",
    "mL": "milliliter", "tbsp": "tablespoon", "tsp": "teaspoon", "PB": "petabyte",
    "Mb": "megabit", "Gb": "gigabit", "h": "hour", "s": "second", "kn": "knot",
    "KiB": "kibibyte", "MiB": "mebibyte", "GiB": "gibibyte",
}  # fmt: skip
_RATES = {
    "m": "meter", "km": "kilometer", "cm": "centimeter", "mi": "mile", "ft": "foot",
    "g": "gram", "kg": "kilogram", "mg": "milligram", "l": "liter", "L": "liter",
    "ml": "milliliter",
    "B": "byte", "KB": "kilobyte", "kB": "kilobyte", "MB": "megabyte", "GB": "gigabyte",
    "TB": "terabyte", "Mb": "megabit", "Gb": "gigabit", "tok": "token", "W": "watt", "J": "joule",
}  # fmt: skip
_PER = {
    "s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour", "d": "day",
    "day": "day", "week": "week", "month": "month", "mo": "month", "year": "year", "yr": "year",
    "kg": "kilogram", "l": "liter", "L": "liter", "ml": "milliliter", "dl": "deciliter",
    "m²": "square meter", "m³": "cubic meter", "s²": "second squared", "person": "person",
    "hour": "hour", "GB": "gigabyte", "kWh": "kilowatt hour", "km": "kilometer",
}  # fmt: skip
_LENGTHS = {
    "m": "meter", "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "ft": "foot",
    "in": "inch", "mi": "mile",
}  # fmt: skip
_IRREGULAR = {"foot": "feet", "inch": "inches"}
_COINS = {"€": "euro", "£": "pound", "$": "dollar", "¥": "yen"}
_VULGAR = {
    "½": "a half", "¼": "a quarter", "¾": "three quarters", "⅓": "a third", "⅔": "two thirds",
    "⅛": "an eighth", "⅜": "three eighths", "⅝": "five eighths", "⅞": "seven eighths",
    "⅕": "a fifth", "⅖": "two fifths", "⅗": "three fifths", "⅘": "four fifths", "⅙": "a sixth",
}  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
MAX_CARDINAL_DIGITS = 15
"""Longer runs are read digit by digit; hibari's number words end at decillions."""


def read_quantities(text: Aligned) -> Aligned:
    """Apply every rewriting of this module, in order."""
    for pattern, rewrite in _PASSES:
        text = text.sub(pattern, rewrite)
    return text


def _plural(number: str, unit: str) -> str:
    if number in ("1", "-1"):
        return unit
    head, space, tail = (
        unit.partition(" ") if unit.startswith(("square", "cubic")) else ("", "", unit)
    )
    first, per, rest = tail.partition(" per ")
    return head + space + _IRREGULAR.get(first, first + "s") + per + rest


def _unit(match: re.Match[str]) -> str:
    return f"{match[1]} {_plural(match[1], _UNITS[match[2]])}"


def _rate(match: re.Match[str]) -> str:
    unit = f"{_RATES[match[2]]} per {_PER[match[3]]}"
    return f"{match[1]} {_plural(match[1], unit)}"


def _area(match: re.Match[str]) -> str:
    kind = "square" if match[3] in ("2", "²") else "cubic"
    return f"{match[1]} {_plural(match[1], f'{kind} {_LENGTHS[match[2]]}')}"


def _hours(match: re.Match[str]) -> str:
    units = (("hour", match[1]), ("minute", match[2]), ("second", match[3]))
    return " ".join(f"{number} {_plural(number, unit)}" for unit, number in units if number)


def _scientific(match: re.Match[str]) -> str:
    exponent = match[2].lstrip("+").replace("-", "minus ")
    return f"{match[1]} times 10 to the power of {exponent}"


def _dotted(match: re.Match[str]) -> str:
    """Versions and network addresses: each number, with the dots between them."""
    parts = match[2].split(".")
    date = re.fullmatch(r"(\d{1,2})\.(\d{1,2})\.(\d{4})", match[2])
    if date and not match[1] and 1 <= int(date[2]) <= 12 and 1 <= int(date[1]) <= 31:
        return f"{_MONTHS[int(date[2]) - 1]} {int(date[1])}, {date[3]}"
    word = " dot " if len(parts) == 4 else " point "
    return ("version " if match[1] else "") + word.join(parts)


def _phone(match: re.Match[str]) -> str:
    groups = re.findall(r"\d+", match[0])
    plus = "plus " if match[0].startswith("+") else ""
    return plus + ", ".join(" ".join(group) for group in groups)


def _spell(match: re.Match[str]) -> str | None:
    digits = match[0].replace(",", "")
    return " ".join(digits) if len(digits) > MAX_CARDINAL_DIGITS else None


_MULTIPLE = {"k": "thousand", "K": "thousand", "M": "million", "B": "billion", "bn": "billion"}
_SHORT = {
    "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "w.r.t.": "with respect to",
    "a.k.a.": "also known as", "c.f.": "compare", "resp.": "respectively", "incl.": "including",
    "w/o": "without", "w/": "with", "b/c": "because", "24/7": "24 7", "C#": "C sharp",
    "F#": "F sharp", ".NET": "dot net", "s/he": "she or he", "&": "and",
}  # fmt: skip

_PASSES: tuple[tuple[re.Pattern[str], Rewrite], ...] = (
    (re.compile(r"(?<![\w.])(?:" + "|".join(map(re.escape, _SHORT)) + r")(?!\w)"),
     lambda m: _SHORT[m[0]]),
    (re.compile(r"(?<=\w) & (?=\w)"), " and "),
    (re.compile(r"(?<=[a-z])\((e?s)\)(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w.+])\+\d[\d ()-]{6,16}\d(?!\w)|\(\d{3}\) ?\d{3}-\d{4}(?!\w)"), _phone),
    (re.compile(r"(?<![\w.,])\d{1,3}(?:[  \u202f]\d{3}){2,}(?![\w.])|"
                r"(?<![\w.,])\d{1,3}(?:[\u00a0\u202f\u2009]\d{3})+(?![\w.])"),
     lambda m: re.sub(r"\D", ",", m[0])),
    (re.compile(r"\b(v)?(\d{1,4}(?:\.\d{1,4}){2,5})(?![\w.]*\w)"), _dotted),
    (re.compile(r"\bv(?=\d+(?:\.\d+)?\b)"), "version "),
    (re.compile(rf"(?<![\w.])(-?{NUM})[eE]([-+]?\d{{1,3}})(?!\w)"), _scientific),
    # Money: behind the number, in ranges, per something, negative.
    (re.compile(r"\b(?:US|AU|CA|A|C)(?=\$\d)"), ""),
    (re.compile(rf"(?<![\w.$£€¥])({NUM})\s?([€£¥])(?!\w)"), r"\2\1"),
    (re.compile(rf"(?<![\w.$£€¥])({NUM})\s?([$])(?![\w{{])"), r"\2\1"),
    (re.compile(rf"([$£€¥])({NUM})\s?[-–]\s?[$£€¥]?({NUM})(?![\w.-]*\d)"),
     lambda m: f"{m[2]} to {m[3]} {_plural('2', _COINS[m[1]]) if m[1] != '¥' else 'yen'}"),
    (re.compile(rf"(?<=[$£€])({NUM})bn\b"), r"\1 billion"),
    (re.compile(r"(?<!\w)[-−](?=[$£€]\d)"), "minus "),
    (re.compile(rf"([$£€]{NUM})/(hour|hr|h|day|week|month|mo|year|yr|GB|kg|person)\b"),
     lambda m: f"{m[1]} per {_PER[m[2]]}"),
    # Units.
    (re.compile(rf"(?<![\w.])(-?{NUM})\s?({'|'.join(_RATES)})/({'|'.join(_PER)})(?!\w)"), _rate),
    (re.compile(rf"(?<![\w.])(-?{NUM})\s?({'|'.join(_LENGTHS)})(?:\^?([23²³]))(?!\w)"), _area),
    (re.compile(r"\b(\d{1,3}) ?h ?(\d{1,2}) ?m(?:in)?(?: ?(\d{1,2}) ?s)?\b"), _hours),
    (re.compile(rf"(?<![\w.$£€])(-?{NUM})\s({'|'.join(_UNITS)})(?![\w²³^/])"), _unit),
    (re.compile(rf"(?<![\w.$£€])(-?{NUM})(g|ns|μs|µs|kV|mV|V|W|mW|Wh|mA|dB|kJ|kcal|mL)(?![\w/])"),
     _unit),
    (re.compile(rf"(?<![\w.$£€])({NUM})([kKMB]|bn)(?![\w/])(?<!4K)(?<!8K)"),
     lambda m: f"{m[1]} {_MULTIPLE[m[2]]}"),
    (re.compile(rf"(?<![\w.])({NUM})x(?!\w)"), r"\1 times"),
    (re.compile(r"(?<![\w.])(\d+)\s?[x×]\s?(?=\d+(?:\s?[x×]\s?\d+)*(?![\w.]))"),
     lambda m: m[1] + (" times " if "=" in m.string else " by ")),
    (re.compile(r"(?<![\w.])([4-7])['′]\s?(\d{1,2})(?:[\"”″]|'')?(?!\w)"), r"\1 foot \2"),
    (re.compile(rf"(?<![\w.])({NUM})[\"″](?!\w)"), r"\1 inches"),
    (re.compile(r"(?<=\d)\s?([" + "".join(_VULGAR) + "])"), lambda m: f" and {_VULGAR[m[1]]}"),
    (re.compile("[" + "".join(_VULGAR) + "]"), lambda m: _VULGAR[m[0]]),
    # Ranges that hibari leaves.
    (re.compile(r"(?<=\d)\s?[-–]\s?(?=\d+(?:\.\d+)?\s?%)"), " to "),
    (re.compile(r"(?<=\d\d)\s?[-–]\s?(?=\d{1,2}:\d\d)|(?<=[ap]m)\s?[-–]\s?(?=\d)"), " to "),
    (re.compile(r"(?<![\w~])~\s?(?=[$£€]?\d)"), "about "),
    (re.compile(r"\d[\d,]*"), _spell),
)  # fmt: skip
