"""docs/tutorial.ipynb, made from docs/tutorial.md: Python blocks are cells, the text between them is Markdown.

python scripts/notebook.py          write the notebook
python scripts/notebook.py --check  fail where it is not what the Markdown makes
"""

import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, NOTEBOOK = DOCS / "tutorial.md", DOCS / "tutorial.ipynb"


def notebook(markdown: str) -> str:
    """The notebook (nbformat 4.5) of a page, as JSON with a last newline. Cells have no output."""
    cells = []
    for i, part in enumerate(re.split(r"^```python\n(.*?)^```\n", markdown, flags=re.S | re.M)):
        if text := part.strip("\n"):
            cell = {"cell_type": "code" if i % 2 else "markdown", "id": f"part-{len(cells)}", "metadata": {}}
            cell |= {"execution_count": None, "outputs": []} if i % 2 else {}
            cells.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


if __name__ == "__main__":
    made = notebook(PAGE.read_text(encoding="utf-8"))
    if "--check" not in sys.argv[1:]:
        NOTEBOOK.write_text(made, encoding="utf-8")
    elif NOTEBOOK.read_text(encoding="utf-8") != made:
        sys.exit(f"{NOTEBOOK} is not what {PAGE.name} makes; run `make docs`")
