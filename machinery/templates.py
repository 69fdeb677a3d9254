"""The prompts of the papers' code, as whole texts, and messages through a tokenizer's own chat template.

QUESTION stands for the problem. A BOS token is not written here: the tokenizer adds its own, if it has one.
"""

import re
import unicodedata
from datetime import date

import jinja2

from machinery.command import UserError

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
ASK = f"QUESTION\n{BOXED}"
HELPFUL = "You are a helpful assistant."


def chatml(system: str, user: str) -> str:
    turns = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    return f"{turns}<|im_start|>assistant\n"


def llama(role: str, text: str = "") -> str:
    """A turn of Llama 3; without a text the head of a reply."""
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}" + ("<|eot_id|>" if text else "")


GUIDE_LLAMA = r"""Solve the following math problem efficiently and clearly:

- For simple problems (2 steps or fewer):
Provide a concise solution with minimal explanation.

- For complex problems (3 steps or more):
Use this step-by-step format:

## Step 1: [Concise description]
[Brief explanation and calculations]

## Step 2: [Concise description]
[Brief explanation and calculations]

...

Regardless of the approach, always conclude with:

Therefore, the final answer is: $\boxed{answer}$. I hope it is correct.

Where [answer] is just the final number or expression that solves the problem.

Problem: QUESTION"""

PROMPTS = {
    # NSR, verl/utils/dataset/rl_dataset.py: qwen, qwen3_no_thinking, llama
    "qwen-math": chatml(HELPFUL, ASK),
    "qwen3-math": chatml(HELPFUL, ASK) + "<think>\n\n</think>\n",
    "llama-math": llama("system", HELPFUL) + llama("user", ASK) + llama("assistant"),
    # Guide, verl/utils/dataset/templates.py: llama_math_chat_template; after <|eot_id|> stands a line break
    "guide-llama": llama("user", GUIDE_LLAMA) + "\n" + llama("assistant"),
}

TODAY = date(2024, 7, 26)  # where a chat template writes the date: a resumed run must see the same


def chat_text(tokenizer, messages: list[dict], name: str) -> str:
    """Messages through the tokenizer's chat template, up to where the reply begins.

    A template may read lists of parts alone and show nothing of plain text: it gets parts then. Raises
    UserError, which says `name`, if it refuses the messages, as some do a system message, or leaves one out.
    """
    in_parts = []
    for message in messages:
        in_parts.append({**message, "content": [{"type": "text", "text": message["content"]}]})
    needed = [m for m in messages if m["role"] != "assistant"]  # thoughts of earlier turns may be left out
    why = ""
    for given in (messages, in_parts):
        try:
            text = tokenizer.apply_chat_template(
                given, tokenize=False, add_generation_prompt=True,
                enable_thinking=False,  # Qwen3 answers without thinking, as in the NSR paper
                date_string=TODAY.strftime("%d %b %Y"),  # Llama 3
                strftime_now=TODAY.strftime,  # gpt-oss and others
            )
        except (jinja2.TemplateError, TypeError) as error:
            why = why or f"refuses the messages ({error})"
            continue
        shown = squeeze(text)
        lost = [message["role"] for message in needed if squeeze(message["content"]) not in shown]
        if not lost:
            return text
        why = why or f"leaves out text of the {lost[-1]} message"
    raise UserError(f"{name}: this tokenizer's chat template {why}: use another --template")


def squeeze(text: str) -> str:
    """Without what tokenizers and templates may change: white space, and how accents are written."""
    return re.sub(r"\s", "", unicodedata.normalize("NFC", text))
