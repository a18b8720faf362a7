"""The change of a fact set is a function of the facts in it, to the bit."""

import random
from dataclasses import replace

import pytest
import torch
from support.fact_sets import LONG, config, covariances, fact_set, loaded, requests
from support.rounding import ADAM, assert_near, near
from support.tiny import tiny
from support.trained import CITIES, exact, trained

from knowedit import Fact, FactSet, rome, rome_many
from knowedit.edit.apply import applied, edits_on
from knowedit.edit.covariance import Covariance
from knowedit.edit.fact_set.emmet import Emmet
from knowedit.edit.methods.v_star import Value
from knowedit.edit.preserved_keys import preserved_keys
from knowedit.edit.rewrite_quality import rewrite_quality
from knowedit.errors import InputError, ModelError

FACTS = requests()[:8]
LAYERS = ((0,), (0, 1))


def tensors(edit):
    return {path: delta.matrix() for path, delta in edit.deltas.items()}


def same(one, other):
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[path], b[path]) for path in a)


def filled(facts=FACTS, **settings):
    made = fact_set(**settings)
    made.add(facts)
    return made


@pytest.fixture(scope="module")
def full():
    return filled()


@pytest.fixture(scope="module")
def others():
    """The facts with other answers than they have in `FACTS`, where their relation has more."""
    return [replace(f, target_new=a) for f in FACTS for a in CITIES[:3] if a not in (f.target, f.target_new)
            and f.relation == "home"][:6]  # fmt: skip


@pytest.fixture(scope="module")
def rows(full, others):
    """The rows of all of these."""
    found = dict(full._store.rows)
    for fact in others:
        found |= filled([fact])._store.rows
    return found


@pytest.fixture
def shared(rows):
    """Makes sets that have the rows of all facts already, so that nothing is searched for again."""

    def make(layers=(0,)):
        made = fact_set(layers=layers)
        made._store.rows.update(rows)
        return made

    return make


def test_the_order_of_adding_leaves_no_trace(full):
    one_by_one = fact_set()
    for fact in reversed(FACTS):
        one_by_one.add([fact])
    assert one_by_one.edit().factors_hash == full.edit().factors_hash


@pytest.mark.parametrize("layers", LAYERS)
def test_random_histories_end_in_the_bits_of_a_fresh_solve(layers, shared, others):
    generator = random.Random(0)
    contents = [*FACTS, *others]
    for _ in range(50):
        made = shared(layers)
        for _ in range(generator.randrange(1, 12)):
            kind, fact = generator.choice(("add", "replace", "remove")), generator.choice(contents)
            if kind == "remove" and fact.id in made:
                made.remove([fact.id])
            elif kind == "replace" and fact.id in made:
                made.replace([fact])
            elif fact.id not in made:
                made.add([fact])
        if not len(made):
            continue
        left = list(made.facts)
        generator.shuffle(left)
        fresh = shared(layers)
        fresh.add(left)
        assert fresh.edit().factors_hash == made.edit().factors_hash


@pytest.mark.parametrize("layers", LAYERS)
def test_a_model_answers_after_removal_as_if_the_fact_had_never_been(layers, shared):
    never, removed = shared(layers), shared(layers)
    never.add(FACTS[1:])
    removed.add(FACTS)
    removed.remove([FACTS[0].id])
    with never.applied():
        wanted = rewrite_quality(trained(), FACTS)
    with removed.applied():
        assert rewrite_quality(trained(), FACTS) == wanted


def test_replacing_is_removing_and_adding(shared):
    third = next(a for a in CITIES if a not in (FACTS[0].target, FACTS[0].target_new))
    other = replace(FACTS[0], target_new=third)
    replaced, fresh = shared(), shared()
    replaced.add(FACTS)
    replaced.replace([other])
    fresh.add([*FACTS[1:], other])
    assert same(replaced.edit(), fresh.edit())
    assert len(replaced) == len(FACTS)


def test_a_fact_that_is_kept_out_of_a_replacement_contradicts_by_its_old_version(shared):
    """The first would take the second's question with another answer, and is kept out; so its own question is taken."""
    answers = [a for a in CITIES if a not in (FACTS[0].target, FACTS[0].target_new, FACTS[2].target_new)]
    made = shared()
    made.add([FACTS[0], FACTS[2], FACTS[4]])
    first = replace(FACTS[4], id=FACTS[0].id, target_new=answers[0])
    second = replace(FACTS[0], id=FACTS[2].id, target_new=answers[0])
    added = made.replace([first, second])
    assert added.added == () and set(added.kept_out) == {FACTS[0].id, FACTS[2].id}
    assert set(made.facts) == {FACTS[0], FACTS[2], FACTS[4]}


@pytest.mark.parametrize("key_contexts, key", [(0, "plain"), (2, "mean")])
def test_one_fact_has_romes_edit(key_contexts, key, doubled):
    model = exact(trained())
    C = covariances(model)
    settings = config(solver=Emmet(), key_contexts=key_contexts, contexts=("Today Zarn", "a b"))
    made = FactSet(model, settings, covariance=C)
    made.add(FACTS[:1])
    (found,) = made.edit().deltas.values()
    (wanted,) = rome(model, FACTS[0], replace(settings.rows, key=key), covariance=covariances(model)[0]).deltas.values()
    assert_near(found.matrix(), wanted.matrix(), operations=ADAM, dtype=torch.float32)  # an edit is kept in float32


def test_one_fact_has_romes_edit_beside_preserved_keys(doubled):
    model = exact(trained())
    C, others = covariances(model), preserved_keys(model, 0, requests()[4:])
    settings = config(solver=Emmet(), key_contexts=0, preserve=3.0)
    fact = replace(FACTS[0], subject=requests()[6].subject)  # its own subject is among them and is left out
    made = FactSet(model, settings, covariance=C, preserved={0: others})
    made.add([fact])
    (found,) = made.edit().deltas.values()
    C = covariances(model)
    (wanted,) = rome(model, fact, settings.rows, covariance=C[0], preserved=others).deltas.values()
    assert_near(found.matrix(), wanted.matrix(), operations=ADAM, dtype=torch.float32)


def test_facts_are_held_by_one_change_that_edits_added_up_do_not_hold():
    model, chosen = trained(), requests()[:4:2]
    settings = config(solver=Emmet(), search=LONG)
    C = covariances(model)
    made = FactSet(model, settings, covariance=C)
    made.add(chosen)
    keys = [made._store.rows[name].key for name in made._store.rows]
    deltas = [made._store.rows[name].delta for name in made._store.rows]
    (together,) = made.edit().deltas.values()
    added_up = sum(
        next(iter(e.deltas.values())).matrix() for e in rome_many(model, chosen, settings.rows, covariance=C[0])
    )
    for key, delta in zip(keys, deltas, strict=True):
        assert (together.matrix() @ key).numpy() == near(delta, size=10 * delta.abs().max())
        assert (added_up @ key - delta).norm() > 0.01 * delta.norm()


def test_an_empty_set_changes_nothing():
    made, weights = fact_set(), trained().weights_hash()
    with made.applied():
        assert trained().weights_hash() == weights
    with pytest.raises(InputError, match="holds no facts"):
        made.edit()


def test_rows_are_of_the_model_without_its_other_edits(full):
    other = filled(requests()[10:12])
    with applied(trained(), other.edit()):
        found = filled()
        assert same(found.edit(), full.edit())
    assert edits_on(trained()) == ()


# ---------------------------------------------------------------- folders


def test_a_set_goes_on_from_its_folder(full, tmp_path):
    made = fact_set()
    made.save(tmp_path / "set")
    made.add(FACTS[:5])
    again = loaded(tmp_path / "set")
    again.add(FACTS[5:])
    assert loaded(tmp_path / "set").edit().factors_hash == full.edit().factors_hash


def test_what_a_killed_add_found_is_not_searched_for_again(tmp_path):
    made = fact_set()
    made.save(tmp_path / "set")

    class Killed(BaseException):
        pass

    def killed(done):
        if done >= 4:
            raise Killed

    with pytest.raises(Killed):
        made.add(FACTS, progress=killed)
    again, steps = loaded(tmp_path / "set"), []
    assert len(again) == 0 and len(again._store.rows) >= 4
    again.add(FACTS, progress=steps.append)
    assert steps[0] > 4 and steps[-1] == len(FACTS)


def test_a_set_of_other_weights_is_refused(full, tmp_path):
    full.save(tmp_path / "set")
    full._store.folder = None
    with pytest.raises(ModelError, match="other weights"):
        FactSet.load(exact(trained()), tmp_path / "set")


# ---------------------------------------------------------------- bad input


def test_ids_that_cannot_be_are_refused_and_nothing_changes(shared):
    made = shared()
    made.add(FACTS[:2])
    before = made.facts
    with pytest.raises(InputError, match="'home/zarn' is there twice"):
        made.add([FACTS[0], FACTS[0]])
    with pytest.raises(InputError, match="another fact with the id 'home/zarn'"):
        made.add([replace(FACTS[1], id="home/zarn")])
    with pytest.raises(InputError, match="no fact of the set has the id 'home/zan'.*did you mean 'home/zarn'"):
        made.remove(["home/zan"])
    with pytest.raises(InputError, match="is there twice"):
        made.remove([FACTS[0].id, FACTS[0].id])
    with pytest.raises(InputError, match="no fact of the set"):
        made.replace([FACTS[5]])
    assert made.facts == before
    made.remove([FACTS[0].id])
    with pytest.raises(InputError, match="no fact of the set has the id"):
        made.remove([FACTS[0].id])


def test_a_fact_that_is_there_stays_as_it_is(shared):
    made = shared()
    made.add(FACTS[:2])
    assert made.add(FACTS[:3]).there == (FACTS[0].id, FACTS[1].id)
    assert len(made) == 3


def test_two_answers_to_one_question_are_both_kept_out_and_the_rest_goes_on(shared):
    made = shared()
    contrary = replace(FACTS[0], id="contrary", target_new=FACTS[2].target_new)
    added = made.add([FACTS[0], contrary, FACTS[1]])
    assert added.added == (FACTS[1].id,)
    assert set(added.kept_out) == {FACTS[0].id, "contrary"}
    assert "gets two answers" in added.kept_out["contrary"] and FACTS[0].id in added.kept_out["contrary"]
    made.add([FACTS[0]])
    assert set(made.add([contrary]).kept_out) == {"contrary"} and FACTS[0].id in made


def test_a_fact_that_says_the_same_as_another_is_kept_out(shared):
    made = shared()
    twin = replace(FACTS[0], id="twin")
    added = made.add([FACTS[0], twin])
    assert len(added.added) == 1 and "both say the same" in str(added.kept_out)


def test_facts_whose_keys_are_alike_are_named(shared):
    made = shared()
    twins = [replace(FACTS[0], template="{} lives in", id=None), FACTS[1]]
    assert FACTS[1].subject == FACTS[0].subject  # home and work of one subject, at the beginning of both prompts
    (collision,) = made.add(twins).collisions
    assert collision.cosine > 0.98 and "nearly alike" in collision.why
    assert made.collisions() == [collision]


def test_a_fact_whose_search_fails_is_kept_out_and_the_rest_goes_on(monkeypatch):
    made = fact_set()
    unknown = replace(FACTS[1], target_new="unheard")  # the tokenizer has no token for it
    added = made.add([FACTS[0], unknown])
    assert added.added == (FACTS[0].id,) and "does not know the target" in added.kept_out[unknown.id]
    strict = FactSet(trained(), replace(made.config, least=0.999), covariance=covariances(trained()))
    added = strict.add(FACTS[:2])
    assert added.added == () and "the search for its value failed" in added.kept_out[FACTS[0].id]


def test_a_fact_whose_answer_is_out_of_reach_is_kept_out_and_the_rest_goes_on():
    model = tiny("mistral")  # whose windows are shorter than the way from the subject to the end of `far`
    near, far = (Fact(template, "The Eiffel Tower", "a", target_new="b", id=template)
                 for template in ("{} is", "{} is located in the city of"))  # fmt: skip
    C = {1: Covariance(1, torch.eye(model.n_neurons), 1000, {})}
    made = FactSet(model, config(layers=(1,)), covariance=C)
    for _ in range(2):  # nothing is kept of the search that failed
        added = made.add([far, near])
        assert len(made) == 1 and near.id in made
        assert list(added.kept_out) == [far.id] and "does not depend on what layer 1 puts out" in added.kept_out[far.id]


def test_values_that_are_no_numbers_never_enter_a_set(monkeypatch):
    def broken(model, requests, layer, search, keep):
        nothing = torch.full((32,), torch.nan)
        keep({0: Value(nothing, nothing, torch.zeros(1, 24), 0, torch.nan, torch.nan, 3, False)})

    monkeypatch.setattr("knowedit.edit.fact_set.fact_set.find_in_buckets", broken)
    made = fact_set()
    added = made.add(FACTS[:1])
    assert added.added == () and "failed" in added.kept_out[FACTS[0].id]


def test_a_fact_that_asks_for_nothing_new_is_refused():
    with pytest.raises(InputError, match="has no target_new"):
        fact_set().add([replace(FACTS[0], target_new=None)])


def test_a_set_takes_no_other_first_layer(shared):
    made = shared()
    made.add(FACTS[:1])
    with pytest.raises(InputError, match="the first edited layer is 1"):
        made.edit(layers=(1,))
    with pytest.raises(InputError, match="layer 7 is out of range"):
        made.edit(layers=(0, 7))
