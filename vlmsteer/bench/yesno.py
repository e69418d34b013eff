"""How ten published scripts read "yes" or "no" (or "true", "A", ...) out of an answer, and one way of ours.

They disagree on the same strings, so each has a name, keeps its quirks and is never mixed with another: `aoidragon`
takes whatever holds no negation for a yes, `vcd` looks for substrings and needs the label, `lmms` knows only the bare
word. A function returns what its script returns; only `strict` says None where an answer is neither yes nor no.
"""

from __future__ import annotations

import re

from vlmsteer.errors import InputError, did_you_mean

_NEGATIONS = frozenset({"No", "not", "no"})
_WHOLE_WORD = re.compile(r"(?<![^\W_])(?<![^\W_]-)(yes|no)(?![^\W_])(?!-[^\W_])", re.IGNORECASE)
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = 32  # the script passes re.UNICODE where `sub` takes a count
_NOT = re.compile(r"\b(not|isn'?t|aren'?t|doesn'?t)\b")
_AGREES = re.compile(r"\b(true|yes|correct|right)\b")
_DISAGREES = re.compile(r"\b(false|no|incorrect|wrong)\b")
_TRUE = re.compile(
    r"\b(true|yes|correct|right|yep|yeah|yup|absolutely|definitely|certainly|sure|accurate|valid|confirmed"
    r"|affirmative|positive|agreed)\b|^y$|is (correct|right|true|accurate)|that'?s (correct|right|true)"
)
_FALSE = re.compile(
    r"\b(false|no|incorrect|wrong|nope|nah|negative|inaccurate|invalid|disconfirmed|disagreed)\b|^n$"
    r"|is (incorrect|wrong|false|inaccurate)|that'?s (incorrect|wrong|false)"
)


def aoidragon(text: str) -> str:
    """POPE's own rule, "yes" or "no": no if a token of the first sentence is exactly No, not or no, else yes.

    Tokens are separated by single blanks only, so that "\\nNo" and "No!" are yes, like "" and "Unknown".
    AoiDragon/POPE@08d957b evaluate.py, the same in haotian-liu/LLaVA@c121f04 eval_pope.py.
    """
    tokens = text.split(".")[0].replace(",", "").split(" ")
    return "no" if _NEGATIONS.intersection(tokens) else "yes"


def opera(text: str) -> str:
    """OPERA's and VISTA's rule, "yes" or "no": no if any token of the whole answer is No, not, no, NO or ends in n't.

    shikiw/OPERA@61426ef pope_eval.py recorder, LzVv123456/VISTA@dc62252 pope_ans.py.
    """
    tokens = text.replace(".", "").replace(",", "").split(" ")
    return "no" if any(token in _NEGATIONS or token == "NO" or token.endswith("n't") for token in tokens) else "yes"


def vcd(text: str, label: str) -> str:
    """VCD's rule, "yes" or "no", which depends on the label: whether its own substring is there ("no" in "know").

    DAMO-NLP-SG/VCD@d6568ff experiments/eval/eval_pope.py.

    Args:
        text: the answer.
        label: "yes" or "no" in any case, with or without blanks around it.

    Raises:
        InputError: for another label.
    """
    wanted, answer = label.strip().lower(), text.strip().lower()
    if wanted not in ("yes", "no"):
        raise InputError(f"VCD's rule needs the label yes or no, not {label!r}.")
    found = wanted in answer
    return "yes" if found == (wanted == "yes") else "no"


def repope(text: str) -> str | None:
    """RePOPE's rule, "yes", "no" or None: the substring yes anywhere, or else the substring no.

    YanNeu/RePOPE@bcf22e5.
    """
    answer = text.lower()
    return "yes" if "yes" in answer else "no" if "no" in answer else None


def lmms(text: str) -> str:
    """lmms-eval's POPE rule: the answer in lower case without blanks around it, right only if it is the label itself.

    EvolvingLMMs-Lab/lmms-eval@75571cf lmms_eval/tasks/pope/utils.py.
    """
    return text.lower().strip()


def vlmevalkit(text: str) -> str:
    """VLMEvalKit's rule, "Yes", "No" or "Unknown": which of the two is a word of the answer, if only one is.

    Words are what is left between blanks once punctuation (apostrophes not) is removed, or replaced by a blank where
    it stands between letters. open-compass/VLMEvalKit@e8e78f0 YOrN_Extraction, before any judge model.
    """
    answer = text.lower()
    number = _COMMA_IN_NUMBER.search(answer) is not None
    spaced = answer
    for mark in _PUNCTUATION:
        removed = number or f"{mark} " in answer or f" {mark}" in answer
        spaced = spaced.replace(mark, "" if removed else " ")
    words = _PERIOD.sub("", spaced, count=_PERIODS_REMOVED).split()
    return {(True, False): "Yes", (False, True): "No"}.get(("yes" in words, "no" in words), "Unknown")


def mme_tool(text: str) -> str:
    """The rule of MME's evaluation tool, "yes", "no" or "other": the word alone, or yes, then no, in 4 characters.

    BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation, tools/eval_tool.zip, parse_pred_ans.
    """
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_lmms(text: str) -> str:
    """lmms-eval's MME rule, "yes", "no" or "other": MME's after periods and outer blanks are gone; y and n count too.

    EvolvingLMMs-Lab/lmms-eval@75571cf lmms_eval/tasks/mme/utils.py.
    """
    answer = text.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(answer) or mme_tool(answer)


def naturalbench(text: str, kind: str = "yes_no") -> int:
    """NaturalBench's rule: 1 if the whole word yes (or A) comes first, 0 if no (or B) does, -1 if neither is there.

    Case is ignored, so that the article "a" is an A. Baiqi-Li/NaturalBench@9967605 extract_answer.

    Args:
        text: the answer.
        kind: "yes_no" or "multiple_choice".

    Raises:
        InputError: for another kind.
    """
    words = {"yes_no": "yes|no", "multiple_choice": "a|b"}
    if kind not in words:
        raise InputError(f"NaturalBench has no questions of type {kind!r}{did_you_mean(kind, words)}.")
    first = re.search(rf"\b({words[kind]})\b", text, re.IGNORECASE)
    return -1 if first is None else int(first[0].casefold() in ("yes", "a"))


def vlind(text: str) -> str:
    """VLind-Bench's rule: "True" or "False", whichever is the first such token in any case, or "NA".

    klee972/VLind-Bench infer_true_or_false.
    """
    for token in text.lower().replace("\n", " ").replace(",", "").replace(".", "").split(" "):
        if token in ("true", "false"):
            return token.capitalize()
    return "NA"


def mats(text: str) -> bool | None:
    """The MATS code's rule, True, False or None: a number above 0.5, else the first of many patterns that fits.

    Affirmations come before negations and "right" is one, so "on the right" and "I am not sure" are True.
    thubZ09/mats-spatial-reasoning@d977dd9 src/mats/metrics.py normalize_response.
    """
    try:
        return float(text) > 0.5
    except ValueError:
        answer = text.strip().lower()
    if _NOT.search(answer):
        if _AGREES.search(answer):
            return False
        if _DISAGREES.search(answer):
            return True
    return True if _TRUE.search(answer) else False if _FALSE.search(answer) else None


def strict(text: str) -> str | None:
    """Our own rule, "yes", "no" or None: the first that is a whole word, in any case ("no-one" is none)."""
    first = _WHOLE_WORD.search(text)
    return None if first is None else first[0].lower()
