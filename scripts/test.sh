#!/usr/bin/env bash
# Runs the tests in their own environment: scripts/test.sh [pytest's arguments]
# The package index is needed once, for the environment and the default model; the Hub never.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
export HF_HUB_OFFLINE=1
exec python -m pytest "$@"
