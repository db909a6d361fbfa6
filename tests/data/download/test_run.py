"""The `download` verb in its own process, against a hub on this machine."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

COMMIT = "5f" * 20
TOKEN = "hf_never_to_be_shown"
COLUMNS = [
    "visualnews_task0",
    "mscoco_task0",
    "fashion200k_task0",
    "webqa_task1",
    "edis_task2",
    "webqa_task2",
    "visualnews_task3",
    "mscoco_task3",
    "fashion200k_task3",
    "nights_task4",
    "oven_task6",
    "infoseek_task6",
    "fashioniq_task7",
    "cirr_task7",
    "oven_task8",
    "infoseek_task8",
]
DATASETS = sorted({column.split("_")[0] for column in COLUMNS})
LOOP = """
import json, sys
from jsonargparse import auto_cli
from tracelib.data.download.run import download
from tracelib.data.download.hub import DownloadError
for args in json.loads(sys.argv[1]):
    try:
        auto_cli(download, args=args, as_positional=False)
        print("done", flush=True)
    except DownloadError as error:
        print(f"error: {error}", flush=True)
"""


class Repository:
    """Files that the hub serves, and how it misbehaves.

    `claims` are sizes and contents announced in place of the true ones; `stalls` and `resets` hold
    for a path the bytes after which a stream ends, once each.
    """

    def __init__(self, files, gated=False, terse=False):
        self.files, self.gated, self.terse = files, gated, terse
        self.claimed_sizes, self.claimed_contents = {}, {}
        self.stalls, self.resets = {}, {}
        self.requests = []

    def describe(self, path):
        content = self.claimed_contents.get(path, self.files[path])
        size = self.claimed_sizes.get(path, len(content))
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"rfilename": path, "size": size, "blobId": blob}
        if not path.endswith((".tsv", ".txt")):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"size": size, "sha256": sha256, "pointerSize": 134}
        return entry


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories = {}
        self.tokens = {"hub": set(), "cdn": set()}

    def handle_error(self, request, client_address):
        """Clients are killed in these tests."""


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, *args):
        """Be silent."""

    def do_GET(self):
        path, _, query = self.path.partition("?")
        found = re.fullmatch(
            r"(/api)?/(datasets|cdn)/([^/]+/[^/]+)/(revision|resolve)/([^/]+)/?(.*)", path
        )
        kind = "cdn" if found[2] == "cdn" else "hub"
        self.server.tokens[kind].add(self.headers.get("Authorization"))
        repository = self.server.repositories.get(found[3])
        if repository is None:
            self.refuse(401, "RepoNotFound")
        elif repository.gated:
            self.refuse(403, "GatedRepo")
        elif found[5] not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif found[1]:
            siblings = [repository.describe(path) for path in repository.files]
            if query != "blobs=true" or repository.terse:
                siblings = [{"rfilename": sibling["rfilename"]} for sibling in siblings]
            self.answer(json.dumps({"id": found[3], "sha": COMMIT, "siblings": siblings}).encode())
        elif kind == "hub" and "lfs" in repository.describe(found[6]):
            port = self.server.server_port
            there = f"http://localhost:{port}/cdn/{found[3]}/resolve/{COMMIT}/{found[6]}"
            self.answer(b"", 302, {"Location": there})
        else:
            self.stream(repository, found[6])

    def refuse(self, status, code):
        self.answer(b"{}", status, {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, content, status=200, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def stream(self, repository, path):
        content, wanted = repository.files[path], self.headers.get("Range")
        repository.requests.append((path, wanted))
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        stop = min(repository.stalls.get(path, 1 << 40), repository.resets.get(path, 1 << 40))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[begin:stop])
        self.wfile.flush()
        if repository.stalls.pop(path, None) is not None:
            self.connection.recv(1)  # until the client is gone
        elif repository.resets.pop(path, None) is not None:
            time.sleep(0.2)  # a reset throws away what the client has not read
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            self.connection.close()


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def start(hub, tmp_path_factory):
    """Starts lists of arguments, each a call of the verb, in one process."""
    home = tmp_path_factory.mktemp("home")

    def start(*calls, endpoint=f"http://127.0.0.1:{hub.server_port}"):
        env = os.environ | {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
        }
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        args = json.dumps([[str(word) for word in call] for call in calls])
        return subprocess.Popen(
            [sys.executable, "-c", LOOP, args],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    return start


@pytest.fixture(scope="module")
def run(start):
    """Runs calls of the verb and returns what each printed."""

    def run(*calls, **options):
        output, _ = start(*calls, **options).communicate(timeout=60)
        assert TOKEN not in output
        ends = list(re.finditer(r"^(done|error: .*)$", output, re.MULTILINE))
        assert len(ends) == len(calls), output
        begins = [0, *(end.end() for end in ends)]
        return [output[b : e.end()].strip() for b, e in zip(begins, ends, strict=False)]

    return run


def build_records():
    """Return the documented files of M-BEIR without pictures, by path."""
    paths = ["instructions/query_instructions.tsv"]
    paths += [f"query/train/mbeir_{d}_train.jsonl" for d in DATASETS]
    paths += [f"qrels/train/mbeir_{d}_train_qrels.txt" for d in DATASETS]
    for split in ("val", "test"):
        paths += [f"query/{split}/mbeir_{c}_{split}.jsonl" for c in COLUMNS]
        paths += [f"qrels/{split}/mbeir_{c}_{split}_qrels.txt" for c in COLUMNS]
        names = [f"{c}_{split}" if c.startswith("mscoco") else c for c in COLUMNS]
        paths += [f"cand_pool/local/mbeir_{name}_cand_pool.jsonl" for name in names]
    splits = ("train", "val", "test")
    paths += [f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl" for split in splits]
    return {path: f"content of {path}\n".encode() * 9 for path in paths}


UNION_QUERIES = {
    "query/union_train/mbeir_union_up_train.jsonl": b"train\n",
    "query/union_val/mbeir_union_val.jsonl": b"val\n",
}
RATIONALES = {
    f"rationales/mbeir_{stem}_rationales.jsonl": stem.encode()
    for stem in ("nights_train", "nights_test", "cirr_train")
}
PICTURES = {f"mbeir_images/nights/{n}.jpg": os.urandom(5_000 + n) for n in range(30)}


def build_archive(pictures, num_parts=3):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in pictures.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed = packed.getvalue()
    step = -(-len(packed) // num_parts)
    return {
        f"mbeir_images.tar.gz.part-{n:02d}": packed[n * step : (n + 1) * step]
        for n in range(num_parts)
    }


ARCHIVE = build_archive(PICTURES)


@pytest.fixture(scope="module")
def mbeir(hub):
    """A repository like M-BEIR's, and one of rationale rows."""
    others = {"README.md": b"card", ".gitattributes": b"lfs", "query/extra.jsonl": b"unknown"}
    files = build_records() | UNION_QUERIES | others | ARCHIVE
    hub.repositories["TIGER-Lab/M-BEIR"] = Repository(files)
    hub.repositories["me/thoughts"] = Repository(RATIONALES | {"README.md": b"card"})
    return hub.repositories["TIGER-Lab/M-BEIR"]


def read_tree(root):
    """Return the files below a root by path, without those of the download itself."""
    files = (path for path in root.rglob("*") if path.is_file())
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    own = (".tracelib/", "mbeir_images/.unpacked.json")
    return {path: content for path, content in found.items() if not path.startswith(own)}


@pytest.fixture(scope="module")
def whole(run, mbeir, tmp_path_factory):
    """A whole download after a dry run: its root, and what both printed."""
    root = tmp_path_factory.mktemp("whole") / "new" / "root"
    args = ["--root", root, "--rationales", "me/thoughts", "--union_queries", "true"]
    dry, wet, again = run([*args, "--dry_run", "true"], args, args)
    return root, dry, wet, again


def test_a_dry_run_lists_sizes_and_writes_nothing(run, mbeir, tmp_path):
    mbeir.requests.clear()
    (dry,) = run(["--root", tmp_path / "root", "--dry_run", "true"])
    assert not mbeir.requests
    assert not list(tmp_path.iterdir())
    records, parts = build_records(), ARCHIVE
    assert len(re.findall(r"│ absent", dry)) == len(records | parts) == 106 + 3
    path = "query/val/mbeir_mscoco_task0_val.jsonl"
    assert re.search(rf"│ {path} +│ +{len(records[path])} bytes │ absent", dry)
    packed = sum(map(len, parts.values()))
    to_fetch = packed + sum(map(len, records.values()))
    assert f"109 files, {to_fetch / 1000:.1f} kB; to fetch {to_fetch / 1000:.1f} kB, then" in dry
    unpacked = int(1.1 * packed)
    assert f"unpack about {unpacked / 1000:.1f} kB" in dry
    assert f"disk needed {(to_fetch + unpacked) / 1000:.1f} kB" in dry
    assert re.search(r"free [\d.]+ .B\n", dry)
    assert COMMIT in dry


def test_all_files_arrive_byte_for_byte(whole, hub):
    root, _, wet, again = whole
    assert read_tree(root) == build_records() | UNION_QUERIES | RATIONALES | PICTURES
    assert wet.count("checksum right\n") == 106 + 2 + 3 + 3
    assert "checksum right\n" not in again
    assert re.search(r"part-02 +│ +\d+.* kB │ unpacked", again)
    assert "to fetch 0 bytes, then to unpack about 0 bytes" in again
    assert hub.tokens == {"hub": {f"Bearer {TOKEN}"}, "cdn": {None}}


def test_a_file_that_changed_is_checked_again(whole, run, tmp_path):
    root = shutil.copytree(whole[0], tmp_path / "root")
    path = root / "cand_pool/local/mbeir_nights_task4_cand_pool.jsonl"
    content = path.read_bytes()
    os.utime(path, ns=(1, 1))
    args = ["--root", root, "--columns", "[nights_task4]", "--splits", "[test]"]
    (touched,) = run(args)
    assert "nights_task4_cand_pool.jsonl: " in touched.split("complete")[0]
    assert touched.endswith("done")
    path.write_bytes(b"C" + content[1:])
    flipped, dry = run(args, [*args, "--dry_run", "true"])
    assert re.search(rf"error: {path}: checksum \w+ is not \w+, .*; move it away", flipped)
    assert "unchecked" in dry
    assert path.read_bytes() == b"C" + content[1:]
    path.write_bytes(content[1:])
    (longer,) = run(args)
    assert f"error: {path} has {len(content) - 1} bytes, not {len(content)} as in TIGER" in longer


def test_a_subset_is_what_was_asked_for(run, mbeir, tmp_path):
    args = ["--columns", "[mscoco_task3,nights_task4]", "--images", "false"]
    with_union, without = tmp_path / "a", tmp_path / "b"
    run(
        [*args, "--root", with_union, "--splits", "[train,val]", "--rationales", "me/thoughts"],
        [*args, "--root", without, "--splits", "[test]", "--union_pools", "false"],
    )
    assert sorted(read_tree(with_union)) == [
        "cand_pool/global/mbeir_union_train_cand_pool.jsonl",
        "cand_pool/global/mbeir_union_val_cand_pool.jsonl",
        "cand_pool/local/mbeir_mscoco_task3_val_cand_pool.jsonl",
        "cand_pool/local/mbeir_nights_task4_cand_pool.jsonl",
        "instructions/query_instructions.tsv",
        "qrels/train/mbeir_mscoco_train_qrels.txt",
        "qrels/train/mbeir_nights_train_qrels.txt",
        "qrels/val/mbeir_mscoco_task3_val_qrels.txt",
        "qrels/val/mbeir_nights_task4_val_qrels.txt",
        "query/train/mbeir_mscoco_train.jsonl",
        "query/train/mbeir_nights_train.jsonl",
        "query/val/mbeir_mscoco_task3_val.jsonl",
        "query/val/mbeir_nights_task4_val.jsonl",
        "rationales/mbeir_nights_train_rationales.jsonl",
    ]
    assert sorted(read_tree(without)) == [
        "cand_pool/local/mbeir_mscoco_task3_test_cand_pool.jsonl",
        "cand_pool/local/mbeir_nights_task4_cand_pool.jsonl",
        "instructions/query_instructions.tsv",
        "qrels/test/mbeir_mscoco_task3_test_qrels.txt",
        "qrels/test/mbeir_nights_task4_test_qrels.txt",
        "query/test/mbeir_mscoco_task3_test.jsonl",
        "query/test/mbeir_nights_task4_test.jsonl",
    ]


def test_pictures_alone_with_their_archive_kept(run, mbeir, tmp_path):
    args = ["--root", tmp_path, "--records", "false", "--keep_archives", "true"]
    first, _ = run(args, args)
    assert read_tree(tmp_path) == PICTURES | ARCHIVE
    assert first.count("checksum right\n") == 3


def test_parts_left_by_a_kill_are_removed_and_not_unpacked_again(run, mbeir, tmp_path):
    args = ["--root", tmp_path, "--records", "false"]
    run([*args, "--keep_archives", "true"])
    (tmp_path / "mbeir_images.tar.gz.part-01").unlink()  # the kill came after the first removal
    mbeir.requests.clear()
    (again,) = run(args)
    assert "unpack mbeir_images" not in again
    assert read_tree(tmp_path) == PICTURES
    assert not mbeir.requests


def test_a_memory_cut_short_is_forgotten(run, mbeir, tmp_path):
    args = ["--root", tmp_path, "--columns", "[nights_task4]", "--splits", "[test]"]
    args += ["--images", "false"]
    run(args)
    memory = tmp_path / ".tracelib" / "download.json"
    whole = memory.read_text()
    memory.write_text(whole[:40])
    mbeir.requests.clear()
    (again,) = run(args)
    assert again.count("checksum right\n") == 5
    assert json.loads(memory.read_text()) == json.loads(whole)
    assert not mbeir.requests


def test_a_kill_and_a_broken_stream_cost_no_byte_that_is_on_disk(hub, start, run, tmp_path):
    chunk, path = 10 << 20, "mbeir_images.tar.gz.part-00"
    picture = {"mbeir_images/large.jpg": os.urandom(12 << 20)}
    repository = hub.repositories["me/large"] = Repository(build_archive(picture, num_parts=1))
    repository.stalls[path] = 11 << 20
    args = ["--root", tmp_path, "--repository", "me/large", "--records", "false"]
    process = start(args)
    partial = f"{path}.{hashlib.sha256(repository.files[path]).hexdigest()[:12]}.partial"
    deadline = time.monotonic() + 30
    while not (tmp_path / partial).exists() or (tmp_path / partial).stat().st_size < chunk:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / partial).stat().st_size == chunk
    repository.resets[path] = 11 << 20
    dry, wet = run([*args, "--dry_run", "true"], args)
    assert re.search(r"part-00 +│ +12.6 MB │ begun 83%", dry)
    assert wet.endswith("done")
    assert repository.requests == [(path, None)] + 2 * [(path, f"bytes={chunk}-")]
    assert read_tree(tmp_path) == picture


def test_wrong_content_is_refused_by_name_and_fetched_anew(hub, run, tmp_path):
    path = "qrels/train/mbeir_nights_train_qrels.txt"
    repository = hub.repositories["me/wrong"] = Repository(build_records())
    repository.claimed_contents[path] = b"X" + repository.files[path][1:]
    args = ["--root", tmp_path, "--repository", "me/wrong", "--images", "false"]
    args += ["--columns", "[nights_task4]", "--splits", "[train]"]
    (wrong,) = run(args)
    assert re.search(
        rf"error: {tmp_path}/{path}\S*: checksum \w+ is not \w+, that of {path} in me/wrong at "
        rf"commit {COMMIT}; it is removed, run again",
        wrong,
    )
    assert not list((tmp_path / path).parent.iterdir())
    repository.claimed_contents.clear()
    assert run(args)[0].endswith("done")
    assert (tmp_path / path).read_bytes() == repository.files[path]


@pytest.fixture(scope="module")
def errors(hub, mbeir, run, tmp_path_factory):
    """The last line of each call that must fail; none may fetch a byte."""
    root = tmp_path_factory.mktemp("errors") / "root"
    records = build_records()
    del records["cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl"]
    hub.repositories["me/gated"] = Repository({}, gated=True)
    hub.repositories["me/terse"] = Repository({"README.md": b"card"}, terse=True)
    hub.repositories["me/vast"] = vast = Repository(dict(ARCHIVE))
    vast.claimed_sizes["mbeir_images.tar.gz.part-01"] = 10**18
    hub.repositories["me/lacking"] = lacking = Repository(records)
    hub.repositories["me/gap"] = gap = Repository(dict(ARCHIVE))
    del gap.files["mbeir_images.tar.gz.part-01"]
    calls = {
        "column": ["--columns", "[cirr_task7,cirr_task8]"],
        "nothing": ["--records", "false", "--images", "false"],
        "gated": ["--repository", "me/gated"],
        "terse": ["--repository", "me/terse"],
        "absent": ["--repository", "me/absent"],
        "name": ["--repository", "a/b/c"],
        "revision": ["--revision", "v9"],
        "vast": ["--repository", "me/vast", "--records", "false"],
        "lacking": ["--repository", "me/lacking", "--images", "false"],
        "gap": ["--repository", "me/gap", "--records", "false"],
        "rationales": ["--rationales", "TIGER-Lab/M-BEIR", "--columns", "[oven_task6]"],
    }
    mbeir.requests.clear()
    printed = run(*(["--root", root, *call] for call in calls.values()))
    assert not any(repository.requests for repository in (mbeir, vast, lacking, gap))
    assert not root.exists()
    return dict(zip(calls, (text.splitlines()[-1] for text in printed), strict=True))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("column", r"M-BEIR has no cirr_task8; it has visualnews_task0, .*, infoseek_task8"),
        ("nothing", r"nothing to fetch: take --records true"),
        ("gated", r"me/gated: access is gated: accept .*/datasets/me/gated and set HF_TOKEN"),
        ("terse", r"http.* gives no size and checksum of README.md in me/terse; name a hub that"),
        ("absent", r"me/absent: no such dataset at http.*, or a private one"),
        ("name", r"a/b/c: is no name of a repository"),
        ("revision", r"TIGER-Lab/M-BEIR: no revision 'v9'"),
        ("vast", r"root: 2\.1 EB of disk are needed and .* are free; name another --root"),
        ("lacking", r"lacks 1 documented file: cand_pool/local/mbeir_cirr_task7_.*--allow_miss"),
        ("gap", r"me/gap has the archive parts .*--images false"),
        ("rationales", r"TIGER-Lab/M-BEIR has no rationales/.* with dataset in oven and split in"),
    ],
)
def test_an_error_is_one_line_with_the_way_out(errors, name, expected):
    assert re.match(rf"error: .*{expected}", errors[name])


def test_a_hub_that_is_not_there_and_files_that_may_be_missing(hub, run, tmp_path):
    records = build_records()
    del records["cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl"]
    hub.repositories["me/lacking"] = Repository(records)
    args = ["--root", tmp_path / "a", "--repository", "me/lacking", "--images", "false"]
    (lacking,) = run([*args, "--allow_missing", "true"])
    assert "the hub lacks 1 documented file: cand_pool/local/mbeir_cirr_task7" in lacking
    assert read_tree(tmp_path / "a") == records
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    (refused,) = run(["--root", tmp_path / "b"], endpoint=endpoint)
    assert re.search(r"error: TIGER-Lab/M-BEIR: ConnectError: .*; check network, HF_END", refused)


def test_two_downloads_at_once_are_refused(run, mbeir, tmp_path):
    (tmp_path / ".tracelib").mkdir()
    with FileLock(tmp_path / ".tracelib" / "download.lock"):
        (second,) = run(["--root", tmp_path, "--columns", "[nights_task4]", "--images", "false"])
    assert f"error: {tmp_path}: another download is at work here" in second
