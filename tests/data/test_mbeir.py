import hashlib
import json
import random
import re
import zlib

import pytest

from tracelib.data.layout import CANONICAL_COLUMNS
from tracelib.data.mbeir import (
    TASK_MODALITIES,
    DataError,
    MBEIRReader,
    check_positives,
)
from tracelib.data.rationales import RationaleRow, write_rationales
from tracelib.prompts import format_query

PROMPTS = (
    "fetch the encyclopedia passage that settles this question about the picture",
    "find text that answers the question on this photo",
)
FIRST = "Fetch the encyclopedia passage that settles this question about the picture."
QUERY_FILE = "query/test/mbeir_oven_task6_test.jsonl"
TRAIN_FILE = "query/train/mbeir_oven_train.jsonl"
POOL_FILE = "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl"
UNION_FILE = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
QRELS_FILE = "qrels/test/mbeir_oven_task6_test_qrels.txt"
PROMPT_FILE = "instructions/query_instructions.tsv"


def make_query(query_id, text, image, positives, negatives=(), **changes):
    return {
        "qid": query_id,
        "query_txt": text,
        "query_img_path": image,
        "query_modality": "image,text",
        "query_src_content": None,
        "pos_cand_list": list(positives),
        "neg_cand_list": list(negatives),
        "task_id": 6,
        **changes,
    }


QUERIES = [
    make_query("5:1", "which bridge is this", "mbeir_images/tiny/q1.jpg", ["5:1", "6:7"]),
    make_query("5:2", "what species is shown?", "mbeir_images/tiny/q2.jpg", ["5:2"], ["5:4"]),
    make_query("5:3", "name the vehicle", "mbeir_images/tiny/q3.jpg", ["5:3"]),
]
POOL = [
    {
        "txt": "old stone bridge. A bridge over a river",
        "img_path": None,
        "modality": "text",
        "did": "5:1",
        "src_content": None,
    },
    {"did": "5:2", "txt": '"red fox. a small canid"', "modality": "text"},
    {
        "did": "5:3",
        "txt": " tram. Rail vehicle that runs on streets!\r",
        "img_path": None,
        "modality": "text",
        "src_content": '{"wikidata_id": "Q3"}',
    },
    {"did": "5:4", "txt": "City park. Is it green?", "img_path": None, "modality": "text"},
]
OTHER_POOL = [
    {"did": "6:7", "img_path": None, "modality": "text", "txt": "Old stone bridge. Built in 1560"}
]
QRELS = ["5:1 0 5:1 1 6", "5:1 0 6:7 1 6", "5:2 0 5:2 1 6", "5:3 0 5:3 1 6"]


def write(root, name, rows):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture
def root(tmp_path):
    write(tmp_path, QUERY_FILE, QUERIES)
    write(tmp_path, TRAIN_FILE, QUERIES)
    write(tmp_path, POOL_FILE, POOL)
    write(tmp_path, "cand_pool/local/mbeir_infoseek_task6_cand_pool.jsonl", OTHER_POOL)
    write(tmp_path, UNION_FILE, POOL + OTHER_POOL)
    write(tmp_path, QRELS_FILE, QRELS)
    header = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2"
    write(tmp_path, PROMPT_FILE, [header, "\t".join(("image,text", "text", "OVEN", "5", *PROMPTS))])
    return tmp_path


@pytest.fixture
def reader(root):
    return MBEIRReader(root)


def test_worked_example_queries(reader):
    assert reader.columns("test") == ["oven_task6"]
    queries = reader.read_queries("test", "oven_task6")
    assert [f"{query.instruction} {query.text}".strip() for query in queries] == [
        f"{FIRST} which bridge is this.",
        f"{FIRST} what species is shown?",
        f"{FIRST} name the vehicle.",
    ]
    first = queries[0]
    assert (first.query_id, first.column, first.task_id) == ("5:1", "oven_task6", 6)
    assert first.image_path == "mbeir_images/tiny/q1.jpg"
    assert first.positive_ids == ("5:1", "6:7")  # 6:7 is not in the local pool and stays
    assert queries[1].negative_ids == ("5:4",)
    assert (first.rationale, first.difficulty) == (None, None)


def test_worked_example_pools(reader):
    pool = reader.read_pool("test", "oven_task6")
    assert [(candidate.candidate_id, candidate.text) for candidate in pool] == [
        ("5:1", "Old stone bridge. A bridge over a river."),
        ("5:2", "Red fox. a small canid."),
        ("5:3", "Tram. Rail vehicle that runs on streets!"),
        ("5:4", "City park. Is it green?"),
    ]
    union = reader.read_union_pool("test")
    assert union[:4] == list(pool)
    assert union[4].text == "Old stone bridge. Built in 1560."
    assert {(candidate.modality, candidate.image_path) for candidate in union} == {("text", None)}


def test_qrels_rule_over_the_query_row_and_irrelevant_lines_do_not_count(root, reader):
    write(root, QRELS_FILE, ["5:1 0 6:7 1 6", "5:2 0 5:2 0 6", "5:2\t0  5:4 1 6", "5:3 0 5:3 1 6"])
    assert reader.read_qrels("test", "oven_task6") == {
        "5:1": ("6:7",),
        "5:2": ("5:4",),
        "5:3": ("5:3",),
    }
    queries = reader.read_queries("test")
    assert [query.positive_ids for query in queries] == [("6:7",), ("5:4",), ("5:3",)]
    assert queries[1].negative_ids == ()  # its negative 5:4 is a positive by the qrels


def test_train_reads_every_dataset_with_the_positives_of_the_row(root, reader):
    changes = {
        "neg_cand_list": ["5:1", "5:4", "5:4"],
        "pos_cand_list": [{"did": "5:1"}, "6:7", "5:1"],
    }
    write(root, TRAIN_FILE, [{**QUERIES[0], **changes}])
    text_only = {"query_img_path": "", "query_modality": "text", "task_id": 1}
    write(root, "query/train/mbeir_webqa_train.jsonl", [{**QUERIES[1], **text_only, "qid": "2:9"}])
    with (root / PROMPT_FILE).open("a") as file:
        file.write("text\ttext\tWebQA\t2\tanswer this\t\t\n")
    first, second = reader.read_queries("train")
    assert (first.column, first.positive_ids, first.negative_ids) == (
        "oven_task6",
        ("5:1", "6:7"),
        ("5:4",),
    )
    assert (second.column, second.instruction, second.image_path) == (
        "webqa_task1",
        "Answer this.",
        None,
    )
    assert list(reader.read_queries("train", "webqa_task1")) == [second]
    with pytest.raises(DataError, match="columns are for val and test"):
        reader.columns("train")


def test_pool_of_the_split_goes_before_the_common_one(root, reader):
    write(root, "cand_pool/local/mbeir_oven_task6_val_cand_pool.jsonl", POOL[:1])
    assert len(reader.read_pool("val", "oven_task6")) == 1
    assert len(reader.read_pool("test", "oven_task6")) == 4


def test_a_pool_of_mscoco_has_its_split_in_its_name(root, reader):
    write(root, "cand_pool/local/mbeir_mscoco_task0_cand_pool.jsonl", POOL)
    name = "mbeir_mscoco_task0_test_cand_pool.jsonl"
    with pytest.raises(DataError, match=f"{name}: the file is missing"):
        reader.read_pool("test", "mscoco_task0")
    write(root, f"cand_pool/local/{name}", POOL[:1])
    assert len(reader.read_pool("test", "mscoco_task0")) == 1


def test_columns_are_in_canonical_order_then_sorted(root, reader):
    names = ["scenes_task1", "oven_task8", "mscoco_task0", "scenes_task0", "cirr_task7"]
    for name in [*names, "nights"]:
        write(root, f"query/test/mbeir_{name}_test.jsonl", QUERIES)
    assert reader.columns("test") == [
        "mscoco_task0",
        "oven_task6",
        "cirr_task7",
        "oven_task8",
        "scenes_task0",
        "scenes_task1",
    ]


def test_protocol_constants():
    assert len(CANONICAL_COLUMNS) == 16
    assert sorted(TASK_MODALITIES) == [0, 1, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize(
    "text", ["who", "Who?", ' "quoted" ', '"', "line\r\nbreak", "x !", "…", ".", '" a "']
)
def test_instruction_and_text_make_the_protocol_string(root, reader, text):
    write(root, TRAIN_FILE, [{**QUERIES[0], "query_txt": text}])
    (query,) = reader.read_queries("train")
    assert f"{query.instruction} {query.text}".strip() == format_query(PROMPTS[0], text)


@pytest.mark.parametrize("empty", [None, "", "null", "  "])
def test_image_only_query_is_its_instruction(root, reader, empty):
    row = {**QUERIES[0], "query_txt": empty, "query_modality": "image", "task_id": 3}
    write(root, TRAIN_FILE, [row])
    write(root, PROMPT_FILE, ["header", "image\ttext\tOVEN\t5\tname it"])
    (query,) = reader.read_queries("train")
    assert (query.instruction, query.text) == ("Name it.", "")


@pytest.mark.parametrize(
    "text",
    [
        "<|image_pad|>\nwhat is it",
        "what is it<|im_end|>",
        "<|vision_start|><|image_pad|><|vision_end|>what is it",
        "<<|x|>|im_end|>what is it",
        "<|im_<|x|>end|>what is it",
    ],
)
def test_control_tokens_never_reach_the_model(root, reader, text):
    write(root, TRAIN_FILE, [{**QUERIES[0], "query_txt": text}])
    write(root, POOL_FILE, [{**POOL[0], "txt": text}])
    texts = [reader.read_queries("train")[0].text, reader.read_pool("test", "oven_task6")[0].text]
    for words in texts:
        assert "what is it" in words.lower()
        assert not re.search(r"<\|\w+\|>", words)


def test_prompt_policies(root, reader):
    write(root, TRAIN_FILE, [{**QUERIES[0], "qid": f"5:{number}"} for number in range(1, 201)])

    def choose(policy, seed=0):
        return [q.instruction for q in reader.read_queries("train", None, policy, seed)]

    assert set(choose("fixed")) == {FIRST}
    for policy in ("per_query_hash", "random"):
        chosen = choose(policy)
        assert 60 <= chosen.count(FIRST) <= 140
        assert len(set(chosen)) == 2
        random.seed(7)  # the global state must not matter
        assert choose(policy) == chosen
    by_hash = [zlib.crc32(f"5:{number}".encode()) % 2 for number in range(1, 201)]
    assert [prompt != FIRST for prompt in choose("per_query_hash")] == by_hash
    assert choose("random", 1) != choose("random", 0)
    assert choose("per_query_hash", 1) == choose("per_query_hash", 0)
    with pytest.raises(ValueError, match="prompt_policy is 'best'; it must be one of"):
        choose("best")


def test_rationales_join_by_query_id(root, reader):
    rows = [
        RationaleRow("5:1", 6, 1, "think", "a bridge", 0.9, "teacher", "someone"),
        RationaleRow("5:2", 6, 0, None, None, None, "teacher", "someone"),
    ]
    path = root / "rationales" / "mbeir_oven_test_rationales.jsonl"
    write_rationales(path, rows)
    first, second, third = reader.read_queries("test")
    assert (first.rationale, first.difficulty) == (rows[0].rationale, 1)
    assert (second.rationale, second.difficulty) == (None, 0)
    assert (third.rationale, third.difficulty) == (None, None)
    assert reader.read_queries("train")[0].rationale is None  # ids are unique within a split only
    assert list(reader.read_rationales("test")) == rows
    assert list(reader.read_rationales("val")) == []
    write_rationales(path, [RationaleRow("5:1", 8, 0, None, None, None, "teacher", "someone")])
    with pytest.raises(DataError, match="task_id 6, but 8 in the rationale of '5:1'"):
        reader.read_queries("test")


def test_another_rationale_folder_lacks_only_the_labels(root, tmp_path):
    name = "mbeir_oven_test_rationales.jsonl"
    labels = {"5:1": 0, "5:2": 1, "5:3": 1}
    rows = [RationaleRow(k, 6, v, "a", "b", None, "teacher", "x") for k, v in labels.items()]
    write_rationales(root / "rationales" / name, rows)
    rows = [
        RationaleRow("5:1", 6, 1, "know", "it", None, "oracle", "someone"),
        RationaleRow("5:2", 6, -1, "know", "more", None, "oracle", "someone"),
    ]
    write_rationales(root / "mine" / name, rows)
    reader = MBEIRReader(root, rationale_folder="mine")
    queries = reader.read_queries("test")
    assert [query.rationale for query in queries] == [*(row.rationale for row in rows), None]
    assert [query.difficulty for query in queries] == queries.difficulty.tolist() == [1, 1, 1]
    assert queries.select(queries.ids % 2 == 0).difficulty.tolist() == [1]
    assert list(reader.read_rationales("test")) == rows
    (root / "mine" / name).unlink()  # a split that the folder knows nothing of
    queries = MBEIRReader(root, tmp_path / "tables", "mine").read_queries("test")
    assert queries.difficulty.tolist() == [0, 1, 1]
    assert [query.rationale for query in queries] == [None] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rationales_oracle", r"rationales_oracle: no such folder .*rationale_folder.*make scenes"),
        ("../elsewhere", r"'\.\./elsewhere' is no folder below .* \(data\.rationale_folder\)"),
        ("/tmp", r"'/tmp' is no folder below"),
    ],
)
def test_a_wrong_rationale_folder_is_named(root, name, message):
    with pytest.raises(DataError, match=message):
        MBEIRReader(root, rationale_folder=name)


def test_file_hashes_name_the_files_of_the_split(root, reader):
    hashes = reader.file_hashes("test")
    assert set(hashes) == {PROMPT_FILE, QUERY_FILE, POOL_FILE, UNION_FILE, QRELS_FILE}
    assert hashes[QRELS_FILE] == hashlib.sha256((root / QRELS_FILE).read_bytes()).hexdigest()
    assert set(reader.file_hashes("train")) == {PROMPT_FILE, TRAIN_FILE}


def test_the_up_sampled_file_repeats_queries_of_all_datasets(root, reader):
    text_only = {"query_img_path": "", "query_modality": "text", "task_id": 1, "qid": "2:9"}
    rows = [QUERIES[0], {**QUERIES[1], **text_only}, QUERIES[0], {**QUERIES[2], "qid": "6:1"}]
    path = write(root, "query/union_train/mbeir_union_up_train.jsonl", rows)
    with (root / PROMPT_FILE).open("a") as file:
        file.write("text\ttext\tWebQA\t2\tanswer\nimage,text\ttext\tInfoSeek\t6\tfind\n")
    thought = RationaleRow("5:1", 6, 1, "think", "a bridge", 0.9, "teacher", "someone")
    write_rationales(root / "rationales" / "mbeir_oven_train_rationales.jsonl", [thought])
    queries = list(reader.read_union_up_queries())
    assert [(q.query_id, q.column) for q in queries] == [
        ("5:1", "oven_task6"),
        ("2:9", "webqa_task1"),
        ("5:1", "oven_task6"),
        ("6:1", "infoseek_task6"),
    ]
    assert queries[0] == queries[2]
    assert [q.rationale for q in queries] == [thought.rationale, None, thought.rationale, None]
    write(root, "query/union_train/mbeir_union_up_train.jsonl", rows[1:2])
    with pytest.raises(DataError, match=r"rationales\.jsonl:1: qid '5:1' is no query of "):
        reader.read_union_up_queries()
    write(root, "query/union_train/mbeir_union_up_train.jsonl", [*rows, {**rows[0], "qid": "10:4"}])
    with pytest.raises(DataError, match=re.escape(f"{path}:5: qid '10:4' is of no data set")):
        reader.read_union_up_queries()


def test_check_positives_names_query_and_candidate(reader):
    queries = reader.read_queries("train")
    check_positives(queries, reader.read_union_pool("test"), "union")
    with pytest.raises(
        DataError, match=r"pool\.jsonl: no candidate '6:7', a positive of query '5:1'"
    ):
        check_positives(queries, reader.read_pool("test", "oven_task6"), "pool.jsonl")


QUERY_ERRORS = [
    ({"qid": None}, "field 'qid' is missing"),
    ({"qid": "5-2"}, "id '5-2' is not 'D:N'"),
    ({"qid": "5:0"}, "id '5:0' is not 'D:N' with N in 1 .. 499999"),
    ({"qid": "5:500000"}, "id '5:500000' is not 'D:N' with N in 1 .. 499999"),
    ({"qid": "5:02"}, "id '5:02'"),
    ({"qid": 52}, "id 52"),
    ({"qid": "5:1"}, "qid '5:1' occurs twice"),
    ({"pos_cand_list": []}, "pos_cand_list is missing or empty"),
    ({"pos_cand_list": None}, "pos_cand_list is missing or empty"),
    ({"pos_cand_list": "5:2"}, "pos_cand_list '5:2' is no list"),
    ({"pos_cand_list": ["5:10000000"]}, "id '5:10000000' is not 'D:N' with N in 1 .. 9999999"),
    ({"pos_cand_list": [{"id": "5:1"}]}, "id None"),
    ({"neg_cand_list": [4]}, "id 4"),
    ({"task_id": 5}, "task_id 5 is none of [0, 1, 2, 3, 4, 6, 7, 8]"),
    ({"task_id": 9}, "task_id 9 is none of"),
    ({"task_id": "6"}, "task_id '6' is none of"),
    ({"task_id": True}, "task_id True is none of"),
    ({"query_modality": None}, "field 'query_modality' is missing"),
    ({"query_modality": "text,image"}, "query_modality 'text,image' does not fit"),
    ({"query_modality": "text"}, "query_modality 'text' does not fit"),
    ({"query_img_path": None}, "query_modality 'image,text' does not fit"),
    ({"query_txt": ""}, "query_modality 'image,text' does not fit"),
    ({"query_txt": 7}, "query_txt 7 is no string"),
]


@pytest.mark.parametrize(("change", "message"), QUERY_ERRORS)
@pytest.mark.parametrize(("split", "name"), [("train", TRAIN_FILE), ("test", QUERY_FILE)])
def test_a_bad_query_is_named(root, reader, split, name, change, message):
    path = write(root, name, [QUERIES[0], {**QUERIES[1], **change}])
    with pytest.raises(DataError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(message)):
        reader.read_queries(split)


def test_the_task_may_come_from_the_file_name_only(root, reader):
    without = {key: v for key, v in QUERIES[0].items() if key != "task_id"}
    path = write(root, QUERY_FILE, [without, *QUERIES[1:]])
    assert reader.read_queries("test")[0].task_id == 6
    path = write(root, QUERY_FILE, [{**QUERIES[0], "task_id": 8}])
    with pytest.raises(DataError, match=re.escape(f"{path}:1: task_id 8 in a file of task 6")):
        reader.read_queries("test")
    path = write(root, TRAIN_FILE, [{**QUERIES[0], "task_id": 3}])
    message = f"{path}:1: query_modality 'image,text' is not 'image', that of task 3"
    with pytest.raises(DataError, match=re.escape(message)):
        reader.read_queries("train")
    path = write(root, TRAIN_FILE, [{**QUERIES[0], "task_id": None}])
    with pytest.raises(DataError, match=re.escape(f"{path}:1: task_id is missing")):
        reader.read_queries("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"did": None}, "field 'did' is missing"),
        ({"did": "x:1"}, "id 'x:1' is not 'D:N'"),
        ({"did": "5:10000000"}, "id '5:10000000'"),
        ({"did": "5:1"}, "did '5:1' occurs twice"),
        ({"modality": None}, "field 'modality' is missing"),
        ({"modality": "image"}, "modality 'image' does not fit"),
        ({"img_path": "a.png"}, "modality 'text' does not fit"),
        ({"txt": None}, "modality 'text' does not fit"),
        ({"txt": ["a"]}, "txt ['a'] is no string"),
    ],
)
def test_a_bad_candidate_is_named(root, reader, change, message):
    path = write(root, POOL_FILE, [POOL[0], {**POOL[1], **change}])
    with pytest.raises(DataError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(message)):
        reader.read_pool("test", "oven_task6")


def test_a_candidate_number_beyond_the_query_limit_is_fine(root, reader):
    write(root, POOL_FILE, [{**POOL[0], "did": "5:9999999"}])
    assert reader.read_pool("test", "oven_task6")[0].candidate_id == "5:9999999"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5:1 0 5:1 1", "has 4 columns"),
        ("5:1 0 5:1 1 6 7", "has 6 columns"),
        ("", "has 0 columns"),
        ("5 0 5:1 1 6", "id '5'"),
        ("5:1 0 5:x 1 6", "id '5:x'"),
        ("5:1 0 5:1 yes 6", "relevance 'yes'"),
    ],
)
def test_a_bad_qrels_line_is_named(root, reader, line, message):
    path = write(root, QRELS_FILE, [QRELS[0], line])
    with pytest.raises(DataError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(message)):
        reader.read_qrels("test", "oven_task6")


@pytest.mark.parametrize("line", [b"{broken", b"[]", b"", b'{"qid": "5:\xff"}', b"3"])
def test_a_line_that_is_no_object_is_named(root, reader, line):
    for name in (TRAIN_FILE, UNION_FILE):
        path = root / name
        path.write_bytes(path.read_bytes().splitlines()[0] + b"\n" + line + b"\n")
        with pytest.raises(DataError, match=re.escape(f"{path}:2: ")):
            reader.read_queries("train") if name == TRAIN_FILE else reader.read_union_pool("test")


@pytest.mark.parametrize("name", [QUERY_FILE, POOL_FILE, UNION_FILE, QRELS_FILE])
def test_an_empty_or_missing_file_is_named(root, reader, name):
    def read_all():
        reader.read_queries("test")
        reader.read_pool("test", "oven_task6")
        reader.read_union_pool("test")

    read_all()
    (root / name).write_text("")
    with pytest.raises(DataError, match=re.escape(f"{root / name}: the file ")):
        read_all()
    (root / name).unlink()
    named = root / "query/test" if name == QUERY_FILE else root / name
    with pytest.raises(
        DataError, match=re.escape(f"{named}: ") + "(the file is missing|no query file)"
    ):
        read_all()


def test_a_query_without_qrels_is_named(root, reader):
    write(root, QRELS_FILE, QRELS[:3])
    with pytest.raises(DataError, match=":3: qid '5:3' has no positive in the qrels of oven_task6"):
        reader.read_queries("test")


def test_an_unknown_column_is_named(reader):
    for split, column in (("test", "oven_task8"), ("train", "cirr_task7")):
        with pytest.raises(DataError, match=f"no '{column}' in split '{split}'; there are"):
            reader.read_queries(split, column)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("image,text\ttext\tCIRR\t8\tfind it", "no row for query '5:1': data set id 5"),
        (
            "image,text\timage\tOVEN\t5\tfind it",
            "query modality 'image,text', candidate modality 'text'",
        ),
        ("image,text\ttext\tOVEN\t5\t\t", ":2: 'image,text"),
        ("image,text\ttext\tOVEN\t5\t\t", "no prompt from column 5 on"),
        ("image,text\ttext\tOVEN", "data set id '', in column 4, is no integer"),
        ("image,text\ttext\tOVEN\tfive\tfind it", "data set id 'five', in column 4"),
        ('image,text\ttext\tOVEN\t5\t" find it "', "a prompt begins with a quote and a blank"),
        ("image,text\tmusic\tOVEN\t5\tfind it", "no task has the query and candidate modality"),
        (
            "image,text\ttext\tOVEN\t5\tfind it\nimage,text\ttext\tOVEN\t5\tname it",
            ":3: ('5', 'image,text', 'text') has a row already, at line 2",
        ),
        (" \nimage,text\ttext\tOVEN\t5\tfind it", ":2: the line is empty; take it out"),
    ],
)
def test_a_bad_instruction_table_is_named(root, reader, line, message):
    path = write(root, PROMPT_FILE, ["header", line])
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        reader.read_queries("test")
    path.unlink()
    with pytest.raises(DataError, match=re.escape(f"{path}: the file is missing")):
        reader.read_queries("test")
