"""The calibration text of those who give none: a mix of public data sets, by what people use local models for.

All can be read without an account. By the sizes on their cards, N gives every domain half a million to a million
characters, although an agent's session is fifty times as long as a question about code: what a domain counts for is
then decided by its weight, not by its length. The first half is the mix of the published REAP checkpoints
(github.com/CerebrasResearch/reap), but for Salesforce/xlam-function-calling-60k, which needs an account.
"""

DEFAULT_SOURCES = (
    # Short tasks with their solution in many programming languages; the REAP paper's own calibration set.
    # Apache-2.0. Columns instruction, output.
    "code=theblackcat102/evol-codealpaca-v1(train):256",
    # DeepSeek-R1's long reasoning with the answer, all verified, where experts for reasoning speak up.
    # No licence of its own; made of CC-BY-4.0 and Apache-2.0 sets. Columns messages, num_tokens, source.
    "code=open-r1/Mixture-of-Thoughts[code](train):8",
    "math=open-r1/Mixture-of-Thoughts[math](train):48",
    "science=open-r1/Mixture-of-Thoughts[science](train):80",
    # Whole sessions of a coding agent: tool calls, file listings, diffs, tracebacks.
    # MIT. Columns messages (JSON text), instance_id, resolved, model, traj_id, patch.
    "agent=SWE-bench/SWE-smith-trajectories(tool):8",
    # Calls of one or several functions and what is made of their results, in place of xlam.
    # Apache-2.0. Columns id, conversations (from, value), tools (JSON text), category, subcategory, task.
    "tools=NousResearch/hermes-function-calling-v1[func_calling](train):80",
    # Multi-turn chat on everyday subjects, filtered from UltraChat.
    # MIT. Columns prompt, prompt_id, messages.
    "chat=HuggingFaceH4/ultrachat_200k(train_sft):128",
    # Prose that is no chat, and languages that a mix in English would prune away.
    # CC-BY-SA-3.0 and GFDL. Columns id, url, title, text.
    "prose=wikimedia/wikipedia[20231101.en](train):192",
    "languages=wikimedia/wikipedia[20231101.de](train):32",
    "languages=wikimedia/wikipedia[20231101.fr](train):32",
    "languages=wikimedia/wikipedia[20231101.es](train):32",
    "languages=wikimedia/wikipedia[20231101.ru](train):32",
    "languages=wikimedia/wikipedia[20231101.zh](train):32",
    "languages=wikimedia/wikipedia[20231101.ja](train):32",
)
