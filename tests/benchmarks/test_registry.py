"""Every benchmark is registered once, and every committed number has its command and its line in the page."""

import json
from pathlib import Path

import pytest

from benchmarks import table
from benchmarks.__main__ import main, parser
from benchmarks.registry import BENCHMARKS, RESULTS, ROOMS, Benchmark, load_all, result_files
from benchmarks.timing import alternated

FILES = result_files()


def parsed(command):
    """The benchmark that a command runs, and the arguments."""
    arguments = vars(parser().parse_args(command.split()[3:]))
    assert arguments.pop("command") == "run" and arguments.pop("results") == RESULTS
    return BENCHMARKS[arguments.pop("name")], arguments


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RESULTS)))
def test_a_result_has_its_command_and_its_line(path):
    command, record = FILES[path]
    benchmark, arguments = parsed(command)
    assert benchmark.command(arguments) == command
    place = path.parent if path.name == "report.json" else path
    assert ".".join(place.relative_to(RESULTS).with_suffix("").parts).startswith(benchmark.name)
    lines = benchmark.lines(record)
    assert lines and all(isinstance(line, str) and line and "|" not in line and "\n" not in line for line in lines)


def test_every_benchmark_has_a_result():
    assert {parsed(command)[0].name for command, _ in FILES.values()} == set(load_all())
    assert {name.partition(".")[0] for name in BENCHMARKS} == set(ROOMS)


def test_the_page_is_what_the_results_say():
    page = table.PAGE.read_text(encoding="utf-8")
    shown = page.partition(table.START)[2].partition(table.END)[0]
    assert shown == table.table()
    for path in FILES:
        assert f"results/{path.relative_to(RESULTS).parent.as_posix()}" in shown


def test_no_room_is_crowded():
    root = Path(table.__file__).parent
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        if folder.name != "configs":
            files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith("__")]
            assert len(files) <= 12, folder


def test_a_run_keeps_its_record_with_command_and_machine(tmp_path, monkeypatch):
    def measure(rounds: int = 3, whole: bool = False, sizes: tuple[int, ...] = (1,), source: str | None = None) -> dict:
        return {"rounds": rounds, "whole": whole, "sizes": list(sizes), "source": source}

    benchmark = Benchmark("speed.made_up", "Is it kept?", measure)
    benchmark.row(lambda record: [f"{record['rounds']} rounds"])
    monkeypatch.setitem(BENCHMARKS, benchmark.name, benchmark)
    words = "--rounds 7 --whole --sizes 2 3 --source /some/where/facts.jsonl".split()
    main(["run", "--results", str(tmp_path), benchmark.name, *words])
    record = json.loads((tmp_path / "speed/made_up.json").read_text())
    expected = "python -m benchmarks run speed.made_up --rounds 7 --whole --sizes 2 3 --source facts.jsonl"
    assert record["command"] == expected
    assert (record["rounds"], record["whole"], record["sizes"]) == (7, True, [2, 3])
    assert record["machine"] and record["versions"]["python"]


def test_the_facts_that_edits_are_reported_on_are_written(tmp_path):
    main(["facts", str(tmp_path / "reported.jsonl")])
    lines = (tmp_path / "reported.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 200 and len({json.loads(line)["id"] for line in lines}) == 200


def test_what_was_asked_wrongly_ends_in_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "quality.findings", "--only", "sparsty"])
    assert end.value.code == 2 and "did you mean 'sparsity'" in capsys.readouterr().err.lower()


def test_the_help_names_every_benchmark(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert [name for name in load_all() if name not in shown] == []


def test_ways_are_measured_in_turn():
    order = []
    watch, results = alternated(
        3, {"slow": lambda: order.append("slow") or 1, "fast": lambda: order.append("fast") or 2}
    )
    assert order == ["slow", "fast"] * 3 and results == {"slow": 1, "fast": 2}
    watch.seconds["slow"][:], watch.seconds["fast"][:] = [2.0, 9.0, 4.0], [1.0, 3.0, 1.0]
    assert watch.ratio("slow", "fast") == {"ratio_by_round": [2.0, 3.0, 4.0], "ratio_median": 3.0}
    assert watch.total("slow") == 15 and watch.median("fast") == 1
