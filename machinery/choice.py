"""Which of the options of a question an answer chooses."""

import re

CHOICE = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]+(.*))?", re.DOTALL)
# Behind the letter: another one (the article of "A base" is none, nor the I of "I only"), or a denial.
OTHER_CHOICE = re.compile(r"""^\W*[A-Za-z]\W*$ | (?<![\w'])(?:[B-HJ](?![\w'-])|A(?![\w'-]|\ [a-z]))
  | (?:^|[\s,;/&])\(?[a-hj][).:\]] | ^\W*(?:is|are)\ (?:wrong|in\w+|false|not)\b
  | ^\W*(?:not|wrong|false|incorrect)\W*$""", re.VERBOSE)  # fmt: skip


def choice_of(answer: str, question: str) -> str:
    r"""The capital letter that an answer chooses; "" where it chooses none, or more than one.

    >>> choice_of(r"\textbf{(B)}", ""), choice_of("B: Paris", ""), choice_of("(A), (B)", "")
    ('B', 'B', '')
    """
    answer = re.sub(r"^([A-Za-z])\s*\\(?:text|quad|,|;)", r"\1: ", answer)  # A \text{ Paris}
    match = CHOICE.fullmatch(re.sub(r"^(?i:option|answer|choice)\b[: ]*", "", _bare(answer)))
    if match is None:
        return ""
    letter, text = match[1].upper(), (match[2] or "").strip()
    listed = re.findall(r"^([A-Z])\. (.+)$", question, re.MULTILINE)
    options = {option for option, its in listed if text and _bare(its) == text}
    if options:  # "both A and B" may be one
        return letter if letter in options else ""
    return "" if OTHER_CHOICE.search(text) else letter


def _bare(text: str) -> str:
    """The text without LaTeX's and Markdown's signs."""
    return re.sub(r"\\[a-z]+|\\ |[*${}]", "", text).strip()
