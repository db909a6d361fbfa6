"""The protocol's worked example: its files, and the strings, ids and hits that they must give."""

import numpy as np
import pytest

from tracelib.data.mbeir import MBEIRReader

FILES = {
    "query/test/mbeir_oven_task6_test.jsonl": r"""
{"qid": "5:1", "query_txt": "which bridge is this", "query_img_path": "mbeir_images/tiny/q1.jpg", "query_modality": "image,text", "query_src_content": null, "pos_cand_list": ["5:1", "6:7"], "neg_cand_list": [], "task_id": 6}
{"qid": "5:2", "query_txt": "what species is shown?", "query_img_path": "mbeir_images/tiny/q2.jpg", "query_modality": "image,text", "query_src_content": "{\"note\": \"tiny\"}", "pos_cand_list": ["5:2"], "neg_cand_list": ["5:4"], "task_id": 6}
{"qid": "5:3", "query_txt": "name the vehicle", "query_img_path": "mbeir_images/tiny/q3.jpg", "query_modality": "image,text", "query_src_content": null, "pos_cand_list": ["5:3"], "neg_cand_list": [], "task_id": 6}
""",  # noqa: E501
    "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl": r"""
{"txt": "old stone bridge. A bridge over a river", "img_path": null, "modality": "text", "did": "5:1", "src_content": null}
{"did": "5:2", "txt": "\"red fox. a small canid\"", "modality": "text"}
{"did": "5:3", "txt": " tram. Rail vehicle that runs on streets!\r", "img_path": null, "modality": "text", "src_content": "{\"wikidata_id\": \"Q3\"}"}
{"did": "5:4", "txt": "City park. Is it green?", "img_path": null, "modality": "text", "src_content": null}
""",  # noqa: E501
    "cand_pool/local/mbeir_infoseek_task6_cand_pool.jsonl": r"""
{"did": "6:7", "img_path": null, "modality": "text", "txt": "Old stone bridge. Built in 1560", "src_content": null}
""",  # noqa: E501
    "qrels/test/mbeir_oven_task6_test_qrels.txt": """
5:1 0 5:1 1 6
5:1 0 6:7 1 6
5:2 0 5:2 1 6
5:3 0 5:3 1 6
""",
    "instructions/query_instructions.tsv": (
        "\nquery_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\n"
        "image,text\ttext\tOVEN\t5\tfetch the encyclopedia passage that settles this question "
        "about the picture\tfind text that answers the question on this photo\n"
    ),
}
LOCAL, OTHER = (
    f"cand_pool/local/mbeir_{name}_task6_cand_pool.jsonl" for name in ("oven", "infoseek")
)
UNION = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
QRELS = "qrels/test/mbeir_oven_task6_test_qrels.txt"
FIRST = "Fetch the encyclopedia passage that settles this question about the picture."
QUERY_VECTORS = {"5:1": (4, 0, 3), "5:2": (3, 4, 0), "5:3": (1, 1, 0), "8:1": (1, 0, 0)}
CANDIDATE_VECTORS = {
    "5:1": (1, 0, 0),
    "5:2": (0, 1, 0),
    "5:3": (0, 0, 1),
    "5:4": (0.6, 0.8, 0),
    "6:7": (0.8, 0, 0.6),
    "8:1": (1, 0, 0),
    "8:2": (0.8, 0.6, 0),
}


def write_files(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text.removeprefix("\n"), newline="\n")


@pytest.fixture
def root(tmp_path):
    write_files(tmp_path, FILES)
    write_files(
        tmp_path, {UNION: FILES[LOCAL].removeprefix("\n") + FILES[OTHER].removeprefix("\n")}
    )
    return tmp_path


def measure(queries, pool, k, scale=None):
    """Return any-hit and fractional recall at k, ties by place in the pool."""
    scale = scale or {}
    vectors = np.array(
        [np.multiply(CANDIDATE_VECTORS[c.candidate_id], scale.get(c.candidate_id, 1)) for c in pool]
    )
    offsets, ids = queries.positives
    hits, shares = [], []
    for i, query in enumerate(queries):
        scores = vectors @ np.array(QUERY_VECTORS[query.query_id], dtype=float)
        ranked = np.argsort(-scores.round(9), kind="stable")[:k]
        places = pool.find(ids[offsets[i] : offsets[i + 1]])
        found = len({*places.tolist()} & {*ranked.tolist()})
        hits.append(found > 0)
        shares.append(found / len(places))
    return pytest.approx([np.mean(hits), np.mean(shares)], abs=1e-4)


def test_strings_and_ids(root):
    reader = MBEIRReader(root)
    queries = reader.read_queries("test")
    assert [f"{q.instruction} {q.text}" for q in queries] == [
        f"{FIRST} which bridge is this.",
        f"{FIRST} what species is shown?",
        f"{FIRST} name the vehicle.",
    ]
    assert queries.ids.tolist() == [2500001, 2500002, 2500003]
    assert queries.columns == ["oven_task6"] * 3
    union = reader.read_union_pool("test")
    assert [candidate.text for candidate in union] == [
        "Old stone bridge. A bridge over a river.",
        "Red fox. a small canid.",
        "Tram. Rail vehicle that runs on streets!",
        "City park. Is it green?",
        "Old stone bridge. Built in 1560.",
    ]
    assert union.ids.tolist() == [50000001, 50000002, 50000003, 50000004, 60000007]
    pools = [reader.read_pool("test", f"{name}_task6") for name in ("oven", "infoseek")]
    assert list(union) == [candidate for pool in pools for candidate in pool]
    offsets, ids = queries.positives
    assert (offsets.tolist(), ids.tolist()) == (
        [0, 2, 3, 4],
        [50000001, 60000007, 50000002, 50000003],
    )


def test_the_policy_all_asks_under_both_prompts(root):
    queries = MBEIRReader(root).read_evaluation_set("test", "all").queries
    second = "Find text that answers the question on this photo."
    assert [(q.query_id, q.prompt_number, q.instruction) for q in queries] == [
        (f"5:{number}", prompt, (FIRST, second)[prompt - 1])
        for number in (1, 2, 3)
        for prompt in (1, 2)
    ]
    assert queries[3].text == "what species is shown?"


@pytest.mark.parametrize(
    ("k", "local", "union"),
    [
        (1, (0.3333, 0.1667), (0.3333, 0.1667)),
        (2, (0.6667, 0.5), (0.6667, 0.6667)),
        (4, (1.0, 0.8333), (0.6667, 0.6667)),
        (5, (1.0, 0.8333), (1.0, 1.0)),
    ],
)
def test_metrics_of_both_pools(root, k, local, union):
    reader = MBEIRReader(root)
    queries = reader.read_queries("test")
    assert measure(queries, reader.read_pool("test", "oven_task6"), k) == local
    assert measure(queries, reader.read_union_pool("test"), k) == union


def test_a_positive_that_the_pool_lacks_stays_a_miss(root):
    lines = FILES[LOCAL].splitlines(keepends=True)
    write_files(root, {LOCAL: "".join(line for line in lines if '"5:3"' not in line)})
    reader = MBEIRReader(root)
    queries, pool = reader.read_queries("test"), reader.read_pool("test", "oven_task6")
    assert len(queries) == 3
    hits = [measure(queries, pool, k).expected[0] for k in (1, 2, 5)]
    assert hits == pytest.approx([0.3333, 0.6667, 0.6667], abs=1e-4)


def test_a_positive_of_another_dataset_decides_the_union(root):
    write_files(root, {QRELS: FILES[QRELS].replace("5:1 0 6:7 1 6\n", "")})
    reader = MBEIRReader(root)
    queries = reader.read_queries("test")  # as if qrels had been filtered by the local pool
    assert measure(queries, reader.read_pool("test", "oven_task6"), 1).expected[0] > 0.3
    assert measure(queries, reader.read_union_pool("test"), 1).expected[0] == 0


def test_documents_that_are_not_normalised_change_the_ranking(root):
    reader = MBEIRReader(root)
    queries, pool = reader.read_queries("test"), reader.read_pool("test", "oven_task6")
    assert measure(queries, pool, 1, {"5:3": 10}).expected[0] == 0


def test_a_query_s_own_picture_stays_in_the_pool(tmp_path):
    query = (
        '{"qid": "8:1", "query_txt": "but red", "query_img_path": "r.jpg", "query_modality": '
        '"image,text", "pos_cand_list": ["8:2"], "neg_cand_list": [], "task_id": 7}\n'
    )
    pool = "".join(
        f'{{"did": "8:{n}", "img_path": "{name}.jpg", "modality": "image"}}\n'
        for n, name in ((1, "r"), (2, "t"))
    )
    prompts = "header\nimage,text\timage\tCIRR\t8\tfind it\n"
    write_files(
        tmp_path,
        {
            "query/test/mbeir_cirr_task7_test.jsonl": query,
            "cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl": pool,
            "qrels/test/mbeir_cirr_task7_test_qrels.txt": "8:1 0 8:2 1 7\n",
            "instructions/query_instructions.tsv": prompts,
        },
    )
    found = MBEIRReader(tmp_path).read_evaluation_set("test")
    assert found.queries[0].image_path == found.candidates[0].image_path
    assert measure(found.queries, found.candidates, 1).expected == [0, 0]
    assert measure(found.queries, found.candidates, 5).expected == [1, 1]
