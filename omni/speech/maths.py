"""LaTeX and mathematical signs in words. Used by :mod:`omni.speech.speakable`."""

from __future__ import annotations

import re

from omni.speech.aligned import Aligned, Rewrite

GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta",
    "η": "eta", "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu",
    "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi",
    "χ": "chi", "ψ": "psi", "ω": "omega", "ϕ": "phi", "ϵ": "epsilon", "µ": "mu",
}  # fmt: skip

_SIGNS = {
    "≤": "is at most", "≥": "is at least", "≠": "is not equal to", "≈": "is about",
    "≡": "is equivalent to", "∞": "infinity", "∑": "the sum of", "∏": "the product of",
    "∫": "the integral of", "∂": "partial", "∇": "nabla", "√": "the square root of",
    "∈": "in", "∉": "not in", "⊂": "is a subset of", "⊆": "is a subset of", "∪": "union",
    "∩": "intersection", "∅": "the empty set", "∀": "for all", "∃": "there exists",
    "¬": "not", "∧": "and", "∨": "or", "⇒": "implies", "⇔": "if and only if", "→": "to",
    "⟶": "to", "↔": "to and from", "←": "from", "↑": "up", "↓": "down", "·": "times",
    "⋅": "times", "∝": "is proportional to", "′": "prime", "‰": "per mille",
}  # fmt: skip

_COMMANDS = {
    "times": "times", "cdot": "times", "div": "divided by", "pm": "plus or minus",
    "le": "is at most", "leq": "is at most", "ge": "is at least", "geq": "is at least",
    "neq": "is not equal to", "ne": "is not equal to", "approx": "is about",
    "equiv": "is equivalent to", "infty": "infinity", "sum": "the sum", "prod": "the product",
    "int": "the integral", "lim": "the limit", "partial": "partial", "nabla": "nabla",
    "in": "in", "notin": "not in", "subset": "is a subset of", "cup": "union",
    "cap": "intersection", "forall": "for all", "exists": "there exists", "to": "to",
    "rightarrow": "to", "leftarrow": "from", "Rightarrow": "implies", "implies": "implies",
    "iff": "if and only if", "ldots": "and so on", "cdots": "and so on", "dots": "and so on",
    "sin": "sine", "cos": "cosine", "tan": "tangent", "log": "log", "ln": "natural log",
    "exp": "exp", "max": "max", "min": "min", "circ": "degrees", "degree": "degrees",
    "land": "and", "lor": "or", "neg": "not", "propto": "is proportional to", "mid": "given",
    **{name: name for name in GREEK.values()}, "varepsilon": "epsilon", "varphi": "phi",
}  # fmt: skip

_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ROOT = re.compile(r"\\sqrt\s*(?:\[([^\]]*)\])?\s*\{([^{}]*)\}")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|mathit|mathbb|mathcal|operatorname|vec|hat|bar)\*?\s*"
                   r"\{([^{}]*)\}")  # fmt: skip
_PRODUCT = re.compile(  # "mc" is m times c, but not in a command's name or in running text
    rf"({_TEXT.pattern}|\\[A-Za-z]+)|(?<![A-Za-z])([A-Za-z])([a-z])(?![A-Za-z])"
)
_BOUNDS = re.compile(
    r"(\\(?:sum|prod|int))\s*_\s*(?:\{([^{}]*)\}|(\w))\s*\^\s*(?:\{([^{}]*)\}|(\\?\w+))"
)


def read_formulas(text: Aligned) -> Aligned:
    """Formulas between their delimiters and bare LaTeX commands."""
    for pattern, rewrite in _FORMULAS:
        text = text.sub(pattern, rewrite)
    return text


def read_signs(text: Aligned) -> Aligned:
    """Mathematical signs and letters in running text; units must have been read before."""
    for pattern, rewrite in _SIGNS_IN_TEXT:
        text = text.sub(pattern, rewrite)
    return text


def say_formula(tex: str) -> str:
    r"""A formula in words: ``\frac{a}{b} = x^2`` as "a over b equals x squared"."""
    tex = _PRODUCT.sub(lambda m: m[1] or f"{m[3]} {m[4]}", tex)
    before = ""
    while before != tex:  # innermost braces first
        before = tex
        tex = _TEXT.sub(r" \1 ", tex)
        tex = _FRACTION.sub(r" \1 over \2 ", tex)
        tex = _ROOT.sub(lambda m: f" the {_root_name(m[1])} root of {m[2]} ", tex)
        tex = _BOUNDS.sub(r"\1 from \2\3 to \4\5 of ", tex)
        tex = re.sub(r"\^\s*(?:\{([^{}]*)\}|(\\?\w))", lambda m: _power(m[1] or m[2]), tex)
        tex = re.sub(r"_\s*(?:\{([^{}]*)\}|(\w))", r" sub \1\2 ", tex)
    tex = re.sub(r"\\(?:left|right|big|Big|quad|qquad|displaystyle|,|;|:|!|\s)", " ", tex)
    tex = re.sub(r"\\([A-Za-z]+)", lambda m: f" {_command(m[1])} ", tex)
    for sign, words in (("=", "equals"), ("+", "plus"), ("*", "times"), ("<", "is less than"),
                        (">", "is greater than"), ("/", "over"), ("%", "percent"),
                        ("|", " "), ("&", " "), ("!", "factorial")):  # fmt: skip
        tex = tex.replace(sign, f" {words} ")
    tex = re.sub(r"[-−]", " minus ", tex)
    tex = re.sub(r"[{}\\$]|(?<=[A-Za-z0-9])\(\s*\)", " ", tex)
    tex = re.sub(r"(?<=\d)(?=[A-Za-z])", " ", tex)
    return re.sub(r"\s+", " ", tex).strip()


def _command(name: str) -> str:
    return _COMMANDS.get(name) or _COMMANDS.get(name.lower()) or name


def _root_name(degree: str | None) -> str:
    return {None: "square", "": "square", "3": "cube"}.get(degree, f"{degree}th")


def _power(exponent: str) -> str:
    exponent = exponent.strip()
    if exponent in ("2", "3"):
        return " squared " if exponent == "2" else " cubed "
    if exponent in ("\\circ", "°"):
        return " degrees "
    if exponent in ("'", "\\prime"):
        return " prime "
    return f" to the power of {exponent} "


_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")


def _superscript(match: re.Match[str]) -> str:
    return _power(match[0].translate(_SUPERSCRIPT).replace("-", "minus ")).rstrip()


def _bare_operator(match: re.Match[str]) -> str:
    sign = {"-": "minus", "−": "minus", "+": "plus", "*": "times", "/": "divided by",
            "×": "times", "x": "times"}  # fmt: skip
    return f" {sign[match[1]]} "


_FORMULAS: tuple[tuple[re.Pattern[str], Rewrite], ...] = (
    (re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL),
     lambda m: say_formula(m[1] or m[2] or m[3])),
    (re.compile(r"(?<![\w$])\$(?=\S)([^$\n]*?[\\^_=+][^$\n]*?|[A-Za-z])(?<=\S)\$(?![\w$])"),
     lambda m: say_formula(m[1])),
    (re.compile(r"\\(?:frac|sqrt|sum|int)\b\S*(?:\s*\{[^{}]*\})*"), lambda m: say_formula(m[0])),
    (re.compile(r"\\([A-Za-z]{2,})\b"), lambda m: _COMMANDS.get(m[1])),
)  # fmt: skip

_SIGNS_IN_TEXT: tuple[tuple[re.Pattern[str], Rewrite], ...] = (
    (re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+"), _superscript),
    (re.compile(r"[₀₁₂₃₄₅₆₇₈₉]+"), lambda m: m[0].translate(_SUBSCRIPT)),
    (re.compile(r"(?<=\w)\^\{?(-?\w+)\}?"), lambda m: _power(m[1].replace("-", "minus ")).rstrip()),
    (re.compile("[" + "".join(_SIGNS) + "]"), lambda m: f" {_SIGNS[m[0]]} "),
    (re.compile(r"<="), " is at most "),
    (re.compile(r">="), " is at least "),
    (re.compile(r"!="), " is not equal to "),
    (re.compile(r"<?[-=]+>|<-+"), " to "),
    (re.compile(r"(?<=[=\d)]) ([-−+*/×x]) (?=\d)"), _bare_operator),
    (re.compile(r"(?<=\b[a-z0-9]) ([-−+*/×]) (?=[a-z0-9]\b(?! [a-z]{2}))"), _bare_operator),
    (re.compile(r"−(?=\d)"), "-"),
    (re.compile(r"(?<![^\W\d_])([α-ωϕϵ])(?![^\W\d_])"), lambda m: GREEK.get(m[1])),
    (re.compile(r"(?<![^\W\d_])([Α-Ω])(?![^\W\d_])"),
     lambda m: "capital " + GREEK[m[1].lower()] if m[1].lower() in GREEK else None),
)  # fmt: skip
