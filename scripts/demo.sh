#!/usr/bin/env bash
# Locates the neurons behind one built-in fact in the default model: scripts/demo.sh [knowedit locate's options]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
export HF_HUB_OFFLINE=1
exec knowedit locate --fact landmark-city/eiffel-tower "$@"
