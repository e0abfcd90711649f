"""Which option a model chose, and whether an answer is right.

A text is read without knowing what is right, and an unclear one is None, never a guess. Scoring by the
log-probability of letters is not here; adding up is in accuracy.py.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

from echoprune.question import Question

MOST_OPTIONS = len(string.ascii_uppercase)

_THOUGHT_ENDS = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_MARKUP = re.compile(r"\\[a-z]*|[*_`${}#]")
_WHOLE = re.compile(r"[\s(\[\"']*([A-Za-z])[\s)\]\"'.:,;!]*")
_LEADING = re.compile(r"[\s(\[\"']*(?:([A-Z])[\"')\]]*[.):\]\n-]|([a-z])[\"']?[.)\]:](?=\s))\s*")
_OPTION = re.compile(
    r"\b(?:option|choice|letter)\s*(?:is\s*)?[:\-]?\s*[(\[\"']*([A-Za-z])\b(?!['’])", re.IGNORECASE
)
_BRACKETED = re.compile(r"\(([A-Z])\)")
_LEAD_IN = re.compile(
    r"\b(?:answer|choice|option)(?:\s+(?:is|would\s+be|must\s+be))?\s*(?:\b(?:is|would\s+be|must\s+be)\b|[:=-])"
    r"(?:\s*(?:the\s+)?(?:option|choice|letter)\b)?\s*[:-]?\s*",
    re.IGNORECASE,
)
_STATED = re.compile(r"[(\[\"']*([A-Za-z])\b(?!['’-])[)\]\"']*")
_NEGATION = re.compile(
    r"\b(?:not|never|neither|nor|cannot|no|wrong|incorrect|false|except)\b|n['’]t\b", re.IGNORECASE
)
_NO_WORD_FOLLOWS = re.compile(r"\s*(?:[.,;:!?)\]\"'\n-]|$|(?:because|since|as|for|which|is|and|or)\b)")
_SENTENCE = re.compile(r"[.!?]\s|\n")
_FIRST_WORD = re.compile(r"[\W_]*([^\W_]+)")


def letter(index: int) -> str:
    """The letter of the option at `index` 0..25: "A" to "Z". Raises ValueError beyond."""
    if not 0 <= index < MOST_OPTIONS:
        raise ValueError(f"there are letters for options 0 to {MOST_OPTIONS - 1}, got {index}")
    return string.ascii_uppercase[index]


def answer_letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter that a question's `answer` means: a letter, an option's text, or both ("B. a red car").

    A lone letter is that option's, even where another option's text is that letter. None if it means no option.
    """
    text = unicodedata.normalize("NFKC", answer)
    if (alone := _WHOLE.fullmatch(text)) and (found := _valid(alone[1], options)):
        return found
    if found := _of_text(text, options):
        return found
    if head := _LEADING.match(text):
        found = _valid(head[1] or head[2], options)
        if found and _plain(text[head.end() :]) == _plain(options[_index(found)]):
            return found
    return None


def parse_choice(text: str, options: Sequence[str]) -> str | None:
    """The letter, "A" on, of the option that a model's answer chooses; None if that is not sure.

    Understood are a letter alone, in brackets or before a full stop, colon or bracket ("(B)", "b.", "C: red"), one after
    "the answer is", "answer:", "option" or "choice", and an option's text in full, compared without case and
    punctuation if that is unique. What follows the last "the answer is" counts more than what goes before it;
    otherwise two different letters are unsure, and so are "A" before a word ("A man walks"), a letter beyond the
    options, and a letter whose text is another option's.
    """
    text = unicodedata.normalize("NFKC", _THOUGHT_ENDS.split(text)[-1])
    # Before markup goes: the option "C#" is not the letter C.
    if not _WHOLE.fullmatch(text) and (found := _of_text(text, options)):
        return found if _agrees(found, text, options) else None
    text = _MARKUP.sub("", text).strip()
    if not text or not options:
        return None
    if alone := _WHOLE.fullmatch(text):
        return _valid(alone[1], options) or _of_text(text, options)
    if found := _of_text(text, options):
        return found if _agrees(found, text, options) else None
    lead_ins = list(_LEAD_IN.finditer(text))
    if lead_ins:
        return _stated(text, lead_ins[-1], options)
    return _leading(text, options) if _LEADING.match(text) else _mentioned(text, options)


def is_correct(question: Question, parsed_choice: str | None, raw_text: str) -> bool | None:
    """Whether an answer is right; None for a question without `answer`.

    Multiple choice: `parsed_choice`, a letter or None, against the option that `answer` means; unsure is not right.
    An `answer` "yes" or "no": the first word of `raw_text`. Any other: the whole text, without case,
    punctuation and surplus blanks.
    """
    if question.answer is None:
        return None
    if question.options:
        right = answer_letter(question.answer, question.options)
        return right is not None and parsed_choice == right
    wanted = _plain(question.answer)
    given = unicodedata.normalize("NFKC", _THOUGHT_ENDS.split(raw_text)[-1])
    if wanted in ("yes", "no"):
        first = _FIRST_WORD.match(given)
        return first is not None and first[1].casefold() == wanted
    # Of an answer that is all punctuation nothing would be left to compare.
    return _plain(given) == wanted if wanted else given.strip() == question.answer.strip()


def _agrees(found: str, text: str, options: Sequence[str]) -> bool:
    """Whether a text that is option `found`'s, but for case and punctuation, begins with no other option's letter.

    "A. blue car" says A, and is "a blue car", which may be B.
    """
    head = _LEADING.match(text.strip())
    said = _valid(head[1] or head[2], options) if head else None
    return said in (None, found) or text.strip() == options[_index(found)].strip()


def _leading(text: str, options: Sequence[str]) -> str | None:
    """The choice of a text that begins "B. ...": its letter, unless what follows speaks of another option."""
    head = _LEADING.match(text)
    found = _valid(head[1] or head[2], options) if head else None
    if head is None or found is None:
        return None
    rest = text[head.end() :]
    said = _of_text(rest, options)
    return found if said == found or (said is None and _others(rest, found, options)) else None


def _stated(text: str, lead_in: re.Match[str], options: Sequence[str]) -> str | None:
    """The choice that follows "the answer is", unless it is negated or another letter follows."""
    sentence = _SENTENCE.split(text[: lead_in.start()])[-1]
    rest = text[lead_in.end() :]
    if _NEGATION.search(sentence):
        return None
    if said := _of_text(rest, options):
        return said
    head = _STATED.match(rest)
    if head is None:
        return None
    after = rest[head.end() :]
    # "the answer is a man" and "the answer is I think so" state no letter.
    if (head[1] in "AI" or head[1].islower()) and not _NO_WORD_FOLLOWS.match(after):
        found = _valid(head[1], options)
        return found if found and head[1].isupper() and _of_text(after, options) == found else None
    found = _valid(head[1], options)
    if found is None:
        return None
    said = _of_text(after, options)
    return found if said == found or (said is None and _others(after, found, options)) else None


def _mentioned(text: str, options: Sequence[str]) -> str | None:
    """The choice of a running text: the only letter in it, where "option" or brackets mark it as one."""
    head = _STATED.match(text)
    if head and head[1].isupper() and (said := _of_text(text[head.end() :], options)):
        return said if said == head[1] else None
    marked = {hit[1] for hit in _BRACKETED.finditer(text)}
    for hit in _OPTION.finditer(text):
        if hit[1].isupper() or _NO_WORD_FOLLOWS.match(text[hit.end() :]):
            marked.add(hit[1].upper())
    if head and head[1].isupper() and re.match(r"\s+(?:because|since|is)\b", text[head.end() :]):
        marked.add(head[1])
    if len(marked) != 1 or _NEGATION.search(text):
        return None
    found = _valid(marked.pop(), options)
    return found if found and _others(text, found, options) else None


def _others(text: str, found: str, options: Sequence[str]) -> bool:
    """Whether `text` names no letter of an option but `found`; that option's own text may hold any."""
    own = options[_index(found)].strip()
    if own:
        text = re.sub(re.escape(own), " ", text, flags=re.IGNORECASE)
    if any(
        _valid(hit[1], options) not in (None, found) for hit in _OPTION.finditer(text) if hit[1].isupper()
    ):
        return False
    for hit in re.finditer(r"(?<![\w'’])([A-Z])(?![\w'’])", text):
        word = hit[1] in "AI" and not _NO_WORD_FOLLOWS.match(text[hit.end() :])
        if not word and _valid(hit[1], options) not in (None, found):
            return False
    return True


def _of_text(text: str, options: Sequence[str]) -> str | None:
    """The letter of the only option whose text this is: as it stands, else without case and punctuation."""
    if "\n" in text.strip():
        return None
    for form in (str.strip, _plain):
        wanted = form(text)
        hits = [
            i for i, option in enumerate(options) if form(unicodedata.normalize("NFKC", option)) == wanted
        ]
        if wanted and len(hits) == 1:
            return letter(hits[0])
    return None


def _plain(text: str) -> str:
    """Letters and digits of any script, lower-case, words apart by one blank."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in folded).split())


def _valid(found: str, options: Sequence[str]) -> str | None:
    upper = found.upper()
    return upper if upper in string.ascii_uppercase[: len(options)] else None


def _index(found: str) -> int:
    return string.ascii_uppercase.index(found)
