"""Where facts come from: the built-in ones, files of the user's, and the field's public data sets.

records.py       the records of a file: JSON, lines, CSV, TSV, gzipped or not
builtin.py       our format, and the built-in facts
fields.py        records of others, looked up field by field
edits.py         CounterFact, CounterFact-lite, zsRE, WikiBigEdit
ripple.py        KnowEdit, MQuAKE, RippleEdits
relations.py     the relations format, ParaRel
formats.py       the table of formats
loading.py       load_source: a name or a path → `Source`; read_facts: the facts of a file
"""

from .builtin import builtin_facts, find_fact
from .loading import Source, load_source, read_facts

__all__ = ["Source", "builtin_facts", "find_fact", "load_source", "read_facts"]
