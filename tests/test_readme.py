"""What the README says is what the committed results and the code say."""

import re
from pathlib import Path

from benchmarks.table import table

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_numbers_are_those_of_the_result_files():
    shown = re.search(r"<!-- numbers -->\n(.*?)\n<!-- end -->", README, re.S).group(1)
    assert shown.strip() == table().strip()


def test_the_two_commands_come_first():
    first = re.search(r"```sh\n(.*?)```", README, re.S).group(1)
    assert [line.split("#")[0].strip() for line in first.splitlines() if line.startswith("bash")] == [
        "bash scripts/demo.sh",
        "bash scripts/test.sh",
    ]
    root = Path(__file__).parents[1]
    assert (root / "scripts/demo.sh").exists() and (root / "scripts/test.sh").exists()


def test_every_linked_file_is_there():
    root = Path(__file__).parents[1]
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (root / link).exists()] == []


def test_public_names_in_the_examples_exist():
    import knowedit

    used = set(re.findall(r"knowedit\.([a-z_A-Z]+)\(", README))
    assert used
    assert used <= set(knowedit.__all__)
