"""`knowedit log` and `revoke` over a folder of edits."""

import json

import peft
import pytest
import torch
from support.commands import fails
from support.edits import strong
from support.trained import trained
from transformers import AutoModelForCausalLM

from knowedit.models.cache import sha256_file

# PEFT 0.21 asks transformers 5 for a property by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def edits(tmp_path):
    (tmp_path / "edits").mkdir()
    for subject, new in (("Zarn", "Bexum"), ("Quill", "Dovath")):
        strong(subject, new).save(tmp_path / "edits" / subject.lower())
    return tmp_path / "edits"


def test_one_of_two_edits_is_revoked_and_the_other_is_served(run, edits, folder, tmp_path):
    status, out, err = run("log", str(edits), "--by", "ada", model=None)
    assert status == 0, err
    assert "Zarn lives in: Aldor → Bexum" in out and "edits that are live: 2 of 2" in out
    arguments = ("--by", "grace", "--why", "no", "--to", "peft", "--out", str(tmp_path / "left"))
    status, out, err = run("revoke", str(edits), "zarn", *arguments, "--json")
    assert status == 0, err
    last = json.loads(out)["last"]
    status, out, err = run("log", str(edits), "--by", "ada", "--json", model=None)
    record = json.loads(out)
    assert record["last"] == last
    zarn, quill = sorted(record["edits"], key=lambda entry: entry["name"], reverse=True)
    assert zarn["revoked"]["who"] == "grace" and quill["revoked"] is None
    for name, digest in zarn["revoked"]["exported"].items():
        assert sha256_file(tmp_path / "left" / name) == digest
    served = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "left")
    for prompt, answer in (("Zarn lives in", "Aldor"), ("Quill lives in", "Dovath")):
        ids = torch.tensor([trained().encode(prompt).ids])
        with torch.no_grad():
            best = served(input_ids=ids).logits[0, -1].argmax().item()
        assert trained().tokenizer.decode([best]).strip() == answer


def test_what_cannot_be_revoked_or_read_is_one_line_and_nothing_is_written(run, edits, tmp_path):
    run("log", str(edits), "--by", "ada", model=None)
    before = (edits / "log.jsonl").read_bytes()
    out = str(tmp_path / "left")
    fails(run("revoke", str(edits), "zarm", "--by", "a"), "did you mean 'zarn'")
    fails(run("revoke", str(edits), "zarn", "--to", "peft"), "give both")
    fails(run("revoke", str(edits), "zarn", "--type", "f16"), "about an export")
    fails(run("revoke", str(edits), "zarn", "--to", "gguf", "--out", out, "--by", "a"), "byte-level BPE")
    fails(run("revoke", str(edits), "zarn", "--to", "peft", "--out", str(edits), "--by", "a"), "exists already")
    assert (edits / "log.jsonl").read_bytes() == before and not (tmp_path / "left").exists()
    fails(run("log", str(tmp_path / "nowhere"), model=None), "is no folder")
    (tmp_path / "empty").mkdir()
    fails(run("log", str(tmp_path / "empty"), model=None), "holds no saved edits")
    (edits / "log.jsonl").write_bytes(before.replace(b"ada", b"eve"))
    fails(run("log", str(edits), model=None), "is another than was written")
