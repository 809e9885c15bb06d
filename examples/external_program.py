"""An external program as a reward: it reads JSON lines {"prompt", "completion"} and answers a number for each."""

import json
import subprocess
import sys

COUNT_WORDS = "import json, sys\nfor line in sys.stdin: print(len(json.loads(line)['completion'].split()))"
PROGRAM = [sys.executable, "-c", COUNT_WORDS]  # put your own here


def judged(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """What the program says of each completion."""
    pairs = zip(prompts, completions, strict=True)
    lines = "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs)
    done = subprocess.run(PROGRAM, input=lines, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]
