#!/usr/bin/env bash
# Runs the tests in their own environment: scripts/test.sh [pytest's arguments]
# The package index is needed once, for the environment and the default model; the Hub never.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
export HF_HUB_OFFLINE=1
# the report page is opened in a browser; where there is none and none can be installed, its tests are skipped
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing chromium (once)" >&2
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium; } \
    >/dev/null 2>&1 || echo "chromium could not be installed; the tests of the report page will be skipped" >&2
fi
# tiny models keep one core busy, so two workers; a file stays with one, which makes its models once; files are begun in
# the order of tests/conftest.py, the longest first, not in that of their number of tests
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
