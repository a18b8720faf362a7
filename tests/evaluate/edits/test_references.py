"""RS by hand and against a plain implementation on dense vectors; files of another shape."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from support.edits import FACT
from support.tiny import tiny

from knowedit.errors import DataError, InputError
from knowedit.evaluate.edits.generation import generate, writings
from knowedit.evaluate.edits.metrics import METRICS, Observation
from knowedit.evaluate.edits.references import FILES, read_references

WORDS = {"rome": 0, "is": 1, "city": 2, "colosseum": 3, "paris": 4}
IDF = [2.0, 1.0, 1.5, 3.0, 2.0]
SNIPPETS = [
    {"relation_id": "P131", "target_id": "Q220", "samples": [{"name": "Colosseum", "text": "Rome: Colosseum"}]},
    {"relation_id": "P131", "target_id": "Q220", "samples": [{"name": "Trevi", "text": "A city, ROME."}]},
    {"relation_id": "P131", "target_id": "Q90", "samples": [{"name": "Louvre", "text": "Paris is a city"}]},
]
EDITED = replace(FACT, relation="P131", target_new_id="Q220")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "attribute_snippets.json").write_text(json.dumps(SNIPPETS))
    (tmp_path / "tfidf_vocab.json").write_text(json.dumps(WORDS))
    np.save(tmp_path / "idf.npy", np.array(IDF))
    return tmp_path


def test_what_is_generated_is_scored(folder):
    model, fact = tiny("llama"), replace(EDITED, generation=("Rome is", "The city"))
    seen = Observation(fact, {}, *writings(model, [fact], [None]), read_references(folder))
    texts = [p + generate(model, [p], tokens=100, top_k=5, total=True)[0] for p in fact.generation]
    assert METRICS["RS"].of(seen) == pytest.approx(plain(" ".join(texts), "Rome: Colosseum A city, ROME."))
    fact = replace(fact, generation=())
    seen = Observation(fact, {}, *writings(model, [fact], [None]), read_references(folder))
    assert METRICS["RS"].of(seen) is None


def plain(one, other):
    def vector(text):
        found = np.zeros(len(WORDS))
        for word in re.findall(r"(?u)\b\w\w+\b", text.lower()):
            if word in WORDS:
                found[WORDS[word]] += IDF[WORDS[word]]
        return found

    a, b = vector(one), vector(other)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_a_score_by_hand(folder):
    references = read_references(folder)
    assert references.of(EDITED) == ["Rome: Colosseum", "A city, ROME."]
    # references: rome 2 · 2 = 4, colosseum 3, city 1.5; generated: rome 2, is 1
    wanted = 4 * 2 / (np.sqrt(16 + 9 + 2.25) * np.sqrt(4 + 1))
    assert references.score(["Rome is"], EDITED) == pytest.approx(wanted)
    assert references.score(["Rome: Colosseum", "a city of Rome"], EDITED) == pytest.approx(1.0)
    assert references.score(["Paris"], EDITED) == 0.0


def test_it_is_that_of_dense_vectors(folder):
    references = read_references(folder)
    rng = np.random.default_rng(0)
    words = [*WORDS, "unheard", "a", "Rome's"]
    for _ in range(50):
        text = " ".join(["rome", *rng.choice(words, 12)])
        assert references.score([text], EDITED) == pytest.approx(plain(text, "Rome: Colosseum A city, ROME."))


def test_nothing_to_hold_against_has_no_score(folder):
    references = read_references(folder)
    assert references.score(["Rome"], replace(EDITED, target_new_id="Q1")) is None
    assert references.score(["Rome"], FACT) is None
    assert references.score(["nothing known"], EDITED) is None and references.score([], EDITED) is None


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("attribute_snippets.json", '[{"relation_id": "P1", "target_id": "Q1"}]', InputError, "record 0: expected"),
        ("attribute_snippets.json", '{"a": 1', DataError, "not JSON"),
        ("tfidf_vocab.json", '{"rome": 9}', InputError, "no vocabulary of 5 words"),
        ("tfidf_vocab.json", "[1]", InputError, "no vocabulary"),
        ("idf.npy", "text", DataError, "no array of numpy"),
    ],
)
def test_files_of_another_shape_are_named(folder, name, content, error, said):
    (folder / name).write_text(content)
    with pytest.raises(error, match=said) as found:
        read_references(folder)
    assert name in str(found.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_and_one_that_changes_show(folder, name):
    before = read_references(folder).sha256
    if name == "attribute_snippets.json":
        (folder / name).write_text(json.dumps(SNIPPETS[:2]))
        assert read_references(folder).sha256 != before
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}': No such file.*; the folder of snippets holds"):
        read_references(folder)
