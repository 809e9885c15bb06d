"""A scorer behind HTTP as a reward: POST {"prompt", "completion"}, and {"score": number} comes back. All at once."""

import asyncio
import json
import os
from urllib.request import Request, urlopen

URL = os.environ.get("JUDGE_URL", "http://127.0.0.1:8000/score")


def ask(prompt: str, completion: str) -> float:
    body = json.dumps({"prompt": prompt, "completion": completion}).encode()
    with urlopen(Request(URL, body, {"Content-Type": "application/json"}), timeout=30) as answer:
        return float(json.load(answer)["score"])


async def judged(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """What the endpoint says of each completion."""
    return await asyncio.gather(*(asyncio.to_thread(ask, p, c) for p, c in zip(prompts, completions, strict=True)))
