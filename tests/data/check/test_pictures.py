import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tracelib.data.check.picture_memory import PictureMemory
from tracelib.data.check.run import check

NUM_PICTURES = 400
POOL = "cand_pool/local/mbeir_nights_task4_cand_pool.jsonl"
MEMORY = ".tracelib/check/fine_pictures.bin"


def run(root, **options):
    """Run a check, which finds the other files missing, and return counts and picture faults."""
    with pytest.raises(SystemExit):
        check(root, **{"num_workers": 0, **options})
    report = json.loads((root / ".tracelib/check/report.json").read_text())
    faults = [fault for fault in report["faults"] if fault["kind"] == "picture"]
    counts = tuple(report[f"num_{name}"] for name in ("pictures", "remembered", "broken"))
    return counts, faults


@pytest.fixture
def root(tmp_path):
    """A pool of pictures, all links to one that takes some milliseconds to decode."""
    folder = tmp_path / "mbeir_images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "1.png")
    for number in range(2, NUM_PICTURES + 1):
        (folder / f"{number}.png").hardlink_to(folder / "1.png")
    write_pool(tmp_path, [f"mbeir_images/{n}.png" for n in range(1, NUM_PICTURES + 1)])
    return tmp_path


def write_pool(root, paths):
    rows = [
        {"did": f"4:{number}", "modality": "image", "img_path": path}
        for number, path in enumerate(paths, 1)
    ]
    (root / POOL).parent.mkdir(parents=True, exist_ok=True)
    (root / POOL).write_text("".join(json.dumps(row) + "\n" for row in rows))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_run_goes_on_where_it_was_and_leaves_no_process(root):
    code = f"check(Path({str(root)!r}), num_workers=2)"
    code = f"from pathlib import Path\nfrom tracelib.data.check.run import check\n{code}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    memory = root / MEMORY
    wait_until(lambda: memory.exists() and memory.stat().st_size)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not any(map(is_running, workers)))
    num_known = memory.stat().st_size // 8
    assert 0 < num_known < NUM_PICTURES
    with memory.open("ab") as file:
        file.write(b"\0\1\2")  # a key that was cut off
    assert run(root) == ((NUM_PICTURES, num_known, 0), [])
    assert memory.stat().st_size == 8 * NUM_PICTURES
    assert run(root) == ((NUM_PICTURES, NUM_PICTURES, 0), [])
    assert run(root, fresh=True) == ((NUM_PICTURES, 0, 0), [])


def test_a_picture_that_changes_is_looked_at_again(root):
    write_pool(root, [f"mbeir_images/{n}.png" for n in (1, 2, 3, 1)])
    run(root)
    (root / "mbeir_images/2.png").unlink()
    Image.new("RGB", (9, 9)).save(root / "mbeir_images/2.png")
    content = bytearray((root / "mbeir_images/3.png").read_bytes())
    (root / "mbeir_images/3.png").unlink()
    content[60:] = bytes(len(content) - 60)
    (root / "mbeir_images/3.png").write_bytes(content)
    os.utime(root / "mbeir_images/3.png", ns=(0, 1))  # of the same size
    for num_remembered in (1, 2):  # a fault is never remembered
        counts, (fault,) = run(root)
        assert counts == (3, num_remembered, 1)
        assert (fault["file"], fault["line"]) == (POOL, 3)
    (root / "mbeir_images/1.png").unlink()
    _, faults = run(root)
    assert [fault["line"] for fault in faults] == [1, 3]
    assert re.search(r"the file is missing.* \(2 lines name it\)", faults[0]["message"])


def test_headers_show_all_but_what_is_cut_short(root):
    Image.new("RGB", (2_010, 10)).save(root / "mbeir_images/long.png")
    Image.new("1", (9_000, 9_000)).save(root / "mbeir_images/large.png")
    (root / "mbeir_images/cut.png").write_bytes((root / "mbeir_images/1.png").read_bytes()[:9000])
    (root / "mbeir_images/text.png").write_text("words")
    (root / "mbeir_images/out.png").symlink_to(Path(__file__))
    names = ("1", "long", "large", "cut", "text", "out", "none", "zero\0byte")
    write_pool(root, [f"mbeir_images/{name}.png" for name in names])
    for mode, lines in (("header", [2, 3, 5, 6, 7, 8]), ("decode", [2, 3, 4, 5, 6, 7, 8])):
        _, faults = run(root, pictures=mode)
        assert [fault["line"] for fault in faults] == lines
        for fault in faults:
            name = names[fault["line"] - 1]
            assert fault["message"].startswith(f"picture {f'mbeir_images/{name}.png'!r}: ")
    assert run(root, pictures="none") == ((0, 0, 0), [])


def test_memory_knows_what_it_was_told_by_earlier_runs(tmp_path):
    path = tmp_path / "memory.bin"
    memory = PictureMemory(path, fresh=False)
    keys = np.array([5, 2**64 - 1, 0, 77], dtype=np.uint64)
    assert memory.knows(keys).tolist() == [False] * 4
    memory.remember(keys[[1, 3]])
    memory.remember(keys[[0]])
    assert PictureMemory(path, fresh=False).knows(keys).tolist() == [True, True, False, True]
    assert len(PictureMemory(path, fresh=True)) == 0
    assert path.stat().st_size == 0
