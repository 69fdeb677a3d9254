"""The prompts of the papers' code, as whole texts, whatever chat template the tokenizer has.

QUESTION stands for the problem. A BOS token is not written here: the tokenizer adds its own, if it has one.
"""

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
