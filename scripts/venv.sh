# Sourced by the scripts beside it: makes .venv in the checkout, or takes the one that is there, and activates it.
#
#   PYTHON=python3.12 scripts/test.sh     another interpreter (default: python3)
#
# The stamp holds what decides the environment; where it is unchanged nothing is installed and no network is needed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
venv="$ROOT/.venv"
python="${PYTHON:-python3}"
stamp="$({ cat setup.cfg pyproject.toml constraints.txt; echo "$ROOT"; "$python" --version; } | "$python" -c \
  'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"

if [ "$(cat "$venv/stamp" 2>/dev/null || true)" != "$stamp" ]; then
  echo "installing into $venv (once)" >&2
  "$python" -m venv --clear "$venv"
  # torch first and alone, so that a build for this machine that is already at hand is taken
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$(grep '^torch==' constraints.txt)" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]' >&2
  echo "$stamp" > "$venv/stamp" # last, so that an interrupted installation starts over
fi
export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
