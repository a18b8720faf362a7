"""A saved edit is read as what it was, or not at all."""

import dataclasses
import errno
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.edits import random_edit, same, weights
from support.tiny import tiny

from knowedit import DataError, InputError, ModelError
from knowedit.edit import edit as edits_module, storage
from knowedit.edit.apply import applied
from knowedit.edit.edit import load_edit, save_edit
from knowedit.edit.storage import FACTORS, RECORD

FLIPS = 200


@pytest.fixture(scope="module")
def model():
    return tiny("gpt2")


@pytest.fixture(scope="module")
def edit(model):
    """Low-rank and dense, with everything that provenance can hold."""
    low, dense = random_edit(model, 1, rank=2), random_edit(model, 2, rank=0)
    return dataclasses.replace(
        low,
        deltas={**low.deltas, **dense.deltas},
        bases={**low.bases, **dense.bases},
        config={"steps": 25, "lr": 0.5, "prefixes": ["東京 – “São Tomé”\n", "\ud800"], "layer": None, "kl": True},
        versions={"torch": "2.9"},
        notes={"losses": [1e-300, -0.0, 3], "nested": {"a": [{}]}},
        made={"command": "knowedit edit --fact x", "threads": 2, "model_id": None},
        measured={"perplexity": {"before": 1.5, "after": None}},
        seed=2**63,
    )


@pytest.fixture(scope="module")
def saved(edit, tmp_path_factory) -> Path:
    return save_edit(edit, tmp_path_factory.mktemp("edits") / "eiffel")


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def damaged(folder: Path, *said: str) -> None:
    """Reading is refused in one line that says why."""
    with pytest.raises(DataError) as caught:
        load_edit(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and str(folder) in message
    for text in said:
        assert text in message, message


def forge(folder: Path, change=None, tensors: dict | None = None) -> None:
    """Write what somebody writes who knows how the checksums are made."""
    record = json.loads((folder / RECORD).read_text())
    if tensors is not None:
        factors = safetensors.torch.save(tensors)
        (folder / FACTORS).write_bytes(factors)
        record["factors_sha256"] = hashlib.sha256(factors).hexdigest()
    if change is not None:
        change(record)
    record["checksum"] = storage._checksum(record)
    (folder / RECORD).write_bytes(storage._rendered(record))


# ---------------------------------------------------------------- there and back


def test_there_and_back(edit, saved):
    read = load_edit(saved)
    assert read.content_hash == edit.content_hash and sorted(p.name for p in saved.iterdir()) == [RECORD, FACTORS]
    for name in ("bases", "config", "versions", "notes", "made", "measured"):
        assert dict(getattr(read, name)) == dict(getattr(edit, name))
    assert (read.method, read.facts, read.model, read.seed) == (edit.method, edit.facts, edit.model, edit.seed)
    for path, delta in edit.deltas.items():
        found = read.deltas[path].tensors()
        assert type(read.deltas[path]) is type(delta) and all(
            torch.equal(found[n], t) for n, t in delta.tensors().items()
        )
    assert read.created and not edit.created  # saving gives a time stamp to an edit that has none


def test_a_time_stamp_is_kept(edit, tmp_path):
    stamped = dataclasses.replace(edit, created="2026-01-01T00:00:00Z")
    assert load_edit(stamped.save(tmp_path / "one")).created == "2026-01-01T00:00:00Z"


def test_the_same_edit_gives_the_same_files(edit, saved, tmp_path):
    again = save_edit(dataclasses.replace(edit, created=load_edit(saved).created), tmp_path / "again")
    for name in (FACTORS, RECORD):
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_a_loaded_edit_does_what_the_edit_did(model, edit, saved):
    base = weights(model)
    with applied(model, edit):
        wanted = weights(model)
    with load_edit(saved).applied(model):
        assert same(weights(model), wanted)
    assert same(weights(model), base)
    with pytest.raises(ModelError, match="other weights"):
        load_edit(saved).applied(tiny("gpt2", seed=1)).__enter__()


def test_a_rank_one_edit_of_one_layer_is_kilobytes(model, tmp_path):
    folder = random_edit(model, 1).save(tmp_path / "small")
    numbers = 4 * sum(model.down_shape(1))
    assert sum(p.stat().st_size for p in folder.iterdir()) < numbers + 2500


def test_one_change_of_two_weights(model, tmp_path):
    low = random_edit(model, 0, 1)
    delta = low.deltas[model.down_path(0)]
    edit = dataclasses.replace(low, deltas=dict.fromkeys(low.deltas, delta))
    assert load_edit(edit.save(tmp_path / "edit")).content_hash == edit.content_hash


def test_a_relative_folder_and_home(edit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert edit.save("here") == Path("here") and edit.save("~/there") == tmp_path / "there"
    assert load_edit("~/here").content_hash == load_edit("there").content_hash


def test_files_are_as_readable_as_others(edit, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    folder = edit.save(tmp_path / "edit")
    assert folder.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert (folder / FACTORS).stat().st_mode == (tmp_path / "other" / "file").stat().st_mode


@pytest.mark.parametrize("name, size", [(RECORD, 2**27), (FACTORS, 2**35)])
def test_files_of_absurd_sizes_are_not_read(edit, tmp_path, name, size):
    folder = edit.save(tmp_path / "edit")
    with open(folder / name, "r+b") as file:
        file.truncate(size)  # it takes no room on the disk, and would in memory
    with pytest.raises(DataError, match=rf"{name} has {size} bytes, expected at most"):
        load_edit(folder)


# ---------------------------------------------------------------- refused on the way out


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_folder_that_exists(edit, tmp_path, kind):
    taken = tmp_path / "taken"
    {"folder": taken.mkdir, "file": taken.touch, "link": lambda: taken.symlink_to("nowhere")}[kind]()
    with pytest.raises(InputError, match="exists already.*choose a new folder"):
        edit.save(taken)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_a_folder_that_appears_meanwhile(edit, tmp_path, monkeypatch):
    def appears(*_):
        (tmp_path / "taken").mkdir(exist_ok=True)
        (tmp_path / "taken" / "file").touch()

    monkeypatch.setattr(edits_module, "_check_readable", appears)
    with pytest.raises(InputError, match="cannot write"):
        edit.save(tmp_path / "taken")
    assert [p.name for p in tmp_path.rglob("*")] == ["taken", "file"]


def test_a_parent_that_is_not_there(edit, tmp_path):
    with pytest.raises(InputError, match="cannot write .*: .* is no folder"):
        edit.save(tmp_path / "no" / "such")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", range(4))
def test_a_full_disk(edit, tmp_path, monkeypatch, after):
    """At the first or second file, or when they are brought to the disk."""
    calls = []

    def full(*_):
        calls.append(_)
        if len(calls) > after % 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if after < 2:
        monkeypatch.setattr(os, "fsync", full)
    else:
        write = storage._write

        def half(path, data):
            path.write_bytes(data[: len(data) // 2])
            full()
            path.unlink()
            write(path, data)

        monkeypatch.setattr(storage, "_write", half)
    with pytest.raises(InputError, match="cannot write .*No space left on device.*has room"):
        edit.save(tmp_path / "edit")
    assert list(tmp_path.iterdir()) == [] and calls


def test_an_interrupt_leaves_nothing_behind(edit, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        edit.save(tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change, said",
    [
        ({"notes": {"loss": float("nan")}}, "not plain JSON"),
        ({"notes": {"delta": torch.ones(1)}}, "not plain JSON"),
        ({"config": {"delta": torch.ones(1)}}, "not plain JSON"),
        ({"config": {"loss": float("inf")}}, "not plain JSON"),
        ({"notes": {("a", "b"): 1}}, "not plain JSON"),
        ({"config": {"layers": {10: 1, 9: 2}}}, "content hash.*with text as keys"),
        ({"versions": {"torch": 2.9}}, "versions is no object of texts"),
        ({"seed": True}, "seed is of type bool"),
    ],
)
def test_provenance_that_json_cannot_hold(edit, tmp_path, change, said):
    with pytest.raises(InputError, match=said) as caught:
        dataclasses.replace(edit, **change).save(tmp_path / "edit")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- damaged


@pytest.mark.parametrize("name", [FACTORS, RECORD])
def test_flipped_bits(copied, edit, name):
    path, chance = copied / name, random.Random(0)
    sound = path.read_bytes()
    for bit in chance.sample(range(8 * len(sound)), FLIPS):
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        damaged(copied)
    path.write_bytes(sound)
    assert load_edit(copied).content_hash == edit.content_hash


@pytest.mark.parametrize("name", [FACTORS, RECORD])
def test_truncated_and_longer_files(copied, name):
    path = copied / name
    sound = path.read_bytes()
    sizes = {0, 1, 7, 8, 9, 100, len(sound) // 2, *range(len(sound) - 12, len(sound))}
    for data in [*(sound[:size] for size in sorted(sizes)), sound + b"\n", sound + b"\0", b" " + sound, sound * 2]:
        path.write_bytes(data)
        damaged(copied)


@pytest.mark.parametrize("name", [FACTORS, RECORD])
def test_a_file_that_is_missing_or_no_file(copied, name):
    content = (copied / name).read_bytes()
    (copied / name).unlink()
    damaged(copied, f"{name} is not there")
    (copied / name).mkdir()
    damaged(copied, f"{name} is not there, or is no plain file")
    (copied / name).rmdir()
    outside = copied.parent / "outside"
    outside.write_bytes(content)
    (copied / name).symlink_to(outside)
    damaged(copied, "no plain file")


def test_factors_of_another_edit(copied, model, tmp_path):
    other = random_edit(model, 1, 2, seed=7).save(tmp_path / "other")
    shutil.copy(other / FACTORS, copied / FACTORS)
    damaged(copied, "belongs to another edit")


@pytest.mark.parametrize("name", ["nosuch", "copy/edit.json"])
def test_no_folder(copied, name):
    with pytest.raises(InputError, match="is no folder"):
        load_edit(copied.parent / name)


# ---------------------------------------------------------------- forged: sound checksums over something else


def tensors_of(edit) -> dict:
    return {f"{path}:{name}": t.clone() for path, delta in edit.deltas.items() for name, t in delta.tensors().items()}


def renamed(tensors: dict, old: str, new: str) -> dict:
    return {name.replace(old, new): t for name, t in tensors.items()}


U, V, DELTA = "transformer.h.1.mlp.c_proj:u", "transformer.h.1.mlp.c_proj:v", "transformer.h.2.mlp.c_proj:delta"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t[U].__setitem__((3, 1), float("nan")), "NaN or infinity"),
        (lambda t: t[DELTA].__setitem__((3, 1), float("inf")), "NaN or infinity"),
        (lambda t: t.update({U: t[U][:, :1].clone()}), "expected (out, k) and (in, k)"),
        (lambda t: t.update({U: t[U][:, 0].clone()}), "expected a matrix"),
        (lambda t: t.update({U: t[U][:, :0], V: t[V][:, :0]}), "expected (out, k)"),
        (lambda t: t.update({U: t[U].double()}), "float64, expected float32"),
        (lambda t: t.update({V: t[V].int()}), "int32, expected float32"),
        (lambda t: t.pop(V), "has the tensors ['u']"),
        (lambda t: t.update({DELTA.replace("delta", "u"): t[U].clone()}), "expected u and v, or delta"),
        (lambda t: t.update({"extra": t[U].clone()}), "expected u and v, or delta"),
        (lambda t: t.pop(DELTA), "base of every weight"),
        (lambda t: t.clear(), "without a change"),
        (lambda t: t[U].add_(1), "content hash"),
    ],
)
def test_other_tensors(copied, edit, change, said):
    tensors = tensors_of(edit)
    change(tensors)
    forge(copied, tensors=tensors)
    damaged(copied, said)


@pytest.mark.parametrize(
    "factors", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"{}", b"\x80\x04K\x01.", (10**15).to_bytes(8, "little") + b"{}"]
)
def test_factors_that_are_no_safetensors(copied, factors):
    (copied / FACTORS).write_bytes(factors)
    forge(copied, lambda r: r.update(factors_sha256=hashlib.sha256(factors).hexdigest()))
    damaged(copied)


def nest(depth: int) -> list:
    nested: list = []
    for _ in range(depth):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda r: r.update(schema="knowedit.edit/9"), "schema 'knowedit.edit/9', expected 'knowedit.edit/2'"),
        (lambda r: r.update(schema=["x" * 9999]), "schema"),
        (lambda r: r.pop("notes"), "the record has the fields"),
        (lambda r: r.update(file="../../other.safetensors"), "the record has the fields"),
        (lambda r: r["content"].pop("seed"), "the content has the fields"),
        (lambda r: r["content"].update(code="import os"), "the content has the fields"),
        (lambda r: r.update(content=[]), "content is of type list"),
        (lambda r: r.update(notes="none"), "notes is of type str"),
        (lambda r: r.update(versions={"torch": 2}), "versions is no object of texts"),
        (lambda r: r.update(created=7), "created is of type int"),
        (lambda r: r["content"].update(seed=1.0), "seed is of type float"),
        (lambda r: r["content"].update(seed=10**4000), "content hash"),
        (lambda r: r["content"].update(method=None), "method is of type NoneType"),
        (lambda r: r["content"].update(facts={}), "facts is of type dict"),
        (lambda r: r["content"].update(facts=["x"]), "a fact is a JSON object"),
        (lambda r: r["content"].update(facts=[{"template": "{0}", "subject": "a", "target": "b"}]), "has 0 slots"),
        (lambda r: r["content"].update(bases={"transformer.h.1.mlp.c_proj": 1}), "bases is no object of texts"),
        (lambda r: r["content"].update(bases={"../../x": ""}), "base of every weight"),
        (lambda r: r["content"].update(model="other"), "content hash"),
        (lambda r: r.update(content_hash="0" * 64), "content hash"),
    ],
)
def test_other_records(copied, change, said):
    forge(copied, change)
    damaged(copied, said)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "7",
        "{",
        "NaN",
        '{"schema": "knowedit.edit/2"}',
        '{"schema": "knowedit.edit/2", "checksum": NaN}',
        '{"schema": "knowedit.edit/2", "notes": 1e999}',
        '{"schema": "knowedit.edit/2", "notes": ' + "9" * 5000 + "}",
        '{"schema": "knowedit.edit/2", "notes": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"schema": "knowedit.edit/2", "schema": "knowedit.edit/2"}',
        "\ufeff{}",
        "\x00",
    ],
)
def test_hostile_json(copied, text):
    (copied / RECORD).write_text(text, encoding="utf-8")
    damaged(copied)


@pytest.mark.parametrize("depth", [500, 990, 5000])
def test_deep_notes_are_read_or_refused(copied, depth):
    """Whatever depth the machine can take, nothing but an error of ours comes out."""
    try:
        forge(copied, lambda r: r["notes"].update(deep=nest(depth)))
    except RecursionError:
        text = (
            (copied / RECORD).read_text().replace('"notes": {', '"notes": {"deep": ' + "[" * depth + "]" * depth + ",")
        )
        (copied / RECORD).write_text(text)
    try:
        assert load_edit(copied).notes["deep"]
    except DataError as error:
        assert "\n" not in str(error)


def test_paths_that_leave_the_folder_are_no_down_projections(copied, edit, model):
    """Names of tensors never become names of files; as module paths they fit no model."""
    tensors = renamed(tensors_of(edit), "transformer.h.1", "../../transformer.h.1")
    bases = {path.replace("transformer.h.1", "../../transformer.h.1"): base for path, base in edit.bases.items()}
    (copied / FACTORS).unlink(), (copied / RECORD).unlink(), copied.rmdir()
    deltas = {p.replace("transformer.h.1", "../../transformer.h.1"): d for p, d in edit.deltas.items()}
    folder = dataclasses.replace(edit, deltas=deltas, bases=bases).save(copied)
    assert set(safetensors.torch.load_file(folder / FACTORS)) == set(tensors)
    assert sorted(p.name for p in copied.parent.rglob("*")) == ["copy", RECORD, FACTORS]
    with pytest.raises(InputError, match="no down-projection"):
        load_edit(copied).applied(model).__enter__()
