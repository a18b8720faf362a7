"""Benchmarks: facts of public data sets, studies of edits and of neurons, their run folders, reports over them.

source = knowedit.bench.load_source("counterfact.json")
"""

from typing import TYPE_CHECKING

from ..lazy import exports

if TYPE_CHECKING:
    from ..evaluate.dry_run import dry_run as dry_run
    from ..evaluate.edits.config import EditStudyConfig as EditStudyConfig
    from ..evaluate.edits.study import EditStudy as EditStudy
    from ..evaluate.neurons.records import read_located as read_located
    from ..evaluate.neurons.study import NeuronStudy as NeuronStudy, NeuronStudyConfig as NeuronStudyConfig
    from ..evaluate.runs.engine import run_study as run_study
    from ..evaluate.runs.folder import RunFolder as RunFolder, merge_runs as merge_runs
    from ..report.bench.report import BenchReport as BenchReport, bench_report as bench_report
    from ..sources.loading import Source as Source, load_source as load_source
else:
    __getattr__, __dir__, __all__ = exports(__name__, __file__)
