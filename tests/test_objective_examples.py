"""The examples run, and are taken by --objective as their page says."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from objective_batches import generated

from zo_objectives.language.objectives import Scored, resolve

FOLDER = Path(__file__).parent.parent / "examples"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
NAMES = re.findall(r'--objective "([^"]+)"', PAGE)
BATCH = generated(["please be brief", ""], [[], []])


class Judge(BaseHTTPRequestHandler):
    asked = 0

    def do_POST(self) -> None:
        Judge.asked += 1
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"score": len(said["completion"])}).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{server.server_port}/score")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("start", "value"), [("external", 1.5), ("http", 7.5), ("trl", 1.25)])
def test_files_are_objectives_as_their_page_says(start: str, value: float, judge: None) -> None:
    (name,) = (n for n in NAMES if n.removeprefix("trl:").startswith(f"examples/{start}"))
    objective = resolve(name, FOLDER.parent)
    assert objective(*BATCH) == objective(*BATCH) == value
    if start == "http":
        assert Judge.asked == 2, "pure: each pair once"
    if start == "trl":
        scored = objective(*BATCH)
        assert isinstance(scored, Scored) and scored.parts == {"words": 1.5, "brief": 1, "polite": 1}


@pytest.mark.parametrize("name", ["constraint", "own_objective", "library_metrics"])
def test_scripts_run(name: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_every_file_is_on_the_page() -> None:
    assert sorted(re.findall(r"\]\((\w+\.py)\)", PAGE)) == sorted(p.name for p in FOLDER.glob("*.py"))
