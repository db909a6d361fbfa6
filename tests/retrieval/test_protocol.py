import dataclasses
import json

import pytest

from tracelib.retrieval.protocol import Protocol

HASHES = {"qrels/a.txt": "1" * 64, "cand_pool/local/a.jsonl": "2" * 64}
PROTOCOL = Protocol("test", "fixed", None, (1, 5), 50, HASHES)


def test_reads_back_from_json_among_other_entries():
    text = json.dumps({"dtype": "float32"} | PROTOCOL.to_provenance())
    found = Protocol.from_provenance(json.loads(text))
    assert found == PROTOCOL
    assert found.find_differences(PROTOCOL) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "val"}, "split is 'test' in A and 'val' in B"),
        ({"prompt_policy": "random"}, "prompt_policy is 'fixed' in A and 'random' in B"),
        ({"prompt_seed": 1}, "prompt_seed is None in A and 1 in B"),
        ({"ks": (1, 10)}, "ks is (1, 5) in A and (1, 10) in B"),
        ({"search_depth": 10}, "search_depth is 50 in A and 10 in B"),
    ],
)
def test_each_setting_counts(change, message):
    assert PROTOCOL.find_differences(dataclasses.replace(PROTOCOL, **change)) == [message]


def test_each_file_counts():
    hashes = {"qrels/a.txt": "3" * 64, "qrels/b.txt": "1" * 64}
    other = dataclasses.replace(PROTOCOL, data_hashes=hashes)
    assert PROTOCOL.find_differences(other) == [
        "cand_pool/local/a.jsonl was read for A only",
        f"qrels/a.txt has other contents in A ({'1' * 12}) than B ({'3' * 12})",
        "qrels/b.txt was read for B only",
    ]


def test_results_of_before_are_refused_by_what_they_lack():
    entries = PROTOCOL.to_provenance()
    del entries["ks"], entries["split"]
    with pytest.raises(ValueError, match="provenance without split, ks; evaluate the run again"):
        Protocol.from_provenance(entries)
