"""Try `upsr serve` under load on this machine: every answer is right, and memory stays flat.

It starts a server, lets clients post small photos for a while, and ends it while they do. It fails
unless every answer is the bytes that `upsr upscale` writes or a polite refusal (429, and 503 once
the server is told to end), its memory grows by at most a tenth, and it exits with 0 in half a
minute.
"""

import argparse
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import httpx
import numpy as np

PHOTOS = 8
SIDES = (24, 40, 56, 64)
LEAVE = 30.0  # seconds to end in
GROWTH = 1.10
UPSR = Path(sys.executable).with_name("upsr")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--clients", type=int, default=50)
    arguments.add_argument("--seconds", type=float, default=180)
    arguments.add_argument("--model", help="model folder; the built-in one if left out")
    options = arguments.parse_args()
    model = ["--model", options.model] if options.model else []
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder))
        subprocess.run([UPSR, "upscale", folder, "--out", f"{folder}/out", *model], check=True)
        expected = [(Path(folder) / "out" / photo.name).read_bytes() for photo in photos]
        pairs = list(zip([photo.read_bytes() for photo in photos], expected, strict=True))
    problems = try_out(pairs, options.clients, options.seconds, model)
    for problem in problems:
        print(f"FAILED: {problem}")
    sys.exit(1 if problems else 0)


def write_photos(folder: Path) -> list[Path]:
    """Write small photos that differ in size and in each pixel."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(PHOTOS):
        height, width = generator.choice(SIDES, 2)
        coarse = generator.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), cv2.resize(coarse, (int(width), int(height))))
        paths.append(path)
    return paths


def try_out(
    pairs: list[tuple[bytes, bytes]], clients: int, seconds: float, model: list[str]
) -> list[str]:
    """Run the server and the clients; return what went wrong."""
    server = subprocess.Popen(
        [UPSR, "serve", "--port", "0", "--max-queue", str(clients // 2), *model],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    try:
        url = re.search(r"http://\S+", server.stdout.readline())
        if url is None:
            return ["the server did not start"]
        counts, wrong, memory, ended = drive(url[0], server, pairs, clients, seconds)
    finally:
        server.kill()
    print(f"{clients} clients, {seconds:g} s: {dict(counts)}")
    early, late = memory[len(memory) // 5 : len(memory) // 2], memory[-len(memory) // 5 :]
    growth = statistics.median(late) / statistics.median(early)
    print(f"memory: {statistics.median(early) / 2**20:.0f} MiB, then x{growth:.3f}")
    print(f"after SIGTERM: exit code {server.returncode} in {ended:.1f} s")
    problems = wrong
    if not counts["right"]:
        problems.append("no photo was upscaled")
    if growth > GROWTH:
        problems.append(f"memory grew by {growth - 1:.0%}")
    if server.returncode != 0 or ended > LEAVE:
        problems.append(f"SIGTERM: exit code {server.returncode} after {ended:.1f} s")
    return problems


def drive(
    url: str,
    server: subprocess.Popen,
    pairs: list[tuple[bytes, bytes]],
    clients: int,
    seconds: float,
) -> tuple[Counter[str], list[str], list[float], float]:
    """Let clients ask, then end the server; return what came, its memory and the seconds of it."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    is_ending = threading.Event()
    lock = threading.Lock()

    def note(what: str, problem: str = "") -> None:
        with lock:
            counts[what] += 1
            if problem:
                wrong.append(problem)

    def ask(number: int) -> None:
        choice = random.Random(number)
        with httpx.Client(base_url=url, timeout=120) as client:
            while True:
                photo, expected = choice.choice(pairs)
                try:
                    answer = client.post("/upscale", files={"image": ("a.png", photo)})
                except httpx.HTTPError as error:
                    if not is_ending.is_set():
                        note("lost", f"{type(error).__name__}: {error}")
                    return
                status = answer.status_code
                if status == 200 and answer.content == expected:
                    note("right")
                elif status == 429 and int(answer.headers["Retry-After"]) > 0:
                    note("refused")
                    if is_ending.wait(min(int(answer.headers["Retry-After"]), 5)):
                        return
                elif status == 503 and is_ending.is_set():
                    note("told it ends")
                    return
                else:
                    note("wrong", f"status {status}, {len(answer.content)} bytes")
                    return

    threads = [threading.Thread(target=ask, args=[number]) for number in range(clients)]
    for thread in threads:
        thread.start()
    memory = []
    with httpx.Client(base_url=url, timeout=60) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(1.0, seconds / 20))
            text = client.get("/metrics").text
            memory.append(float(re.findall(r"process_resident_memory_bytes (\S+)", text)[-1]))
    is_ending.set()
    start = time.monotonic()
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(2 * LEAVE)
    except subprocess.TimeoutExpired:
        wrong.append("it does not end")
    ended = time.monotonic() - start
    for thread in threads:
        thread.join()
    return counts, wrong, memory, ended


if __name__ == "__main__":
    main()
