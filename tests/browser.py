"""Built pages in headless Chromium: opened side by side in frames of a given width, and asked by a
script.
"""
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import json
from pathlib import Path
from queue import Empty, Queue
import shutil
import subprocess
from threading import Thread

import pytest

TESTS = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=1500,1000"]
# every page in its frame, four at a time; then one answer for all
DRIVER = """<!doctype html><meta charset="utf-8"><body><script src="/-ask.js"></script><script>
const jobs = JOBS, answers = [];
const loaded = (frame, job) => new Promise((done) => {
  frame.onload = done;
  frame.style.width = `${job.width}px`;
  frame.src = job.page;
});
const late = (what) => new Promise((_, fail) =>
  setTimeout(() => fail(new Error(`no ${what} in 60 s`)), 60000));
const worker = async () => {
  const frame = document.body.appendChild(document.createElement("iframe"));
  frame.style.height = "900px";
  for (let job = jobs.shift(); job; job = jobs.shift()) {
    try {
      await Promise.race([loaded(frame, job), late("page")]);
      answers.push({...job, found: await Promise.race([ask(frame.contentWindow, job), late("answer")])});
    } catch (error) { answers.push({...job, error: String(error)}); }
  }
  frame.remove();
};
Promise.all([1, 2, 3, 4].map(worker)).then(
  () => fetch("/-answers", {method: "POST", body: JSON.stringify(answers)}));
</script>"""


def chromium() -> str:
    """The browser of this machine; without one the test is skipped."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if not found: pytest.skip("no chromium on this machine")
    return found


class Pages(SimpleHTTPRequestHandler):
    """The files of a folder, the driver and its script; answers go into a queue."""

    def __init__(self, *args, own: dict[str, bytes], answers: Queue, **kwargs):
        self.own, self.answers = own, answers
        super().__init__(*args, **kwargs)

    def do_GET(self):
        if self.path not in self.own: return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript" if self.path.endswith("js") else "text/html")
        self.end_headers()
        self.wfile.write(self.own[self.path])

    def do_POST(self):
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


@contextmanager
def served(folder: Path, own: dict[str, bytes], answers: Queue):
    """Address of a server of this folder on this machine."""
    handler = partial(Pages, directory=str(folder), own=own, answers=answers)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def ask(folder: Path, jobs: list[dict], scripts: list[Path], profile: Path,
        seconds: int = 300) -> list[dict]:
    """Open the `page` of every job in a frame of its `width`; what `ask` of the scripts finds there."""
    browser, answers = chromium(), Queue()
    own = {"/-driver": DRIVER.replace("JOBS", json.dumps(jobs)).encode(),
           "/-ask.js": b"\n;".join(p.read_bytes() for p in scripts)}
    with served(folder, own, answers) as address:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", f"{address}/-driver"]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try: found = answers.get(timeout=seconds)
        except Empty: raise AssertionError(f"no answer from Chromium in {seconds} s") from None
        finally:
            running.terminate()
            running.wait()
    assert len(found) == len(jobs)
    assert not [f for f in found if "error" in f], found
    return found


def pages(html: Path) -> list[str]:
    """The pages of a built book, as addresses below its folder."""
    found = [p.relative_to(html).as_posix() for p in html.rglob("*.html") if "_static" not in p.parts]
    assert len(found) > 5
    return sorted(found)
