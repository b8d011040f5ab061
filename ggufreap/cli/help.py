"""What `ggufreap --help` says: the verbs in the order in which one meets them, and commands to copy."""

from ggufreap.cli.common import Verbs

DESCRIPTION = "Prune experts out of mixture-of-experts models directly in GGUF."
# group -> its verbs, and commands that can be copied
GROUPS = {
    "start here": (
        ("models", "advise", "demo", "prune", "run", "inspect", "doctor", "completion"),
        (
            "ggufreap                                  # which models lie on this machine",
            "ggufreap model.gguf                       # what fits, and the commands for it",
            "ggufreap -hf user/repo:Q8_0 --download    # the same of one on the Hugging Face hub",
            "ggufreap prune model.gguf --ratio 0.2 -f text.txt",
            "ggufreap prune model.gguf --fit auto --eval-split 5%       # the best that fits this machine",
            "ggufreap run q4_k_m model-BF16.gguf -f text.txt",
        ),
    ),
    "stages": (
        ("calibrate", "merge", "plan", "coverage", "preview", "apply", "narrow", "verify", "quantize", "imatrix"),
        (
            "ggufreap calibrate model.gguf -f text.txt -o S.npz",
            "ggufreap plan model.gguf --stats S.npz --ratio 0.2 -o P.json",
            "ggufreap apply model.gguf --plan P.json -o pruned.gguf",
            "ggufreap verify model.gguf pruned.gguf --plan P.json",
        ),
    ),
    "judge": (
        ("eval", "frontier", "probe", "tasks", "bench", "report"),
        (
            "ggufreap eval pruned.gguf --reference model.gguf -f held-out.txt",
            "ggufreap report model.gguf pruned.gguf --plan P.json -f held-out.txt -o report",
        ),
    ),
}


def in_groups(verbs: Verbs) -> str:
    """All verbs with what they do, group by group."""
    width = max(map(len, verbs))
    blocks = []
    for title, (names, examples) in GROUPS.items():
        lines = [f"  {name:<{width}}  {verbs[name][1]}" for name in names]
        blocks.append("\n".join([f"{title}:", *lines, "", *(f"  $ {example}" for example in examples)]))
    return "\n\n".join([*blocks, "ggufreap VERB --help tells the flags of a verb."])
